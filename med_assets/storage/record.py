"""What a record is: a frozen dataclass that is the row of one table, and whose fields are the columns.

A field states what it means, its unit and whether it can be empty (`| None`); the Arrow schema, the check on writing and
`docs/tables.md` are made from that.
"""

import types
import typing
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from itertools import repeat
from operator import attrgetter
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

T = TypeVar("T", bound="Record")
V = TypeVar("V")

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
    """Make a class a frozen dataclass whose values are given by name.

    Equality and text are those of `Record`: to write them anew for each of thirty tables takes 10 ms of the start of each process.
    """
    return dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)(cls)


@record
class Record:
    """A row of a table, of one program."""

    TABLE: ClassVar[str] = ""
    PARTITION: ClassVar[tuple[str, ...]] = ()
    """Fields beside the program by which the rows are kept apart and replaced."""

    program: str = column("program")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return bool(_values(self) == _values(other))

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in self.row().items())})"

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
        given = {each.name: columns[each.name] for each in cls.columns()}
        n_rows = len(given["program"])
        if uneven := [name for name, values in given.items() if len(values) != n_rows]:
            raise ValueError(
                f"{cls.__name__}: expected {n_rows} values of each column, got others of {', '.join(uneven)}"
            )
        return filled(cls, n_rows, given)

    @classmethod
    def to_columns(cls, rows: Sequence["Record"]) -> dict[str, list[Any]]:
        """The values of records by column."""
        return {each.name: list(map(attrgetter(each.name), rows)) for each in cls.columns()}

    @classmethod
    def dictionaries(cls, rows: Sequence["Record"]) -> list[dict[str, Any]]:
        """What `row` gives of each of many records, several times as fast."""
        columns = cls.to_columns(rows)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def row(self) -> dict[str, Any]:
        """The values by column."""
        return {name: getattr(self, name) for name in _names(typing.cast(typing.Any, type(self)))}


def filled(cls: type[V], n_rows: int, columns: Mapping[str, Iterable[Any]]) -> list[V]:
    """Make many objects of a class with slots from the values of each slot, in order.

    A table has tens of thousands of rows: filling slots column by column is several times as fast as `__init__` is.
    """
    rows = list(map(cls.__new__, repeat(cls, n_rows)))
    for name, values in columns.items():
        deque(map(getattr(cls, name).__set__, rows, values), maxlen=0)
    return rows


@cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(each.name for each in _columns(cls))


@cache
def _getter(cls: Any) -> "attrgetter[Any]":
    return attrgetter(*_names(cls))


def _values(row: object) -> Any:
    """The values of a row at once, in the order of its columns."""
    return _getter(typing.cast(typing.Any, type(row)))(row)


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


class RowOfColumns(Mapping[str, V]):
    """Some columns of one row of a table that is held by columns: making one for each of many rows copies no value."""

    __slots__ = ("_columns", "_names", "_row")

    def __init__(self, columns: Mapping[str, Sequence[V]], names: Collection[str], row: int) -> None:
        self._columns, self._names, self._row = columns, names, row

    @classmethod
    def many(
        cls, columns: Mapping[str, Sequence[V]], names: Collection[str], rows: Sequence[int]
    ) -> "list[RowOfColumns[V]]":
        """Make one for each of some rows, at a third of the cost."""
        return filled(cls, len(rows), {"_columns": repeat(columns), "_names": repeat(names), "_row": rows})

    def __getitem__(self, name: str) -> V:
        if name not in self._names:
            raise KeyError(name)
        return self._columns[name][self._row]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a column, or `default` for one that is not of the row: that of `Mapping` takes twice as long."""
        return self._columns[name][self._row] if name in self._names else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict[str, V]], tuple[dict[str, V]]]:
        """Go to another process as a dictionary of this row alone."""
        return dict, (dict(self),)


def values_of(rows: Sequence[Mapping[str, V]], names: Collection[str]) -> dict[str, list[V | None]]:
    """The values of some columns in many rows, None where a row lacks one; of rows of one table they are taken column by column."""
    if not rows or set(map(type, rows)) != {RowOfColumns}:
        return {name: [row.get(name) for row in rows] for name in names}
    of_columns = typing.cast("Sequence[RowOfColumns[V]]", rows)
    first = of_columns[0]
    if {id(row._columns) for row in of_columns} != {id(first._columns)}:
        return {name: [row.get(name) for row in rows] for name in names}
    numbers = [row._row for row in of_columns]
    columns = {name: first._columns[name] if name in first._names else None for name in names}
    return {
        name: [None] * len(rows) if values is None else [values[number] for number in numbers]
        for name, values in columns.items()
    }
