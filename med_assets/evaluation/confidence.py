"""Whether to trust a prediction: the program's measure of confidence, calibrated on validation cases, and flags.

The measure is read from the stored prediction, so nothing is predicted for it. A calibrated probability is that of an acceptable
prediction: one whose primary metric reaches `confidence.acceptable` of the program's policy. Test cases never take part in a calibration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.capabilities import PredictionConfidence
from med_assets.catalog import Case, Catalog, FactValue
from med_assets.evaluation.aggregates import cell
from med_assets.evaluation.comparison import SPLIT
from med_assets.evaluation.novelty import Reference, training_reference
from med_assets.evaluation.predicting import prediction_key
from med_assets.evaluation.scoring import HELD_OUT
from med_assets.experiments import policies
from med_assets.metrics.bootstrap import SEED
from med_assets.metrics.platt import Platt, fit_platt
from med_assets.metrics.risk_coverage import RiskCoverage, risk_coverage
from med_assets.program import Metric
from med_assets.records import Calibration, CaseConfidence, CaseScore
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.versions import version_of, versioned

LOW = "low confidence"

MIN_EACH = 3
"""Fewer acceptable or fewer unacceptable validation cases than this leave confidence uncalibrated."""

FILE = "confidence.json"


@dataclass(frozen=True)
class Trust:
    """How far one prediction is to be trusted."""

    confidence: float | None
    probability: float | None
    distance: float | None
    flags: str

    @property
    def measured(self) -> dict[str, float | str | None]:
        """The same by name, for people."""
        return {
            "confidence": self.confidence,
            "probability of acceptable": self.probability,
            "distance from training, SD": self.distance,
            "do not trust": self.flags,
        }


def measures(ws: Settings, program_name: str, checkpoint: str, cases: Sequence[Case]) -> dict[str, float | None]:
    """The measure of confidence by case id, of cases whose prediction is in the store; each is kept, and read from a prediction once."""
    chosen = program.get(program_name)
    if not isinstance(chosen, PredictionConfidence):
        return {}
    version = version_of(type(chosen).confidence)
    found: dict[str, float | None] = {}
    for case in cases:
        if not ws.store.has(case.artifact):
            continue
        predicted = prediction_key(ws, program_name, checkpoint, case.artifact)
        key = "confidence/" + digest(predicted, case.artifact, version)
        if not ws.store.has(key):
            if not ws.store.has(predicted):
                continue
            with ws.store.create(key) as folder:
                value = chosen.confidence(ws.store.fetch(case.artifact), ws.store.fetch(predicted))
                write_json(folder / FILE, {"confidence": value})
        found[case.case_id] = read_json(ws.store.fetch(key) / FILE)["confidence"]
    return found


def acceptable(metric: Metric, limit: float, value: float) -> bool:
    """Whether a value of the primary metric reaches the limit."""
    return value <= limit if metric.lower_is_better else value >= limit


def loss(metric: Metric, value: float | None) -> float | None:
    """A value of the primary metric as a loss: itself where lower is better, else its distance to the greatest value."""
    if value is None or metric.lower_is_better:
        return value
    return (metric.range.high if metric.range.high is not None else 0.0) - value


def calibrate(
    program_name: str,
    experiment: str,
    checkpoint: str,
    scores: Sequence[CaseScore],
    measured: Mapping[str, float | None],
    reference: Reference,
    dataset_version: str,
) -> Calibration:
    """Fit the probability of an acceptable prediction on the validation cases by Platt scaling; with too few of them it stays uncalibrated."""
    chosen, policy = program.get(program_name), policies.of(program_name).confidence
    metric = chosen.primary_metric
    definition = (
        chosen.confidence_definition
        if isinstance(chosen, PredictionConfidence)
        else "the program has no measure of confidence"
    )
    pairs = [
        (measure, score.value)
        for score in scores
        if (score.split, score.metric, score.subject) == (SPLIT, metric.name, metric.subject)
        and score.value is not None
        and (measure := measured.get(score.case_id)) is not None
    ]
    limit = policy.acceptable
    good = [] if limit is None else [acceptable(metric, limit, value) for _, value in pairs]
    curve, n, n_good = None, len(pairs), sum(good)
    if limit is None:
        note = "uncalibrated: confidence.acceptable is not given"
    elif n < policy.min_cases:
        note = f"uncalibrated: {n} validation cases of at least {policy.min_cases}"
    elif min(n_good, n - n_good) < MIN_EACH:
        note = (
            f"uncalibrated: of {n} validation cases {n_good} are acceptable, {MIN_EACH} or more of each kind are needed"
        )
    elif (curve := fit_platt([measure for measure, _ in pairs], good)) is None:
        note = f"uncalibrated: on {n} validation cases a surer prediction is not likelier to be acceptable"
    else:
        note = f"Platt scaling on {n} validation cases, of which {n_good} are acceptable"
    return Calibration(
        program=program_name,
        experiment=experiment,
        checkpoint=checkpoint,
        definition=definition,
        metric=metric.name,
        acceptable=limit,
        n=n,
        n_acceptable=n_good,
        slope=curve.slope if curve else None,
        intercept=curve.intercept if curve else None,
        note=note,
        n_train=len(reference.rows),
        distance_limit=reference.limit,
        dataset_version=dataset_version,
        code_version=version_of(evaluate_confidence),
    )


def trust(
    calibration: Calibration | None,
    reference: Reference | None,
    program_name: str,
    measure: float | None,
    facts: Mapping[str, FactValue],
) -> Trust:
    """How far a prediction with this measure, of a case with these facts, is to be trusted."""
    probability: float | None = None
    flags: list[str] = []
    if calibration and calibration.slope is not None and calibration.intercept is not None and measure is not None:
        probability = Platt(calibration.slope, calibration.intercept).probability(measure)
        if probability < policies.of(program_name).confidence.flag_below:
            flags.append(f"{LOW}: acceptable with a probability of {probability:.2g}")
    novelty = reference.distance(facts) if reference else None
    if reference and (text := reference.flag(program_name, novelty)):
        flags.append(text)
    return Trust(measure, probability, novelty.distance if novelty else None, "; ".join(flags))


@versioned("1")
def evaluate_confidence(
    ws: Settings, program_name: str, experiment: str, checkpoint: str, scores: Sequence[CaseScore]
) -> tuple[Calibration, list[CaseConfidence]]:
    """Calibrate the confidence of a checkpoint, and say of every scored case how far it is to be trusted; both are recorded."""
    catalog = Catalog(ws, program_name)
    splits = {score.case_id: score.split for score in scores}
    cases = [case for case in catalog.described() if case.case_id in splits]
    measured = measures(ws, program_name, checkpoint, cases)
    reference = training_reference(ws, program_name, checkpoint)
    found = calibrate(program_name, experiment, checkpoint, scores, measured, reference, catalog.dataset().version)
    rows = []
    for case in cases:
        one = trust(found, reference, program_name, measured.get(case.case_id), case.facts)
        rows.append(
            CaseConfidence(
                program=program_name,
                experiment=experiment,
                checkpoint=checkpoint,
                case_id=case.case_id,
                patient_id=case.patient_id,
                split=splits[case.case_id],
                confidence=one.confidence,
                probability=one.probability,
                distance=one.distance,
                flags=one.flags,
            )
        )
    catalog.replace(Calibration, [found], experiment)
    catalog.replace(CaseConfidence, rows, experiment)
    return found, rows


@dataclass(frozen=True)
class Trusting:
    """What says how far predictions of a checkpoint are to be trusted: its calibration, if it was evaluated, and its training cases."""

    program: str
    calibration: Calibration | None
    reference: Reference

    @classmethod
    def of(cls, ws: Settings, program_name: str, experiment: str, checkpoint: str) -> "Trusting":
        """That of a checkpoint. Raises ArtifactMissing where it is gone."""
        rows = Catalog(ws, program_name).rows(Calibration, experiment)
        known = next((row for row in rows if row.checkpoint == checkpoint), None)
        return cls(program_name, known, training_reference(ws, program_name, checkpoint))

    @property
    def note(self) -> str:
        """How confidence was calibrated, or why it was not."""
        if self.calibration is None:
            return (
                "uncalibrated: the checkpoint was not evaluated since confidence is recorded; evaluate its experiment"
            )
        return self.calibration.note

    def of_case(self, prepared: Path, predicted: Path, facts: Mapping[str, FactValue]) -> Trust:
        """How far a prediction is to be trusted that is in a folder."""
        chosen = program.get(self.program)
        measure = chosen.confidence(prepared, predicted) if isinstance(chosen, PredictionConfidence) else None
        return trust(self.calibration, self.reference, self.program, measure, facts)


def curves(program_name: str, scores: Sequence[CaseScore], rows: Sequence[CaseConfidence]) -> dict[str, RiskCoverage]:
    """The risk-coverage curve of each split with a case that has a measure and a value of the primary metric."""
    metric = program.get(program_name).primary_metric
    values = {
        score.case_id: score.value for score in scores if (score.metric, score.subject) == (metric.name, metric.subject)
    }
    found = {}
    for split in HELD_OUT:
        own = [row for row in rows if row.split == split]
        curve = risk_coverage(
            [row.confidence for row in own],
            [loss(metric, values.get(row.case_id)) for row in own],
            [row.patient_id for row in own],
            SEED,
        )
        if curve.risk:
            found[split] = curve
    return found


def confidence_table(rows: Sequence[CaseConfidence], of: Mapping[str, RiskCoverage]) -> pd.DataFrame:
    """For people: by split the area under the risk-coverage curve beside the mean loss, and how many cases are flagged."""
    return pd.DataFrame(
        [
            {
                "split": split,
                "AURC": cell(curve.aurc),
                "mean loss": "" if curve.mean_loss is None else f"{curve.mean_loss:.3g}",
                "cases": str(sum(row.split == split for row in rows)),
                "low confidence": str(sum(row.split == split and LOW in row.flags for row in rows)),
                "out of distribution": str(
                    sum(row.split == split and "out of distribution" in row.flags for row in rows)
                ),
            }
            for split, curve in of.items()
        ]
    )
