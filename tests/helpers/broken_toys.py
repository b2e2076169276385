"""For each kind of graph break a toy that has it in every block, and for each way out the toy that has taken it."""

from __future__ import annotations

import inspect
import logging
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Block, Toy, build

log = logging.getLogger("a model")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Fix:
    """``after`` gets the compiled model, ``outside`` makes a context to call it in, ``entry`` stands for
    ``dit_compile.compile``."""

    make: Callable[[], nn.Module]
    entry: bool = False
    fullgraph: bool = False
    switches: Mapping[str, Any] = field(default_factory=dict)
    after: Callable[[Any], Any] = lambda model: None
    outside: Callable[[], Any] = nullcontext
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """``line`` is what the message quotes. ``ways`` has what was tried for every way that the message offers."""

    make: Callable[[], nn.Module]
    line: str
    ways: Mapping[str, list[Fix]]


def toy(forward: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """``forward`` gets the block and its arguments, and calls ``block.plain``."""

    class Kind(Block):
        plain = Block.forward

        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.number = checksum()

        def forward(self, x: Tensor, temb: Tensor) -> Tensor:
            return forward(self, x, temb)

    class Broken(Toy):
        def make_block(self, index: int, width: int) -> nn.Module:
            return Kind(width)

    return lambda: build(Broken)


# --- calls that are not traced


def printing(block, x, temb):
    print("tokens", x.shape)
    return block.plain(x, temb)


def logging_info(block, x, temb):
    log.info("tokens %s", x.shape)
    return block.plain(x, temb)


def warning(block, x, temb):
    warnings.warn("careful", stacklevel=1)
    return block.plain(x, temb)


def breaking(block, x, temb):
    torch._dynamo.graph_break()
    return block.plain(x, temb)


def signature(block, x, temb):
    return block.plain(x, temb) * len(inspect.signature(len).parameters)


def checksum() -> int:
    return zlib.crc32(b"block") % 3 + 1


def builtin(block, x, temb):
    return block.plain(x, temb) * checksum()


@torch.compiler.assume_constant_result
def constant_checksum() -> int:
    return checksum()


@torch.compiler.assume_constant_result
def constant_signature() -> int:
    return len(inspect.signature(len).parameters)


@torch.compiler.disable
def disabled_function(x: Tensor) -> Tensor:
    return 2 * x


@torch.library.custom_op("dit_cache_tests::twice", mutates_args=())
def operator(x: Tensor) -> Tensor:
    return torch.from_numpy(2 * x.numpy())


@operator.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def disabled(block, x, temb):
    return block.plain(disabled_function(x), temb)


def device_entered(block, x, temb):
    with torch.device("cpu"):
        return block.plain(x, temb) + torch.ones(1)


def device_given(block, x, temb):
    return block.plain(x, temb) + torch.ones(1, device="cpu")


def device_not_given(block, x, temb):
    return block.plain(x, temb) + torch.ones(1)


def unknown(block, x, temb):
    assert not x.is_inference()
    return block.plain(x, temb)


class AskedInFront(Toy):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert not x.is_inference()
        return super().forward(x, t)


# --- what depends on the values of a tensor


def sizes(block, x, temb):
    return block.plain(x, temb) + 0 * torch.nonzero(x[..., 0]).sum()


def mask(block, x, temb):
    return block.plain(x, temb) + 0 * x[x > 0].sum()


def branch(block, x, temb):
    if x.sum() > 0:
        return block.plain(x, temb)
    return block.plain(2 * x, temb)


def branch_on_a_number(block, x, temb):
    if x.sum().item() > 0:
        return block.plain(x, temb)
    return block.plain(2 * x, temb)


def both_branches(block, x, temb):
    return torch.where(x.sum() > 0, block.plain(x, temb), block.plain(2 * x, temb))


class Told(Toy):
    """Which branch it is has been decided outside."""

    def forward(self, x: Tensor, t: Tensor, double: bool = False) -> Tensor:
        return super().forward(2 * x if double else x, t)


def integer(block, x, temb):
    count = (x > 100).sum().item()
    return block.plain(x, temb) + count


def list_of_integers(block, x, temb):
    [count] = (x > 100).sum()[None].tolist()
    return block.plain(x, temb) + count


def scaled(block, x, temb):
    return block.plain(x, temb) * (1 + x.mean().abs())


# --- memory


def offloaded_pipeline(transformer: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("accelerate")

    class Pipeline(diffusers.DiffusionPipeline):
        model_cpu_offload_seq = "transformer"

        def __init__(self, transformer):
            super().__init__()
            self.register_modules(transformer=transformer)

    return Pipeline(transformer)


def diffusers_toy() -> Any:
    diffusers = pytest.importorskip("diffusers")

    class OfDiffusers(Toy, diffusers.ModelMixin, diffusers.ConfigMixin):
        config_name = "config.json"
        _supports_group_offloading = True

    return build(OfDiffusers, depth=4).requires_grad_(False)


def model_offload() -> Any:
    pipeline = offloaded_pipeline(diffusers_toy())
    pipeline.enable_model_cpu_offload(device="cpu")
    return pipeline.transformer


def offload_compiled(model: Any) -> None:
    offloaded_pipeline(model).enable_model_cpu_offload(device="cpu")


def group_offload() -> Any:
    model = diffusers_toy()
    model.enable_group_offload(CPU, CPU, offload_type="leaf_level")
    return model


def group_offload_of_blocks() -> Any:
    model = diffusers_toy()
    model.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=2)
    return model


def sequential_offload() -> Any:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(build(Toy), execution_device="cpu")


def casting() -> Any:
    model = diffusers_toy()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return model


def quantized(config: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        quantization = pytest.importorskip("torchao.quantization")
        model = build(Toy).requires_grad_(False)
        quantization.quantize_(model, getattr(quantization, config)())
        return model

    return make


MODEL_OFFLOAD = [
    Fix(model_offload),
    Fix(diffusers_toy, after=offload_compiled),
    Fix(diffusers_toy, fullgraph=True, after=offload_compiled),
]
PLAIN = [Fix(lambda: build(Toy))]
CONSTANT = toy(lambda block, x, temb: block.plain(x, temb) * constant_checksum())
KEPT = toy(lambda block, x, temb: block.plain(x, temb) * block.number)
OPERATOR = toy(lambda block, x, temb: block.plain(operator(x), temb))
BRANCHES = {
    "where": [Fix(toy(both_branches))],
    "argument": [Fix(lambda: build(Told), inputs={"double": double}) for double in (False, True)],
}


def ignoring(forward: Any, *functions: Any) -> list[Fix]:
    return [Fix(toy(forward), switches={"ignore_logging_functions": {function}}) for function in functions]


def entering(*forwards: Any) -> list[Fix]:
    return [Fix(toy(forward), entry=True) for forward in forwards]


def traced(switch: str, *forwards: Any) -> dict[str, list[Fix]]:
    return {
        "compile": entering(*forwards),
        "switch": [Fix(toy(forward), switches={switch: True}) for forward in forwards],
        "fullgraph": [Fix(toy(forward), fullgraph=True) for forward in forwards],
    }


TRIALS = {
    "group offloading": Trial(
        group_offload,
        "load_()",
        {"model offload": MODEL_OFFLOAD, "quantize": [Fix(quantized("Int8WeightOnlyConfig"))]},
    ),
    "layerwise casting": Trial(
        casting, "module.to(dtype=self.", {"quantize": [Fix(quantized("Float8WeightOnlyConfig"))]}
    ),
    "sequential offload": Trial(sequential_offload, "wrapper._compiled_fn", {"model offload": MODEL_OFFLOAD}),
    "print": Trial(
        toy(printing),
        'print("tokens", x.shape)',
        {"compile": entering(printing), "remove": PLAIN, "ignore": ignoring(printing, print)},
    ),
    "logging": Trial(
        toy(logging_info),
        'log.info("tokens %s", x.shape)',
        {"compile": entering(logging_info), "remove": PLAIN, "ignore": ignoring(logging_info, logging.Logger.info)},
    ),
    "warnings": Trial(
        toy(warning),
        'warnings.warn("careful", stacklevel=1)',
        {"compile": entering(warning), "remove": PLAIN, "ignore": ignoring(warning, warnings.warn)},
    ),
    "signature": Trial(
        toy(signature),
        "inspect.signature(len)",
        {"before": [Fix(KEPT)], "constant": [Fix(toy(lambda b, x, temb: b.plain(x, temb) * constant_signature()))]},
    ),
    "sizes": Trial(toy(sizes), "torch.nonzero(x[..., 0])", traced("capture_dynamic_output_shape_ops", sizes, mask)),
    "branch": Trial(toy(branch), "if x.sum() > 0:", BRANCHES),
    "branch on a number": Trial(toy(branch_on_a_number), "if x.sum().item() > 0:", BRANCHES),
    "number": Trial(
        toy(integer),
        "count = (x > 100).sum().item()",
        {**traced("capture_scalar_outputs", integer, list_of_integers), "tensor": [Fix(toy(scaled))]},
    ),
    "context manager": Trial(
        toy(device_entered),
        'with torch.device("cpu"):',
        {"argument": [Fix(toy(device_given))], "outside": [Fix(toy(device_not_given), outside=lambda: CPU)]},
    ),
    "graph_break": Trial(toy(breaking), "torch._dynamo.graph_break()", {"remove": PLAIN}),
    "disabled": Trial(
        toy(disabled),
        "disabled_function(x)",
        {"remove": [Fix(toy(lambda block, x, temb: block.plain(2 * x, temb)))], "operator": [Fix(OPERATOR)]},
    ),
    "builtin": Trial(
        toy(builtin),
        'zlib.crc32(b"block")',
        {"before": [Fix(KEPT)], "constant": [Fix(CONSTANT)], "operator": [Fix(OPERATOR)]},
    ),
    "unknown": Trial(toy(unknown), "x.is_inference()", {"move": [Fix(lambda: build(AskedInFront))]}),
}
