"""Which object holds each partition of each table, as of one commit of the log."""

import base64
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from med_assets.storage.files import canonical_json
from med_assets.storage.s3.log import Entry, Log

CHECKPOINT_COMMITS = 32
"""Fewest commits between two checkpoints."""

CHECKPOINT_PARTITIONS = 256
"""With more than so many partitions times CHECKPOINT_COMMITS checkpoints are rarer: one is a hundred bytes a partition."""

ROWS_BYTES = 16 * 1024
"""Bytes of a partition up to which the log holds them; a larger one is an object of its own."""

ENTRY_BYTES = 128 * 1024
"""Bytes of all partitions that one entry of the log holds: who follows the log reads them too."""

Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """The bytes of a partition: their SHA-256 and size, and when they were committed."""

    sha256: str
    token: str
    """What tells an object from another one with the same bytes, so that no writer names one that is about to be removed.

    Empty where the entry of the log holds the bytes itself.
    """
    bytes: int
    stamp: Stamp
    """Time of the commit (ns, later than that of the commit before) and its number."""

    @property
    def in_log(self) -> bool:
        """Whether the entry of the commit holds the bytes."""
        return not self.token

    def name(self, table: str, partition: str) -> str:
        """Name of the object that holds the bytes, below the prefix of the tables."""
        if self.in_log:
            return f"log/{Log.name(self.stamp[1])}"
        return f"data/{table}/{partition}/{self.sha256[:16]}-{self.token}.parquet"


@dataclass(frozen=True, eq=False)
class TableState:
    """The partitions of a table, and when any of a program was last written or removed."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    touched: Mapping[str, int] = field(default_factory=dict)
    """Time (ns) by the first word of a partition, the program."""

    @cached_property
    def ordered(self) -> tuple[str, ...]:
        """Partitions in the order of their files in a folder."""
        return tuple(sorted(self.parts, key=lambda name: f"{name}.parquet".split("/")))

    def under(self, prefix: str) -> list[str]:
        """Partitions that equal a prefix or lie under it, in that order."""
        below = f"{prefix}/" if prefix else ""
        return [each for each in self.ordered if each.startswith(below) or each == prefix]


EMPTY = TableState()


@dataclass(frozen=True, eq=False)
class State:
    """All tables as of a commit; `writer` is the token of its entry in the log."""

    number: int = 0
    time_ns: int = 0
    writer: str = ""
    tables: Mapping[str, TableState] = field(default_factory=dict)

    def table(self, name: str) -> TableState:
        """A table; an empty one where nothing was ever written to it."""
        return self.tables.get(name, EMPTY)

    def part(self, table: str, partition: str) -> Part | None:
        """The object of a partition; None where there is none."""
        return self.table(table).parts.get(partition)

    def stamp(self, table: str, partition: str) -> Stamp | None:
        """When a partition was last written; None where there is none."""
        part = self.part(table, partition)
        return None if part is None else part.stamp

    @cached_property
    def n_partitions(self) -> int:
        """Partitions of all tables."""
        return sum(len(table.parts) for table in self.tables.values())

    @property
    def checkpoint_due(self) -> bool:
        """Whether this is a commit after which a checkpoint is written."""
        return self.number > 0 and self.number % self.commits_per_checkpoint == 0

    @property
    def commits_per_checkpoint(self) -> int:
        """A power of two times CHECKPOINT_COMMITS, so that every checkpoint is at a multiple of that."""
        commits = CHECKPOINT_COMMITS
        while commits * CHECKPOINT_PARTITIONS < self.n_partitions:
            commits *= 2
        return commits

    def after(self, entries: Iterable[Entry]) -> "State":
        """The state after these commits, which follow this one."""
        parts: dict[str, dict[str, Part]] = {}
        touched: dict[str, dict[str, int]] = {}
        number, time_ns, writer = self.number, self.time_ns, self.writer
        for entry in entries:
            number, time_ns, writer = entry.number, int(entry.content["time_ns"]), entry.writer
            for table, partition, part in changes_of(entry):
                if table not in parts:
                    parts[table] = dict(self.table(table).parts)
                    touched[table] = dict(self.table(table).touched)
                touched[table][partition.split("/")[0]] = time_ns
                if part is None:
                    parts[table].pop(partition, None)
                else:
                    parts[table][partition] = part
        changed = {table: TableState(parts[table], touched[table]) for table in parts}
        return State(number, time_ns, writer, {**self.tables, **changed})

    def content(self) -> bytes:
        """The state as a checkpoint: compressed JSON."""
        tables = {
            name: {
                "partitions": {
                    partition: [part.sha256, part.token, part.bytes, *part.stamp]
                    for partition, part in table.parts.items()
                },
                "touched": table.touched,
            }
            for name, table in self.tables.items()
        }
        content = {"number": self.number, "time_ns": self.time_ns, "writer": self.writer, "tables": tables}
        return gzip.compress(canonical_json(content).encode(), compresslevel=1, mtime=0)

    @classmethod
    def of(cls, content: bytes) -> "State":
        """The state that a checkpoint holds. Raises ValueError, KeyError or OSError for what is none."""
        found = json.loads(gzip.decompress(content))
        tables = {
            name: TableState(
                {
                    partition: Part(sha256, token, size, tuple(stamp))
                    for partition, (sha256, token, size, *stamp) in table["partitions"].items()
                },
                table["touched"],
            )
            for name, table in found["tables"].items()
        }
        return cls(found["number"], found["time_ns"], found["writer"], tables)


def changes_of(entry: Entry) -> Iterator[tuple[str, str, Part | None]]:
    """Table, partition and object of all that a commit changed; None for a partition that it removed."""
    stamp = int(entry.content["time_ns"]), entry.number
    for table, changed in entry.content["write"].items():
        for partition, (sha256, token, size, *_) in changed.items():
            yield table, partition, Part(sha256, token, size, stamp)
    for table, partitions in entry.content["remove"].items():
        for partition in partitions:
            yield table, partition, None


def bytes_in(entry: Entry, table: str, partition: str) -> bytes | None:
    """The bytes of a partition that an entry holds itself; None where it does not."""
    found = entry.content["write"].get(table, {}).get(partition, ())
    return base64.b64decode(found[3]) if len(found) > 3 else None


def without_bytes(entry: Entry) -> Entry:
    """An entry without the bytes of partitions."""
    write = {
        table: {partition: found[:3] for partition, found in changed.items()}
        for table, changed in entry.content["write"].items()
    }
    return Entry(entry.number, {**entry.content, "write": write})


def entry_content(
    before: State, changes: Iterable[tuple[str, str, Part | None, str]], requests: Iterable[str], time_ns: int
) -> dict[str, Any]:
    """What the log keeps of a commit: `requests` are the tokens of those that it was made for.

    Of each change table, partition, what is there afterwards, and the bytes in base64 where the entry holds them.
    """
    write: dict[str, dict[str, list[Any]]] = {}
    remove: dict[str, list[str]] = {}
    for table, partition, part, held in changes:
        if part is None:
            remove.setdefault(table, []).append(partition)
        else:
            write.setdefault(table, {})[partition] = [part.sha256, part.token, part.bytes, *([held] if held else [])]
    return {"after": before.writer, "requests": list(requests), "time_ns": time_ns, "write": write, "remove": remove}


def follows(entry: Entry, state: State) -> bool:
    """Whether a commit was made after this state, and not in another log at the same prefix."""
    return entry.number == state.number + 1 and entry.content["after"] == state.writer
