"""Names of plug-ins: policies and forecasters register under the name that users write in settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to a class."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}
        self._instances: dict[str, T] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator. Raises ValueError when another class has the name already."""

        def decorate(cls: type[T]) -> type[T]:
            known = self._classes.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"the {self.kind} {name!r} is already registered by {known.__module__}")
            self._classes[name] = cls
            return cls

        return decorate

    def __getitem__(self, name: str) -> type[T]:
        return self._classes[name]

    def instance(self, name: str) -> T:
        """The object of the class that everybody shares: what is registered keeps no state of its own."""
        known = self._instances.get(name)
        if known is None or type(known) is not self._classes[name]:
            known = self._instances[name] = self._classes[name]()
        return known

    def names(self) -> list[str]:
        return sorted(self._classes)
