"""A tiny model as data: its class, its config, and what its forward takes at each denoising step.

Inputs are written with the words below; ``B`` stands for the batch. Anything else (numbers, strings, None, lists and
dicts of words) is passed as it is.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class _Batch:
    """The batch size, or a multiple of it (``2 * B``)."""

    def __init__(self, factor: int = 1) -> None:
        self.factor = factor

    def __rmul__(self, factor: int) -> _Batch:
        return _Batch(factor * self.factor)

    def __repr__(self) -> str:
        return "B" if self.factor == 1 else f"{self.factor} * B"


B = _Batch()


@dataclass(frozen=True)
class Moment:
    """One call in a denoising loop: step ``index`` of ``steps``."""

    index: int
    steps: int
    batch: int
    seed: int

    def size(self, shape: tuple[Any, ...]) -> tuple[int, ...]:
        return tuple(n.factor * self.batch if isinstance(n, _Batch) else n for n in shape)


@dataclass(frozen=True)
class Word:
    """A tensor to be made at every call; ``make`` gets the moment and a number that is unique to the place."""

    make: Callable[[Moment, int], Any]


def latents(*shape: Any) -> Word:
    """Drifts slowly from step to step, as latents do: x_0 + 0.1 * index * velocity."""

    def make(now: Moment, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * now.seed + place)
        size = now.size(shape)
        return torch.randn(size, generator=generator) + 0.1 * now.index * torch.randn(size, generator=generator)

    return Word(make)


def normal(*shape: Any, dtype: torch.dtype = torch.float32) -> Word:
    """Conditioning: random, the same at every step."""

    def make(now: Moment, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * now.seed + place)
        return torch.randn(now.size(shape), generator=generator).to(dtype)

    return Word(make)


def timestep(first: float, *shape: Any, dtype: torch.dtype = torch.float32) -> Word:
    """Falls evenly from ``first`` towards 0; of shape ``(B,)`` unless another is given."""

    def make(now: Moment, place: int) -> Tensor:
        value = first * (1 - now.index / now.steps)
        return torch.full(
            now.size(shape[0] if shape and isinstance(shape[0], tuple) else shape or (B,)), value, dtype=dtype
        )

    return Word(make)


def full(value: float, *shape: Any, dtype: torch.dtype = torch.float32) -> Word:
    return Word(lambda now, place: torch.full(now.size(shape), value, dtype=dtype))


def ones(*shape: Any, dtype: torch.dtype = torch.int64) -> Word:
    return full(1, *shape, dtype=dtype)


def counting(*shape: Any, dtype: torch.dtype = torch.int64, modulo: int = 1 << 30) -> Word:
    """0, 1, 2, ... in row-major order, modulo ``modulo``."""

    def make(now: Moment, place: int) -> Tensor:
        size = now.size(shape)
        return (torch.arange(torch.Size(size).numel()) % modulo).reshape(size).to(dtype)

    return Word(make)


def table(rows: Any, dtype: torch.dtype = torch.int64) -> Word:
    """A literal tensor."""
    return Word(lambda now, place: torch.tensor(rows, dtype=dtype))


def padded(length: int, *real: int, dtype: torch.dtype = torch.int64) -> Word:
    """A mask (B, length): ones for the first ``real`` places of each sample, then zeros."""

    def make(now: Moment, place: int) -> Tensor:
        rows = [[1] * n + [0] * (length - n) for n in (real * now.batch)[: now.batch]]
        return torch.tensor(rows, dtype=dtype)

    return Word(make)


def each(row: object, dtype: torch.dtype = torch.int64) -> Word:
    """A literal tensor, once per sample of the batch."""
    return Word(lambda now, place: torch.tensor([row] * now.batch, dtype=dtype))


def rising(last: float, dtype: torch.dtype = torch.float32) -> Word:
    """A time (B,) that rises evenly from 0 towards ``last``."""
    return Word(lambda now, place: torch.full((now.batch,), last * now.index / now.steps, dtype=dtype))


def falling(*first: float) -> Word:
    """Distinct times of one call, one per value, shared by the batch; each falls evenly towards 0."""
    return Word(lambda now, place: torch.tensor(first) * (1 - now.index / now.steps))


def stored_cache(module: str, cls: str, layers: int, *shape: Any) -> Word:
    """A key/value cache object of diffusers (``get(layer).store(key, value)``), filled for every layer."""

    def make(now: Moment, place: int) -> Any:
        cache = getattr(importlib.import_module(module), cls)(layers)
        for layer in range(layers):
            cache.get(layer).store(*(normal(*shape).make(now, place + 100 * layer + half) for half in (0, 50)))
        return cache

    return Word(make)


def per_sample(item: Any) -> Any:
    """A list with ``item`` once per sample of the batch."""
    return _PerSample(item)


@dataclass(frozen=True)
class _PerSample:
    item: Any


@dataclass(frozen=True)
class Model:
    """A tiny configuration of one transformer class.

    ``chain`` are the lists of the main chain in order of execution (lists that alternate are written as one entry with
    a ``|`` between them). ``exits`` says what the last block returns: for each tensor of its output the name of the
    argument that is the same stream when the first skipped block takes it, ``a+b`` for a concatenation of two along
    dimension 1, ``...a`` where only the last tokens are that stream, ``a...`` where only the first are (the others are
    not read), ``first.a`` for an argument of the chain's first block, None for
    what nobody reads or what is kept as it is.

    ``optional`` are inputs that only some versions of diffusers take (and those need them).

    ``fullgraph`` says whether Dynamo can trace the model into one graph, ``dynamo`` are settings of Dynamo that its
    blocks need to be in one graph, ``refused`` is a regular expression for the reason where it cannot be cached.
    """

    cls: str
    config: dict[str, Any]
    inputs: dict[str, Any]
    chain: tuple[str, ...]
    exits: tuple[str | None, ...] = ("hidden_states",)
    fullgraph: bool = True
    dynamo: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    variant: str = ""
    module: str = "diffusers"
    note: str = ""
    optional: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.cls} ({self.variant})" if self.variant else self.cls

    @property
    def exists(self) -> bool:
        """Whether the diffusers that is installed has the class."""
        try:
            return hasattr(importlib.import_module(self.module), self.cls)
        except ModuleNotFoundError:
            return False

    def build(self, seed: int = 0) -> torch.nn.Module:
        """The model with random weights; every parameter gets one, also those that are initialised to a constant or,
        made by ``torch.empty``, not at all."""
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)  # torch.empty gives NaN then
        try:
            model = self._class()(**self.config)
        finally:
            torch.use_deterministic_algorithms(False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.isnan().any():
                    parameter.zero_()
                if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval().requires_grad_(False)

    def call(self, index: int = 0, *, steps: int = 4, batch: int = 1, seed: int = 1) -> dict[str, Any]:
        """Keyword arguments of the call at step ``index``."""
        now = Moment(index, steps, batch, seed)
        places = iter(range(1 << 20))

        def make(value: Any) -> Any:
            if isinstance(value, Word):
                return value.make(now, next(places))
            if isinstance(value, _PerSample):
                return [make(value.item) for _ in range(now.batch)]
            if isinstance(value, dict):
                return {key: make(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)(make(item) for item in value)
            return batch * value.factor if isinstance(value, _Batch) else value

        taken = inspect.signature(self._class().forward).parameters
        inputs = self.inputs | {name: value for name, value in self.optional.items() if name in taken}
        kwargs = {name: make(value) for name, value in inputs.items()}
        return {**kwargs, "return_dict": False} if "return_dict" in taken else kwargs

    def _class(self) -> Any:
        return getattr(importlib.import_module(self.module), self.cls)
