"""Cine loops predicted frame by frame: the area over time, and how alike consecutive frames are."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from med_assets.cli.main import main
from med_assets.dicom.loops import read_loop
from med_assets.errors import ConfigurationError
from med_assets.evaluation import prediction as evaluation
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us.experiment import BreastExperiment
from med_assets.programs.breast_us.loop import Frame, likeness, predict_loop, summary
from med_assets.programs.breast_us.network import Segmenter
from med_assets.programs.breast_us.phantom import BORDER, SHAPE, write_loop
from med_assets.programs.breast_us.predict import load_predictor, probabilities
from med_assets.settings import Workspace
from tests.med_assets.programs.breast_us.builders import TINY, P


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A network of random weights, whose threshold the tests choose so that it predicts something."""
    experiment = load(P, "tinyusfm", TINY, profile="demo")
    assert isinstance(experiment, BreastExperiment)
    torch.manual_seed(3)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "experiment.json").write_text(experiment.to_json())
    torch.save(Segmenter(experiment).state_dict(), folder / "weights.pt")
    return folder


def test_each_frame_has_its_area_time_and_likeness_and_they_are_those_of_single_images(
    tmp_path: Path, checkpoint: Path
) -> None:
    path, out = tmp_path / "loop.dcm", tmp_path / "out"
    write_loop(path, 1, 6, frame_ms=50)
    predictor = load_predictor(checkpoint)
    top, _, left, _ = BORDER
    box = slice(top, top + SHAPE[0]), slice(left, left + SHAPE[1])
    images = [frame[box] for frame in read_loop(path).frames()]
    expected = [probabilities(predictor.both(image)[0], image.shape)[0] for image in images]
    threshold = float(np.median(expected[0]))
    written = predict_loop(checkpoint, path, out, threshold, masks=True)
    assert [one.name for one in written] == ["frames.csv", "loop.json", "area.png", "masks"]
    with (out / "frames.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    masks = [one > threshold for one in expected]
    assert [int(row["lesion_pixels"]) for row in rows] == [int(mask.sum()) for mask in masks]
    assert [float(row["time_s"]) for row in rows] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25])
    pixel = 40.0 / SHAPE[1]
    assert float(rows[2]["lesion_mm2"]) == pytest.approx(int(masks[2].sum()) * pixel**2, rel=1e-5)
    assert rows[0]["iou_with_previous"] == ""
    assert float(rows[3]["iou_with_previous"]) == pytest.approx(likeness(masks[2], masks[3]), rel=1e-5)
    picture = np.asarray(Image.open(out / "masks" / "frame_00004.png"))
    assert (picture[box] > 0).tolist() == masks[3].tolist()
    assert picture.sum() == 255 * masks[3].sum()
    found = json.loads((out / "loop.json").read_text())
    assert found["frames"] == 6
    assert found["temporal_consistency"]["n"] == 5
    assert (out / "area.png").stat().st_size > 1000


def test_pairs_without_a_lesion_are_left_out_and_no_pair_is_undefined() -> None:
    one, none = np.array([[True, True, False]]), np.zeros((1, 3), bool)
    assert likeness(one, one[:, ::-1]) == pytest.approx(1 / 3)
    assert likeness(none, none) is None
    frames = [Frame(number, None, 0, None, 0.1, None) for number in (1, 2)]
    assert summary(frames)["temporal_consistency"]["value"] is None  # type: ignore[index]  # a value of JSON
    assert summary(frames)["largest"] is None


def test_programs_without_loops_refuse_them(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_loop(tmp_path / "loop.dcm", 1, 2)
    with pytest.raises(ConfigurationError, match="expected a program that predicts cine loops, got lung_ct"):
        evaluation.predict_loop(workspace, "lung_ct", tmp_path / "loop.dcm", None, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="no champion yet"):
        evaluation.predict_loop(workspace, P, tmp_path / "loop.dcm", None, tmp_path / "out")
    assert main(["predict-loop", "--help"]) == 0
    assert "area over time" in capsys.readouterr().out
