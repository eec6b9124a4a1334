"""The data stages over landed chest CTs: what is accepted, what is quarantined and why, and what the report says."""

from dataclasses import replace

import numpy as np
import pytest

from med_assets import program
from med_assets.capabilities import HeldOutWarnings
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.dataset.checks import held_out
from med_assets.evaluation.data_audit import data_audit
from med_assets.landing import batches
from med_assets.preparation.checks import audit
from med_assets.preparation.stage import pictured, quarantine_picture
from med_assets.programs.lung_ct import exposure
from med_assets.programs.lung_ct.audit import summary, warnings
from med_assets.reporting.stage import report_path
from med_assets.settings import Workspace
from tests.invented import case_with
from tests.med_assets.programs.lung_ct.builders import GEOMETRY, P, ball, masks, write_case
from tests.shared_phantoms import write_phantoms


def ingest(ws: Workspace) -> str:
    """Intake and preparation of what lies in the landing zone, and the dataset with its splits."""
    batch = batches.take(ws, P, batches.untaken(ws, P), 0.0)
    stages.intake(ws, P, batch)
    stages.prepare(ws, P, batch)
    stages.dataset(ws, P)
    stages.splits(ws, P)
    return batch


def land(ws: Workspace, name: str, seed: int, **values: object) -> None:
    write_case(ws.landing / P / name, seed, **values)  # type: ignore[arg-type]  # the variety is the point of the test


@pytest.mark.slow
def test_bad_cases_are_quarantined_with_their_reasons_and_the_good_ones_beside_them_go_on(workspace: Workspace) -> None:
    heart = {"heart": masks()["heart"]}
    land(workspace, "good", 1)
    land(workspace, "contoured", 2, label="RTSTRUCT")
    land(workspace, "no-label", 3, label="none")
    land(workspace, "two-segmentations", 4, copies=2)
    land(workspace, "other-grid", 5, label_geometry=replace(GEOMETRY, origin_mm=(-60.0, -80.0, -60.0)))
    land(workspace, "no-target", 6, labels=heart)
    land(workspace, "unknown-label", 7, labels={**masks(), "Schmidt's thing": ball((12, 20, 29), 8.0)})
    land(workspace, "not-hounsfield", 8, change=lambda hu: np.maximum(hu, -400))
    batch = ingest(workspace)

    assert len(workspace.lake.rows("dataset", P)) == 3
    codes = {case.reason_code: case for case in Catalog(workspace, P).quarantined()}
    assert set(codes) == {"several_labels", "label_grid_mismatch", "audit_failed"}
    audited = {case.reason for case in Catalog(workspace, P).quarantined() if case.reason_code == "audit_failed"}
    assert audited == {
        "expected the label has lung tumor, got target_present = False; expected 0.05 to 500 ml of lung tumor, got target_ml = 0 ml",
        "expected air in the CT: lowest CT number at most -500 HU, got hu_min = -400 HU",
    }

    mismatch = codes["label_grid_mismatch"]
    picture = quarantine_picture(workspace, mismatch)
    assert pictured(workspace, Catalog(workspace, P).quarantined()) == [mismatch]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert mismatch.reason.endswith(f"See {picture.relative_to(workspace.home).as_posix()}.")
    stages.report(workspace, P)
    page = report_path(workspace, P).read_text()
    assert f"<figcaption>{mismatch.case_id}: label_grid_mismatch</figcaption>" in page
    again = stages.prepare(workspace, P, batch)
    assert again.images == {f"quarantine {mismatch.case_id}": picture}

    found = summary(Catalog(workspace, P).described(), Catalog(workspace, P).quarantined())
    assert (found["accepted"], found["skipped"]) == (3, 4)
    assert found["skipped_by_reason"] == {"audit_failed": 2, "label_grid_mismatch": 1, "several_labels": 1}
    assert found["label_kinds"] == {"RTSTRUCT": 1, "SEG": 2}
    assert found["ranges"]["labels_without_class"] == [0, 0, 1]
    recorded = data_audit(workspace, P).fields()
    assert (recorded["pairs"], recorded["skipped"]) == (3, found["skipped_by_reason"])
    assert recorded["label_coverage"]["target_present"] == {
        "unit": "", "values": {"true": 3}, "unknown": 0, "flagged": 0, "refused": 1,
    }  # fmt: skip
    assert recorded["label_coverage"]["labels_without_class"]["flagged"] == 1
    assert recorded["label_coverage"]["target_ml"]["refused"] == 1
    assert recorded["intensity"]["hu_min"]["refused"] == 1
    assert recorded["intensity"]["hu_min"]["values"]["greatest"] <= -500
    assert recorded["spacing"]["spacing_z_mm"]["unit"] == "mm"
    assert recorded["orientation"]["orientation"]["values"] == {"LPS": 3}
    outcome = audit(workspace, P, batch)
    assert (outcome.passed, outcome.severity) == (False, "warn")
    assert "every label's name has a class" in outcome.reason
    stored = "".join(str(row) for row in workspace.lake.rows("prepared_cases", P))
    assert "Schmidt" not in stored


def test_the_seed_s_split_of_task06_can_be_fixed_and_says_what_the_foundation_model_has_seen(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_LUNG_CT_SPLIT_POLICY", "fixed")
    ws = Workspace.from_env()
    for seed, case in enumerate(("lung_020", "lung_062", "lung_073", "lung_001")):
        land(ws, case, seed, patient_id=exposure.patient_id(case))
    batch = ingest(ws)
    rows = Catalog(ws, P).described()
    assert sorted((row.split, row.fold == 0, row.facts["exposure"]) for row in rows) == [
        ("train", False, "trained"),
        ("val", True, "selected"),
        ("val", True, "trained"),
        ("val", True, "unseen"),
    ]
    assert {row["assigned_by"] for row in ws.lake.rows("splits", P)} == {"fixed"}
    outcome = held_out(ws, P)
    assert (outcome.passed, outcome.severity) == (False, "warn")
    assert outcome.reason.startswith(
        "2 of 3 val cases were in the foundation model's own training (1 selected, 1 trained)"
    )
    result = stages.splits(ws, P)
    exposures = result.tables["Pretraining exposure"].set_index("split")
    assert exposures.loc["val"].to_dict() == {"unseen": 1, "selected": 1, "trained": 1}
    assert result.tables["Data audit"].set_index("what").loc["accepted", "cases"] == 4
    assert audit(ws, P, batch).passed
    stages.report(ws, P)
    page = report_path(ws, P).read_text()
    for heading in ("Data audit", "Measured facts", "Pretraining exposure", "Held-out cases"):
        assert f"<h2>{heading}</h2>" in page


def test_phantoms_and_unseen_cases_raise_no_warning() -> None:
    assert warnings([case_with(split="val", exposure="unseen"), case_with(split="train", exposure="trained")]) == []
    assert not isinstance(program.get("rt_dose"), HeldOutWarnings)


def test_an_audit_of_nothing_says_so() -> None:
    found = summary([], [])
    assert (found["accepted"], found["skipped"], found["exposure"]) == (0, 0, {})
    assert found["ranges"]["target_ml"] == [None, None, None]


@pytest.mark.slow
def test_the_program_s_own_phantoms_are_accepted_and_marked_synthetic(workspace: Workspace) -> None:
    write_phantoms(P, workspace.landing / P, 2, 5)
    batch = ingest(workspace)
    rows = Catalog(workspace, P).described()
    assert len(rows) == 2, [row.reason for row in Catalog(workspace, P).quarantined()]
    assert {(row.synthetic, row.facts["exposure"], row.facts["labels_without_class"]) for row in rows} == {
        (True, "unseen", 0)
    }
    assert all(row.facts["target_network_voxels"] > 0 for row in rows)
    assert audit(workspace, P, batch).passed
    assert held_out(workspace, P).passed
