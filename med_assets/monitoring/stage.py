"""The champion on every intake batch: which batches wait for it, its scores, and whether they stay within control limits."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.catalog import Catalog, accepted
from med_assets.evaluation.aggregates import INTERVAL, cell
from med_assets.evaluation.predicting import PredictedCases
from med_assets.evaluation.scoring import demand_scores, predict_unscored, record_failures, score_keys, score_predicted
from med_assets.evaluation.subgroups import subgroups
from med_assets.experiments import policies
from med_assets.launch.training import Launch, stored_checkpoint
from med_assets.metrics.bootstrap import SEED, Interval, mean_with_interval
from med_assets.monitoring.drift import POOLED, drift_rows, drift_table, subgroup_drift_rows
from med_assets.program import Metric
from med_assets.records import Champion, Drift, MonitoredScore, PreparedCase
from med_assets.settings import Settings
from med_assets.storage.files import digest
from med_assets.storage.provenance import cases_used_by
from med_assets.storage.result import StageResult

LIMITS_RULE = (
    "Limits: the mean of the earliest batches' cases, plus and minus t * s * sqrt(1/n + 1/N) for a batch of n cases, with s "
    "the standard deviation of the N earliest cases and t of Student's distribution (prediction interval of a mean)"
)


@dataclass(frozen=True)
class Point:
    """One batch on the chart of one metric. Cases that the champion has seen are left out.

    `low` and `high` are the bootstrap interval of `mean`, `lower` and `upper` the control limits: None for a batch of the
    baseline and while the baseline is too small. All values in the metric's unit.
    """

    batch: str
    mean: float
    low: float | None
    high: float | None
    n: int
    lower: float | None = None
    upper: float | None = None

    @property
    def beyond(self) -> bool:
        """Whether the batch lies outside its control limits."""
        return self.lower is not None and self.upper is not None and not self.lower <= self.mean <= self.upper


@dataclass(frozen=True)
class UnseenScore:
    """A score of the champion on a case that it has not seen, with the case's patient."""

    score: MonitoredScore
    patient_id: str


def _score_keys(catalog: Catalog, checkpoint: str, cases: Sequence[PreparedCase]) -> dict[str, str]:
    """By case id the key of its scores by a checkpoint."""
    keys = score_keys(catalog.ws, catalog.program, checkpoint, (case.artifact for case in cases))
    return {case.case_id: keys[case.artifact] for case in cases}


def waiting(ws: Settings, program_name: str) -> dict[str, str]:
    """Batches on which the champion was not scored yet, oldest first, each with a hash of what its scores will be made of.

    A batch counts as scored when the table holds the champion's scores of all its accepted cases as they are now.
    """
    catalog = Catalog(ws, program_name)
    champion = catalog.champion()
    if champion is None:
        return {}
    found = {}
    for batch in catalog.batches():
        wanted = set(_score_keys(catalog, champion.checkpoint, accepted(catalog.admitted(batch))).items())
        scored = {(row.case_id, row.score) for row in catalog.rows(MonitoredScore, batch)}
        if scored != wanted or not catalog.has(MonitoredScore, batch):
            found[batch] = digest(sorted(wanted))
    return found


def monitor(
    ws: Settings, program_name: str, batches: Sequence[str] | None = None, launch: Launch | None = None
) -> StageResult:
    """Score the champion on the accepted cases of these batches, or of all that wait; scores in the store are reused.

    Cases that the champion was trained on, or chosen by, are marked `seen_in_training` and stay out of the headline, which
    is over all batches that were ever scored with this champion. Drift of each batch, and of all new cases together, goes
    along. `launch` replaces the launcher that the experiment or the workspace names. Raises ScoringFailed where every case failed; what failed is in the table `failures`.
    """
    catalog = Catalog(ws, program_name)
    champion = catalog.champion()
    chosen = list(waiting(ws, program_name)) if batches is None else list(batches)
    if champion is None:
        for batch in chosen:
            catalog.replace(MonitoredScore, [], batch)
        note = "there is no champion yet; nothing was scored"
        return StageResult(digest("no champion"), {"new": 0, "reused": 0}, {"note": note})
    stored_checkpoint(ws, program_name, champion)
    counts, written = {"new": 0, "reused": 0}, []
    failures: dict[str, str] = {}
    scored: set[str] = set()
    cases = [case for batch in chosen for case in accepted(catalog.admitted(batch))]
    predicted = predict_unscored(ws, program_name, champion.checkpoint, cases, launch)
    for batch in chosen:
        rows, done, failed = _score(catalog, champion, batch, predicted)
        catalog.replace(MonitoredScore, rows, batch)
        catalog.replace(Drift, drift_rows(ws, program_name, champion.checkpoint, batch), batch)
        counts = {name: counts[name] + done[name] for name in counts}
        failures |= failed
        scored |= {row.case_id for row in rows}
        written.append([batch, rows])
    record_failures(ws, program_name, "monitoring", champion.experiment, champion.checkpoint, failures)
    demand_scores(scored, failures, program_name)
    since_training = drift_rows(ws, program_name, champion.checkpoint, POOLED)
    catalog.replace(Drift, [*since_training, *subgroup_drift_rows(ws, program_name, champion.checkpoint)], POOLED)
    return StageResult(
        data_version=digest(champion.checkpoint, written),
        counts=counts | {"failed": len(failures), "batches": len(chosen)},
        summary={
            "checkpoint": champion.checkpoint,
            "headline": headline(ws, program_name),
            "interval": INTERVAL,
            "control": LIMITS_RULE,
            "failures": failures,
        },
        tables={
            "batches": trend_table(ws, program_name),
            "subgroups": monitored_subgroups(ws, program_name),
            "drift": drift_table(ws, program_name),
        },
        images=plot_trends(ws, program_name),
    )


def _score(
    catalog: Catalog, champion: Champion, batch: str, predicted: PredictedCases
) -> tuple[list[MonitoredScore], dict[str, int], dict[str, str]]:
    ws, checkpoint = catalog.ws, champion.checkpoint
    cases = accepted(catalog.admitted(batch))
    keys = _score_keys(catalog, checkpoint, cases)
    seen = {case.case_id for case in cases_used_by(ws.store, checkpoint)}
    scores, counts, failures = score_predicted(ws, catalog.program, checkpoint, cases, predicted)
    wanted = {(metric.name, metric.subject) for metric in program.get(catalog.program).deciding_metrics}
    rows = [
        MonitoredScore(
            program=catalog.program,
            batch=batch,
            checkpoint=checkpoint,
            case_id=case_id,
            score=keys[case_id],
            seen_in_training=case_id in seen,
            metric=score.metric,
            subject=score.subject,
            value=score.value,
            unit=score.unit,
            truth=score.truth,
        )
        for case_id in sorted(scores)
        for score in scores[case_id]
        if (score.metric, score.subject) in wanted
    ]
    return rows, counts, failures


def _unseen(catalog: Catalog) -> list[UnseenScore]:
    """Scores of the champion on cases it has not seen, each case once, in its newest batch; by batch."""
    champion = catalog.champion()
    if champion is None:
        return []
    patients, newest = {}, {}
    for case in sorted(accepted(catalog.admitted()), key=lambda case: case.batch):
        patients[case.case_id], newest[case.case_id] = case.patient_id, case.batch
    left_out = catalog.left_out()
    return [
        UnseenScore(row, patients[row.case_id])
        for row in sorted(catalog.rows(MonitoredScore), key=lambda row: row.batch)
        if row.checkpoint == champion.checkpoint
        and not row.seen_in_training
        and row.value is not None
        and row.case_id not in left_out
        and newest.get(row.case_id) == row.batch
    ]


def _of(scores: Sequence[UnseenScore], metric: Metric) -> list[UnseenScore]:
    return [one for one in scores if (one.score.metric, one.score.subject) == (metric.name, metric.subject)]


def _mean(scores: Sequence[UnseenScore], metric: Metric) -> Interval:
    return mean_with_interval(
        [one.score.value for one in scores],
        SEED,
        groups=[one.patient_id for one in scores],
        strata=[one.score.truth for one in scores] if metric.by_class else None,
    )


def headline(ws: Settings, program_name: str) -> dict[str, str]:
    """By metric the champion's mean with interval and n over all monitored cases that it has not seen."""
    scores, found = _unseen(Catalog(ws, program_name)), {}
    for metric in program.get(program_name).deciding_metrics:
        values = _mean(_of(scores, metric), metric)
        text = cell(values)
        found[metric.name] = f"{text}{metric.after}" if text else "undefined: no case that the champion has not seen"
    return found


def monitored_subgroups(ws: Settings, program_name: str) -> pd.DataFrame:
    """For people: by declared subgroup the champion's means over all monitored cases that it has not seen."""
    catalog, least = Catalog(ws, program_name), policies.of(program_name).subgroups.min_patients
    scores = _unseen(catalog)
    by_batch = {(row.batch, row.case_id): row.values for row in catalog.facts()}
    facts = {one.score.case_id: by_batch.get((one.score.batch, one.score.case_id), {}) for one in scores}
    rows = []
    for subgroup, members in subgroups(program_name, facts).items():
        entry = {"fact": subgroup.fact, "subgroup": subgroup.label, "cases": str(len(members))}
        for metric in program.get(program_name).deciding_metrics:
            own = [one for one in _of(scores, metric) if one.score.case_id in members]
            patients = len({one.patient_id for one in own})
            few = f"too few: {patients} of at least {least} patients"
            entry[metric.label] = few if patients < least else cell(_mean(own, metric))
        rows.append(entry)
    return pd.DataFrame(rows)


def trend(ws: Settings, program_name: str) -> dict[str, list[Point]]:
    """By metric the batches in their order, with control limits after the baseline.

    The baseline are the earliest batches that together hold `control_cases` cases. A later batch of n cases lies within the
    prediction interval of the mean of n cases given the N of the baseline, assuming independent cases: mean ± t(1 -
    alpha/2, N - 1) * s * sqrt(1/n + 1/N). Source: Hahn and Meeker, Statistical Intervals (1991), section 4.7. Unlike fixed
    limits it is as wide as small batches and a small baseline demand.
    """
    from scipy.stats import t

    rule, scores = policies.of(program_name).monitoring, _unseen(Catalog(ws, program_name))
    found: dict[str, list[Point]] = {}
    for metric in program.get(program_name).deciding_metrics:
        groups: dict[str, list[UnseenScore]] = {}
        for one in _of(scores, metric):
            groups.setdefault(one.score.batch, []).append(one)
        points: list[Point] = []
        base: list[float] = []
        limits: tuple[float, float] | None = None
        for batch, members in groups.items():
            values = [one.score.value for one in members if one.score.value is not None]
            mean = _mean(members, metric)
            middle_of = mean.mean if metric.by_class else math.fsum(values) / len(values)
            lower = upper = None
            if limits is not None:
                middle, spread = limits
                reach = spread * math.sqrt(1 / len(values) + 1 / len(base))
                lower, upper = metric.range.cut(middle - reach), metric.range.cut(middle + reach)
            else:
                base += values
                if len(base) >= rule.control_cases:
                    series = pd.Series(base)
                    quantile = float(t.ppf(1 - rule.control_alpha / 2, len(base) - 1))
                    limits = float(series.mean()), quantile * float(series.std())
            assert middle_of is not None
            points.append(Point(batch, middle_of, mean.low, mean.high, len(values), lower, upper))
        found[metric.name] = points
    return found


def trend_table(ws: Settings, program_name: str) -> pd.DataFrame:
    """The trend for people: a row per metric and batch."""
    units = {metric.name: metric.unit for metric in program.get(program_name).deciding_metrics}
    rows = [
        {
            "metric": name,
            "batch": point.batch,
            "mean": cell(point),
            "limits": "baseline" if point.lower is None else f"{point.lower:.2f} to {point.upper:.2f}",
            "in control": "no" if point.beyond else "" if point.lower is None else "yes",
            "unit": units[name],
        }
        for name, points in trend(ws, program_name).items()
        for point in points
    ]
    return pd.DataFrame(rows, columns=["metric", "batch", "mean", "limits", "in control", "unit"])


def plot_trends(ws: Settings, program_name: str) -> dict[str, Path]:
    """One plot per metric of the champion over batches, where there are any."""
    from med_assets.reporting.plots import plot_trend

    folder, found, lines = ws.reports / program_name / "plots", {}, trend(ws, program_name)
    folder.mkdir(parents=True, exist_ok=True)
    for metric in program.get(program_name).deciding_metrics:
        points = lines[metric.name]
        if points:
            table = pd.DataFrame([asdict(point) | {"beyond": point.beyond} for point in points])
            name = f"trend_{metric.name}"
            found[name] = plot_trend(folder / f"{name}.png", table, metric=metric.name, unit=metric.shown_unit)
    return found
