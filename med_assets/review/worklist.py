"""The cases of a program with the reasons to look at each, read from what stages recorded; nothing is computed but the order."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import pandas as pd

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.promotion.champions import shown
from med_assets.records import (
    COMMENT,
    BatchAudit,
    Calibration,
    CaseConfidence,
    CaseScore,
    CaseVersion,
    Champion,
    Checkpoint,
    DatasetCase,
    Drift,
    Prediction,
    PreparedCase,
    ReaderDecision,
    SplitAssignment,
    Status,
    Withdrawal,
)
from med_assets.review.decisions import is_excluded
from med_assets.screening.contract import RANK, RISK
from med_assets.screening.stage import TABLE, folder_of
from med_assets.storage.memo import Memo
from med_assets.storage.s3.shared_files import refresh

TOP = 60
"""Cases of each list that has an order, such as the worst scores."""


class Why(StrEnum):
    """Why a case is on the worklist."""

    QUARANTINED = "quarantined"
    AUDIT = "audit"
    UNCERTAIN = "uncertain"
    WORST = "worst"
    SCREENING = "screening"
    DRIFT = "drift"


MEANINGS: Mapping[Why, str] = {
    Why.QUARANTINED: "Quarantined",
    Why.AUDIT: "Audit findings",
    Why.UNCERTAIN: "Least certain",
    Why.WORST: "Worst scores",
    Why.SCREENING: "Screening candidates",
    Why.DRIFT: "Unlike training",
}


@dataclass(frozen=True)
class Mark:
    """One reason to look at a case: its list, its place there (1 is first), and the words."""

    why: Why
    rank: int
    text: str


@dataclass(frozen=True)
class WorklistCase:
    """A case with its state and the reasons to look at it, and what readers decided of it so far, oldest first."""

    case_id: str
    batch: str
    state: str
    split: str
    marks: tuple[Mark, ...]
    decisions: tuple[ReaderDecision, ...] = ()

    @property
    def decided(self) -> tuple[ReaderDecision, ...]:
        """The decisions without comments."""
        return tuple(row for row in self.decisions if row.decision != COMMENT)

    @property
    def readers(self) -> frozenset[str]:
        """Who decided something about it."""
        return frozenset(row.reader or "" for row in self.decided)

    def place(self, why: Why | None) -> tuple[int, int]:
        """What it is sorted by: within a list by its rank there, else by its lists in their order."""
        order = list(Why)
        found = [(order.index(mark.why), mark.rank) for mark in self.marks if why in (None, mark.why)]
        return min(found, default=(len(order), 0))


@dataclass(frozen=True)
class Worklist:
    """All cases of a program, and facts of new cases that differ from those of training."""

    cases: tuple[WorklistCase, ...]
    drifted: tuple[str, ...]


_SOURCES = (
    CaseVersion, PreparedCase, BatchAudit, DatasetCase, Withdrawal, SplitAssignment, CaseConfidence, Calibration, CaseScore, Prediction,
    Champion, Checkpoint, Drift,
)  # fmt: skip
_worklists: Memo[Worklist] = Memo()
_decisions: Memo[Mapping[str, tuple[ReaderDecision, ...]]] = Memo()


def worklist(catalog: Catalog, changes: int = 0) -> Worklist:
    """The cases of a program with what readers decided, read anew where a table changed since the last time.

    `changes` is how many decisions this process wrote: the time of a folder may be too coarse to tell two of them apart.
    """
    home = catalog.ws.home, catalog.program
    refresh(catalog.ws, catalog.program)
    screened = folder_of(catalog.ws, catalog.program) / TABLE
    stamps = [catalog.folder_stamp(table) for table in _SOURCES]
    time = screened.stat().st_mtime_ns if screened.is_file() else None
    decisions = _decisions.get((*home, catalog.folder_stamp(ReaderDecision), changes), partial(_by_case, catalog))
    excluded = frozenset(case_id for case_id, rows in decisions.items() if is_excluded(rows))
    found = _worklists.get((*home, *stamps, time, excluded), partial(_read, catalog, excluded))
    if not decisions:
        return found
    cases = (
        replace(case, decisions=decisions[case.case_id]) if case.case_id in decisions else case for case in found.cases
    )
    return replace(found, cases=tuple(cases))


def _by_case(catalog: Catalog) -> Mapping[str, tuple[ReaderDecision, ...]]:
    found: dict[str, list[ReaderDecision]] = defaultdict(list)
    for row in catalog.rows(ReaderDecision):
        found[row.case_id].append(row)
    return {case_id: tuple(rows) for case_id, rows in found.items()}


def _read(catalog: Catalog, excluded: Collection[str]) -> Worklist:
    newest: dict[str, CaseVersion | PreparedCase] = {}
    for row in sorted(catalog.case_versions(), key=lambda row: row.batch):
        if row.status != Status.NOTE:
            newest[row.case_id] = row
    for prepared in catalog.prepared():
        if prepared.version == newest.get(prepared.case_id, prepared).version:
            newest[prepared.case_id] = prepared
    marks: dict[str, list[Mark]] = defaultdict(list)
    for case_id, mark in _marks(catalog, newest):
        marks[case_id].append(mark)
    members = {case.case_id for case in catalog.dataset().cases}
    withdrawn, assignments = catalog.withdrawn(), catalog.assignments()

    def state(row: CaseVersion | PreparedCase) -> str:
        if row.case_id in withdrawn:
            return "withdrawn"
        if row.case_id in excluded:
            return "excluded"
        if row.case_id in members:
            return "in the dataset"
        return "not in the dataset" if row.status == Status.OK else str(row.status)

    cases = tuple(
        WorklistCase(
            case_id,
            row.batch,
            state(row),
            assignments[row.patient_id].split if row.patient_id in assignments and case_id in members else "",
            tuple(marks[case_id]) if case_id in marks else (),
        )
        for case_id, row in sorted(newest.items())
    )
    drifted = sorted({row.fact for row in catalog.rows(Drift) if row.drifted and row.subgroup is None})
    return Worklist(cases, tuple(drifted))


def _marks(catalog: Catalog, newest: Mapping[str, CaseVersion | PreparedCase]) -> Iterator[tuple[str, Mark]]:
    quarantined = [row for row in newest.values() if row.status == Status.QUARANTINED]
    for rank, row in enumerate(sorted(quarantined, key=lambda row: row.batch, reverse=True), start=1):
        yield row.case_id, Mark(Why.QUARANTINED, rank, f"{row.reason_code}: {row.reason}")
    warned = [row for row in newest.values() if isinstance(row, PreparedCase) and row.warnings]
    for rank, prepared in enumerate(sorted(warned, key=lambda row: -len(row.warning_lines)), start=1):
        yield prepared.case_id, Mark(Why.AUDIT, rank, "; ".join(prepared.warning_lines))
    model, _ = shown(catalog.ws, catalog.program)
    yield from _of_predictions(catalog)
    yield from _of_screening(catalog)
    if model is not None:
        yield from _of_model(catalog, model)


def _ordered(why: Why, values: Iterable[tuple[float, str, str]]) -> Iterator[tuple[str, Mark]]:
    """The TOP cases with the least values, each given with its id and words."""
    for rank, (_, case_id, text) in enumerate(sorted(values)[:TOP], start=1):
        yield case_id, Mark(why, rank, text)


def _certainty(row: CaseConfidence | Prediction) -> tuple[float, str, str] | None:
    """How sure a model is of a case, the case, and that in words; None where it is undefined."""
    flags = f"; {row.flags}" if row.flags else ""
    if row.probability is not None:
        return row.probability, row.case_id, f"acceptable with a probability of {row.probability:.2f}{flags}"
    if row.confidence is not None:
        return row.confidence, row.case_id, f"confidence {row.confidence:.3g}, not calibrated{flags}"
    return None


def _of_model(catalog: Catalog, model: Champion | Checkpoint) -> Iterator[tuple[str, Mark]]:
    """What the evaluation of the model that people are shown found."""
    rows = [row for row in catalog.rows(CaseConfidence, model.experiment) if row.checkpoint == model.checkpoint]
    yield from _ordered(
        Why.UNCERTAIN,
        (one for row in rows if (one := _certainty(row))),
    )
    limits = [
        row.distance_limit for row in catalog.rows(Calibration, model.experiment) if row.checkpoint == model.checkpoint
    ]
    limit = limits[0] if limits else None
    far = [
        (-row.distance, row.case_id, f"{row.distance:.3g} SD from the training cases, far from {limit:.3g} on")
        for row in rows
        if row.distance is not None and limit is not None and row.distance >= limit
    ]
    yield from _ordered(Why.DRIFT, far)
    metric = program.get(catalog.program).primary_metric
    scores = catalog.frame(CaseScore, model.experiment, columns=("checkpoint", "case_id", "metric", "subject", "value"))
    scores = scores[
        (scores["checkpoint"] == model.checkpoint)
        & (scores["metric"] == metric.name)
        & (scores["subject"] == metric.subject)
        & scores["value"].notna()
    ]
    sign = -1.0 if metric.lower_is_better else 1.0
    values = zip(scores["value"].astype(float), scores["case_id"].astype(str), strict=True)
    yield from _ordered(
        Why.WORST,
        (
            (sign * value, case_id, f"{metric.name} {metric.subject} {value:.4g}{metric.after}")
            for value, case_id in values
        ),
    )


def _of_predictions(catalog: Catalog) -> Iterator[tuple[str, Mark]]:
    """Cases without a label by how unsure the champion was of them."""
    rows = {row.case_id: row for row in catalog.rows(Prediction)}.values()
    yield from _ordered(
        Why.UNCERTAIN,
        (one for row in rows if (one := _certainty(row))),
    )


def _of_screening(catalog: Catalog) -> Iterator[tuple[str, Mark]]:
    """The candidates of the last screening, in its order."""
    path = folder_of(catalog.ws, catalog.program) / TABLE
    if path.is_file():
        table = pd.read_csv(path, dtype={"case_id": str}, usecols=lambda name: name in ("case_id", RANK, RISK))
        for case_id, rank, risk in (
            table[["case_id", RANK, RISK]].nsmallest(TOP, RANK).itertuples(index=False, name=None)
        ):
            yield str(case_id), Mark(Why.SCREENING, int(rank), f"rank {rank} of {len(table)}, risk {risk}")


@dataclass(frozen=True)
class Asked:
    """What of a worklist a reader wants to see, and in what order; empty for all."""

    why: str = ""
    state: str = ""
    split: str = ""
    read: str = ""
    """`unread` or `read` by this reader, or `nobody`."""
    text: str = ""
    sort: str = ""

    def others(self, **changed: str) -> "Asked":
        """The same with other values."""
        return replace(self, **changed)


SORTS = ("priority", "case", "state", "split", "batch", "read")


@dataclass(frozen=True)
class Listed:
    """The cases that were asked for, in order, and counts: by list of all cases, and of those listed how many were read."""

    cases: Sequence[WorklistCase]
    counts: Mapping[Why, int]
    total: int
    in_question: int
    read: int

    def around(self, case_id: str) -> tuple[str, str]:
        """The ids of the cases before and after one; empty where there is none."""
        ids = [case.case_id for case in self.cases]
        place = ids.index(case_id) if case_id in ids else None
        if place is None:
            return "", ids[0] if ids else ""
        return ids[place - 1] if place else "", ids[place + 1] if place + 1 < len(ids) else ""


def listed(found: Worklist, asked: Asked, reader: str) -> Listed:
    """The cases that a reader asked for. Without a list, all that are on one are meant, or all cases with `why` "all"."""
    why = Why(asked.why) if asked.why in list(Why) else None
    text = asked.text.strip().lower()
    matching = [
        case
        for case in found.cases
        if (asked.why == "all" or any(why in (None, mark.why) for mark in case.marks))
        and asked.state in ("", case.state)
        and asked.split in ("", case.split)
        and (not text or text in case.case_id.lower() or any(text in mark.text.lower() for mark in case.marks))
    ]
    wanted = {
        "unread": lambda case: reader not in case.readers,
        "read": lambda case: reader in case.readers,
        "nobody": lambda case: not case.readers,
    }.get(asked.read)
    cases = [case for case in matching if wanted is None or wanted(case)]
    keys = {
        "case": lambda case: (case.case_id,),
        "state": lambda case: (case.state, case.case_id),
        "split": lambda case: (case.split, case.case_id),
        "batch": lambda case: (case.batch, case.case_id),
        "read": lambda case: (case.decisions[-1].read_at if case.decisions else "", case.case_id),
    }
    cases.sort(key=keys.get(asked.sort, lambda case: (case.place(why), case.case_id)))
    counts = {one: sum(any(mark.why == one for mark in case.marks) for case in found.cases) for one in Why}
    return Listed(cases, counts, len(found.cases), len(matching), sum(reader in case.readers for case in matching))
