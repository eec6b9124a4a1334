"""Training slices: pure functions of (seed, epoch, position), with discs where the levels went."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.experiments import configuration as experiments
from med_assets.programs.lumbar_mr.experiment import LumbarExperiment
from med_assets.programs.lumbar_mr.maps import Change, discs, map_pixel_mm, map_points
from med_assets.programs.lumbar_mr.peaks import peaks
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.slices import SliceDataset, as_images, training_slices
from tests.med_assets.programs.lumbar_mr.builders import TINY, write_prepared

torch.set_num_threads(1)
STILL = "augment={rotate_deg:0,scale:0,shift:0,brightness:0,contrast:0,gamma:0,noise:0}"


def loaded(*overrides: str) -> LumbarExperiment:
    found = experiments.load("lumbar_mr", "point_net", (*TINY, *overrides), profile="demo")
    assert isinstance(found, LumbarExperiment)
    return found


@pytest.fixture
def cases(tmp_path: Path) -> list[PreparedCase]:
    return [PreparedCase.open(write_prepared(tmp_path / f"case{seed}", seed)) for seed in range(3)]


def test_an_item_is_a_pure_function_of_its_epoch_and_position(cases: list[PreparedCase]) -> None:
    first, second = SliceDataset(cases, loaded()), SliceDataset(cases, loaded())
    second[(3, 1)]
    for name, tensor in first[(2, 4)].items():
        assert torch.equal(tensor, second[(2, 4)][name])
    assert not torch.equal(first[(2, 4)]["image"], first[(3, 4)]["image"])
    assert not torch.equal(first[(2, 4)]["image"], SliceDataset(cases, loaded("seed=1"))[(2, 4)]["image"])
    assert sorted(first.order(0).tolist()) == [0, 0, 1, 1, 2, 2]


def test_an_item_has_the_shapes_and_range_that_the_network_learns_from(cases: list[PreparedCase]) -> None:
    item = SliceDataset(cases, loaded())[(0, 0)]
    assert item["image"].shape == (3, 160, 160)
    assert item["image"].dtype == torch.float32
    assert 0 <= float(item["image"].min()) < float(item["image"].max()) <= 1
    assert torch.equal(item["image"][0], item["image"][2])
    assert item["target"].shape == (160, 160)
    assert item["target"].dtype == torch.int64
    assert item["known"].tolist() == [True] * 6


def test_without_changes_training_sees_what_prediction_sees(cases: list[PreparedCase]) -> None:
    dataset = SliceDataset(cases[:1], loaded(STILL, "slices.train_mm=0"))
    item, case = dataset[(0, 0)], cases[0]
    torch.testing.assert_close(item["image"], as_images(case.input[[case.middle]])[0], atol=1e-5, rtol=0)
    assert np.array_equal(item["target"].numpy(), discs(map_points(case), 7))


def test_slices_are_drawn_around_the_labelled_middle(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case", middle=2))
    assert training_slices(case, 8.0).tolist() == [0, 1, 2, 3, 4]
    assert training_slices(case, 3.9).tolist() == [2]


def test_discs_follow_the_image_through_a_change() -> None:
    points = np.array([[40.0, 60.0], [60.0, 66.0], [80.0, 70.0], [100.0, 74.0], [118.0, 90.0]])
    change = Change.drawn(np.random.default_rng(5), 20.0, 0.2, 0.1)
    image = torch.from_numpy(np.stack([discs(one[None], 4).astype(np.float32) for one in points]))[None]
    moved = change.maps(image)[0].numpy()
    for heat, expected in zip(moved, change.points(points), strict=True):
        assert peaks(heat)[0].point == pytest.approx(tuple(expected), abs=0.2)
    back = change.inverse().maps(change.maps(image), "zeros")[0].numpy()
    for heat, expected in zip(back, points, strict=True):
        assert peaks(heat)[0].point == pytest.approx(tuple(expected), abs=0.2)


def test_a_head_stays_above_and_a_front_before_whatever_is_drawn() -> None:
    rng = np.random.default_rng(0)
    points = np.array([[40.0, 40.0], [120.0, 40.0], [40.0, 120.0]])
    for _ in range(200):
        top, bottom, behind = Change.drawn(rng, 15.0, 0.2, 0.1).points(points)
        assert bottom[0] > top[0]
        assert behind[1] > top[1]


def test_a_disc_has_its_radius_and_a_pixel_near_two_points_is_of_the_nearer() -> None:
    points = np.full((5, 2), np.nan)
    points[0] = (80, 80)
    assert int((discs(points, 7) == 1).sum()) == 149
    points[4] = (80, 90)
    found = discs(points, 7)
    assert found[80, 84] == 1
    assert found[80, 86] == 5
    assert set(np.unique(found)) == {0, 1, 5}


def test_pixels_of_the_map_are_as_large_as_the_slice_makes_them(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case", shape=(5, 80, 320), pixel_mm=(3.0, 1.0)))
    assert map_pixel_mm(case) == (1.5, 2.0)


def test_a_level_that_nobody_marked_has_no_disc_and_is_not_known(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case", marked=("l1_l2", "l3_l4")))
    item = SliceDataset([case], loaded())[(0, 0)]
    assert item["known"].tolist() == [True, True, False, True, False, False]
    assert set(item["target"].unique().tolist()) == {0, 1, 3}
