"""Sex and age as facts of a case: where the profile of de-identification keeps them, and as declared subgroups."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.evaluation.subgroups import UNKNOWN, Subgroup, subgroups
from med_assets.monitoring.drift import drift_rows, subgroup_drift_rows
from med_assets.promotion.gate import decisions
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P, drop, edit, ingest
from tests.med_assets.stages.models import PRIMARY, TRAIN, VAL, cases, configure, constant, facts, model

DECLARED = {"min_patients": 5, "facts": {"sex": [], "age_years": [50, 65]}}


@pytest.mark.parametrize(
    ("profile", "sex", "age", "found"),
    [
        ("strict", "F", "061Y", (None, None)),
        ("research", "F", "061Y", ("F", 61)),
        ("research", "M", "094Y", ("M", 90)),
        ("research", "", "", (None, None)),
    ],
)
def test_sex_and_age_are_facts_where_the_profile_keeps_them(
    profile: str, sex: str, age: str, found: tuple[str | None, int | None], workspace: Workspace
) -> None:
    ws = dataclasses.replace(workspace, deidentification=profile)

    def change(ds: Dataset) -> None:
        ds.PatientSex, ds.PatientAge = sex, age

    for path in drop(ws, 1).rglob("*"):
        if path.is_file():
            edit(path, change)
    batch = ingest(ws)
    (case,) = Catalog(ws, P).facts(batch)
    assert (case.values["sex"], case.values["age_years"]) == found


def test_every_program_has_them() -> None:
    assert [name for name in program.registered() if not {"sex", "age_years"} <= program.get(name).facts.keys()] == []


def patients(n_female: int = 12) -> dict[str, dict[str, Any]]:
    """Facts of all cases: so many validation cases are of women of 70, the others of men of 40."""
    female = set(VAL[:n_female])
    return {
        name: {"sex": "F", "age_years": 70} if name in female else {"sex": "M", "age_years": 40}
        for name in (*TRAIN, *VAL)
    }


def test_bands_of_age_and_sex_are_subgroups_and_what_is_not_stated_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, subgroups=DECLARED)
    values = {
        "a": {"sex": "F", "age_years": 49}, "b": {"sex": "M", "age_years": 50}, "c": {"sex": None, "age_years": 90}, "d": {},
    }  # fmt: skip
    assert subgroups(P, values) == {
        Subgroup("sex", "F"): {"a"},
        Subgroup("sex", "M"): {"b"},
        Subgroup("sex", UNKNOWN): {"c", "d"},
        Subgroup("age_years", "below 50 years"): {"a"},
        Subgroup("age_years", "50 to below 65 years"): {"b"},
        Subgroup("age_years", "65 years or more"): {"c"},
        Subgroup("age_years", UNKNOWN): {"d"},
    }


def test_the_guard_of_the_worst_subgroup_refuses_a_challenger_that_is_worse_for_women(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    facts(workspace, patients())
    configure(
        tmp_path, monkeypatch, subgroups={"min_patients": 5, "facts": {"sex": []}},
        promotion={"worst_subgroup": {"min_patients": 10, "margins": {PRIMARY: 0.5}}},
    )  # fmt: skip
    model(workspace, "mean_dose", constant(5.0, step=0.02))
    female = set(VAL[:12])
    model(workspace, "baseline", {name: (6.0 if name in female else 2.0) + 0.02 * at for at, name in enumerate(VAL)})
    stages.champion(workspace, P)
    (verdict,) = [row for row in decisions(workspace, P) if row.challenger == "baseline"]
    assert verdict.refused
    assert "worst subgroup sex = F" in str(verdict.reason)


def test_drift_compares_sex_and_age_and_within_their_subgroups(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [f"t{place}" for place in range(30)]
    cases(workspace, {"train": before, "val": VAL})
    facts(workspace, {name: {"sex": "F" if place % 2 else "M", "age_years": 40} for place, name in enumerate(before)})
    configure(tmp_path, monkeypatch, subgroups=DECLARED)
    checkpoint = model(workspace, "baseline", constant(2.0), train=before)
    new = {f"n{place}": {"sex": "F", "age_years": 40 if place < 15 else 80} for place in range(30)}
    cases(workspace, {"train": list(new)}, batch="b2")
    facts(workspace, new, "b2")
    found = [*drift_rows(workspace, P, checkpoint, "b2"), *subgroup_drift_rows(workspace, P, checkpoint)]
    rows = {(row.subgroup, row.fact): row for row in found}
    assert rows[None, "sex"].drifted
    assert rows[None, "age_years"].drifted
    assert rows["sex = F", "age_years"].drifted
