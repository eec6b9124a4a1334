"""The champion held to what it was promoted with: scored anew on the present dataset by the present code, it must not be worse.

The deciding scores of its promotion are kept case by case. Cases that are as they were are compared one by one: a difference can
only come from changed code or settings. The mean over all present cases is compared with that of then, by their intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.errors import ConfigurationError
from med_assets.evaluation.comparison import SPLIT, scored_model
from med_assets.experiments import policies
from med_assets.experiments.policies import Promotion
from med_assets.metrics.bootstrap import SEED, Interval, mean_with_interval
from med_assets.program import Metric
from med_assets.promotion.champions import ACCEPTED, crown
from med_assets.records import Champion, PromotedScore
from med_assets.settings import Settings
from med_assets.storage.locks import alone

ROUNDING = 1e-6
"""Relative difference of two scores of the same prediction that says nothing: the order of sums may differ by machine."""


@dataclass(frozen=True)
class Regression:
    """One deciding metric of the champion, when it was promoted and now, and what of it is worse."""

    metric: Metric
    promoted: Interval
    present: Interval
    n_same: int
    """Cases that are as they were."""
    objections: tuple[str, ...]


def record_scores(ws: Settings, champion: Champion, *, anew: bool = False) -> None:
    """Keep the champion's present deciding scores as those that it is held to; what is kept already stays, unless `anew`.

    The caller holds the lock of the champion.
    """
    catalog = Catalog(ws, champion.program)
    if anew or not catalog.has(PromotedScore, champion.experiment, champion.checkpoint):
        rows = present_scores(ws, champion)
        catalog.replace(PromotedScore, rows, champion.experiment, champion.checkpoint)


def present_scores(ws: Settings, champion: Champion) -> list[PromotedScore]:
    """Deciding scores of the champion on the validation cases of the present dataset that it was not trained on."""
    name = champion.program
    cases = Catalog(ws, name).cases(SPLIT)
    model = scored_model(ws, name, champion, cases)
    wanted = {(metric.name, metric.subject) for metric in program.get(name).deciding_metrics}
    return [
        PromotedScore(
            program=name,
            experiment=champion.experiment,
            checkpoint=champion.checkpoint,
            case_id=case.case_id,
            version=case.version,
            patient_id=case.patient_id,
            metric=metric,
            subject=subject,
            value=model.values.get(case.case_id, {}).get((metric, subject)),
            truth=model.truths.get(case.case_id, {}).get((metric, subject)),
        )
        for case in _unlearned(cases, model.learned)
        for metric, subject in sorted(wanted)
    ]


def _unlearned(cases: Sequence[Case], learned: frozenset[str]) -> list[Case]:
    return [case for case in cases if case.case_id not in learned]


def regressions(ws: Settings, champion: Champion) -> list[Regression]:
    """Hold the champion's present scores to those kept of its promotion, metric by metric; none where none were kept.

    Raises ArtifactMissing where its checkpoint is gone.
    """
    catalog = Catalog(ws, champion.program)
    kept = catalog.rows(PromotedScore, champion.experiment, champion.checkpoint)
    if not kept:
        return []
    rule, present = policies.of(champion.program).promotion, present_scores(ws, champion)
    primary, *guarded = program.get(champion.program).deciding_metrics
    found = [_regression(primary, kept, present, rule, guarded=False)]
    return found + [_regression(metric, kept, present, rule, guarded=True) for metric in guarded]


def _regression(
    metric: Metric,
    kept: Sequence[PromotedScore],
    present: Sequence[PromotedScore],
    rule: Promotion,
    *,
    guarded: bool,
) -> Regression:
    sign, key = (1 if metric.lower_is_better else -1), (metric.name, metric.subject)
    then, now = ([row for row in rows if (row.metric, row.subject) == key] for rows in (kept, present))
    before = {(row.case_id, row.version): row.value for row in then}
    same = [row for row in now if (row.case_id, row.version) in before]
    lost = sum(row.value is None and before[row.case_id, row.version] is not None for row in same)
    margin = rule.guard_margins.get(metric.name, 0.0) if guarded else rule.tolerance
    worse = [
        sign * (row.value - was)
        for row in same
        if row.value is not None and (was := before[row.case_id, row.version]) is not None
    ]
    promoted, found = (_interval(metric, rows) for rows in (then, now))
    objections = []
    if lost:
        objections.append(f"{lost} of {len(same)} cases lost their value of {metric.name}")
    mean = sum(worse) / len(worse) if worse else 0.0
    if mean > margin + ROUNDING * abs(promoted.mean or 0.0):
        objections.append(
            f"{metric.name} is worse by {mean:.4g}{metric.after} over {len(worse)} cases that did not change, "
            f"expected at most {margin:g}{metric.after}: code or settings of prediction or scores changed"
        )
    ends = (found.low, found.high, promoted.low, promoted.high)
    if None not in ends and _gap(sign, found, promoted) > margin:
        objections.append(
            f"{metric.name} was {_written(promoted, metric)} and is {_written(found, metric)}: worse beyond both intervals by "
            f"more than {margin:g}{metric.after}; the validation cases differ from those of the promotion"
        )
    return Regression(metric, promoted, found, len(same), tuple(objections))


def _interval(metric: Metric, rows: Sequence[PromotedScore]) -> Interval:
    return mean_with_interval(
        [row.value for row in rows],
        SEED,
        groups=[row.patient_id for row in rows],
        strata=[row.truth for row in rows] if metric.by_class else None,
    )


def _gap(sign: int, present: Interval, promoted: Interval) -> float:
    """How far the better end of the present interval is on the worse side of the worse end of the promoted one."""
    assert present.low is not None
    assert present.high is not None
    assert promoted.low is not None
    assert promoted.high is not None
    return present.low - promoted.high if sign > 0 else promoted.low - present.high


def _written(found: Interval, metric: Metric) -> str:
    return f"{found.mean:.4g} [{found.low:.4g}, {found.high:.4g}]{metric.after} (n = {found.n})"


def accept_scores(ws: Settings, program_name: str, reason: str) -> Champion:
    """Hold the champion to its present scores from now on; a person says why, such as a changed definition of a metric.

    Returns the new row of the history. Raises ConfigurationError for no reason and where there is no champion.
    """
    if not reason.strip():
        raise ConfigurationError("expected a reason why the scores are accepted, got none; it is kept with the history")
    catalog = Catalog(ws, program_name)
    with alone(ws, f"champion-{program_name}"):
        decided_on = catalog.stamp(Champion)
        champion = catalog.champion()
        if champion is None:
            raise ConfigurationError(f"expected a champion of {program_name}, there is none yet")
        record_scores(ws, champion, anew=True)
        crown(ws, champion, ACCEPTED, reason.strip(), decided_on)
    return catalog.champions()[-1]
