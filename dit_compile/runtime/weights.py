"""What tells one module from another, and what is known of a module as long as its weights live."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .budget import Budget
from .stats import GenerationStats

HISTORY = 64  # generations remembered per module

Owner = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """What tells a module from others: the identities of its parameters (``fixed``) and of its buffers.

    A model that is moved to another device and back (model offload) keeps its parameters, but has new buffers; the old
    ones are dead then. A model without parameters is known by its buffers.
    """

    fixed: frozenset[int]
    buffers: weakref.WeakValueDictionary[int, Tensor]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Weights:
        parameters = frozenset(id(tensor) for tensor in tensors if isinstance(tensor, torch.nn.Parameter))
        fixed = parameters or frozenset(map(id, tensors))
        return cls(fixed, weakref.WeakValueDictionary({id(t): t for t in tensors if id(t) not in fixed}))

    def are_those_of(self, other: Weights) -> bool:
        """Whether both may be of one module, whose graphs may use fewer weights (skipped blocks) or more (LoRA)."""
        mine, others = set(self.buffers), set(other.buffers)
        one_in_the_other = self.fixed <= other.fixed or other.fixed <= self.fixed
        return one_in_the_other and (mine <= others or others <= mine)

    def alive(self) -> frozenset[int]:
        return self.fixed | set(self.buffers)


@dataclass(eq=False)
class Known:
    """What is known of one module in all its sessions; goes when a weight of it dies. ``graph`` is the number of the
    graph that it was first called through."""

    weights: Weights
    graph: int
    history: deque[GenerationStats] = field(default_factory=lambda: deque(maxlen=HISTORY))
    budget: Budget = field(default_factory=Budget)
    models: weakref.WeakKeyDictionary[torch.nn.Module, bool] = field(default_factory=weakref.WeakKeyDictionary)

    def is_part_of(self, model: torch.nn.Module) -> bool:
        """Whether ``model``, the one that a pipeline speaks of, has any of these weights."""
        known = self.models.get(model)
        if known is None:
            mine = self.weights.alive()
            known = self.models[model] = not mine.isdisjoint(map(id, tensors_of(model)))
        return known


def tensors_of(module: torch.nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()
