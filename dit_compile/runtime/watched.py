"""The model whose call is under way, where something other than Dynamo's guards watches its structure."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class StructureChanged(Exception):
    """Blocks of the model are no longer what was traced; who compiled it traces it again. Never seen by a user."""


class BoundPlaces(NamedTuple):
    """Weights that a call of a graph does not pass: their ``places`` among all ``total`` inputs, and their ``names`` in
    the model."""

    places: tuple[int, ...]
    names: tuple[str, ...]
    total: int


class Watched(Protocol):
    """A model that is watched."""

    def has_changed(self) -> bool:
        """Whether its blocks differ from what was traced."""

    def name_of(self, source: str) -> str | None:
        """The name in the model of the weight that Dynamo calls ``source``, if it belongs to a watched block."""

    def weights(self, names: Sequence[str]) -> Sequence[Tensor]:
        """The weights that have ``names`` now; one list as long as they are the same."""

    def cached(self) -> None:
        """A graph of it was compiled with the cache."""

    def record(self, name: str, artifact: Any) -> None:
        """Takes what can be kept of the graph that Dynamo calls ``name``, or a text that says why nothing can be."""


under_way: contextvars.ContextVar[Watched | None] = contextvars.ContextVar("dit_cache_under_way", default=None)
