"""Cases that came without a label, in every program: predicted as they arrive, never learned from, and scored once a label comes."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import pydicom
import pydicom.misc
import pytest
import torch
from torch import nn

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import main as cli
from med_assets.cli import stages
from med_assets.dataset.stage import unlabelled
from med_assets.evaluation.predicting import prediction_key
from med_assets.evaluation.predictions import folder_of, waiting
from med_assets.experiments import configuration as experiments
from med_assets.experiments.configuration import Experiment
from med_assets.intake.reader import Readers
from med_assets.intake.reading import Preparation
from med_assets.launch.jobs import PRELOADED
from med_assets.launch.training import of_workspace
from med_assets.preparation import audit
from med_assets.preparation.expectations import AuditResult, Expectation
from med_assets.review.explain import explain_case
from med_assets.settings import Workspace
from med_assets.storage import preloaded
from med_assets.storage.files import digest, folder_hashes, write_json, write_text
from med_assets.storage.memo import Memo
from med_assets.training.callbacks import save_tensors
from tests.conftest import REPOSITORY
from tests.invented import ingest
from tests.shared_phantoms import write_phantoms

EXPERIMENTS = {
    "breast_us": "tinyusfm",
    "lumbar_mr": "point_net",
    "lung_ct": "foundation",
    "retinal_oct": "random_probe",
    "rt_dose": "baseline",
}
WRITTEN = {
    "breast_us": {"predicted_lesion.dcm", "predicted_lesion.png"},
    "lumbar_mr": {"predicted_levels.dcm", "series.nii.gz"},
    "lung_ct": {"predicted_target.dcm", "predicted_contours.dcm", "predicted_target.nii.gz", "ct.nii.gz"},
    "retinal_oct": {"prediction.json", "input.nii.gz"},
    "rt_dose": {"predicted_dose.dcm", "predicted_dose.nii.gz", "ct.nii.gz"},
}
"""Some of the files that each program writes of a prediction."""

TRUTHS = {"breast_us": ("SEG",), "lumbar_mr": ("RTSTRUCT",), "lung_ct": ("SEG", "RTSTRUCT"), "rt_dose": ("RTDOSE",)}
"""Modalities of what people say of a case."""

EVERY = sorted(EXPERIMENTS)

WITHOUT_IDENTITY = """
import os, sys
sys.modules.update(dict.fromkeys(("pydicom", "dagster", "great_expectations")))

class Refusing:
    @staticmethod
    def find_spec(*_):
        if "MED_ASSETS_PSEUDONYM_KEY" in os.environ:
            os._exit(9)

sys.meta_path.insert(0, Refusing)
"""
"""Python as it is on a machine that trains and predicts; processes import this by its name."""


def network_of(name: str, experiment: Experiment) -> nn.Module:
    """The untrained network of an experiment."""
    if name == "lung_ct":
        from med_assets.programs.lung_ct.network import build_network
    elif name == "lumbar_mr":
        from med_assets.programs.lumbar_mr.network import build_network
    elif name == "retinal_oct":
        from med_assets.programs.retinal_oct.network import Classifier

        return Classifier(experiment.network, experiment.head)  # type: ignore[attr-defined]  # an experiment of this program
    elif name == "breast_us":
        from med_assets.programs.breast_us.network import Segmenter

        return Segmenter(experiment)  # type: ignore[arg-type]  # an experiment of this program
    else:
        from med_assets.programs.rt_dose.predict import build_network as build_dose

        return build_dose(experiment)  # type: ignore[arg-type]  # an experiment of this program
    return build_network(experiment.network)  # type: ignore[attr-defined]  # an experiment of this program


def champion(ws: Workspace, name: str, seed: int = 0, learned: Sequence[str] = ()) -> str:
    """An untrained champion in the store, whose record names the cases that it learned from; returns the key of its checkpoint."""
    # An untrained network is sure of nothing, and a level that is not found has no point.
    found = ("inference.found_above=0",) if name == "lumbar_mr" else ()
    given = (*of_workspace(ws, name), *found)
    experiment = experiments.load(name, EXPERIMENTS[name], given, profile=ws.profile)
    torch.manual_seed(seed)
    weights = network_of(name, experiment).state_dict()
    if name == "lung_ct":  # a class is the sum of what was activated: large structures, not noise of 10,000 contours
        weights["class_head.mlp.3.weight"].zero_()
        weights["class_head.mlp.3.bias"].fill_(1.0)
    key = "checkpoint/" + digest(name, seed)
    with ws.store.create(key) as folder:
        save_tensors(folder / "weights.pt", dict(weights))
        write_text(folder / "experiment.json", experiment.to_json())
        used = [{"case_id": case, "patient_id": case, "split": "train"} for case in learned]
        write_json(folder / "provenance.json", {"cases": used, "weights_sha256": key, "initial": None})
    row = {"program": name, "experiment": EXPERIMENTS[name], "checkpoint": key, "dataset_version": "d", "n_train": 0}
    row |= {"promoted_at": f"2026-01-0{seed + 1}", "action": "promoted", "reason": "a test"}
    ws.lake.write("champions", name, [*ws.lake.rows("champions", name), row])
    return key


def files_of(folder: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def strip(folder: Path, name: str) -> Path:
    """Take out of a case what people say of it."""
    for path in files_of(folder):
        ds = pydicom.dcmread(path)
        if ds.Modality in TRUTHS.get(name, ()):
            path.unlink()
        elif name == "retinal_oct":
            del ds.AdmittingDiagnosesDescription
            ds.save_as(path)
    return folder


def phantoms(folder: Path, name: str, n: int, seed: int) -> list[Path]:
    """Folders of labelled phantoms, of retinal volumes one each."""
    write_phantoms(name, folder, n, seed)
    if name == "retinal_oct":
        shutil.rmtree(folder / ".ai_readi")
        for path in files_of(folder):
            if path.name != "labelled.dcm":
                path.unlink()
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def refuse_to_load(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From here on no model of the program can be loaded: nothing is inferred."""

    def loaded(self: object, checkpoint: Path, cache: Path) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(type(program.get(name)), "predictor", loaded)


@pytest.fixture(scope="module")
def training_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables with which jobs have no pydicom, Dagster and Great Expectations, and end with the first import in which they see the pseudonym key."""
    folder = tmp_path_factory.mktemp("machine")
    write_text(folder / "sitecustomize.py", WITHOUT_IDENTITY)
    environment = os.environ | {"PYTHONPATH": f"{folder}:{REPOSITORY}"}
    with preloaded.parents(PRELOADED, environment) as found:
        yield {"PYTHONPATH": environment["PYTHONPATH"], **found}


@pytest.mark.parametrize("name", EVERY)
def test_a_case_without_a_label_is_predicted_and_scored_without_a_second_inference_when_the_label_comes(
    name: str,
    workspace: Workspace,
    training_machine: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ws, landing = workspace, workspace.landing / name
    (source,) = phantoms(tmp_path / "cases", name, 1, 5)
    whole = tmp_path / "whole"
    shutil.copytree(source, whole)
    landing.mkdir(parents=True)
    strip(source, name).rename(landing / "new")
    raw, prepared = ingest(ws, name)
    assert [row["status"] for row in raw] == ["to predict"]
    assert [row["status"] for row in prepared] == ["to predict"], prepared[0]["reason"]
    stages.dataset(ws, name)
    stages.splits(ws, name)
    assert ws.lake.rows("dataset", name) == ws.lake.rows("splits", name) == []
    assert not waiting(ws, name)
    assert stages.predictions(ws, name).summary["note"].startswith("there is no champion")

    checkpoint = champion(ws, name)
    batch = raw[0]["batch"]
    assert list(waiting(ws, name)) == [batch]
    with monkeypatch.context() as patch:
        for variable, value in training_machine.items():
            patch.setenv(variable, value)
        result = stages.predictions(ws, name)
    assert result.summary["failures"] == {}
    assert (result.counts["new"], result.counts["failed"]) == (1, 0)
    (row,) = ws.lake.rows("predictions", name)
    case_id = row["case_id"]
    assert {path.name for path in folder_of(ws, name, case_id).iterdir()} >= WRITTEN[name]
    assert json.loads(row["measured"])
    assert result.images
    assert not waiting(ws, name)
    text = explain_case(ws, case_id)
    assert "accepted without a label, to be predicted" in text
    assert f"predicted by {EXPERIMENTS[name]} ({checkpoint})" in text
    refuse_to_load(monkeypatch, name)
    assert stages.predictions(ws, name, [batch]).counts["reused"] == 1

    whole.rename(landing / "with its label")
    raw, prepared = ingest(ws, name)
    assert [(row["case_id"], row["status"]) for row in prepared] == [(case_id, "ok")], prepared[0]["reason"]
    assert unlabelled(ws, name) == []
    from med_assets.evaluation.scoring import score_cases

    assert prediction_key(ws, name, checkpoint, prepared[0]["artifact"]) == row["prediction"]
    scores, _, failures = score_cases(ws, name, checkpoint, Catalog(ws, name).prepared(prepared[0]["batch"]))
    assert failures == {}
    assert {one.metric for one in scores[case_id]} >= {program.get(name).primary_metric.name}


def test_a_new_champion_predicts_again_and_a_case_that_fails_is_a_row_beside_the_others(
    workspace: Workspace, tmp_path: Path
) -> None:
    name = "breast_us"
    for source in phantoms(tmp_path / "cases", name, 2, 5):
        (workspace.landing / name).mkdir(parents=True, exist_ok=True)
        strip(source, name).rename(workspace.landing / name / source.name)
    _, prepared = ingest(workspace, name)
    champion(workspace, name)
    assert stages.predictions(workspace, name).counts["new"] == 2
    champion(workspace, name, seed=1)
    broken = workspace.store.fetch(prepared[0]["artifact"]) / "image.npy"
    broken.chmod(0o600)
    broken.write_bytes(b"broken")
    result = stages.predictions(workspace, name)
    assert (result.counts["new"], result.counts["failed"]) == (1, 1)
    assert list(result.summary["failures"]) == [prepared[0]["case_id"]]
    rows = {row["case_id"]: row for row in workspace.lake.rows("predictions", name)}
    assert {row["status"] for row in rows.values()} == {"predicted", "failed"}
    assert "ArtifactCorrupt" in rows[prepared[0]["case_id"]]["error"]
    assert not waiting(workspace, name)


def test_a_copy_without_its_label_changes_nothing_about_a_labelled_case(workspace: Workspace, tmp_path: Path) -> None:
    name = "breast_us"
    landing = workspace.landing / name
    (source,) = phantoms(tmp_path / "cases", name, 1, 5)
    shutil.copytree(source, tmp_path / "bare")
    landing.mkdir(parents=True)
    source.rename(landing / "whole")
    ingest(workspace, name)
    stages.dataset(workspace, name)
    before = workspace.lake.rows("dataset", name)
    strip(tmp_path / "bare", name).rename(landing / "bare")
    _, prepared = ingest(workspace, name)
    assert [row["status"] for row in prepared] == ["to predict"]
    stages.dataset(workspace, name)
    assert workspace.lake.rows("dataset", name) == before
    assert unlabelled(workspace, name) == []


@pytest.mark.parametrize("name", EVERY)
def test_a_folder_is_predicted_by_one_command_and_nothing_of_it_is_kept(
    name: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    champion(workspace, name)
    cases = phantoms(tmp_path / "cases", name, 2, 5)
    strip(cases[0], name)
    originals = [pydicom.dcmread(path) for path in files_of(tmp_path / "cases") if pydicom.misc.is_dicom(path)]
    (tmp_path / "cases" / "notes.dcm").write_bytes(b"no DICOM")
    before = {path for path in workspace.home.rglob("*") if path.is_file()}
    cli.main(["predict", name, str(tmp_path / "cases"), "--out", str(tmp_path / "out")])
    output = capsys.readouterr().out
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert len(folders) == 2
    for folder in folders:
        assert {path.name for path in folder.iterdir()} >= WRITTEN[name]
        assert folder.name in output
    assert {path.suffix for path in files_of(tmp_path / "out")} >= {".dcm"} or name == "retinal_oct"
    for path in (tmp_path / "out").glob("*/*.dcm"):
        ds = pydicom.dcmread(path)
        assert ds.PatientID not in {one.PatientID for one in originals}
        assert ds.StudyInstanceUID not in {one.StudyInstanceUID for one in originals}
    table = (tmp_path / "out" / "predictions.csv").read_text()
    assert table.count("predicted,") == 2
    assert "not_dicom" in table or "DICOM" in table
    rows = [row for row in csv.DictReader(table.splitlines()) if row["status"] == "predicted"]
    assert all(float(row["confidence"]) <= 1 for row in rows), "each program says how sure it is of each case"
    assert [row["probability of acceptable"] for row in rows] == ["", ""], "this champion was not calibrated"
    assert {path for path in workspace.home.rglob("*") if path.is_file()} - before <= _locks(workspace)
    assert not workspace.lake.rows("raw_cases", name)


def test_cases_of_a_folder_are_prepared_side_by_side_and_audited_once_with_the_results_of_one_process(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "breast_us"
    champion(workspace, name)
    phantoms(tmp_path / "cases", name, 3, 5)
    written = []
    suites: list[int] = []
    both = Barrier(2, timeout=300)
    run_suite, prepare = audit.run_suite, Readers.prepare

    def beside_another(self: Readers, task: Preparation) -> None:
        if next(begun) < 2:
            both.wait()
        prepare(self, task)

    def counted(facts: pd.DataFrame, expectations: Sequence[Expectation]) -> AuditResult:
        suites.append(len(facts))
        return run_suite(facts, expectations)

    monkeypatch.setattr(audit, "run_suite", counted)
    for workers in (1, 2):
        out, begun = tmp_path / f"out-{workers}", count()
        with monkeypatch.context() as several:
            several.setattr(audit, "_failing", Memo())  # the facts are the same
            if workers == 2:
                several.setattr(Readers, "prepare", beside_another)
            stages.predict_folder(replace(workspace, workers=workers), name, tmp_path / "cases", None, out)
        written.append(folder_hashes(out))
    assert written[0] == written[1]
    assert suites == [3, 3]


def _locks(ws: Workspace) -> set[Path]:
    return {path for path in ws.home.rglob("*") if path.is_file() and path.stat().st_size == 0}


RELINKED: Mapping[str, Callable[[list[pydicom.Dataset]], set[str]]] = {
    "lung_ct": lambda files: {str(ds.SOPInstanceUID) for ds in files if ds.Modality == "CT"},
    "rt_dose": lambda files: {str(ds.SOPInstanceUID) for ds in files if ds.Modality in ("RTPLAN", "RTSTRUCT")},
    "lumbar_mr": lambda files: {str(ds.SOPInstanceUID) for ds in files if ds.Modality == "MR"},
    "breast_us": lambda files: {str(ds.SOPInstanceUID) for ds in files if ds.Modality == "US"},
}
"""Instances of the clinic that a written object refers to, by program."""


@pytest.mark.parametrize("name", sorted(RELINKED))
def test_relinked_objects_are_of_the_clinics_own_patient_study_and_images(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    champion(workspace, name)
    (source,) = phantoms(tmp_path / "cases", name, 1, 5)
    strip(source, name)
    files = [pydicom.dcmread(path) for path in files_of(source)]
    for path, ds in zip(files_of(source), files, strict=True):
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.PatientName, ds.AccessionNumber = "Phäntom^One", "A7"
        ds.save_as(path)
    found = stages.predict_folder(workspace, name, source, None, tmp_path / "out", relink=True)
    assert [one.reason for one in found] == [""]
    written = [pydicom.dcmread(path) for path in found[0].paths if path.suffix == ".dcm"]
    assert written
    for ds in written:
        assert (ds.PatientID, str(ds.PatientName), ds.AccessionNumber) == (files[0].PatientID, "Phäntom^One", "A7")
        assert ds.StudyInstanceUID == files[0].StudyInstanceUID
        if "FrameOfReferenceUID" in files[0] and "FrameOfReferenceUID" in ds:
            assert ds.FrameOfReferenceUID == files[0].FrameOfReferenceUID
        assert ds.SOPInstanceUID not in {one.SOPInstanceUID for one in files}
        named = {str(element.value) for element in ds.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
        assert named & RELINKED[name](files), "the object refers to none of the clinic's own instances"
        if ds.Modality == "RTSTRUCT":
            assert sum(len(roi.get("ContourSequence", ())) for roi in ds.ROIContourSequence) > 1


def test_a_case_whose_originals_lie_in_an_archive_is_not_relinked_and_leaves_no_pseudonyms_behind(
    workspace: Workspace, tmp_path: Path
) -> None:
    name = "breast_us"
    champion(workspace, name)
    packed, plain = phantoms(tmp_path / "cases", name, 2, 5)
    for source in (packed, plain):
        strip(source, name)
    shutil.make_archive(str(tmp_path / "cases" / "packed"), "zip", packed)
    shutil.rmtree(packed)
    found = stages.predict_folder(workspace, name, tmp_path / "cases", None, tmp_path / "out", relink=True)
    (refused,) = [one for one in found if one.reason]
    assert refused.paths == ()
    (other,) = [one for one in found if not one.reason]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {other.case_id, "predictions.csv"}
    assert all(path.is_file() for path in other.paths)


def test_a_dose_is_predicted_for_a_structure_set_without_plan_and_gets_one(
    workspace: Workspace, tmp_path: Path
) -> None:
    name = "rt_dose"
    champion(workspace, name)
    (source,) = phantoms(tmp_path / "cases", name, 1, 5)
    strip(source, name)
    for path in files_of(source):
        if pydicom.dcmread(path, stop_before_pixels=True).Modality == "RTPLAN":
            path.unlink()
    (one,) = stages.predict_folder(workspace, name, source, None, tmp_path / "out", relink=True)
    assert one.reason == ""
    structures = next(ds for ds in map(pydicom.dcmread, files_of(source)) if ds.Modality == "RTSTRUCT")
    folder = one.paths[0].parent
    plan, dose = (pydicom.dcmread(folder / f"predicted_{kind}.dcm") for kind in ("plan", "dose"))
    assert dose.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID
    assert plan.DoseReferenceSequence[0].TargetPrescriptionDose == 70.0
    assert plan.RTPlanLabel == "PREDICTED"
    for ds in (plan, dose):
        assert ds.SeriesDescription == "PREDICTED DOSE, NOT FOR CLINICAL USE"
    assert np.isfinite(dose.pixel_array).all()


def test_a_folder_that_holds_no_case_ends_with_a_reason_and_a_failure(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    champion(workspace, "lung_ct")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", "lung_ct", str(tmp_path / "empty"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert (
        "no DICOM" in capsys.readouterr().out or "expected DICOM" in (tmp_path / "out" / "predictions.csv").read_text()
    )


def test_all_that_wait_are_predicted_by_one_command(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "breast_us"
    (source,) = phantoms(tmp_path / "cases", name, 1, 5)
    (workspace.landing / name).mkdir(parents=True)
    strip(source, name).rename(workspace.landing / name / "new")
    ingest(workspace, name)
    cli.main(["predict", name])
    assert "there is no champion yet" in capsys.readouterr().out
    champion(workspace, name)
    cli.main(["predict", name])
    (row,) = workspace.lake.rows("predictions", name)
    output = capsys.readouterr().out
    assert row["case_id"] in output
    assert row["folder"] in output
    cli.main(["cases", name])
    assert "to predict" in capsys.readouterr().out
