"""Values that never change, kept in a process that reads them again and again, such as a sensor's."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 1 << 18
"""Values that a memo keeps unless it is given another number: beyond them it starts anew."""


class Memo(Generic[T]):
    """Values by key; what a key stands for must never change, as the content of an artifact and a table's file of one stamp."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: dict[Hashable, T] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made when it is first asked for; what is raised is not kept."""
        if key not in self._kept:
            value = make()
            if len(self._kept) >= self._most:
                self._kept.clear()
            self._kept[key] = value
        return self._kept[key]
