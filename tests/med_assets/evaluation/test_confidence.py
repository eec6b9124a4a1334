"""Confidence: calibrated on validation alone, and what flags a prediction."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from med_assets import program
from med_assets.capabilities import PredictionConfidence
from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError
from med_assets.evaluation.confidence import (
    Trusting,
    calibrate,
    confidence_table,
    curves,
    evaluate_confidence,
    trust,
)
from med_assets.evaluation.novelty import Reference
from med_assets.experiments import policies
from med_assets.metrics.spread import Agreement
from med_assets.operations.integrity import examine, remove_damaged
from med_assets.records import Calibration, CaseConfidence, CaseScore
from med_assets.settings import Workspace
from med_assets.storage.files import write_json
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import PRIMARY, TRAIN, VAL, cases, configure, constant, facts, model

NONE = Reference.of([], [], 0.05)


def scores(n: int, split: str = "val", *, good_from: int = 15, prefix: str = "v") -> list[CaseScore]:
    """Dose scores of cases: bad (9 Gy) up to a place and good (1 Gy) after it."""
    keys = {"program": P, "experiment": "e", "checkpoint": "c", "unit": "Gy", "convention": "test", "subject": "body"}
    return [
        CaseScore.of(
            keys | {"case_id": f"{prefix}{place:02}", "patient_id": f"p{prefix}{place}", "split": split, "metric": PRIMARY}
            | {"value": 1.0 if place >= good_from else 9.0}
        )
        for place in range(n)
    ]  # fmt: skip


def measured(n: int, prefix: str = "v") -> dict[str, float | None]:
    """A measure that rises with the place, with some noise."""
    noise = np.random.default_rng(4).normal(0, 0.15, n)
    return {f"{prefix}{place:02}": float(place / n + noise[place]) for place in range(n)}


def made(found: list[CaseScore], sure: dict[str, float | None]) -> Calibration:
    return calibrate(P, "e", "c", found, sure, NONE, "d")


def test_calibration_never_sees_a_test_case_and_follows_the_validation_cases() -> None:
    val, sure = scores(30), measured(30)
    alone = made(val, sure)
    assert (alone.n, alone.n_acceptable) == (30, 15)
    assert alone.slope is not None
    assert alone.slope > 0
    for split in ("test", "external", "train"):
        # As many cases of another split that say the opposite of the validation cases.
        other = scores(30, split, good_from=0, prefix="x")[:15] + scores(30, split, good_from=99, prefix="x")[15:]
        assert made([*val, *other], sure | measured(30, "x")) == alone
    assert made(scores(30, good_from=5), sure) != alone


@pytest.mark.parametrize(
    ("n", "good_from", "message"),
    [
        (19, 9, "uncalibrated: 19 validation cases of at least 20"),
        (30, 29, "uncalibrated: of 30 validation cases 1 are acceptable"),
        (30, 0, "uncalibrated: of 30 validation cases 30 are acceptable"),
    ],
)
def test_too_few_cases_leave_it_uncalibrated_and_say_so(n: int, good_from: int, message: str) -> None:
    found = made(scores(n, good_from=good_from), measured(n))
    assert (found.slope, found.intercept) == (None, None)
    assert found.note.startswith(message)
    assert trust(found, None, P, 0.9, {}).probability is None


def test_a_measure_that_does_not_rise_with_success_is_not_calibrated() -> None:
    turned = {name: None if value is None else -value for name, value in measured(30).items()}
    assert "a surer prediction is not likelier" in made(scores(30), turned).note


def test_a_prediction_with_a_low_probability_is_flagged_and_a_sure_one_is_not() -> None:
    found = made(scores(30), measured(30))
    low, high = (trust(found, None, P, value, {}) for value in (0.0, 1.0))
    assert low.probability is not None
    assert high.probability is not None
    assert low.probability < 0.5 < high.probability
    assert low.flags.startswith("low confidence: acceptable with a probability of 0.")
    assert high.flags == ""


def usual(n: int = 40) -> list[dict[str, Any]]:
    """Facts of cases of two scanners."""
    rng = np.random.default_rng(2)
    return [
        {"spacing_z_mm": float(rng.normal(3.0 if place % 2 else 5.0, 0.05)), "fractions": 25, "body_ml": None}
        for place in range(n)
    ]


def test_a_case_far_from_the_training_cases_is_flagged_by_the_fact_that_is_unlike_theirs() -> None:
    names = ["spacing_z_mm", "fractions", "body_ml"]
    reference = Reference.of(names, usual(), 0.05)
    assert reference.facts == ("spacing_z_mm", "fractions"), "no training case has the third"
    for like in ({"spacing_z_mm": 3.0, "fractions": 25}, {"spacing_z_mm": 5.0, "fractions": 25}):
        assert trust(None, reference, P, None, like).flags == ""
    between = trust(None, reference, P, None, {"spacing_z_mm": 4.0, "fractions": 25})
    assert "most by spacing_z_mm 4 mm" in between.flags, "between two scanners lies neither"
    hypofractionated = trust(None, reference, P, None, {"spacing_z_mm": 3.0, "fractions": 5})
    assert hypofractionated.flags.startswith("out of distribution")
    assert "most by fractions 5, in training 25" in hypofractionated.flags
    assert trust(None, reference, P, None, {}).distance is None


def test_of_new_cases_like_those_of_training_about_the_configured_share_is_flagged() -> None:
    rng = np.random.default_rng(0)
    reference = Reference.of(["spacing_z_mm"], [{"spacing_z_mm": float(value)} for value in rng.normal(3, 1, 200)], 0.1)
    new = [trust(None, reference, P, None, {"spacing_z_mm": float(value)}) for value in rng.normal(3, 1, 1000)]
    assert 0.05 < np.mean([bool(one.flags) for one in new]) < 0.16


def test_few_training_cases_have_no_limit_and_flag_nothing() -> None:
    reference = Reference.of(["spacing_z_mm"], usual(18), 0.05)
    assert reference.limit is None
    assert trust(None, reference, P, None, {"spacing_z_mm": 99.0}).flags == ""
    assert Reference.of(["spacing_z_mm"], usual(19), 0.05).limit is not None


@pytest.mark.parametrize("name", program.registered())
def test_every_program_has_a_defined_measure_and_facts_for_novelty(name: str) -> None:
    chosen = program.get(name)
    assert isinstance(chosen, PredictionConfidence)
    assert len(chosen.confidence_definition) > 20
    assert policies.of(name).confidence.facts


def test_the_measures_of_classes_levels_and_masks_are_read_from_what_was_predicted(tmp_path: Path) -> None:
    def of(name: str) -> float | None:
        chosen = program.get(name)
        assert isinstance(chosen, PredictionConfidence)
        return chosen.confidence(tmp_path, tmp_path)

    write_json(tmp_path / "prediction.json", {"probabilities": {"a": 0.2, "b": 0.7, "c": 0.1}})
    assert of("retinal_oct") == pytest.approx(0.7)
    write_json(tmp_path / "prediction.json", {"protocol": "other"})
    assert of("retinal_oct") is None
    levels = {"confidence": 0.9}, {"confidence": 0.4}
    kept = {"points": {"L4": {}, "L5": {}}, "uncertainty": dict(zip(("L4", "L5"), levels, strict=True))}
    write_json(tmp_path / "prediction.json", kept)
    assert of("lumbar_mr") == pytest.approx(0.4)
    write_json(tmp_path / "prediction.json", kept | {"points": {"L4": {}, "L5": None}})
    assert of("lumbar_mr") == 0.0
    np.save(tmp_path / "probability.npy", np.array([[0.9, 0.7], [0.1, 0.2]], np.float16))
    assert of("breast_us") == pytest.approx(0.8, abs=1e-3)
    np.save(tmp_path / "probability.npy", np.array([[0.1, 0.3]], np.float16))
    assert of("breast_us") == pytest.approx(0.7, abs=1e-3)


def test_agreement_is_calibrated_beside_the_confidence_and_flags_by_itself() -> None:
    val, values = scores(30), measured(30)
    agreed = {name: Agreement(3, 100 * float(value or 0), "Dice", {}) for name, value in values.items()}
    alone, both = made(val, values), calibrate(P, "e", "c", val, values, NONE, "d", agreed)
    assert (both.slope, both.intercept, both.note) == (alone.slope, alone.intercept, alone.note)
    assert (alone.agreement_definition, alone.agreement_slope, alone.agreement_note) == (None, None, None)
    assert both.agreement_definition == "Dice"
    assert both.agreement_slope is not None
    low, high = Agreement(3, 5.0, "Dice", {}), Agreement(3, 95.0, "Dice", {})
    apart = trust(both, None, P, 0.95, {}, low)
    assert apart.flags.startswith("low agreement: acceptable with a probability of ")
    assert apart.measured["agreement of predictions"] == 5.0
    assert trust(both, None, P, 0.95, {}, high).flags == ""
    assert trust(both, None, P, 0.05, {}, high).flags.startswith("low confidence")
    assert "agreement of predictions" not in trust(both, None, P, 0.95, {}).measured
    # Test cases take no part in it either.
    other = scores(30, "test", good_from=0, prefix="x")
    more = agreed | {name: Agreement(3, -float(value or 0), "Dice", {}) for name, value in measured(30, "x").items()}
    assert calibrate(P, "e", "c", [*val, *other], values, NONE, "d", more) == both


def test_agreement_has_a_curve_and_columns_of_its_own() -> None:
    val = scores(30)
    keys = {"program": P, "experiment": "e", "checkpoint": "c", "split": "val", "flags": ""}
    rows = [
        CaseConfidence.of(keys | {"case_id": score.case_id, "patient_id": score.patient_id, "confidence": 0.5, "agreement": place / 30})
        for place, score in enumerate(val)
    ]  # fmt: skip
    by_confidence, by_agreement = curves(P, val, rows), curves(P, val, rows, "agreement")
    assert (by_agreement["val"].aurc.mean or 0) < (by_confidence["val"].aurc.mean or 0), "agreement sorts these cases"
    assert {"AURC", "AURC by agreement", "low agreement"} <= set(confidence_table(rows, by_confidence, by_agreement))
    assert "AURC by agreement" not in confidence_table(rows, by_confidence)


def test_facts_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path, monkeypatch, confidence={"facts": ["structures_missing"]})
    with pytest.raises(ConfigurationError, match="expected numbers among the facts"):
        policies.of(P)


def test_confidence_is_recorded_by_case_without_a_prediction_too_and_curves_are_by_split(workspace: Workspace) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    facts(workspace, {name: {"spacing_z_mm": 3.0, "fractions": 25} for name in (*TRAIN, *VAL)})
    checkpoint = model(workspace, "mean_dose", constant(5.0))
    catalog = Catalog(workspace, P)
    found, rows = evaluate_confidence(workspace, P, "mean_dose", checkpoint, catalog.rows(CaseScore, "mean_dose"))
    assert found.note == "uncalibrated: 0 validation cases of at least 20", "no prediction is in the store"
    assert {row.case_id for row in rows} == set(VAL)
    assert catalog.rows(Calibration, "mean_dose") == [found]
    assert catalog.rows(CaseConfidence, "mean_dose") == rows
    sure = [dataclasses.replace(row, confidence=place / 30) for place, row in enumerate(rows)]
    table = confidence_table(sure, curves(P, catalog.rows(CaseScore, "mean_dose"), sure))
    assert table["split"].tolist() == ["val"]
    assert table["AURC"][0].endswith("(n = 30)")
    assert Trusting.of(workspace, P, "mean_dose", checkpoint).calibration == found
    other = Trusting.of(workspace, P, "baseline", checkpoint)
    assert other.note.startswith("uncalibrated: the checkpoint was not evaluated")


@pytest.mark.parametrize(("kind", "remedy"), [("confidence", "med-assets evaluate"), ("origin", "the next command")])
def test_a_kept_measure_that_is_damaged_is_found_and_can_be_made_again(
    workspace: Workspace, kind: str, remedy: str
) -> None:
    with workspace.store.create(f"{kind}/0123456789abcdef") as folder:
        write_json(folder / "kept.json", {"value": 0.5})
    assert examine(workspace) == []
    (workspace.store.fetch(f"{kind}/0123456789abcdef") / "kept.json").write_text("else")
    [damage] = examine(workspace)
    assert (damage.state, damage.again) == ("corrupt", True)
    assert remedy in damage.remedy
    assert remove_damaged(workspace, [damage]) == [damage]
    assert not workspace.store.has(damage.key)
