"""Organs named by the values of a data set's masks: taken in, learnt by the same networks, scored, and kept apart from lesions."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread

from med_assets.dicom.segmentation_2d import read_segments_2d
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.program import fact_table
from med_assets.programs.breast_us import dataset_masks, datasets, scorer
from med_assets.programs.breast_us.classes import truth_of, why_not
from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
from med_assets.programs.breast_us.experiment import BreastExperiment
from med_assets.programs.breast_us.export import write_prediction
from med_assets.programs.breast_us.importer import import_folder
from med_assets.programs.breast_us.lit import chosen_cases
from med_assets.programs.breast_us.phantom import ORGANS, organs, write_organs
from med_assets.programs.breast_us.prepare import prepare_case
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.settings import Workspace
from med_assets.storage.conf import CONF_VARIABLE, conf_folder
from med_assets.training.job import run
from med_assets.training.task import TrainingCase
from tests.invented import ingest
from tests.med_assets.programs.breast_us.builders import TINY, P, write_prepared
from tests.med_assets.programs.jobs import write_job_of

SHAPE = (64, 80)
FILE = "name: LAYERS\nlicence: synthetic\norgans: {1: gland, 2: muscle}\npixel_mm: 0.3\n"


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the configuration, and the folder in it whose files describe data sets."""
    shutil.copytree(conf_folder(P).parent, tmp_path / "conf")
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path / "conf"))
    return tmp_path / "conf" / P / "datasets"


def write_prepared_organs(folder: Path, seed: int, names: Sequence[str] = ORGANS) -> Path:
    """Write one prepared image of organs."""
    write_prepared(folder, seed, label="organs", dataset="LAYERS")
    image, truth = organs(seed, SHAPE)
    np.save(folder / "image.npy", image)
    np.save(folder / "truth.npy", truth)
    (folder / "truth.json").write_text(json.dumps({"organs": list(names)}))
    return folder


def test_organs_of_a_folder_pass_intake_and_are_prepared_with_their_names(
    workspace: Workspace, tmp_path: Path, described: Path
) -> None:
    (described / "layers.yaml").write_text(FILE)
    src = write_organs(tmp_path / "src", 2, shape=SHAPE)
    landing = workspace.landing / P
    report = import_folder("layers", src, landing)
    assert report.skipped == {}
    seg = dcmread(landing / report.imported[0] / "seg.dcm")
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["gland", "muscle"]
    assert {one.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for one in seg.SegmentSequence} == {"Organ"}
    taken, _ = ingest(workspace, P)
    assert [row["status"] for row in taken] == ["ok", "ok"]
    facts = list(workspace.lake.rows(fact_table(P)))
    assert [(row["label"], row["dataset"], row["lesion_pixels"]) for row in facts] == [("organs", "LAYERS", None)] * 2
    raw, out = landing / report.imported[1], tmp_path / "prepared"
    out.mkdir()
    prepare_case("c", raw, out, {"organs": ["gland", "muscle"]})
    case = PreparedCase.open(out)
    assert case.organs == ORGANS
    assert case.truth.tolist() == organs(1, SHAPE)[1].tolist()
    with pytest.raises(CaseRejected, match="another label in segment 1, 2"):
        prepare_case("c", raw, tmp_path, {})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("organs: {1: lesion}", "names of organs, got lesion"),
        ("organs: {1: gland, 2: gland}", "a name of its own"),
        ("organs: {0: gland}", "1 to 255"),
        ("organs: {1: gland}\nvalues: {1: benign}", "without values"),
    ],
)
def test_organs_that_can_not_be_meant_are_refused(described: Path, more: str, message: str) -> None:
    (described / "layers.yaml").write_text(f"name: LAYERS\nlicence: synthetic\n{more}\n")
    with pytest.raises(ConfigurationError, match=message):
        datasets.load("layers")


def test_values_that_nobody_named_and_masks_that_disagree_are_left_out(described: Path) -> None:
    (described / "layers.yaml").write_text(FILE)
    layers = datasets.load("layers")
    one, other = np.zeros((2, 4, 4), np.uint8)
    one[:2], other[1:3] = 1, 2
    for masks, reason in (((one * 7,), "unclear_mask"), ((one, other), "unclear_mask"), ((one * 0,), "empty_mask")):
        with pytest.raises(CaseRejected) as found:
            dataset_masks.organs_of(layers, iter(masks))
        assert found.value.code == reason
    assert dataset_masks.organs_of(layers, iter((one, np.where(one > 0, 0, other)))).max() == 2


def tiny(*classes: str) -> BreastExperiment:
    found = load(P, "tinyusfm", [*TINY, f"classes=[{','.join(classes)}]"], profile="demo")
    assert isinstance(found, BreastExperiment)
    return found


def test_organs_and_lesions_are_tasks_of_their_own(tmp_path: Path) -> None:
    given = [
        TrainingCase("organs", "p0", "train", write_prepared_organs(tmp_path / "organs", 0), "v0"),
        TrainingCase("lesion", "p1", "train", write_prepared(tmp_path / "lesion", 1), "v1"),
        TrainingCase("normal", "p2", "train", write_prepared(tmp_path / "normal", 2, kind="normal"), "v2"),
    ]
    for classes, chosen in (
        ((), ["lesion", "normal"]),
        (("benign", "malignant"), ["lesion", "normal"]),
        (ORGANS, ["organs"]),
        (("muscle",), ["organs"]),
    ):
        assert [case.case_id for case, _ in chosen_cases(given, tiny(*classes))] == chosen
    case = PreparedCase.open(tmp_path / "organs")
    assert why_not(case, ("gland", "nipple")) == "its mask names organs, not nipple"
    truth = np.asarray(case.truth)
    assert truth_of(case, ("muscle", "gland")).tolist() == np.array([0, 2, 1])[truth].tolist()
    assert truth_of(case, ("muscle",)).tolist() == (truth == 2).astype(int).tolist()


def test_a_network_learns_two_organs_and_each_is_scored_and_written(tmp_path: Path) -> None:
    overrides = (*TINY, "classes=[gland,muscle]", "data.per_epoch=16", "schedule.epochs=6", "augment.warp=0")
    job = write_job_of(P, tmp_path / "job", "tinyusfm", overrides, 5, write_prepared_organs)
    run(job)
    dice = pd.read_csv(job / "history.csv")["val_class_dice"].dropna()
    assert dice.max() > 0.6
    model, case, out = next(job.rglob("weights.pt")).parent, job / "cases" / "case4", tmp_path / "out"
    out.mkdir()
    scorer.LesionPredictor(model).predict(case, out)
    scores = scorer.score(case, out, EvaluationSettings())
    by_organ = {one.subject: one.value for one in scores if one.metric == "class_dice"}
    assert set(by_organ) == set(ORGANS)
    assert all(value is not None and value > 0.4 for value in by_organ.values())
    assert {one.value for one in scores if one.subject == "lesion"} == {None}
    lesion, other = write_prepared(tmp_path / "lesion", 7), tmp_path / "other"
    other.mkdir()
    scorer.LesionPredictor(model).predict(lesion, other)
    assert {one.value for one in scorer.score(lesion, other, EvaluationSettings())} == {None}
    assert set(scorer.facts(case, out, 0.5)) == {"gland, pixels", "muscle, pixels"}
    assert [path.name for path in scorer.plot(case, out, tmp_path / "pictures", 0.5)] == [
        "case4_lesion.png", "case4_classes.png",
    ]  # fmt: skip


def test_an_organ_that_is_not_called_has_an_empty_segment(tmp_path: Path) -> None:
    from med_assets.programs.breast_us.phantom import write_case

    raw, prepared, predicted = write_case(tmp_path / "raw", 1), tmp_path / "prepared", tmp_path / "predicted"
    prepared.mkdir()
    predicted.mkdir()
    prepare_case("c", raw, prepared, {})
    muscle = np.zeros(PreparedCase.open(prepared).image.shape)
    muscle[40:50, 10:30] = 0.9
    np.save(predicted / scorer.PROBABILITY, muscle.astype(np.float16))
    np.save(predicted / scorer.CHANCES, np.stack([1 - muscle, 0 * muscle, muscle]).astype(np.float16))
    (predicted / scorer.CLASSES).write_text(json.dumps(ORGANS))
    path, _ = write_prediction(raw, prepared, predicted, tmp_path / "out", "a model", 0.5)
    assert {one.label: int(one.mask.sum()) for one in read_segments_2d(dcmread(path))} == {"gland": 0, "muscle": 200}
