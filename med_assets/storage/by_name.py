"""Records that are still read by the names of their columns; this goes when no code does so."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any


class ByName(Mapping[str, Any]):
    """Reading a record by the name of a column, as rows were read: for code that does not use the fields yet."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name not in _names(type(self)):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(_names(type(self)))

    def __len__(self) -> int:
        return len(_names(type(self)))

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self}


@cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(each.name for each in fields(cls))
