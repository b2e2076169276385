"""Skips blocks of an eager diffusers model by replacing their ``forward``: what a cached step has to equal.

At a computed step every block's arguments and results are remembered. At a reused step the first ``front`` blocks run;
of the others all but the last return what they returned then (nothing may depend on it), and the last returns, for each
stream, what entered the skipped blocks now plus what they added to it then.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from specs import Model
from torch import Tensor
from torch.utils._pytree import tree_map


def chain_blocks(model: torch.nn.Module, spec: Model) -> list[torch.nn.Module]:
    """The blocks of the chain in order of execution."""
    blocks: list[torch.nn.Module] = []
    for entry in spec.chain:
        lists = [list(model.get_submodule(path)) for path in entry.split("|")]
        blocks += [block for together in zip(*lists, strict=True) for block in together]
    return blocks


class EagerOracle:
    def __init__(self, model: torch.nn.Module, spec: Model, front: int = 1) -> None:
        self.model, self.spec = model, spec
        self.blocks = chain_blocks(model, spec)
        self.front = front
        self.results: list[Any] = []
        self.entry: dict[str, Any] = {}
        self.entry_then: dict[str, Any] = {}

    def step(self, *, reuse: bool, **kwargs: Any) -> Any:
        """One call of the model; with ``reuse`` the blocks behind the front are skipped."""
        with self._patched(reuse):
            return self.model(**kwargs)

    @contextmanager
    def _patched(self, reuse: bool) -> Iterator[None]:
        if not reuse:
            self.results = [None] * len(self.blocks)
        for number in range(len(self.blocks)):
            self._patch(number, reuse)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward  # the class's own forward shows again

    def _patch(self, number: int, reuse: bool) -> None:
        block = self.blocks[number]
        original = type(block).forward.__get__(block)
        signature = inspect.signature(original)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if number in (0, self.front):
                prefix = "" if number == self.front else "first."
                bound = signature.bind(*args, **kwargs)
                self.entry |= {prefix + name: tree_map(_copy, value) for name, value in bound.arguments.items()}
                if not reuse:
                    self.entry_then = dict(self.entry)
            if not reuse or number < self.front:
                result = original(*args, **kwargs)
                if not reuse:
                    self.results[number] = tree_map(_copy, result)
                return result
            result = tree_map(_copy, self.results[number])
            return self._forecast(result) if number == len(self.blocks) - 1 else result

        block.forward = forward  # type: ignore[method-assign]

    def _forecast(self, result: Any) -> Any:
        items = list(result) if isinstance(result, (tuple, list)) else [result]
        for i, (item, stream) in enumerate(zip(items, self.spec.exits, strict=False)):
            if stream is not None and isinstance(item, Tensor):
                change = self._stream(self.entry, stream) - self._stream(self.entry_then, stream)
                length = change.shape[1]
                items[i] = item.clone()
                items[i][:, -length if stream.startswith("...") else 0 :][:, :length] += change
        return type(result)(items) if isinstance(result, (tuple, list)) else items[0]

    def _stream(self, entry: dict[str, Any], names: str) -> Tensor:
        parts = [entry[name] for name in names.removeprefix("...").removesuffix("...").split("+")]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
