"""A prediction corrected by points: where a point lies, what it changes and what it leaves, and which models can do it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from med_assets.cli.command_line import cli
from med_assets.errors import ConfigurationError
from med_assets.evaluation.points import Point, Points, Space, Uncorrected, nifti_mm
from med_assets.experiments.configuration import load
from med_assets.programs.lung_ct.correction import corrected_logits, demand_trained_points, write_corrected
from med_assets.programs.lung_ct.experiment import Inference, LungExperiment
from med_assets.programs.lung_ct.network import build_network
from med_assets.programs.lung_ct.prepare import prepare_case
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.settings import Workspace
from med_assets.storage.files import write_json, write_text
from tests.med_assets.programs.lung_ct.builders import write_case
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared
from tests.med_assets.programs.lung_ct.test_predict import save

INFERENCE = Inference(window=(16, 16, 16), overlap=0.25, mode="constant", padding="replicate", batch=1)


def ball(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> np.ndarray:
    grid = np.indices(shape)
    return sum((axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True)) <= radius**2


class Balls(nn.Module):
    """In place of the trained point head: inside is a ball of 3 voxels around each inner point, and nothing else."""

    def forward(
        self, out: Tensor, point_coords: Tensor, point_labels: Tensor, class_vector: Tensor | None = None
    ) -> Tensor:
        assert class_vector is not None
        found = np.zeros(out.shape[-3:], bool)
        for point, label in zip(point_coords[0].tolist(), point_labels[0].tolist(), strict=True):
            assert label in (2, 3), "a tumour has labels of its own"
            if label == 3:
                found |= ball(found.shape, tuple(map(round, point)), 3)
        return torch.from_numpy(np.where(found, 6.0, -6.0).astype(np.float32))[None, None]


@pytest.fixture
def network() -> nn.Module:
    experiment = load("lung_ct", "foundation", profile="demo")
    assert isinstance(experiment, LungExperiment)
    torch.manual_seed(0)
    found = build_network(experiment.network)
    found.point_head = Balls()
    return found


def changed(network: nn.Module, before: np.ndarray, *points: tuple[tuple[int, int, int], bool]) -> np.ndarray:
    voxels = [voxel for voxel, _ in points]
    set_points = [Point((0.0, 0.0, 0.0), inside) for _, inside in points]
    logits = np.where(before, 5.0, -5.0).astype(np.float32)
    return corrected_logits(network, np.zeros(before.shape, np.float32), logits, 23, voxels, set_points, INFERENCE) > 0


def test_a_point_changes_the_part_that_it_lies_in_and_nothing_else(network: nn.Module) -> None:
    shape = (40, 32, 24)
    first, second, missed = (ball(shape, centre, 3) for centre in ((8, 8, 8), (30, 24, 12), (8, 24, 16)))
    before = first | second
    np.testing.assert_array_equal(changed(network, before, ((8, 24, 16), True)), before | missed)
    np.testing.assert_array_equal(changed(network, before, ((30, 24, 12), False)), first)
    both = changed(network, before, ((8, 24, 16), True), ((30, 24, 12), False))
    np.testing.assert_array_equal(both, first | missed)


def test_a_volume_smaller_than_the_window_and_a_point_at_its_border_are_fine(network: nn.Module) -> None:
    nothing = np.zeros((12, 14, 10), bool)
    assert changed(network, nothing, ((1, 1, 1), True))[1, 1, 1]


def test_the_three_spaces_name_one_place_and_a_point_outside_is_refused(tmp_path: Path) -> None:
    geometry = PreparedCase.open(write_prepared(tmp_path / "case")).geometry
    by_voxel = nifti_mm(Point((3.0, 5.0, 7.0), True), Space.VOXEL, geometry)
    np.testing.assert_allclose(by_voxel, geometry.nifti_affine()[:3] @ [3, 5, 7, 1])
    x, y, z = (float(one) for one in by_voxel)
    np.testing.assert_allclose(nifti_mm(Point((x, y, z), True), Space.NIFTI, geometry), by_voxel)
    np.testing.assert_allclose(nifti_mm(Point((-x, -y, z), True), Space.PATIENT, geometry), by_voxel)
    with pytest.raises(ConfigurationError, match="within the series of 24 x 24 x 20 voxels"):
        nifti_mm(Point((3.0, 24.0, 7.0), True), Space.VOXEL, geometry)
    for text in ("1,2", "1,2,x", "1,2,nan", ""):
        with pytest.raises(ConfigurationError, match="three numbers"):
            Point.of(text, inside=True)


def checkpoint(ws: Workspace, name: str, initial: str | None, *overrides: str) -> str:
    """Key of a checkpoint of which this says how it was trained."""
    key = f"checkpoint/{name}"
    with ws.store.create(key) as folder:
        write_text(folder / "experiment.json", load("lung_ct", "from_scratch", overrides, profile="demo").to_json())
        write_json(folder / "provenance.json", {"initial": initial})
    return key


def test_a_model_whose_point_branch_was_never_trained_is_refused(workspace: Workspace) -> None:
    classes = checkpoint(workspace, "a" * 16, None)
    with pytest.raises(ConfigurationError, match="point branch was trained"):
        demand_trained_points(workspace, classes)
    with pytest.raises(ConfigurationError, match="point branch was trained"):
        demand_trained_points(workspace, checkpoint(workspace, "b" * 16, classes))
    points = checkpoint(workspace, "c" * 16, None, "prompts.drop_points=0.5")
    demand_trained_points(workspace, points)
    demand_trained_points(workspace, checkpoint(workspace, "d" * 16, points))
    demand_trained_points(workspace, checkpoint(workspace, "e" * 16, "released/vista3d132-0123"))


def test_the_corrected_case_is_written_with_its_points_and_volumes(workspace: Workspace, tmp_path: Path) -> None:
    sent, raw, prepared = write_case(tmp_path / "sent"), tmp_path / "raw", tmp_path / "prepared"
    raw.mkdir()
    prepared.mkdir()
    for number, path in enumerate(sorted(sent.rglob("*.dcm"))):
        path.rename(raw / f"{number:04d}.dcm")
    prepare_case("c0", raw, prepared, key=b"key", spacing_mm=(6.0, 6.0, 6.0), target=23, settings={})
    case = PreparedCase.open(prepared)
    save(tmp_path / "model")
    key = "checkpoint/" + "f" * 16
    with workspace.store.create(key) as folder:
        (tmp_path / "model" / "weights.pt").rename(folder / "weights.pt")
        text = load("lung_ct", "from_scratch", ("prompts.drop_points=0.5",), profile="demo").to_json()
        write_text(folder / "experiment.json", text)
        write_json(folder / "provenance.json", {"initial": None})
    middle = Point(tuple(float(side // 2) for side in case.ct.shape[::-1]), True)  # type: ignore[arg-type]  # three of them
    points = Points((middle,), Space.VOXEL)
    written = write_corrected(workspace, Uncorrected(key, raw, prepared), points, 23, tmp_path / "out")
    assert {path.name for path in written} == {
        "predicted_target.dcm", "predicted_contours.dcm", "ct.nii.gz", "predicted_target.nii.gz", "correction.json",
    }  # fmt: skip
    record = json.loads((tmp_path / "out" / "correction.json").read_text())
    assert (record["name"], record["space"], record["points"]) == (
        "lung tumor", "voxel", [{"position": list(middle.position), "inside": True}],
    )  # fmt: skip
    assert record["volume_before_ml"] >= 0
    assert workspace.store.keys("prediction") == []


def test_negative_coordinates_are_no_options_of_the_command() -> None:
    words = ["lung_ct", "0a1b", "--inside", "-1.5,2,3", "--inside=4,5,6", "--outside", "-7,8,-9", "--out", "fixed"]
    given = cli.commands["correct"].make_context("correct", words).params
    assert (given["inside"], given["outside"], given["space"]) == (("-1.5,2,3", "4,5,6"), ("-7,8,-9",), "patient")
