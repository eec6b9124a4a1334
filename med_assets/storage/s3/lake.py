"""Tables of a shared home: each version of a partition is written once, and a log of commits says which is current.

    PREFIX/tables/log/N.json, checkpoints/N.json.gz          see `med_assets.storage.s3.table_log`
    PREFIX/tables/data/TABLE/PARTITION/HASH-TOKEN.parquet    the bytes of one version of a partition that is too large for the log

A commit is one object of the log, so it is seen whole or not at all, with the bytes of small partitions. All bytes that are read are kept on
this machine under their SHA-256 and are fetched once, those that it wrote in its commits; many small partitions are read together as
`med_assets.storage.together` does.
"""

import base64
import copy
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.errors import ArtifactCorrupt, ConfigurationError, MedAssetsError
from med_assets.storage import names
from med_assets.storage.files import digest, write_bytes
from med_assets.storage.lake import ANY, SUFFIX, Change, Lake, Unreferenced, conflict, write_parquet
from med_assets.storage.s3 import bucket, conditional, retention
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.log import Entry, side_by_side
from med_assets.storage.s3.table_log import TableLog, table_log
from med_assets.storage.s3.table_state import ENTRY_BYTES, ROWS_BYTES, Part, State, TableState, bytes_in
from med_assets.storage.s3.waiting import Planned
from med_assets.storage.together import CHANGED, Stamp, Together, read_together, rows_in

if TYPE_CHECKING:
    import pyarrow as pa

PACKED = 64
"""Partitions that are not on this machine from which on a pack is looked for, and partitions that change before there is one."""

CHANGED_SHARE = 0.5
"""Share of the partitions of a table and program that change before a pack is written again."""

KEPT_S = 86400.0
"""Seconds for which a machine keeps an object that it read and that is not current any more."""

PACK_S = 10.0
"""Seconds between two times that the processes of a machine look whether packs are to be written."""

DROP_S = 3600.0
"""Seconds between two looks of a machine at what it need not keep."""

Wanted = tuple[str, str, Part]
"""Table, partition and object."""


class S3Lake(Lake):
    """The tables of a shared home, read and written through a folder of this machine that may be deleted at any time."""

    def __init__(self, location: Location, root: Path, tables: Mapping[str, Mapping[str, type]]) -> None:
        """`location` is that of the home; `root` the folder that would hold the tables of a home of this machine alone."""
        super().__init__(root, tables)
        self.location = Location(location.bucket, location.key("tables"))
        self._fixed: State | None = None
        self._known_log: TableLog | None = None

    @cached_property
    def folder(self) -> Path:
        """Folder of what this machine keeps of the tables."""
        return self.root.parent / "tmp" / "tables" / f"shared-{digest(bucket.endpoint(), str(self.location))}"

    @property
    def _log(self) -> TableLog:
        """The log, with the client of the environment as it was when these tables were first asked for anything."""
        found = self._known_log
        if found is None or found.forgotten or found.pid != os.getpid():
            found = self._known_log = table_log(self.location, self.folder)
        return found

    def _state(self) -> State:
        if self._fixed is not None:
            return self._fixed
        state = self._log.state()
        if state.number == 0 and (table := _local_table(self.root)) and (state := self._log.state(0.0)).number == 0:
            raise ConfigurationError(
                f"expected tables at {self.location}, got none, and this home has tables of its own (such as {table}); `med-assets share` "
                "copies them there, and changes nothing here"
            )
        return state

    # -- time

    def refresh(self) -> None:
        """See what others wrote until now; else what they wrote in the last half second may not be seen."""
        self._log.refresh()

    def snapshot(self) -> "S3Lake":
        """The tables as they are now, and stay, whatever is written."""
        fixed = copy.copy(self)
        fixed._fixed = self._state()
        return fixed

    def at(self, number: int) -> "S3Lake":
        """The tables as they were after a commit. Raises ConfigurationError for one that is not there, or not kept any more."""
        fixed = copy.copy(self)
        fixed._fixed = self._log.at(number)
        return fixed

    @property
    def number(self) -> int:
        """Number of the newest commit, 0 before the first."""
        return self._state().number

    def unreferenced(self, older_than_days: float) -> list[Unreferenced]:
        """Old commits, and objects that no commit of the last days names; see `retention`. Raises ConfigurationError, RemoteFailed."""
        return retention.unreferenced(self._log, older_than_days)

    def remove_unreferenced(self, found: Collection[Unreferenced]) -> None:
        """Remove what `unreferenced` gave. Raises RemoteFailed."""
        retention.remove(self._log, found)

    # -- what there is

    def has(self, table: str, partition: str) -> bool:
        return self._part(self._state(), table, partition) is not None

    def stamp(self, table: str, partition: str) -> Stamp | None:
        """Time (ns) of the commit and its number, which change when a partition is written anew; None where it never was."""
        part = self._part(self._state(), table, partition)
        return None if part is None else part.stamp

    def folder_stamp(self, table: str, prefix: str) -> int | None:
        """Time (ns) of the newest commit that changed any partition of the prefix's program; None where none ever did."""
        names.TABLE.check(table)
        return self._state().table(table).touched.get(names.PARTITION.check(prefix).split("/")[0])

    def partitions(self, table: str, prefix: str = "") -> list[str]:
        """Partitions of a table that equal the prefix or lie under it, sorted."""
        return self._state().table(names.TABLE.check(table)).under(prefix.rstrip("/"))

    def stamps(self, table: str, prefix: str = "") -> dict[str, Stamp]:
        """What `stamp` gives of each of the partitions, in the order of `partitions`."""
        found = self._state().table(names.TABLE.check(table))
        return {each: found.parts[each].stamp for each in found.under(prefix.rstrip("/"))}

    def version(self, table: str, prefix: str = "") -> str:
        """Hash of all partitions under a prefix, names and bytes."""
        found = self._state().table(names.TABLE.check(table))
        return digest([[each, found.parts[each].sha256] for each in found.under(prefix.rstrip("/"))])

    @staticmethod
    def _part(state: State, table: str, partition: str) -> Part | None:
        return state.part(names.TABLE.check(table), names.PARTITION.check(partition))

    # -- reading

    def _read(self, table: str, prefix: str = "", columns: Sequence[str] | None = None) -> "pa.Table":
        return self._rows_of(self._state(), table, prefix, columns)

    def _rows_of(self, state: State, table: str, prefix: str, columns: Sequence[str] | None = None) -> "pa.Table":
        schema, found = self._schema(table), state.table(names.TABLE.check(table))
        parts = {each: found.parts[each] for each in found.under(prefix.rstrip("/"))}
        return read_together(
            {each: str(self._path_of(part)) for each, part in parts.items()},
            schema,
            self._copy(self.folder / ("together" if self._fixed is None else "at"), table, prefix),
            {each: part.stamp for each, part in parts.items()},
            lambda changed: self._fetch_rows(table, {each: parts[each] for each in changed}, schema),
            columns,
        )

    def _fetch_rows(self, table: str, parts: Mapping[str, Part], schema: "pa.Schema") -> "dict[str, pa.Table]":
        """Bring the objects of partitions; of many return the rows of those that commits of this machine hold, or a pack."""
        absent = [each for each, part in parts.items() if not _is_whole(self._path_of(part), part)]
        found: dict[str, pa.Table] = {}
        if len(absent) >= CHANGED:  # from which on a copy holds them together, so that no file is needed
            found = self._rows_here(table, {each: parts[each] for each in absent}, schema)
            absent = [each for each in absent if each not in found]
        for name in {program_of(each) for each in absent} if len(absent) >= PACKED else ():
            pack = self._pack(table, name, schema)
            found |= {each: pack.partition(each) for each in absent if pack.stamps.get(each) == parts[each].stamp}
        self._fetch((table, each, parts[each]) for each in absent if each not in found)
        return found

    def _rows_here(self, table: str, parts: Mapping[str, Part], schema: "pa.Schema") -> "dict[str, pa.Table]":
        """Rows of the partitions that commits hold which this machine keeps."""
        import pyarrow as pa

        found: dict[str, pa.Table] = {}
        for number, partitions in _by_commit(parts).items():
            if (entry := self._log.entry_here(number)) is None:
                continue
            for each in partitions:
                content = bytes_in(entry, table, each)
                if content is not None and hashlib.sha256(content).hexdigest() == parts[each].sha256:
                    found[each] = rows_in(pa.BufferReader(content), schema)
        return found

    def _files(self, tables: Collection[str]) -> dict[str, list[str]]:
        state = self._state()
        parts = {table: [(table, each, state.table(table).parts[each]) for each in state.table(table).ordered] for table in tables}  # fmt: skip
        self._fetch(each for wanted in parts.values() for each in wanted)
        return {table: [str(self._path_of(part)) for _, _, part in wanted] for table, wanted in parts.items()}

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def file(self, table: str, partition: str) -> Path:
        """A copy of a partition's object under its name, which is not there where the partition is not."""
        path = self.files / names.TABLE.check(table) / f"{names.PARTITION.check(partition)}{SUFFIX}"
        part = self._part(self._state(), table, partition)
        if part is None:
            path.unlink(missing_ok=True)
            return path
        self._fetch([(table, partition, part)])
        write_bytes(path, self._path_of(part).read_bytes())
        return path

    def copy_to(self, folder: Path) -> None:
        """Copy all partitions into a folder, as the tables of a home of one machine lie there."""
        state = self._state()
        wanted = [
            (table, partition, part) for table, found in state.tables.items() for partition, part in found.parts.items()
        ]
        self._fetch(wanted)
        for table, partition, part in wanted:
            target = folder / names.TABLE.check(table) / f"{names.PARTITION.check(partition)}{SUFFIX}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._path_of(part), target)

    def _path_of(self, part: Part) -> Path:
        return self.folder / "data" / part.sha256[:2] / f"{part.sha256}{SUFFIX}"

    def _fetch(self, wanted: Iterable[Wanted]) -> None:
        """Bring the objects that are not on this machine. Raises RemoteFailed, and ArtifactCorrupt for one that is not what was written."""
        objects: dict[str, list[Wanted]] = {}
        for table, partition, part in wanted:
            if not _is_whole(self._path_of(part), part):
                objects.setdefault(part.name(table, partition), []).append((table, partition, part))
        side_by_side(lambda each: self._fetch_object(*each), objects.items())

    def _fetch_object(self, name: str, wanted: Sequence[Wanted]) -> None:
        """Bring the partitions that an object holds: one, or, of an entry of the log, several."""
        if wanted[0][2].in_log:
            wanted = self._left_of(wanted, self._log.entry_here(wanted[0][2].stamp[1]))
            if not wanted:
                return
        found = conditional.get(self._log.client, self.location, name)
        for table, partition, part in wanted:
            content = found.content if found else None
            if found and part.in_log:
                content = bytes_in(self._log.log.entry(part.stamp[1], found.content), table, partition)
            if content is None or hashlib.sha256(content).hexdigest() != part.sha256:
                state = "no object" if found is None else "an object with other bytes"
                if self._log.state().part(table, partition) != part:
                    state += " of an earlier commit, which `med-assets gc` may have removed"
                raise ArtifactCorrupt(
                    f"table {table}, {partition.split('/')[0]}: expected the bytes that were committed, got {state}; restore the bucket "
                    "from a backup, or write the partition again by the stage that makes it"
                )
            self._keep(part, content)

    def _left_of(self, wanted: Sequence[Wanted], entry: Entry | None) -> Sequence[Wanted]:
        """Keep the partitions that a commit of this machine holds; returns the others."""
        left = []
        for table, partition, part in wanted:
            content = bytes_in(entry, table, partition) if entry else None
            if content is not None and hashlib.sha256(content).hexdigest() == part.sha256:
                self._keep(part, content)
            else:
                left.append((table, partition, part))
        return left

    def _keep(self, part: Part, content: bytes) -> None:
        if _is_whole(self._path_of(part), part):
            return
        write_bytes(self._path_of(part), content)

    # -- writing

    def commit(self, changes: Sequence[Change]) -> list[str]:
        """Write several partitions at once, none where one is not as expected; returns the SHA-256 of each file, empty where it was taken away.

        Writers of different partitions never fail. Raises Conflict, and LockLost where this thread lost a lock that it took.
        """
        if self._fixed is not None:
            raise ConfigurationError("expected tables as they are now to write to, got those of an earlier commit")
        tables, state = [self._arrow(change) for change in changes], self._state()
        contents = [None if table is None else _bytes(table) for table in tables]
        planned, left = list[Planned](), ENTRY_BYTES
        for change, content in zip(changes, contents, strict=True):
            planned.append(self._planned(state, change, content, left))
            left -= len(planned[-1].held)
        if not all(each.fits(state) for each in planned):
            state = self.newest()
            if stray := next((each for each in planned if not each.fits(state)), None):
                raise conflict(stray.table, stray.partition)
        self._write(state, planned, contents)
        self.adopt(planned)
        return [each.part.sha256 if each.part else "" for each in planned]

    def _drop(self, state: State) -> None:
        """Drop what this machine kept of objects that are not current, and that nobody read for a day; once in a while, since it looks at all files."""
        looked = self.folder / "dropped"
        with suppress(FileNotFoundError):
            if _age_s(looked) < DROP_S:
                return
        with suppress(OSError), suppress(OSError):
            looked.touch()
        current = {part.sha256 for table in state.tables.values() for part in table.parts.values()}
        for path in (self.folder / "data").glob(f"*/*{SUFFIX}"):
            with suppress(FileNotFoundError):
                if path.name.removesuffix(SUFFIX) not in current and _age_s(path) > KEPT_S:
                    path.unlink()

    # -- packs: all partitions of a table and program in one object, so that a new machine does not fetch them one by one

    def _pack(self, table: str, name: str, schema: "pa.Schema") -> Together:
        """The partitions that a pack has; none where there is no pack."""
        path = self.folder / "packs" / table / f"{name}{SUFFIX}"
        found = conditional.get(self._log.client, self.location, pack_name(table, name))
        if found is None:
            return Together.empty(schema)
        write_bytes(path, found.content)
        return Together.of(path, schema)

    def _write_packs(self, state: State) -> None:
        """Write the packs of tables and programs of which much has changed since; done with a checkpoint, and may be lost."""
        looked = self.folder / "packed"
        with suppress(FileNotFoundError):
            if 0 <= _age_s(looked) < PACK_S:
                return
        packed = dict(self._log.hints().get("packs", {}))
        fresh: dict[str, int] = {}
        for table in sorted(self.tables.keys() & state.tables.keys()):
            for name, stamps in _by_program(state.table(table)).items():
                since = packed.get(f"{table}/{name}", 0)
                changed = sum(stamp[1] > since for stamp in stamps)
                if changed >= max(PACKED, len(stamps) * CHANGED_SHARE):
                    self._write_pack(state, table, name)
                    fresh[f"{table}/{name}"] = state.number
        if fresh:
            self._log.hint(packs={**packed, **fresh})
            with suppress(OSError):
                looked.touch()

    def _write_pack(self, state: State, table: str, name: str) -> None:
        self._rows_of(state, table, name)  # which leaves a copy, but for the last few that changed
        path = self._copy(self.folder / "together", table, name)
        if path.is_file():
            conditional.put(self._log.client, self.location, pack_name(table, name), path.read_bytes())

    def _planned(self, state: State, change: Change, content: bytes | None, left: int) -> Planned:
        """A change whose bytes the log holds if they are few and at most `left` in base64, and else an object."""
        expected = () if change.expected is ANY else (change.expected,)
        if content is None:
            return Planned(change.table, change.partition, None, expected)
        sha256, there = hashlib.sha256(content).hexdigest(), state.part(change.table, change.partition)
        token = there.token if there and there.sha256 == sha256 else ""
        held = base64.b64encode(content).decode() if not token and len(content) <= ROWS_BYTES else ""
        if len(held) > left:
            held = ""
        part = Part(sha256, token or ("" if held else secrets.token_hex(4)), len(content), ())
        return Planned(change.table, change.partition, part, expected, held)

    def _write(self, state: State, planned: Sequence[Planned], contents: Sequence[bytes | None]) -> None:
        """Put the objects that are not there; those that are current may be named again, since they are kept for days."""
        fresh = []
        for change, content in zip(planned, contents, strict=True):
            if content is None or change.part is None:
                continue
            if not change.part.in_log and not _same(state, change):
                fresh.append((change.table, change.partition, change.part, content))
        side_by_side(lambda each: self.write_object(*each), fresh)

    # -- objects, for what moves tables as they are

    def newest(self) -> State:
        """Which object holds each partition now, without a look at the tables of this home itself."""
        return self._log.state(0.0)

    def has_object(self, table: str, partition: str, part: Part) -> bool:
        """Whether the bucket has an object, named by a commit or not."""
        return conditional.exists(self._log.client, self.location, part.name(table, partition))

    def write_object(self, table: str, partition: str, part: Part, content: bytes) -> None:
        """Put an object, which counts when a commit names it."""
        conditional.put(self._log.client, self.location, part.name(table, partition), content)
        self._keep(part, content)

    def adopt(self, changes: Sequence[Planned]) -> None:
        """Commit changes whose objects are there. Raises Conflict."""
        outcome = self._log.commit(changes)
        if outcome.conflict is not None:
            raise conflict(*outcome.conflict)
        if outcome.checkpoint is not None:
            with suppress(MedAssetsError):  # what was committed is; packs are written with a later checkpoint
                self._write_packs(outcome.checkpoint)
            self._drop(outcome.checkpoint)


def pack_name(table: str, name: str) -> str:
    """Name of the object with all partitions of a table and program, below the prefix of the tables."""
    return f"packs/{table}/{name}{SUFFIX}"


def program_of(partition: str) -> str:
    """First word of a partition."""
    return partition.split("/")[0]


def _by_program(table: TableState) -> dict[str, list[Stamp]]:
    """Stamps of the partitions of a table by program."""
    found: dict[str, list[Stamp]] = {}
    for partition, part in table.parts.items():
        found.setdefault(program_of(partition), []).append(part.stamp)
    return found


def _by_commit(parts: Mapping[str, Part]) -> dict[int, list[str]]:
    """Partitions whose bytes commits hold, by the number of the commit."""
    found: dict[int, list[str]] = {}
    for partition, part in parts.items():
        if part.in_log:
            found.setdefault(part.stamp[1], []).append(partition)
    return found


def _same(state: State, change: Planned) -> bool:
    """Whether the object of a change is that of the partition already."""
    there = state.part(change.table, change.partition)
    return there is not None and change.part is not None and there.token == change.part.token


def _bytes(table: "pa.Table") -> bytes:
    import pyarrow as pa

    stream = pa.BufferOutputStream()
    write_parquet(table, stream)
    return stream.getvalue().to_pybytes()


def _is_whole(path: Path, part: Part) -> bool:
    """Whether an object is on this machine; one that is about to be read is not dropped meanwhile."""
    try:
        if path.stat().st_size != part.bytes:
            return False
        if _age_s(path) > KEPT_S / 2:
            os.utime(path, (time.time(), time.time()))
    except FileNotFoundError:
        return False
    return True


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _local_table(root: Path) -> str:
    """Name of a table that lies in a folder of this machine, empty where there is none."""
    for folder, _, files in os.walk(root):
        if any(name.endswith(SUFFIX) for name in files):
            return Path(folder).relative_to(root).parts[0]
    return ""
