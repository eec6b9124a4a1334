"""Scores over the cases of a split: means with intervals over patients, and how they are shown."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import pandas as pd

from med_assets import program
from med_assets.capabilities import PooledScores
from med_assets.evaluation.scoring import HELD_OUT
from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES, SEED, mean_with_interval
from med_assets.metrics.ranges import range_of
from med_assets.metrics.score import PooledScore
from med_assets.records import AggregateScore, CaseScore
from med_assets.storage.versions import part_of

INTERVAL = f"{CONFIDENCE:.0%} percentile bootstrap over patients, {RESAMPLES} resamples, seed {SEED}, within the range of the metric"


class Estimate(Protocol):
    """A mean with the ends of its interval, None where it is undefined, over n values."""

    @property
    def mean(self) -> float | None:
        """Mean."""

    @property
    def low(self) -> float | None:
        """Lower end."""

    @property
    def high(self) -> float | None:
        """Upper end."""

    @property
    def n(self) -> int:
        """Number of values."""


@dataclass(frozen=True)
class Aggregate:
    """A metric over the cases of a split: its mean, the ends of its interval in `unit`, and the number of cases with a value."""

    split: str
    metric: str
    subject: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    convention: str
    interval: str
    """How the interval was made."""


def by_class(program_name: str) -> set[tuple[str, str]]:
    """The deciding metrics, as (metric, subject), that are averaged within each true class first."""
    chosen = program.get(program_name)
    return {(one.name, one.subject) for one in chosen.deciding_metrics if one.by_class}


@part_of("evaluate")
def aggregate(
    program_name: str, scores: Sequence[CaseScore], only: Collection[tuple[str, str]] | None = None
) -> list[Aggregate]:
    """Aggregate scores by split, metric and subject: the mean over cases with its interval over patients.

    What a program pools over all cases of a split comes after these. `only` names the metrics with their subjects that are wanted.
    """
    groups: dict[tuple[str, str, str], list[CaseScore]] = {}
    classed = by_class(program_name)
    for score in scores:
        if only is None or (score.metric, score.subject) in only:
            groups.setdefault((score.split, score.metric, score.subject), []).append(score)
    pooled = _pooled(program_name, scores)
    return [
        *(_mean(members, (metric, subject) in classed) for (_, metric, subject), members in sorted(groups.items())),
        *(one for one in pooled if only is None or (one.metric, one.subject) in only),
    ]


def _mean(scores: Sequence[CaseScore], within_classes: bool) -> Aggregate:
    """The mean of the scores of one metric, subject and split."""
    first = scores[0]
    bounds = range_of(first.metric)
    values = mean_with_interval(
        [score.value for score in scores],
        SEED,
        groups=[score.patient_id for score in scores],
        strata=[score.truth for score in scores] if within_classes else None,
    )
    return Aggregate(
        split=first.split,
        metric=first.metric,
        subject=first.subject,
        mean=values.mean,
        low=bounds.cut(values.low),
        high=bounds.cut(values.high),
        n=values.n,
        unit=first.unit,
        convention=first.convention,
        interval=INTERVAL,
    )


def _pooled(program_name: str, scores: Sequence[CaseScore]) -> list[Aggregate]:
    """What a program pools over all cases of each split."""
    chosen, found = program.get(program_name), []
    if not isinstance(chosen, PooledScores):
        return []
    for split in sorted({score.split for score in scores}):
        for pooled in chosen.pooled([score for score in scores if score.split == split]):
            ends = pooled if isinstance(pooled, PooledScore) else PooledScore(**asdict(pooled))
            bounds = range_of(pooled.metric)
            found.append(
                Aggregate(
                    split=split,
                    metric=pooled.metric,
                    subject=pooled.subject,
                    mean=pooled.value,
                    low=bounds.cut(ends.low),
                    high=bounds.cut(ends.high),
                    n=pooled.n or 0,
                    unit=pooled.unit,
                    convention=pooled.convention,
                    interval=ends.interval,
                )
            )
    return found


def cell(found: Estimate) -> str:
    """An estimate for people: `mean [low, high] (n = ...)`, empty where it is undefined."""
    if found.mean is None:
        return ""
    interval = "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.mean:.2f}{interval} (n = {found.n})"


def side_by_side(aggregates: Sequence[Aggregate | AggregateScore], first: Sequence[str] = ()) -> pd.DataFrame:
    """Aggregates of one model for people: a row per metric and subject, a column per split; the undefined are left out.

    The metrics named in `first` come first, and after them those whose subject is the whole case.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in aggregates:
        entry = rows.setdefault(
            (row.metric, row.subject), {"metric": row.metric, "subject": row.subject, "unit": row.unit}
        )
        if text := cell(row):
            entry[row.split] = text
    present = list(dict.fromkeys([*HELD_OUT, *(row.split for row in aggregates)]))
    splits = [split for split in present if any(split in entry for entry in rows.values())]
    filled = [entry for entry in rows.values() if len(entry) > 3]
    filled.sort(key=lambda entry: (entry["metric"] not in first, entry["subject"] not in ("all", "body")))
    return pd.DataFrame(filled, columns=["metric", "subject", "unit", *splits]).fillna("")
