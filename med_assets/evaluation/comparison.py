"""Two models on the same cases: paired differences in a metric, with their interval or their test."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.evaluation.scoring import score_cases
from med_assets.launch.training import Launch, Model, stored_checkpoint
from med_assets.metrics.bootstrap import SEED, Interval, paired_difference
from med_assets.metrics.paired_test import PairedTest, paired_test
from med_assets.program import Metric
from med_assets.records import CaseScore
from med_assets.settings import Settings
from med_assets.storage.files import read_json
from med_assets.storage.provenance import cases_used_by

SPLIT = "val"
"""Split that decides. The test split is reported and never chooses."""


def primary_by_case(program_name: str, scores: Iterable[CaseScore]) -> dict[str, CaseScore]:
    """The scores in the primary metric on the deciding split, by case id."""
    metric = program.get(program_name).primary_metric
    wanted = (SPLIT, metric.name, metric.subject)
    return {score.case_id: score for score in scores if (score.split, score.metric, score.subject) == wanted}


def primary_scores(ws: Settings, program_name: str, names: Sequence[str]) -> dict[str, dict[str, CaseScore]]:
    """By experiment, its recorded scores in the primary metric on the deciding split, by case id."""
    catalog = Catalog(ws, program_name)
    return {name: primary_by_case(program_name, catalog.rows(CaseScore, name)) for name in names}


def paired(metric: Metric, first: Mapping[str, CaseScore], second: Mapping[str, CaseScore]) -> Interval:
    """The difference in the primary metric, first minus second, of two experiments as `primary_scores` has them."""
    both = sorted(first.keys() & second.keys())
    ours, theirs = ([side[case_id] for case_id in both] for side in (first, second))
    return paired_difference(
        [score.value for score in ours],
        [score.value for score in theirs],
        SEED,
        groups=[score.patient_id for score in ours],
        strata=[score.truth for score in ours] if metric.by_class else None,
        bounds=metric.range,
    )


Values = dict[str, dict[tuple[str, str], float | None]]
"""By case id the value of each (metric, subject)."""


@dataclass(frozen=True)
class ScoredModel:
    """A checkpoint before the gate: the hash of its weights, what it was trained on, and its scores on deciding cases."""

    experiment: str
    checkpoint: str
    weights_sha256: str
    learned: frozenset[str]
    """Ids of its training cases."""
    values: Values
    truths: Values = field(default_factory=dict)
    """By case id the true side of each (metric, subject), where it has one."""


def scored_model(
    ws: Settings, program_name: str, model: Model, cases: Sequence[Case], launch: Launch | None = None
) -> ScoredModel:
    """A checkpoint with its scores of these cases; what was scored before comes from the store."""
    record = read_json(stored_checkpoint(ws, program_name, model) / "provenance.json")
    scores, _, _ = score_cases(ws, program_name, model.checkpoint, cases, launch)
    return ScoredModel(
        model.experiment,
        model.checkpoint,
        record["weights_sha256"],
        frozenset(case.case_id for case in cases_used_by(ws.store, model.checkpoint) if case.split == "train"),
        {case_id: {(one.metric, one.subject): one.value for one in of_case} for case_id, of_case in scores.items()},
        {case_id: {(one.metric, one.subject): one.truth for one in of_case} for case_id, of_case in scores.items()},
    )


@dataclass(frozen=True)
class Comparison:
    """Paired difference in one metric, above 0 where the challenger is worse, and how many pairs only it lacks.

    `difference.p` is that of "not better by more than the margin".
    """

    metric: Metric
    difference: PairedTest
    n_lost: int
    by_case: Mapping[str, float] = field(default_factory=dict)
    """The difference of each case that both scored, by case id."""

    def __str__(self) -> str:
        found = self.difference
        if found.mean is None:
            return f"{self.metric.name}: undefined, n = {found.n}"
        ends = "no interval" if found.low is None or found.high is None else f"[{found.low:+.3f}, {found.high:+.3f}]"
        p = "" if found.p is None else f", p = {found.p:.2g}"
        return f"{self.metric.name}: {found.mean:+.3f} {ends}{self.metric.after} (below 0 is better), n = {found.n}{p}"


def compare(
    ours: ScoredModel,
    theirs: ScoredModel,
    cases: Sequence[Case],
    metric: Metric,
    margin: float = 0.0,
    challengers: int = 1,
) -> Comparison:
    """Compare two models case by case, on the given cases that neither was trained on.

    The test is whether the challenger is better by more than `margin`, worse by less than it where the margin is negative.
    """
    sign, key = (1 if metric.lower_is_better else -1), (metric.name, metric.subject)
    fair = [case for case in cases if case.case_id not in ours.learned | theirs.learned]

    def signed(side: ScoredModel) -> list[float | None]:
        found = [side.values.get(case.case_id, {}).get(key) for case in fair]
        return [None if value is None else sign * value for value in found]

    first, second = signed(ours), signed(theirs)
    lost = sum(a is None and b is not None for a, b in zip(first, second, strict=True))
    found = paired_test(
        first,
        second,
        SEED,
        groups=[case.patient_id for case in fair],
        strata=[ours.truths.get(case.case_id, {}).get(key) for case in fair] if metric.by_class else None,
        margin=margin,
        challengers=challengers,
        bounds=metric.range,  # turned round or not, differences of its values have the same range
    )
    both = zip(fair, first, second, strict=True)
    by_case = {case.case_id: a - b for case, a, b in both if a is not None and b is not None}
    return Comparison(metric, found, lost, by_case)
