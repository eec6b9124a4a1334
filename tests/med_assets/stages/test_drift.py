"""Drift of new cases against the champion's training set."""

from pathlib import Path

import numpy as np
import pytest

from med_assets import program
from med_assets.cli import stages
from med_assets.metrics.multiple import holm
from med_assets.monitoring.checks import drift
from med_assets.monitoring.drift import POOLED, drift_rows, drifted_facts, ks, shares
from med_assets.settings import Workspace
from tests.conftest import MadeOnce
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import VAL, cases, configure, constant, facts, model, score

TRAIN = tuple(f"t{number}" for number in range(40))


def measured(names: list[str], seed: int, spacing: float = 3.0, in_plan: float = 0.5) -> dict[str, dict[str, object]]:
    """Facts of cases: slice spacing about a value, target volume, and whether the plan states the prescription."""
    rng = np.random.default_rng(seed)
    return {
        name: {
            "spacing_z_mm": float(rng.normal(spacing, 0.3)),
            "target_ml": float(rng.normal(100, 20)),
            "prescription_in_plan": bool(rng.random() < in_plan),
        }
        for name in names
    }


def make_trained(ws: Workspace) -> None:
    """A champion trained on forty cases."""
    cases(ws, {"train": TRAIN, "val": VAL})
    facts(ws, measured([*TRAIN, *VAL], 1))
    model(ws, "mean_dose", constant(5.0), train=TRAIN)
    model(ws, "baseline", constant(4.0), train=TRAIN)
    stages.champion(ws, P)


@pytest.fixture
def ws(made_once: MadeOnce) -> Workspace:
    return made_once(make_trained)


def arrive(ws: Workspace, batch: str, n: int, seed: int, **changed: float) -> dict[str, dict[str, object]]:
    """Monitor one more batch; its rows of the drift table by fact."""
    names = [f"{batch}-{number}" for number in range(n)]
    cases(ws, {"train": names}, batch=batch)
    facts(ws, measured(names, seed, **changed), batch)
    for name in names:
        score(ws, ws.lake.rows("champions", P)[-1]["checkpoint"], name, 4.0)
    stages.monitor(ws, P, [batch])
    return {row["fact"]: row for row in ws.lake.rows("drift", f"{P}/{batch}")}


def test_cases_like_those_of_training_do_not_drift(ws: Workspace) -> None:
    found = arrive(ws, "b2", 30, 2)
    assert found["spacing_z_mm"]["drifted"] is False
    assert (found["spacing_z_mm"]["n_reference"], found["spacing_z_mm"]["n"]) == (40, 30)
    assert drift(ws, P).passed
    assert drifted_facts(ws, P) == ()


def test_a_number_and_a_share_that_moved_are_found_and_the_check_warns(ws: Workspace) -> None:
    found = arrive(ws, "b2", 30, 3, spacing=5.0, in_plan=0.0)
    assert found["spacing_z_mm"]["drifted"] is True
    assert found["prescription_in_plan"]["drifted"] is True
    assert found["target_ml"]["drifted"] is False
    outcome = drift(ws, P)
    assert (outcome.passed, outcome.severity) == (False, "warn")
    assert outcome.metadata["drifted"] == ["prescription_in_plan", "spacing_z_mm"]
    assert "b2: spacing_z_mm" in outcome.reason
    assert set(drifted_facts(ws, P)) == {"spacing_z_mm", "prescription_in_plan"}


def test_a_difference_too_small_to_matter_is_no_drift(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(ws, "b2", 30, 3, spacing=5.0, in_plan=0.0)
    configure(tmp_path, monkeypatch, monitoring={"drift_distance": 0.9})
    assert drifted_facts(ws, P) == ("spacing_z_mm",)


def test_a_fact_that_stands_out_by_chance_among_several_is_no_drift(ws: Workspace) -> None:
    same = {"spacing_z_mm": 3.0, "prescription_in_plan": True}
    facts(ws, {name: same | {"target_ml": float(place)} for place, name in enumerate(TRAIN)})
    new = {f"n{place}": same | {"target_ml": value} for place, value in enumerate([25.5, 28.5, 31.0, 34.0, 36.0])}
    cases(ws, {"train": list(new)}, batch="b2")
    facts(ws, new, "b2")
    checkpoint = ws.lake.rows("champions", P)[-1]["checkpoint"]
    row = {row.fact: row for row in drift_rows(ws, P, checkpoint, "b2")}["target_ml"]
    assert (row.distance, row.p) == (pytest.approx(0.65), pytest.approx(0.02797, abs=1e-5))
    assert (row.p_adjusted, row.drifted) == (pytest.approx(3 * 0.02797, abs=1e-4), False)


def test_a_small_batch_is_undefined_until_several_are_pooled(ws: Workspace) -> None:
    for number in range(2, 7):
        found = arrive(ws, f"b{number}", 4, number, spacing=6.0)
        assert found["spacing_z_mm"]["distance"] is None
        assert found["spacing_z_mm"]["drifted"] is None
    pooled = {row["fact"]: row for row in ws.lake.rows("drift", f"{P}/{POOLED}") if row["subgroup"] is None}
    assert (pooled["spacing_z_mm"]["n"], pooled["spacing_z_mm"]["drifted"]) == (20, True)
    assert pooled["hu_min"]["drifted"] is None, "a fact that no case has is undefined, not unchanged"


def test_a_case_that_the_champion_was_trained_on_never_counts_as_new(ws: Workspace) -> None:
    cases(ws, {"train": []}, batch="b2")
    facts(ws, {}, "b2")
    checkpoint = ws.lake.rows("champions", P)[-1]["checkpoint"]
    for name in TRAIN:
        score(ws, checkpoint, name, 4.0)
    stages.monitor(ws, P, ["b1", "b2"])
    assert {row["n"] for row in ws.lake.rows("drift", f"{P}/{POOLED}")} == {0}
    assert ws.lake.rows("drift", f"{P}/b1")[0]["checkpoint"] == checkpoint


def test_distances_and_their_p_agree_with_what_is_known() -> None:
    assert ks([1, 2, 3, 4], [5, 6, 7, 8]) == (1.0, pytest.approx(2 / 70))  # 2 of the 70 ways to place four of eight
    distance, p = shares([True] * 10, [False] * 10)
    assert distance == 1.0
    assert p < 0.001
    assert shares(["a"] * 5, ["a"] * 9) == (0.0, 1.0)
    distance, p = shares(["a", "b"] * 20, ["a", "b"] * 20)
    assert (distance, p) == (0.0, 1.0)


def test_p_is_adjusted_over_all_facts_by_holm_and_the_undefined_stays_so() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_only_words_that_many_cases_share_are_compared() -> None:
    compared = {
        f"{name}.{fact}"
        for name in program.registered()
        for fact, spec in program.get(name).facts.items()
        if spec.type is str and not spec.of_one_case and fact not in program.COMMON_FACTS
    }
    assert compared == {
        "breast_us.label",
        "breast_us.dataset",
        "lumbar_mr.orientation",
        "lumbar_mr.lstv",
        "lung_ct.orientation",
        "lung_ct.label_kind",
        "lung_ct.target_better_at",
        "lung_ct.exposure",
        "retinal_oct.frames_from",
        "retinal_oct.laterality",
        "retinal_oct.device",
        "retinal_oct.study_group",
        "retinal_oct.site",
        "retinal_oct.protocol",
        "rt_dose.energy",
        "rt_dose.structures_missing",
        "rt_dose.structures_expected_missing",
    }
    words = {name for name, spec in program.COMMON_FACTS.items() if spec.type is str and not spec.of_one_case}
    assert words == {"manufacturer", "manufacturer_model", "sex"}


def test_words_of_one_case_and_words_that_are_the_same_in_all_are_no_drift(ws: Workspace) -> None:
    checkpoint = ws.lake.rows("champions", P)[-1]["checkpoint"]
    same = {"structures_missing": "Rectum"}
    old = {
        name: same | {"rois_unusable": f"ROI {place}", "structures_expected_missing": ""}
        for place, name in enumerate(TRAIN)
    }
    facts(ws, old)
    new = {f"n{place}": same | {"rois_unusable": "", "structures_expected_missing": "Rectum"} for place in range(20)}
    cases(ws, {"train": list(new)}, batch="b2")
    facts(ws, new, "b2")
    compared = {row.fact for row in drift_rows(ws, P, checkpoint, "b2")}
    assert compared.isdisjoint({"structures_missing", "rois_unusable"})
    assert "structures_expected_missing" in compared


def test_drift_that_only_a_subgroup_has_is_found_in_it_and_the_check_names_it(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, subgroups={"min_patients": 5, "facts": {"prescription_in_plan": []}})
    names = [f"b2-{number}" for number in range(40)]
    cases(ws, {"train": names}, batch="b2")
    usual, moved = measured(names, 2), measured(names, 3, spacing=5.0)
    stated = {
        name: (moved if usual[name]["prescription_in_plan"] else usual)[name]
        | {"prescription_in_plan": usual[name]["prescription_in_plan"]}
        for name in names
    }
    facts(ws, stated, "b2")
    for name in names:
        score(ws, ws.lake.rows("champions", P)[-1]["checkpoint"], name, 4.0)
    result = stages.monitor(ws, P, ["b2"])
    rows = ws.lake.rows("drift", f"{P}/{POOLED}")
    found = {(row["subgroup"], row["fact"]): row["drifted"] for row in rows}
    assert found["prescription_in_plan = yes", "spacing_z_mm"] is True
    assert found["prescription_in_plan = no", "spacing_z_mm"] is False
    assert ("prescription_in_plan = yes", "prescription_in_plan") not in found
    assert {row["subgroup"] for row in ws.lake.rows("drift", f"{P}/b2")} == {None}
    outcome = drift(ws, P)
    assert not outcome.passed
    assert f"{POOLED}, prescription_in_plan = yes: spacing_z_mm" in outcome.reason
    n_stated = sum(bool(values["prescription_in_plan"]) for values in stated.values())
    table = result.tables["subgroups"].set_index("subgroup")
    assert table.loc["yes", "cases"] == str(n_stated)
    assert f"4.00 (n = {n_stated})" in str(table.loc["yes", "openkbp_dose_score (Gy)"])
