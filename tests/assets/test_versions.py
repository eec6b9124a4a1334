"""Where code versions go: the keys of artifacts and the code versions of assets, spelled out once more with the versions on record."""

import hashlib
import hmac
from pathlib import Path

import pytest

from assets import versions
from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.deidentification.profile import FIXED_VALUES
from med_assets.deidentification.scan import Scan
from med_assets.evaluation import analysis
from med_assets.evaluation.predicting import prediction_key
from med_assets.evaluation.scoring import score_key
from med_assets.experiments import configuration as experiments
from med_assets.experiments import policies
from med_assets.intake.stage import _Intake
from med_assets.launch.training import checkpoint_key
from med_assets.preparation.stage import prepared_key
from med_assets.programs.breast_us.distil import answer_key
from med_assets.records import CaseVersion, IdentityScan
from med_assets.settings import Settings, Workspace
from med_assets.storage.files import digest, write_json
from med_assets.training.task import Teacher
from tests.record_versions import read

V = {name: entry.version for name, entry in read().items()}
PROGRAMS = program.registered()
PREPARED = "prepared/of-a-test"


@pytest.mark.parametrize("name", PROGRAMS)
def test_keys_of_artifacts(name: str, workspace: Workspace) -> None:
    chosen = program.get(name)
    raw = CaseVersion(
        program=name, batch="b", case_id="c", patient_id="p", version="v", content_hash="h", images_hash=None, artifact="raw/1",
        given_split=None, n_instances=1, synthetic=True, status="ok", reason_code=None, reason=None, deidentified_by=None, parent=None,
    )  # fmt: skip
    assert prepared_key(workspace, name, raw) == "prepared/" + digest(
        "raw/1", "c", chosen.settings(workspace), V[f"{name}/prepare"]
    )
    with workspace.store.create(PREPARED) as folder:
        for file in (*chosen.inputs, "label.npy"):
            (folder / file).write_text(file)
    seen = {file: hashlib.sha256(file.encode()).hexdigest() for file in chosen.inputs}
    assert prediction_key(workspace, name, "checkpoint/1", PREPARED) == "prediction/" + digest(
        "checkpoint/1", seen, V[f"{name}/predict"]
    )
    both = [V[f"{name}/predict"], V[f"{name}/evaluate"]]
    assert score_key(workspace, name, "checkpoint/1", PREPARED) == "score/" + digest(
        "checkpoint/1", PREPARED, chosen.evaluation_settings(workspace), both
    )
    experiment = experiments.load(name, experiments.names(name)[0])
    case = Case(name, "c", "p", "v", "", PREPARED, None, False, "train")
    assert checkpoint_key(name, experiment, [case], "checkpoint/0") == "checkpoint/" + digest(
        [["c", "v", PREPARED, "train"]], experiment.hash(), V[f"{name}/train"], "checkpoint/0"
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_key_of_an_intake(name: str, workspace: Workspace) -> None:
    files = [("a.dcm", "0" * 64)]
    vocabulary = sorted(program.get(name).roi_vocabulary(workspace))
    made_of = digest(name, (V[f"{name}/intake"], V["deidentification.profile.profile"]), vocabulary, files)
    key = _Intake(workspace, name, "b")._entry_key(files)
    assert key == "intake/" + hmac.new(workspace.key, made_of.encode(), hashlib.sha256).hexdigest()[:16]
    assert FIXED_VALUES["DeidentificationMethod"] == f"med_assets allow-list {V['deidentification.profile.profile']}"


def test_keys_of_a_scan_and_of_a_teachers_answer(workspace: Workspace, tmp_path: Path) -> None:
    with workspace.store.create("raw/1"):
        pass
    scan, of_batch = Scan(workspace, "rt_dose"), "2026-11-29T09-00-00_abcdef"
    assert scan.findings([(of_batch, "raw/1")]) == {}
    [row] = Catalog(workspace, "rt_dose").rows(IdentityScan, of_batch)
    vocabulary = sorted(program.get("rt_dose").roi_vocabulary(workspace))
    assert (row.artifact, row.findings) == ("raw/1", None)
    assert row.scanner == digest(V["deidentification.residual.residual_phi"], vocabulary)
    with workspace.store.create(
        f"scan/{digest('raw/2', V['deidentification.residual.residual_phi'], vocabulary)}"
    ) as folder:
        write_json(folder / "findings.json", ["PatientComments: text"])  # as earlier versions kept it
    with workspace.store.create("raw/2"):
        pass
    assert scan.findings([(of_batch, "raw/1"), (of_batch, "raw/2")]) == {"raw/2": ["PatientComments: text"]}
    assert [row.artifact for row in Catalog(workspace, "rt_dose").rows(IdentityScan, of_batch)] == ["raw/1", "raw/2"]
    teacher = Teacher("checkpoint/1", tmp_path, tmp_path)
    assert answer_key(teacher, "v") == f"answer/{digest('checkpoint/1', 'v', V['programs.breast_us.distil.answers'])}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_code_versions_of_assets(name: str) -> None:
    ws, chosen, written = Settings.from_env(), program.get(name), policies.of(name)
    evaluate = f"{V[f'{name}/predict']}.{V[f'{name}/evaluate']}-{digest(chosen.evaluation_settings(ws))}"
    by_mean = bool(written.demo and written.demo.promote_by_mean)
    record = f"{V['reporting.experiment_record.record']}.{V['reporting.figures.plot_figures']}"
    experiment = experiments.load(name, experiments.names(name)[0])
    assert versions.of_stage(name, "intake") == V[f"{name}/intake"]
    assert versions.of_stage(name, "prepare") == f"{V[f'{name}/prepare']}-{digest(chosen.settings(ws))}"
    assert versions.of_stage(name, "evaluate") == evaluate
    flagged = digest(V["evaluation.confidence.evaluate_confidence"], written.confidence.model_dump(mode="json"))
    assert versions.of_predictions(name) == f"{V[f'{name}/predict']}-{flagged}"
    by_subgroup = [V["evaluation.subgroups.subgroup_scores"], V["evaluation.confidence.evaluate_confidence"]]
    of_cases = [each.model_dump(mode="json") for each in (written.subgroups, written.confidence)]
    assert versions.of_evaluation(name).endswith(f"-{digest(by_subgroup, of_cases)}")
    assert versions.of_training(name, experiment).startswith(f"{V[f'{name}/train']}-{experiment.hash()[:16]}")
    assert versions.of_experiments(name) == f"{record}-{evaluate}"
    policy = digest(written.promotion.model_dump(mode="json"), by_mean)
    assert versions.of_gate(name) == f"{V['promotion.stage.champion']}-{policy}"
    assert (versions.of_dataset(), versions.of_report()) == (V["dataset.stage.dataset"], V["reporting.stage.report"])
    for one in analysis.of(name).values():
        version = V[f"programs.{name}.analyses.{one.run.__name__}"]
        assert versions.of_analysis(one) == f"{version}-{digest(one.settings(ws))}"
