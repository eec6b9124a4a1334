"""Whether to trust a prediction: the program's measure of confidence, calibrated on validation cases, and flags.

The measure is read from the stored prediction, so nothing is predicted for it. Of an ensemble, and of mirrored copies of a case, the
agreement of the predictions is a second one. A calibrated probability is that of an acceptable prediction: one whose primary metric reaches
`confidence.acceptable` of the program's policy. Test cases never take part in a calibration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from med_assets.metrics.spread import AGREEMENT, Agreement
from med_assets.program import Metric
from med_assets.records import Calibration, CaseConfidence, CaseScore
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.versions import version_of, versioned
from med_assets.training.members import members_of

LOW, APART = "low confidence", "low agreement"

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
    agreement: float | None = None
    agreement_probability: float | None = None

    @property
    def measured(self) -> dict[str, float | str | None]:
        """The same by name, for people."""
        agreed = {
            "agreement of predictions": self.agreement,
            "probability of acceptable by agreement": self.agreement_probability,
        }
        return {
            "confidence": self.confidence,
            "probability of acceptable": self.probability,
            **({} if self.agreement is None else agreed),
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


def agreement_in(predicted: Path) -> Agreement | None:
    """How far the predictions agree that a kept one is the mean of; None where it is of one model and the case as it is."""
    path = predicted / AGREEMENT
    return Agreement(**read_json(path)) if path.is_file() else None


def agreements(ws: Settings, program_name: str, checkpoint: str, cases: Sequence[Case]) -> dict[str, Agreement]:
    """Agreements by case id, of cases whose prediction is in the store; of a checkpoint without members there are none."""
    found: dict[str, Agreement] = {}
    if not members_of(ws.store.fetch(checkpoint)):
        return found
    for case in cases:
        if not ws.store.has(case.artifact):
            continue
        predicted = prediction_key(ws, program_name, checkpoint, case.artifact)
        if ws.store.has(predicted) and (agreement := agreement_in(ws.store.fetch(predicted))) is not None:
            found[case.case_id] = agreement
    return found


def acceptable(metric: Metric, limit: float, value: float) -> bool:
    """Whether a value of the primary metric reaches the limit."""
    return value <= limit if metric.lower_is_better else value >= limit


def loss(metric: Metric, value: float | None) -> float | None:
    """A value of the primary metric as a loss: itself where lower is better, else its distance to the greatest value."""
    if value is None or metric.lower_is_better:
        return value
    return (metric.range.high if metric.range.high is not None else 0.0) - value


@dataclass(frozen=True)
class Fitted:
    """A measure calibrated on n validation cases, or why it is not."""

    curve: Platt | None
    n: int
    n_acceptable: int
    note: str


def _fitted(program_name: str, scores: Sequence[CaseScore], measured: Mapping[str, float | None]) -> Fitted:
    """Calibrate a measure by case id on the validation cases."""
    metric, policy = program.get(program_name).primary_metric, policies.of(program_name).confidence
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
    return Fitted(curve, n, n_good, note)


def calibrate(
    program_name: str,
    experiment: str,
    checkpoint: str,
    scores: Sequence[CaseScore],
    measured: Mapping[str, float | None],
    reference: Reference,
    dataset_version: str,
    agreed: Mapping[str, Agreement] | None = None,
) -> Calibration:
    """Fit the probability of an acceptable prediction on the validation cases by Platt scaling; with too few of them it stays uncalibrated."""
    chosen, policy = program.get(program_name), policies.of(program_name).confidence
    metric = chosen.primary_metric
    definition = (
        chosen.confidence_definition
        if isinstance(chosen, PredictionConfidence)
        else "the program has no measure of confidence"
    )
    fitted = _fitted(program_name, scores, measured)
    apart = {case_id: one.agreement for case_id, one in (agreed or {}).items()}
    fitted_apart = _fitted(program_name, scores, apart) if apart else None
    return Calibration(
        program=program_name,
        experiment=experiment,
        checkpoint=checkpoint,
        definition=definition,
        metric=metric.name,
        acceptable=policy.acceptable,
        n=fitted.n,
        n_acceptable=fitted.n_acceptable,
        slope=fitted.curve.slope if fitted.curve else None,
        intercept=fitted.curve.intercept if fitted.curve else None,
        note=fitted.note,
        agreement_definition=next(iter(agreed.values())).definition if agreed else None,
        agreement_slope=fitted_apart.curve.slope if fitted_apart and fitted_apart.curve else None,
        agreement_intercept=fitted_apart.curve.intercept if fitted_apart and fitted_apart.curve else None,
        agreement_note=fitted_apart.note if fitted_apart else None,
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
    agreement: Agreement | None = None,
) -> Trust:
    """How far a prediction with this measure, of a case with these facts, is to be trusted; `agreement` is that of several predictions."""
    agreed = agreement.agreement if agreement else None
    known = calibration
    probability = _probability(known.slope, known.intercept, measure) if known else None
    by_agreement = _probability(known.agreement_slope, known.agreement_intercept, agreed) if known else None
    least = policies.of(program_name).confidence.flag_below
    flags = [
        f"{what}: acceptable with a probability of {value:.2g}"
        for what, value in ((LOW, probability), (APART, by_agreement))
        if value is not None and value < least
    ]
    novelty = reference.distance(facts) if reference else None
    if reference and (text := reference.flag(program_name, novelty)):
        flags.append(text)
    distance = novelty.distance if novelty else None
    return Trust(measure, probability, distance, "; ".join(flags), agreed, by_agreement)


def _probability(slope: float | None, intercept: float | None, measure: float | None) -> float | None:
    """The calibrated probability of an acceptable prediction; None where something of it is unknown."""
    if slope is None or intercept is None or measure is None:
        return None
    return Platt(slope, intercept).probability(measure)


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
    agreed = agreements(ws, program_name, checkpoint, cases)
    version = catalog.dataset().version
    found = calibrate(program_name, experiment, checkpoint, scores, measured, reference, version, agreed)
    rows = []
    for case in cases:
        one = trust(found, reference, program_name, measured.get(case.case_id), case.facts, agreed.get(case.case_id))
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
                agreement=one.agreement,
                agreement_probability=one.agreement_probability,
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
        return trust(self.calibration, self.reference, self.program, measure, facts, agreement_in(predicted))


def curves(
    program_name: str,
    scores: Sequence[CaseScore],
    rows: Sequence[CaseConfidence],
    by: Literal["confidence", "agreement"] = "confidence",
) -> dict[str, RiskCoverage]:
    """The risk-coverage curve of each split with a case that has a measure and a value of the primary metric."""
    metric = program.get(program_name).primary_metric
    values = {
        score.case_id: score.value for score in scores if (score.metric, score.subject) == (metric.name, metric.subject)
    }
    found = {}
    for split in HELD_OUT:
        own = [row for row in rows if row.split == split]
        curve = risk_coverage(
            [row.confidence if by == "confidence" else row.agreement for row in own],
            [loss(metric, values.get(row.case_id)) for row in own],
            [row.patient_id for row in own],
            SEED,
        )
        if curve.risk:
            found[split] = curve
    return found


def confidence_table(
    rows: Sequence[CaseConfidence],
    of: Mapping[str, RiskCoverage],
    by_agreement: Mapping[str, RiskCoverage] | None = None,
) -> pd.DataFrame:
    """For people: by split the area under the risk-coverage curve beside the mean loss, and how many cases are flagged."""
    agreed = by_agreement or {}
    return pd.DataFrame(
        [
            {
                "split": split,
                "AURC": cell(curve.aurc),
                **({"AURC by agreement": cell(agreed[split].aurc)} if split in agreed else {}),
                "mean loss": "" if curve.mean_loss is None else f"{curve.mean_loss:.3g}",
                "cases": str(sum(row.split == split for row in rows)),
                "low confidence": str(sum(row.split == split and LOW in row.flags for row in rows)),
                **(
                    {"low agreement": str(sum(row.split == split and APART in row.flags for row in rows))}
                    if split in agreed
                    else {}
                ),
                "out of distribution": str(
                    sum(row.split == split and "out of distribution" in row.flags for row in rows)
                ),
            }
            for split, curve in of.items()
        ]
    )
