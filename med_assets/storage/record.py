"""What a record is: a frozen dataclass that is the row of one table, and whose fields are the columns.

A field states what it means, its unit and whether it can be empty (`| None`); the Arrow schema, the check on writing and
`docs/tables.md` are made from that.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

T = TypeVar("T", bound="Record")

TYPES: tuple[type, ...] = (str, float, int, bool)
"""Types that a column can have."""


@dataclass(frozen=True)
class Column:
    """One column of a table: its name, type (one of TYPES), meaning, unit, and whether it can be empty."""

    name: str
    type: type
    meaning: str
    unit: str
    nullable: bool


def column(meaning: str, unit: str = "") -> Any:
    """Declare a column, in a class body."""
    return field(metadata={"meaning": meaning, "unit": unit})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(column,))
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose values are given by name."""
    return dataclass(frozen=True, kw_only=True, slots=True)(cls)


@record
class Record:
    """A row of a table, of one program."""

    TABLE: ClassVar[str] = ""
    PARTITION: ClassVar[tuple[str, ...]] = ()
    """Fields beside the program by which the rows are kept apart and replaced."""

    program: str = column("program")

    @classmethod
    def columns(cls) -> tuple[Column, ...]:
        """The columns, in the order of the fields."""
        return _columns(typing.cast(typing.Any, cls))  # its hash is that of a class, which mypy mistakes for its rows'

    @classmethod
    def schema(cls) -> dict[str, type]:
        """Types by column."""
        return {each.name: each.type for each in cls.columns()}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Make the record of a row; columns that it lacks are empty, and those that the record lacks are left out."""
        values: dict[str, Any] = {each.name: row.get(each.name) for each in cls.columns()}
        return cls(**values)

    @classmethod
    def of_columns(cls, columns: Mapping[str, Sequence[Any]]) -> list[Self]:
        """Make the records whose values these are, by column; columns that the record lacks are left out."""
        names = [each.name for each in cls.columns()]
        rows = zip(*(columns[name] for name in names), strict=True)
        return [cls(**dict(zip(names, values, strict=True))) for values in rows]

    def row(self) -> dict[str, Any]:
        """The values by column."""
        return {each.name: getattr(self, each.name) for each in self.columns()}


@cache
def _columns(cls: Any) -> tuple[Column, ...]:
    hints = typing.get_type_hints(cls)
    out = []
    for each in fields(cls):
        kinds = (
            typing.get_args(hints[each.name]) if isinstance(hints[each.name], types.UnionType) else (hints[each.name],)
        )
        [kind] = [one for one in kinds if one is not type(None)]
        kind = str if issubclass(kind, StrEnum) else kind
        assert kind in TYPES, f"column {each.name} of {cls.__name__}: expected one of {TYPES}, got {kind}"
        meta = each.metadata
        out.append(Column(each.name, kind, meta["meaning"], meta["unit"], type(None) in kinds))
    return tuple(out)
