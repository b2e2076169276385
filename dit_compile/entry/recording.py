"""Code that is compiled so that it can be kept: what Dynamo and the backend noted of one function."""

from __future__ import annotations

import copy
import itertools
import os
import sys
import uuid
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..artifact import GraphArtifact, Layers
from ..compat.precompile import (
    function_in_new_module,
    functions_elsewhere,
    graphs_of,
    install_entry,
    leave_out,
    move_entry,
    new_package,
    package_entry,
)
from .call import call_of

_numbers = itertools.count()
_process = uuid.uuid4().hex[:12]


def unique_name() -> str:
    """A name that no other call gets, in this process or another."""
    return f"{_process}_{os.getpid()}_{next(_numbers)}"


class Recording:
    """What was compiled for ``function``, in this process or in the one that saved it.

    ``function`` has code and a module of its own, since Dynamo finds compiled code by the code object and puts it among
    the globals. ``artifacts`` are the graphs by Dynamo's names, or texts that say why a graph cannot be kept.
    """

    def __init__(self, cls: type) -> None:
        """For models of class ``cls``."""
        module = f"dit_compile.entry.compiled_{unique_name()}"
        self.function = function_in_new_module(call_of(cls), module)
        self.artifacts: dict[str, GraphArtifact | str] = {}
        self.package: Any = new_package(self.function)
        weakref.finalize(self, sys.modules.pop, module, None)

    def content(self) -> tuple[Any, dict[str, GraphArtifact]]:
        """Dynamo's entry and the graphs in it."""
        entry = copy.deepcopy(package_entry(self.package))
        kept = {name: one for name, one in self.artifacts.items() if isinstance(one, GraphArtifact)}
        leave_out(entry, kept)
        return entry, {name: kept[name] for name in graphs_of(entry)}

    def reasons(self) -> list[str]:
        """Why some of what was compiled is not in the content; where the rest is loaded, it is compiled anew."""
        found = dict.fromkeys(one for one in self.artifacts.values() if isinstance(one, str))
        elsewhere = ", ".join(dict.fromkeys(functions_elsewhere(package_entry(self.package))))
        if elsewhere:
            text = (
                f"torch broke its graph, and what it made of the parts is in code that other models share ({elsewhere})"
            )
            found[f"{text}; docs/graph-breaks.md says how to avoid breaks"] = None
        return list(found)

    def adopt(self, entry: Any, artifacts: Mapping[str, GraphArtifact], layers: Layers) -> None:
        """Installs what another process has compiled, with the settings of this one.

        Raises RuntimeError where torch finds that it does not fit.
        """
        move_entry(entry, self.function.__module__)
        self.package = new_package(self.function, entry)
        self.artifacts = dict(artifacts)
        install_entry(
            self.package, self.function, {name: partial(one.restore, layers) for name, one in artifacts.items()}
        )
