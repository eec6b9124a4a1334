"""What a site asks of a plan: names of structures, what may be missing, prescriptions of their own, and incomplete dose."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from med_assets import program
from med_assets.cli import doctor
from med_assets.cli import main as cli
from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.intake import reader
from med_assets.preparation.audit import expectations_of
from med_assets.preparation.expectations import run_suite
from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
from med_assets.programs.rt_dose.losses import DoseLoss
from med_assets.programs.rt_dose.patches import cut
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.score import score_case
from med_assets.programs.rt_dose.site import Site, load_site, stand_in
from med_assets.review.explain import explain_case
from med_assets.settings import Workspace
from med_assets.storage.conf import conf_folder
from tests.cases.test_contours import P, Rois, facts, plan, prepared, rt_dose_voxels
from tests.invented import box_contours, ingest, plan_case, write

FAST = {"max_points": 200, "interp_fraction": 3}


def site(**changed: Any) -> Site:
    return Site.model_validate(load_site("prostate_sib").model_dump() | changed)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Change fields of the site that the workspace uses, in a copy of `conf`."""
    root = tmp_path / "conf"

    def change(**changed: Any) -> None:
        shutil.copytree(conf_folder(P).parent, root)
        path = root / P / "sites" / "prostate_sib.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changed))
        monkeypatch.setenv("MED_ASSETS_CONF", str(root))
        reader.end_idle()  # processes that wait for work have the environment of their start

    yield change
    reader.end_idle()


def warnings_of(ws: Workspace) -> dict[str, str]:
    """Facts of the only case that an audit expectation warns of, with their values."""
    table = ws.lake.read(program.fact_table(P), P)
    found = run_suite(table, expectations_of(ws, P))
    failed = [one.expectation.column for one in found.results if not one.passed]
    return {column: table[column].iloc[0] for column in failed}


def organs(zs: list[float], **places: tuple[float, float, float]) -> dict[str, Any]:
    return {name: box_contours(12.5, zs, at) for name, at in places.items()}


def complete(rois: Rois, zs: list[float]) -> None:
    rois.update(organs(zs, Prostate=(0, 0, 0), Femur_L=(80, 0, 0), Femur_R=(-80, 0, 0)))


def test_a_missing_structure_that_the_site_expects_is_named_and_costs_its_own_metrics(workspace: Workspace) -> None:
    row = prepared(workspace, plan("organs"))
    assert row["status"] == "ok", row["reason"]
    assert facts(workspace)["structures_expected_missing"] == "Prostate, Femur_L, Femur_R"
    assert warnings_of(workspace)["structures_expected_missing"] == "Prostate, Femur_L, Femur_R"


def test_a_complete_plan_warns_of_nothing(workspace: Workspace) -> None:
    prepared(workspace, plan("complete", complete))
    assert facts(workspace)["structures_expected_missing"] == ""
    assert warnings_of(workspace) == {}


def test_a_site_may_refuse_a_case_for_a_missing_structure(workspace: Workspace, use: Callable[..., None]) -> None:
    use(expected_missing="refuse")
    row = prepared(workspace, plan("refused"))
    assert row["reason_code"] == "missing_structure"
    assert "expected Prostate, Femur_L, Femur_R beside" in row["reason"]


def two_bowels(rois: Rois, zs: list[float]) -> None:
    complete(rois, zs)
    rois["Bowel_Bag"] = box_contours(17.5, zs, (0, -50, 25))
    rois["Bowel_Small"] = box_contours(7.5, zs, (0, -50, 25))


def test_of_two_rois_of_one_structure_the_preferred_one_is_taken_and_the_other_named(workspace: Workspace) -> None:
    row = prepared(workspace, plan("two", two_bowels))
    assert row["status"] == "ok", row["reason"]
    assert rt_dose_voxels(workspace, row)["Bowel"] == 343
    assert facts(workspace)["rois_passed_over"] == "Bowel: ROI 10"


def test_an_optional_structure_that_two_rois_fit_is_left_out_by_number_and_the_case_is_kept(
    workspace: Workspace, use: Callable[..., None]
) -> None:
    use(preferred={})
    row = prepared(workspace, plan("ambiguous", two_bowels))
    assert row["status"] == "ok", row["reason"]
    assert facts(workspace)["structures_excluded"] == "Bowel (ROIs 9 and 10 fit it)"
    assert warnings_of(workspace) == {"structures_excluded": "Bowel (ROIs 9 and 10 fit it)"}


def test_a_target_that_two_rois_fit_is_refused_by_name_and_number(workspace: Workspace) -> None:
    row = prepared(workspace, plan("targets", lambda rois, zs: rois.update(PTV_High=box_contours(12.5, zs))))
    assert row["reason_code"] == "ambiguous_roi"
    assert "expected one ROI for PTV70, got ROIs 2 and 6" in row["reason"]


def test_of_several_outlines_the_first_of_the_sites_list_is_the_body(workspace: Workspace) -> None:
    row = prepared(workspace, plan("outlines", lambda rois, zs: rois.update(Skin=box_contours(60, zs))))
    assert row["status"] == "ok", row["reason"]
    assert facts(workspace)["rois_passed_over"] == "body: ROI 6"


PATTERNS = {"Rectum": [r"rectum[ _](final|v\d+).*", "rectal.*"]}


def renamed(rois: Rois, zs: list[float]) -> None:
    rois["Rectum_v2 Jane"] = rois.pop("Rectum")
    rois["Rectal vault"] = box_contours(7.5, zs, (0, 50, 0))


def test_a_name_that_matches_a_pattern_is_its_structure_and_never_leaves_intake(
    workspace: Workspace, use: Callable[..., None]
) -> None:
    use(patterns=PATTERNS)
    row = prepared(workspace, plan("pattern", renamed))
    assert row["status"] == "ok", row["reason"]
    assert rt_dose_voxels(workspace, row)["Rectum"] == 729
    assert facts(workspace)["rois_passed_over"] == "Rectum: ROI 6"
    stored = [path for path in workspace.home.rglob("*") if path.is_file() and workspace.landing not in path.parents]
    assert not [path for path in stored if b"Jane" in path.read_bytes()]
    kept = site(patterns=PATTERNS).vocabulary().kept
    assert kept("RECTUM_V2 Jane") == stand_in("Rectum", PATTERNS["Rectum"][0])
    assert (kept("rectum"), kept("Rectum vault")) == ("rectum", None)


@pytest.mark.parametrize("gy", [60.0, 50.0, 76.0])
def test_bounds_follow_the_prescription_of_the_plan(workspace: Workspace, gy: float) -> None:
    from tests.invented import dose_at

    case = plan_case("own", gy=gy, dose_kw={"dose": lambda points: dose_at(points) * gy / 70})
    row = prepared(workspace, case)
    assert row["status"] == "ok", row["reason"]
    measured = facts(workspace)
    assert measured["dose_max_ratio"] == pytest.approx(1.0, abs=0.01)
    assert measured["target_d95_ratio"] == pytest.approx(1.0, abs=0.01)


def half_covered(ws: Workspace) -> PreparedCase:
    """A plan whose dose grid ends 7 mm behind the targets: the bladder, and a third of the body, have no dose."""
    case = plan_case("part", dose_kw={"size": (22, 68), "centre": (0, 8, 0)})
    row = prepared(ws, case)
    assert row["status"] == "ok", row["reason"]
    return PreparedCase.open(ws.store.fetch(row["artifact"]))


def test_a_dose_grid_that_does_not_cover_the_body_is_a_fact_a_warning_and_a_mask(workspace: Workspace) -> None:
    case = half_covered(workspace)
    coverage = facts(workspace)["dose_coverage"]
    assert 0.3 < coverage < 0.7
    assert warnings_of(workspace)["dose_coverage"] == coverage
    assert not (case.body & ~case.valid).any()
    assert not (case.all_masks() & ~case.valid).any()
    assert (case.dose[case.valid] > 0).all()
    assert not case.valid.all()


def test_what_a_model_says_where_no_dose_was_calculated_changes_no_score(workspace: Workspace) -> None:
    case, chosen = half_covered(workspace), load_site("prostate_sib")
    settings = EvaluationSettings(gamma=(chosen.gamma[0].model_copy(update=FAST),))
    truth = np.asarray(case.dose)
    wild = np.where(case.valid, truth, np.float32(150.0))
    values = [
        {(one.metric, one.subject): one.value for one in score_case(case, dose, chosen, settings)}
        for dose in (truth, wild)
    ]
    assert values[0] == values[1]
    assert values[1]["mae", "body"] == 0.0
    assert values[1]["dvh_Dmean", "Bladder"] is None


def test_what_a_model_says_where_no_dose_was_calculated_changes_no_loss_and_gets_no_slope(workspace: Workspace) -> None:
    case = half_covered(workspace)
    terms = {"mae": 1.0, "gradient": 1.0, "structure": 1.0, "dvh": 1.0, "dvh_curves": 1.0, "dvh_min_voxels": 10}
    experiment = load(P, "baseline")
    loss = DoseLoss(experiment.losses.model_copy(update=terms), experiment.site)  # type: ignore[attr-defined]  # a DoseExperiment
    item = cut(case, (0, 0, 0), case.shape)
    batch = {name: torch.from_numpy(np.ascontiguousarray(array))[None] for name, array in item.items()}
    wild = torch.where(batch["valid"], batch["target"] + 0.1, torch.tensor(9.0)).requires_grad_()
    calm = torch.where(batch["valid"], batch["target"] + 0.1, batch["target"])
    total, _ = loss(wild, batch)
    assert float(total.detach()) == float(loss(calm, batch)[0])
    total.backward()
    assert wild.grad is not None
    assert not wild.grad[~batch["valid"]].any()
    assert float(loss(calm, batch)[1]["mae"]) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"limits": [{"structure": "PTV70", "metric": "V95%", "bound": "min", "value": 95, "unit": "%"}]}, "limits.0"),
        ({"limits": [{"structure": "PTV70", "metric": "D95", "bound": "min", "value": 95, "unit": "%"}]}, "is in Gy"),
        ({"limits": [{"structure": "PTV70", "metric": "HI", "bound": "max", "value": 0.1, "unit": "Gy"}]}, "is in 1"),
        ({"limits": [{"structure": "PTV70", "metric": "V70", "bound": "max", "value": 5, "unit": "Gy"}]}, "is in %"),
        ({"criteria": {"PTV70": ["CI95"]}}, "criteria of PTV70"),
        ({"patterns": {"Rectum": ["rectum("]}}, "patterns of Rectum"),
        ({"expected": ["Liver"]}, "expected names"),
        ({"gamma": [{}, {"max_points": 7}]}, "gamma_3pct_3mm"),
        ({"synonyms": {"Rectum": ["Organ"], "Bladder": ["organ"]}}, "one structure"),
    ],
)
def test_a_site_file_that_can_not_be_used_fails_the_load_and_doctor_with_file_and_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    source = conf_folder(P) / "sites"
    for path in source.glob("*.yaml"):
        (tmp_path / P / "sites").mkdir(parents=True, exist_ok=True)
        (tmp_path / P / "sites" / path.name).write_text(path.read_text())
    content = yaml.safe_load((source / "head_neck.yaml").read_text()) | {"name": "broken"}
    if changed.keys() & {"expected", "synonyms", "patterns"}:
        content = yaml.safe_load((source / "prostate_sib.yaml").read_text()) | {"name": "broken"}
    (tmp_path / P / "sites" / "broken.yaml").write_text(yaml.safe_dump(content | changed))
    with pytest.raises(ConfigurationError) as caught:
        load_site("broken", tmp_path)
    assert "conf/rt_dose/sites/broken.yaml" in str(caught.value)
    assert message in str(caught.value)
    monkeypatch.setattr("med_assets.programs.rt_dose.site_names", lambda: ("prostate_sib", "broken"))
    monkeypatch.setattr("med_assets.programs.rt_dose.load_site", lambda name: load_site(name, tmp_path))
    found = [one for one in doctor.configurations() if one.subject == f"configuration of {P}"]
    assert [one.state for one in found] == [doctor.BAD]
    assert message in found[0].found


def test_criteria_of_a_prescription_conformity_and_gamma_are_those_of_the_site(workspace: Workspace) -> None:
    row = prepared(workspace, plan("scores", complete))
    case = PreparedCase.open(workspace.store.fetch(row["artifact"]))
    gamma = [FAST, {**FAST, "dose_percent_threshold": 2, "distance_mm_threshold": 2}]
    chosen = site(gamma=gamma, criteria={"PTV70": ["V95%Rx", "HI", "CI95%Rx"], "PTV56": ["V95%Rx"]})
    scores = score_case(
        case, np.asarray(case.dose) * np.float32(0.9), chosen, EvaluationSettings.for_profile("full", chosen)
    )
    found = {(one.metric, one.subject): one for one in scores}
    coverage = found["dvh_V95%Rx", "PTV70"]
    assert (coverage.truth, coverage.prediction, coverage.value) == (100.0, 0.0, -100.0)
    # 95 % of 56 Gy: nine tenths of 70 Gy reach it in the part of PTV56 that is PTV70 or next to it
    assert found["dvh_V95%Rx", "PTV56"].truth == 100.0
    assert found["dvh_HI", "PTV70"].truth == 0.0
    conformity = found["dvh_CI95%Rx", "PTV70"]
    volume, treated = case.mask("PTV70").sum(), (case.dose >= 66.5).sum()
    assert conformity.truth == pytest.approx(volume / treated)
    assert conformity.prediction == 0.0
    assert {"gamma_3pct_3mm", "gamma_2pct_2mm"} <= {one.metric for one in scores}


def odd_names(rois: Rois, zs: list[float]) -> None:
    complete(rois, zs)
    rois["Rectum_final"] = rois.pop("Rectum")
    rois["FemHead Lt"] = rois.pop("Femur_L")
    rois["Jane Doe\x1b[2J"] = box_contours(7.5, zs)


@pytest.mark.parametrize("packed", [False, True])
def test_explain_shows_unmatched_names_of_the_original_with_proposals_and_the_home_holds_none(
    workspace: Workspace, packed: bool, tmp_path: Path
) -> None:
    case = plan("odd", odd_names)
    if packed:
        write(case, tmp_path / "packed" / "case")
        (workspace.landing / P).mkdir(parents=True)
        shutil.make_archive(str(workspace.landing / P / "case"), "zip", tmp_path / "packed")
        raw, _ = ingest(workspace, P)
        case_id = raw[0]["case_id"]
    else:
        case_id = prepared(workspace, case)["case_id"]
    assert facts(workspace)["structures_expected_missing"] == "Rectum, Femur_L"
    lines = explain_case(workspace, case_id).splitlines()
    shown = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines if line.startswith("  '")}
    assert list(shown) == ["'Rectum_final'", "'FemHead Lt'", r"'Jane Doe\x1b[2J'"]
    assert shown["'Rectum_final'"].startswith("perhaps Rectum (as Rectum)")
    assert shown["'FemHead Lt'"].startswith("perhaps Femur_L (as ")
    assert shown["'FemHead Lt'"].endswith("Femur_Head_L in TG-263")
    assert shown[r"'Jane Doe\x1b[2J'"] == "close to no structure"
    stored = [one for one in workspace.home.rglob("*") if one.is_file() and workspace.landing not in one.parents]
    assert not [path for path in stored if b"Jane" in path.read_bytes()]


def test_cases_names_the_required_structures_that_a_case_lacks(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(workspace, plan("odd", odd_names))
    assert cli.main(["cases", P]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert "missing" in head.split()
    assert "Rectum, Femur_L" in line
    assert "Jane" not in line


def test_no_proposal_is_of_the_other_side() -> None:
    found = dict(
        load_site("prostate_sib").proposals(["FemHead Rt", "Femur li", "Harnblase", "Bladder 2", "CouchSurface"])
    )
    assert found["FemHead Rt"].startswith("Femur_R")
    assert found["Femur li"].startswith("Femur_L")
    assert "Femur_L" not in found["FemHead Rt"]
    assert found["Bladder 2"].startswith("Bladder (as Bladder)")
    assert found["CouchSurface"] == ""
