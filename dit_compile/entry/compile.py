"""``dit_compile.compile(model)``: compiles a transformer, or every transformer of a pipeline, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ..backend import read_options
from ..compat import is_compiled_module
from ..compat.precompile import can_record
from ..config import ConfigError, parse_layer, resolve
from ..plugins import plugin_names
from .recording import Recording
from .target import Target

Model = TypeVar("Model")


def compile(
    model: Model,
    *,
    mode: str | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    options: Mapping[str, Any] | None = None,
    regions: bool = True,
    watch: bool = True,
    switches: bool = True,
    record: bool = False,
    **settings: Any,
) -> Model:
    """Compiles ``model`` with the step cache, in place, and returns it.

    In place means that the module stays what it was: LoRA, offloading, ``save_pretrained`` and whatever else reaches
    the module still do, and ``model(...)`` runs the compiled code. Nothing is compiled before the first call. Calling
    ``compile`` again replaces the settings.

    Args:
        model: a transformer (``torch.nn.Module``), or a pipeline of diffusers, each transformer of which is compiled.
        mode: as for ``torch.compile``: "default", "reduce-overhead", "max-autotune", ...
        dynamic, fullgraph: as for ``torch.compile``.
        options: Inductor's options, as for ``torch.compile``.
        regions: trace one block of each kind and reuse the trace for the others (torch 2.13 on).
        watch: drop Dynamo's guards inside repeated blocks, which take longer than a cached step, and look at the blocks
            where a generation begins. A change of a block (adapter, processor, hook, attribute, new parameters, dtype)
            within a generation is noticed when the next one begins. False: Dynamo's guards at every step.
        switches: find the settings of ``torch._dynamo.config`` that the model needs to be traced into one graph, and
            set them while this model is compiled (see ``switches.py``). False leaves them to the user.
        record: keep what is compiled, so that ``dit_compile.save`` can write it for another process (torch 2.13 on).
            Dynamo's guards of objects by identity are dropped, as torch drops them where it saves compiled code.
        settings: settings of the cache (``dit-compile env`` lists them): ``preset="fast"``, ``fn=2``.

    Raises:
        TypeError: ``model`` is neither a module nor a pipeline, or is compiled by ``torch.compile`` already.
        ConfigError: a setting that is unknown, or contradicts another.
    """
    both = settings.keys() & (options or {}).keys()
    if both:
        raise ConfigError(f"given twice, as an argument and in options: {', '.join(sorted(both))}")
    given = {**(options or {}), **settings}
    # errors are said here, not at the first call; an argument that is no setting of ours is no option of Inductor's
    parse_layer(settings, where="compile() argument", **plugin_names(settings))
    layers, _ = read_options(given)
    resolve(*layers)
    if mode is not None:
        given["mode"] = mode
    transformers = transformers_of(model)
    recordings = {cls: Recording(cls) for cls in map(type, transformers)} if record and can_record() else {}
    for transformer in transformers:
        target = Target(
            transformer, given, dynamic=dynamic, fullgraph=fullgraph, regions=regions, watch=watch, switches=switches,
            recording=recordings.get(type(transformer)),
        )  # fmt: skip
        target.install()
    return model


def transformers_of(model: Any) -> list[torch.nn.Module]:
    """The modules to compile: ``model`` itself, or those components of a pipeline that are called transformers.

    Raises:
        TypeError: there is none.
    """
    if is_compiled_module(model):
        raise TypeError(
            "this model is compiled by torch.compile already; give dit_compile.compile the module itself, before "
            "torch.compile or as model._orig_mod"
        )
    if isinstance(model, torch.nn.Module):
        return [model]
    components = getattr(model, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(
            f"expected a torch.nn.Module or a pipeline of diffusers, got {type(model).__name__}; compile the "
            "transformer of other programs: dit_compile.compile(transformer)"
        )
    found = [
        (name, module)
        for name, module in components.items()
        if "transformer" in name and isinstance(module, torch.nn.Module)
    ]
    if not found:
        modules = [name for name, module in components.items() if isinstance(module, torch.nn.Module)]
        raise TypeError(
            f"{type(model).__name__} has no component named transformer (modules: {', '.join(modules) or 'none'}); "
            "give the module itself: dit_compile.compile(pipe.unet)"
        )
    for name, module in found:
        if is_compiled_module(module):
            raise TypeError(f"{name} of the pipeline is compiled by torch.compile already; see dit_compile.compile")
    return list(dict.fromkeys(module for _, module in found))
