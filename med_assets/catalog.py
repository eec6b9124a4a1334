"""`Catalog`: typed questions about one program's cases, models and scores, and the one place where they are written.

No other module names a table or a partition. A record's class stands for its table, and the values of its `PARTITION`
fields, in order, for a partition: `catalog.rows(CaseVersion, batch)`.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from med_assets.errors import ConfigurationError, Conflict
from med_assets.records import (
    ACCEPT,
    EXCLUDE,
    USABLE,
    BatchAudit,
    CaseVersion,
    Champion,
    Checkpoint,
    DatasetCase,
    PreparedCase,
    ReaderDecision,
    SplitAssignment,
    Status,
    Withdrawal,
)
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.canonical import canonical_table
from med_assets.storage.files import digest, write_json
from med_assets.storage.lake import ANY, LOCK, Anything, Columns, Expected, Lake, Unreferenced
from med_assets.storage.record import Record, RowOfColumns, filled

if TYPE_CHECKING:
    import pandas as pd

    from med_assets.storage.s3.lake import S3Lake

R = TypeVar("R", bound=Record)
D = TypeVar("D")
S = TypeVar("S", CaseVersion, PreparedCase)

FACT_KEYS = ("program", "batch", "case_id", "version")

VERSION_KIND = "dataset"
"""Kind of the artifacts that are versions of datasets."""

VERSION = "version.json"
"""File of such an artifact that says what it is a version of."""

VERSION_TABLES = (DatasetCase.TABLE, SplitAssignment.TABLE)
"""Tables of such an artifact besides that of the facts."""

FactValue = str | float | int | bool | None


@dataclass(frozen=True)
class CaseFacts:
    """The measured facts of a prepared case, by name."""

    batch: str
    case_id: str
    version: str
    values: Mapping[str, FactValue]


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """A case of the dataset, with split and fold of its patient (None before it has one) and its facts where they were read."""

    program: str
    case_id: str
    patient_id: str
    version: str
    content_hash: str
    artifact: str
    given_split: str | None
    synthetic: bool
    split: str | None = None
    fold: int | None = None
    facts: Mapping[str, FactValue] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class KnownFacts:
    """The facts of all prepared cases of a program as they were read, and the newest row of each case id and version."""

    columns: Columns
    rows: Mapping[tuple[str, str], int]


@dataclass(frozen=True, eq=False)
class Assignments:
    """The assignments of patients; `columns` are those of `SplitAssignment`."""

    columns: Columns

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The row of each patient."""
        return {patient: row for row, patient in enumerate(self.columns["patient_id"])}

    def of(self, patients: Iterable[str]) -> "Assignments":
        """Those of these patients who have one, sorted by patient."""
        return Assignments(self.columns.taken([self.rows[one] for one in sorted(patients) if one in self.rows]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """The accepted, current case versions of a program, sorted by case; `columns` are those of `DatasetCase`."""

    columns: Columns

    @cached_property
    def cases(self) -> tuple[DatasetCase, ...]:
        """A record of each case."""
        return tuple(DatasetCase.of_columns(self.columns))

    @cached_property
    def version(self) -> str:
        """Hash of what the cases are: ids, patients, versions and prepared content."""
        parts = ["case_id", "patient_id", "version", "artifact", "synthetic"]
        return digest(canonical_table(self.columns.arrow.select(parts), as_objects=False))

    @property
    def synthetic(self) -> frozenset[str]:
        """Ids of the synthetic cases."""
        return frozenset(compress(self.columns["case_id"], self.columns["synthetic"]))

    def __len__(self) -> int:
        return len(self.columns.arrow)


def accepted(rows: Iterable[S]) -> list[S]:
    """Cases that models learn from and are scored on: not quarantined, and labelled."""
    return [row for row in rows if row.status == Status.OK]


def to_predict(rows: Iterable[S]) -> list[S]:
    """Cases that came without a label."""
    return [row for row in rows if row.status == Status.TO_PREDICT]


def usable(rows: Iterable[S]) -> list[S]:
    """Cases of both kinds."""
    return [row for row in rows if row.status in USABLE]


def frame(of: type[Record], rows: Iterable[Record]) -> "pd.DataFrame":
    """Records as a data frame with all columns of their table."""
    import pandas as pd

    return pd.DataFrame(of.to_columns(list(rows)))


def reasons(cases: Iterable[CaseVersion | PreparedCase]) -> "pd.DataFrame":
    """Quarantined cases with code and reason, for people."""
    import pandas as pd

    found = [(case.case_id, case.reason_code, case.reason) for case in cases if case.status == Status.QUARANTINED]
    return pd.DataFrame(found, columns=["case_id", "reason_code", "reason"])


def query_tables(ws: Settings, sql: str) -> "pd.DataFrame":
    """Run one SELECT over the tables of all programs; see `med_assets.storage.query`. Raises ConfigurationError."""
    return ws.lake.query(sql)


def texts_of(ws: Settings, of: type[Record]) -> set[str]:
    """The values in all text columns of a table, of all programs, whether or not they are in use."""
    columns = ws.lake.columns(of.TABLE)
    return {text for each in of.columns() if each.type is str for text in columns[each.name] if text}


def shared_tables(ws: Settings) -> "S3Lake | None":
    """The tables of a shared home as they are now, and stay; None in the home of one machine."""
    if ws.store_location is None:
        return None
    ws.lake.refresh()
    return cast("S3Lake", ws.lake.snapshot())


def export_tables(ws: Settings) -> None:
    """Write `catalog.duckdb`, a copy of the tables of all programs for any DuckDB client."""
    ws.lake.write_catalog(ws.home / "catalog.duckdb")


def refresh_tables(ws: Settings) -> None:
    """See from now on what other machines wrote to the tables of a shared home."""
    ws.lake.refresh()


def decided_anew(ws: Settings, decide: Callable[[], D]) -> D:
    """What a decision comes to, which is made again as long as another writes what it was made on before it is written."""
    while True:
        try:
            return decide()
        except Conflict:
            ws.lake.refresh()


def unreferenced_objects(ws: Settings, older_than_days: float) -> list[Unreferenced]:
    """Objects of the tables of a shared home that nothing needs and that are older; none in a home of one machine.

    Raises ConfigurationError for less than a day.
    """
    return ws.lake.unreferenced(older_than_days)


def remove_objects(ws: Settings, found: Collection[Unreferenced]) -> None:
    """Remove what `unreferenced_objects` gave."""
    ws.lake.remove_unreferenced(found)


@dataclass(frozen=True)
class DatasetVersion:
    """A version of a program's dataset: when it was first kept (seconds since the epoch), how many cases and patients, and of each split."""

    version: str
    kept_at: float
    n_cases: int
    n_patients: int
    patients_per_split: Mapping[str, int]


class Catalog:
    """What is known of one program in a home, or of the tables that are given instead of the home's."""

    def __init__(self, ws: Settings, program: str, tables: Lake | None = None) -> None:
        self.ws, self.program, self._tables = ws, program, tables

    @property
    def _lake(self) -> Lake:
        return self.ws.lake if self._tables is None else self._tables

    def _partition(self, of: type[Record], values: Sequence[str], *, whole: bool) -> str:
        n = len(of.PARTITION)
        if len(values) > n or (whole and len(values) != n):
            raise ConfigurationError(
                f"{of.__name__}: expected values of {', '.join(of.PARTITION) or 'nothing'}, got {len(values)}"
            )
        # The rows of a checkpoint lie under the hash of its key, "checkpoint/HASH".
        return "/".join((self.program, *(value.removeprefix("checkpoint/") for value in values)))

    def rows(self, of: type[R], *under: str, where: Mapping[str, Collection[str]] | None = None) -> list[R]:
        """Records in the order of their partitions and rows; `under` gives values of the first fields of `PARTITION`.

        `where` leaves those whose fields of these names have one of these texts.
        """
        return of.of_columns(self._lake.columns(of.TABLE, self._partition(of, under, whole=False), where))

    def frame(self, of: type[Record], *under: str, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """The same as a data frame with the types of the columns, of all or of these."""
        return self._lake.read(of.TABLE, self._partition(of, under, whole=False), columns)

    def replace(self, of: type[R], rows: Iterable[R], *key: str, expected: Expected = ANY) -> str:
        """Write the records of a partition over those that were there; returns the SHA-256 of the file.

        Raises ConfigurationError for an empty value in a column that cannot be empty, and for a record of another partition; Conflict where
        the partition has not the stamp that is `expected`, so that somebody wrote it since.
        """
        columns = self._checked(of, rows, key)
        return self._lake.write_columns(of.TABLE, self._partition(of, key, whole=True), columns, expected)

    def append(self, of: type[R], rows: Iterable[R], *key: str, expected: Expected = ANY) -> None:
        """Write records after those that are there, which stay as an earlier version wrote them, whoever else appends meanwhile.

        What is raised is that of `replace`: Conflict only where a stamp is `expected`, by who decided on what was there then.
        """
        partition, added = self._partition(of, key, whole=True), self._checked(of, rows, key)
        while True:
            stamp = self._lake.stamp(of.TABLE, partition) if isinstance(expected, Anything) else expected
            earlier = self._lake.columns(of.TABLE, partition)
            try:
                self._lake.write_columns(
                    of.TABLE, partition, {name: earlier[name] + added[name] for name in added}, stamp
                )
            except Conflict:
                if expected is not ANY:
                    raise
                self._lake.refresh()
            else:
                return

    def _checked(self, of: type[R], rows: Iterable[R], key: Sequence[str]) -> dict[str, list[Any]]:
        """Values by column of records that are whole and belong to a partition. Raises ConfigurationError."""
        partition, found = self._partition(of, key, whole=True), list(rows)
        columns = of.to_columns(found)
        if empty := [each.name for each in of.columns() if not each.nullable and None in columns[each.name]]:
            raise ConfigurationError(f"{of.__name__}: expected values of {', '.join(empty)}, got none")
        wanted = {"program": self.program, **dict(zip(of.PARTITION, key, strict=True))}
        if strays := [name for name, value in wanted.items() if set(columns[name]) - {value}]:
            raise ConfigurationError(f"{of.__name__}: expected rows of {partition}, got others in {', '.join(strays)}")
        return columns

    def has(self, of: type[Record], *key: str) -> bool:
        """Whether a partition was ever written, also with no rows."""
        return self._lake.has(of.TABLE, self._partition(of, key, whole=True))

    def stamp(self, of: type[Record], *key: str) -> tuple[int, ...] | None:
        """Time (ns), size and inode of a partition's file, which change when it is written anew; None where it never was."""
        return self._lake.stamp(of.TABLE, self._partition(of, key, whole=True))

    def stamps(self, of: type[Record]) -> dict[tuple[str, ...], tuple[int, ...]]:
        """What `stamp` gives of each partition, by the values of `PARTITION`."""
        found = self._lake.stamps(of.TABLE, self.program)
        return {tuple(each.split("/")[1:]): stamp for each, stamp in found.items()}

    def folder_stamp(self, of: type[Record]) -> int | None:
        """Time (ns) that changes when any partition of the program is written anew; None where none ever was."""
        return self._lake.folder_stamp(of.TABLE, self.program)

    def keys(self, of: type[Record], *under: str) -> list[tuple[str, ...]]:
        """Values of `PARTITION` of all partitions, sorted."""
        found = self._lake.partitions(of.TABLE, self._partition(of, under, whole=False))
        return [tuple(each.split("/")[1:]) for each in found]

    def batches(self) -> list[str]:
        """Batches whose cases were prepared, oldest first."""
        return [batch for (batch,) in self.keys(PreparedCase)]

    def partition(self, of: type[Record], *key: str) -> str:
        """Name of a partition below the folder of its table, for text that reads it without med_assets."""
        return self._partition(of, key, whole=True)

    @property
    def files(self) -> str:
        """Folder of the files of partitions, by table, relative to the home."""
        return self._lake.files.relative_to(self.ws.home).as_posix()

    def file(self, of: type[Record], *key: str) -> Path:
        """The Parquet file of a partition, or a copy of its object in a shared home; it need not be there."""
        return self._lake.file(of.TABLE, self.partition(of, *key))

    def content(self, of: type[Record], *under: str) -> str:
        """Hash of the names and bytes of all partitions."""
        return self._lake.version(of.TABLE, self._partition(of, under, whole=False))

    # -- facts: a table with the columns that the program states

    @property
    def _facts_table(self) -> str:
        return f"{self.program}_facts"

    @property
    def _fact_names(self) -> dict[str, None]:
        return {name: None for name in self._lake.tables[self._facts_table] if name not in FACT_KEYS}

    def facts(self, batch: str | None = None) -> list[CaseFacts]:
        """The facts of all prepared cases, or of those of a batch."""
        columns = self._lake.columns(self._facts_table, "/".join(filter(None, (self.program, batch))))
        keys, names = zip(columns["batch"], columns["case_id"], columns["version"], strict=True), self._fact_names
        return [CaseFacts(*key, RowOfColumns(columns, names, row)) for row, key in enumerate(keys)]

    def facts_frame(self, batch: str | None = None) -> "pd.DataFrame":
        """The facts as a data frame: program, batch, case_id, version, and a column per fact."""
        return self._lake.read(self._facts_table, "/".join(filter(None, (self.program, batch))))

    def replace_facts(self, rows: Iterable[CaseFacts], batch: str) -> None:
        """Write the facts of a batch over those that were there."""
        found = [
            {"program": self.program, "batch": batch, "case_id": row.case_id, "version": row.version, **row.values}
            for row in rows
        ]
        self._lake.write(self._facts_table, f"{self.program}/{batch}", found)

    # -- questions

    def case_versions(self, batch: str | None = None) -> list[CaseVersion]:
        """What intake wrote, of all batches or one."""
        return self.rows(CaseVersion, *filter(None, (batch,)))

    def prepared(self, batch: str | None = None) -> list[PreparedCase]:
        """What preparation wrote, of all batches or one."""
        return self.rows(PreparedCase, *filter(None, (batch,)))

    def held_back(self) -> frozenset[str]:
        """Batches that the audit keeps out of the dataset."""
        return frozenset(row.batch for row in self.rows(BatchAudit) if row.held_back)

    def versions_like(self, rows: Collection[CaseVersion], before: str) -> list[CaseVersion]:
        """What intake wrote, of batches before this one, that has the case id, version, images or content of any of these."""
        columns = self._lake.columns(CaseVersion.TABLE, self.program)
        like = {
            name: {text for row in rows if (text := getattr(row, name))}
            for name in ("case_id", "version", "images_hash", "content_hash")
        }
        return [row for row in CaseVersion.of_columns(columns.where_any(like)) if row.batch < before]

    def admitted(self, batch: str | None = None) -> list[PreparedCase]:
        """What preparation wrote, of all batches or one, without those that the audit holds back."""
        held_back = (
            self.held_back()
            if batch is None
            else {audit.batch for audit in self.rows(BatchAudit, batch) if audit.held_back}
        )
        return [row for row in self.prepared(batch) if row.batch not in held_back]

    def quarantined(self, batch: str | None = None) -> list[CaseVersion | PreparedCase]:
        """Everything that intake or preparation refused, of all batches or one."""
        under, where = [batch] if batch else [], {"status": [Status.QUARANTINED]}
        return [*self.rows(CaseVersion, *under, where=where), *self.rows(PreparedCase, *under, where=where)]

    def audit(self, batch: str) -> BatchAudit | None:
        """The audit of a batch as a whole; None before it was prepared."""
        return next(iter(self.rows(BatchAudit, batch)), None)

    def raw_artifacts(self) -> dict[tuple[str, str], str]:
        """Key of the de-identified files by batch and case, of all usable cases."""
        wanted = ("batch", "case_id", "artifact")
        found = self._lake.columns(CaseVersion.TABLE, self.program, {"status": USABLE}, wanted)
        return dict(zip(zip(found["batch"], found["case_id"], strict=True), found["artifact"], strict=True))

    def accepted(self) -> Columns:
        """Every case that preparation accepted in any batch, with the batch, oldest first: also of those that the audit holds back."""
        wanted = ["batch", *DatasetCase.schema()]
        return self._lake.columns(PreparedCase.TABLE, self.program, {"status": [Status.OK]}, wanted)

    @staticmethod
    def dataset_of(accepted: Columns, rows: Sequence[int]) -> Dataset:
        """A dataset of some rows of `accepted`, in this order."""
        return Dataset(accepted.taken(rows, DatasetCase.schema()))

    def replace_dataset(self, dataset: Dataset, expected: Expected = ANY) -> None:
        """Write a dataset over the one that was there. Raises Conflict where that has not the stamp that is `expected`."""
        self._lake.write_columns(DatasetCase.TABLE, self.program, dataset.columns, expected)

    def withdrawn(self) -> frozenset[str]:
        """Ids of the cases that were taken out of the dataset for good."""
        return frozenset(row.case_id for row in self.rows(Withdrawal))

    def excluded(self) -> frozenset[str]:
        """Ids of the cases that readers excluded: the newest decision to accept or exclude is to exclude, whatever was sent since."""
        return frozenset(case_id for case_id, n in self.exclusion_changes().items() if n % 2)

    def exclusion_changes(self) -> dict[str, int]:
        """How often readers took a case out of the dataset or let it in again, of each case that they ever excluded: an odd number for those that are out."""
        changes: dict[str, int] = {}
        for row in self.rows(ReaderDecision, where={"decision": (ACCEPT, EXCLUDE)}):
            n = changes.get(row.case_id, 0)
            if (row.decision == EXCLUDE) != bool(n % 2):
                changes[row.case_id] = n + 1
        return changes

    def left_out(self) -> frozenset[str]:
        """Ids of the cases that people keep out of the dataset, for good or until a reader accepts them."""
        return self.withdrawn() | self.excluded()

    def dataset(self) -> Dataset:
        """The dataset as it was last written."""
        return Dataset(self._lake.columns(DatasetCase.TABLE, self.program))

    def assignments(self) -> dict[str, SplitAssignment]:
        """Split and fold by patient."""
        return {row.patient_id: row for row in self.rows(SplitAssignment)}

    def assigned(self) -> Assignments:
        """The same by column."""
        return Assignments(self._lake.columns(SplitAssignment.TABLE, self.program))

    def assign(self, earlier: Assignments, added: Iterable[SplitAssignment], expected: Expected = ANY) -> Assignments:
        """Write assignments and those of patients that had none, sorted by patient, and return all. Raises what `replace` raises."""
        fresh = self._lake.converted(SplitAssignment.TABLE, self._checked(SplitAssignment, added, ()))
        both = Assignments(earlier.columns.followed_by(fresh))
        found = both.of(both.rows)
        self._lake.write_columns(SplitAssignment.TABLE, self.program, found.columns, expected)
        return found

    def described(self) -> list[Case]:
        """All cases of the dataset with split, fold and facts."""
        return self.described_as(self.dataset(), self.assigned())

    def known_facts(self) -> KnownFacts:
        """The facts of all prepared cases, to look up those of the cases of a dataset."""
        columns = self._lake.columns(self._facts_table, self.program)
        pairs = zip(columns["case_id"], columns["version"], strict=True)
        return KnownFacts(columns, dict(zip(pairs, range(len(columns.arrow)), strict=True)))

    def described_as(self, dataset: Dataset, assignments: Assignments, known: KnownFacts | None = None) -> list[Case]:
        """All cases of a dataset with their split and fold in these assignments, and their facts, read where they are not given."""
        known, unknown = known or self.known_facts(), self._fact_names
        columns: dict[str, list[Any]] = dict(dataset.columns)
        splits, folds = (
            dict(zip(assignments.columns["patient_id"], assignments.columns[name], strict=True))
            for name in ("split", "fold")
        )
        numbers = list(map(known.rows.get, zip(columns["case_id"], columns["version"], strict=True)))
        measured = iter(RowOfColumns.many(known.columns, unknown, [row for row in numbers if row is not None]))
        columns["split"] = list(map(splits.get, columns["patient_id"]))
        columns["fold"] = list(map(folds.get, columns["patient_id"]))
        columns["facts"] = [unknown if row is None else next(measured) for row in numbers]
        return filled(Case, len(dataset), columns)

    def cases(self, *splits: str) -> list[Case]:
        """Cases of the dataset whose patient has a split, of these splits or of all."""
        assignments = self.assignments()
        found = [
            (case, assignments[case.patient_id]) for case in self.dataset().cases if case.patient_id in assignments
        ]
        return [
            Case(**case.row(), split=assignment.split, fold=assignment.fold)
            for case, assignment in found
            if not splits or assignment.split in splits
        ]

    def checkpoint(self, experiment: str) -> Checkpoint | None:
        """The present checkpoint of an experiment; None before its training."""
        return next(iter(self.rows(Checkpoint, experiment)), None)

    def champions(self) -> list[Champion]:
        """Every change of the champion, oldest first."""
        return self.rows(Champion)

    def champion(self) -> Champion | None:
        """The champion; None before the first promotion."""
        return next(reversed(self.champions()), None)

    # -- versions of the dataset: artifacts, each with the dataset, the splits of its patients and the facts of its cases

    def keep_version(self, dataset: Dataset, assignments: Assignments, known: KnownFacts | None = None) -> None:
        """Keep a dataset with these splits of its patients, unless its version is kept already; an empty one is none."""
        if not len(dataset) or self.ws.store.has(key := self._version_key(dataset.version)):
            return
        known = known or self.known_facts()
        patients = set(dataset.columns["patient_id"])
        assigned = assignments.of(patients).columns
        about = {
            "program": self.program,
            "version": dataset.version,
            "n_cases": len(dataset),
            "n_patients": len(patients),
            "patients_per_split": dict(sorted(Counter(assigned["split"]).items())),
        }
        with self.ws.store.create(key) as folder:
            write_json(folder / VERSION, about, durable=False)
            tables = self._version_tables(folder)
            kept = Catalog(self.ws, self.program, tables)
            kept.replace_dataset(dataset)
            tables.write_columns(SplitAssignment.TABLE, self.program, assigned)
            # The same cases that came in other batches are the same version, so no batch is named, and cases are sorted.
            pairs = sorted(zip(dataset.columns["case_id"], dataset.columns["version"], strict=True))
            chosen = [known.rows[pair] for pair in pairs if pair in known.rows]
            tables.write_columns(self._facts_table, self.program, known.columns.taken(chosen, batch=""))
            (folder / LOCK).unlink()

    def dataset_versions(self) -> list[DatasetVersion]:
        """All versions that are kept, the newest first. They are listed: one of another machine may come a little later."""
        found = []
        for key, kept_at in self.ws.store.published(VERSION_KIND).items():
            about = json.loads(self.ws.store.texts(key, VERSION)[VERSION])
            if about.pop("program") == self.program:
                found.append(DatasetVersion(kept_at=kept_at, **about))
        return sorted(found, key=lambda one: (-one.kept_at, one.version))

    def dataset_at(self, version: str) -> "Catalog":
        """The dataset, assignments and facts as they were at a version, and nothing else. Raises ArtifactMissing for one that is not kept."""
        return Catalog(self.ws, self.program, self._version_tables(self.ws.store.fetch(self._version_key(version))))

    def version_files(self) -> dict[str, Path]:
        """The Parquet files of a version of the dataset, by table."""
        tables = (*VERSION_TABLES, self._facts_table)
        return {table: self._lake.file(table, self.program) for table in tables}

    def _version_key(self, version: str) -> str:
        return f"{VERSION_KIND}/{digest(self.program, names.DATASET.check(version))}"

    def _version_tables(self, folder: Path) -> Lake:
        return Lake(folder, {table: self._lake.tables[table] for table in (*VERSION_TABLES, self._facts_table)})
