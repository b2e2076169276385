"""The model whose call is under way, where something other than Dynamo's guards watches its structure."""

from __future__ import annotations

import contextvars
from typing import Protocol


class StructureChanged(Exception):
    """Blocks of the model are no longer what was traced; who compiled it traces it again. Never seen by a user."""


class Watched(Protocol):
    """A model that is watched."""

    def has_changed(self) -> bool:
        """Whether its blocks differ from what was traced."""

    def cached(self) -> None:
        """A graph of it was compiled with the cache."""


under_way: contextvars.ContextVar[Watched | None] = contextvars.ContextVar("dit_cache_under_way", default=None)
