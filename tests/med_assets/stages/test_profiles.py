"""Which profile of de-identification a case was taken in by is known wherever it counts, and two in one dataset stop it."""

import dataclasses

import pytest
from pydicom import Dataset, dcmread

from assets import versions
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.dataset.checks import between_cases
from med_assets.deidentification.audit_trail import entries
from med_assets.deidentification.profiles import PROFILES, RESEARCH, STRICT, profile_of
from med_assets.errors import ConfigurationError
from med_assets.intake.checks import residual_phi
from med_assets.reporting.dataset_card import deidentification
from med_assets.settings import Workspace
from tests.conftest import settings_of
from tests.med_assets.stages.builders import P, drop, edit, ingest, intake


def described(ws: Workspace, seed: int) -> None:
    """A phantom with a patient's sex and age in each file."""

    def change(ds: Dataset) -> None:
        ds.PatientSex, ds.PatientAge, ds.StudyDescription = "F", "061Y", "CT Pelvis of Zelda"

    for path in drop(ws, seed).rglob("*"):
        if path.is_file():
            edit(path, change)


def test_another_profile_makes_new_versions_of_cases_and_two_in_one_dataset_block(workspace: Workspace) -> None:
    research = dataclasses.replace(workspace, deidentification="research")
    described(workspace, 1)
    first = ingest(workspace)
    (before,) = Catalog(workspace, P).case_versions(first)
    assert before.deidentified_by == STRICT.label
    assert between_cases(workspace, P).passed
    described(research, 2)
    second = ingest(research)
    assert residual_phi(research, P, first).passed
    assert residual_phi(research, P, second).passed
    mixed = between_cases(research, P)
    assert (mixed.passed, mixed.severity) == (False, "error")
    assert "1 by research, 1 by strict" in mixed.reason
    stages.intake(research, P, first)
    stages.prepare(research, P, first)
    stages.dataset(research, P)
    (after,) = Catalog(workspace, P).case_versions(first)
    assert after.deidentified_by == RESEARCH.label
    assert (after.case_id, after.patient_id, after.content_hash) == (
        before.case_id,
        before.patient_id,
        before.content_hash,
    )
    assert after.version != before.version
    assert between_cases(research, P).passed
    assert {case.version for case in Catalog(workspace, P).dataset().cases} >= {after.version}
    assert [entry.content["profile"] for entry in entries(workspace)] == [STRICT.label, RESEARCH.label, RESEARCH.label]
    assert RESEARCH.label in deidentification(research, P)
    (path,) = {min(workspace.store.fetch(after.artifact).glob("*.dcm"))}
    ds = dcmread(path, stop_before_pixels=True)
    assert (ds.PatientSex, ds.PatientAge, ds.StudyDescription) == ("F", "061Y", "CT PELVIS")


def test_a_stored_case_of_research_is_scanned_by_its_rules(workspace: Workspace) -> None:
    research = dataclasses.replace(workspace, deidentification="research")
    described(research, 1)
    batch, _ = intake(research)
    (case,) = Catalog(research, P).case_versions(batch)
    path = min(research.store.fetch(case.artifact).glob("*.dcm"))
    ds = dcmread(path)
    ds.StudyDescription = "CT of a neighbour"
    ds.save_as(path)
    outcome = residual_phi(research, P, batch)
    assert not outcome.passed
    assert "neighbour" not in str(outcome)


def test_a_program_can_have_a_profile_of_its_own(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = Workspace.from_env(
        {
            **settings_of(workspace.home),
            "MED_ASSETS_DEIDENTIFICATION": "research",
            "MED_ASSETS_LUNG_CT_DEIDENTIFICATION": "strict",
        }
    )
    assert (profile_of(ws, "lung_ct"), profile_of(ws, P)) == (STRICT, RESEARCH)
    assert set(PROFILES) == {"strict", "research"}
    before = versions.of_stage(P, "intake")
    monkeypatch.setenv(f"MED_ASSETS_{P}_DEIDENTIFICATION".upper(), "research")
    assert versions.of_stage(P, "intake") != before
    assert versions.of_stage("lung_ct", "intake") == versions.of_stage("lung_ct", "intake")


@pytest.mark.parametrize("variable", ["MED_ASSETS_DEIDENTIFICATION", "MED_ASSETS_RT_DOSE_DEIDENTIFICATION"])
def test_an_unknown_profile_is_refused_by_name(variable: str, workspace: Workspace) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        Workspace.from_env({**settings_of(workspace.home), variable: "none"}).deidentification_of(P)
