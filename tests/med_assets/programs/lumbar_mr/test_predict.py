"""Where a model says that the levels are: which slices are combined, and how a point comes of a map."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from med_assets.errors import CheckpointMismatch
from med_assets.experiments import configuration as experiments
from med_assets.programs.lumbar_mr import mean_position
from med_assets.programs.lumbar_mr.experiment import LumbarExperiment, Slices
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.lit import task
from med_assets.programs.lumbar_mr.maps import discs, map_points
from med_assets.programs.lumbar_mr.predict import level_points, load_predictor, predict_case, richest, spread
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.storage.files import write_text
from med_assets.training.job import read_job
from med_assets.training.task import Task
from tests.med_assets.programs.lumbar_mr.builders import TINY, write_job, write_prepared

torch.set_num_threads(1)
SLICES = Slices(train_mm=8, combine=5, combine_mm=8, middle="model", search_mm=4)


class Knows(nn.Module):
    """Answers with the discs of a case, as probable as the slice is bright."""

    def __init__(self, case: PreparedCase, lost: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.classes = torch.from_numpy(discs(map_points(case), 7).astype(np.int64))
        for level in lost:
            self.classes[self.classes == 1 + LEVELS.index(level)] = 0

    def forward(self, images: Tensor) -> Tensor:
        own = nn.functional.one_hot(self.classes, 6).permute(2, 0, 1)[None] * 20.0
        bright = (images.amax(dim=(1, 2, 3)) > 0.5).float()[:, None, None, None]
        faint = torch.zeros_like(own)
        faint[:, 0] = 20.0
        return bright * own + (1 - bright) * faint


def loaded(*overrides: str, name: str = "point_net") -> LumbarExperiment:
    found = experiments.load("lumbar_mr", name, (*TINY, *overrides), profile="demo")
    assert isinstance(found, LumbarExperiment)
    return found


def test_the_model_finds_a_middle_that_is_not_the_middle_of_the_series(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case", shape=(15, 120, 96), middle=3))
    found = predict_case(Knows(case), case, loaded(), views=False)
    assert (found.middle, found.slices) == (3, (1, 3, 5))
    assert found.slice_heats.shape == (3, 5, 160, 160)
    blind = predict_case(Knows(case), case, loaded("slices.middle=series"), views=False)
    assert (blind.middle, blind.slices) == (7, (5, 7, 9))
    assert blind.heats.max() == pytest.approx(1 / 3, abs=1e-3)


def test_points_are_centroids_in_voxels_of_the_volume_to_a_tenth_of_a_millimetre(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case"))
    found = predict_case(Knows(case), case, loaded(), views=True)
    for level in LEVELS:
        point, marked = found.points[level], case.levels[level]
        assert point is not None
        assert marked is not None
        assert np.abs((np.array(point) - marked) * (case.slice_mm, *case.pixel_mm)).max() < 0.35
    assert found.view_heats.shape == (3, 5, 160, 160)
    assert np.array_equal(found.view_heats[0], found.heats)


def test_a_level_that_no_slice_shows_is_not_found(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case"))
    found = predict_case(Knows(case, ("l5_s1",)), case, loaded(), views=False)
    assert found.points["l5_s1"] is None
    assert found.points["l4_l5"] is not None


def test_labels_do_not_change_a_prediction(tmp_path: Path) -> None:
    case, bare = (
        PreparedCase.open(write_prepared(tmp_path / name, marked=marked)) for name, marked in (("a", LEVELS), ("b", ()))
    )
    network = Knows(case)
    first, second = (predict_case(network, one, loaded(), views=True) for one in (case, bare))
    assert first.points == second.points
    assert np.array_equal(first.heats, second.heats)


def test_slices_are_spread_in_millimetres_and_those_beyond_the_series_left_out(tmp_path: Path) -> None:
    thick = PreparedCase.open(write_prepared(tmp_path / "thick"))
    assert spread(thick, 4, SLICES) == (2, 3, 4, 5, 6)
    assert spread(thick, 1, SLICES) == (0, 1, 2, 3)
    coarse = PreparedCase.open(write_prepared(tmp_path / "coarse", slice_mm=10.0))
    assert spread(coarse, 4, SLICES) == (3, 4, 5)
    assert spread(thick, 4, SLICES.model_copy(update={"combine": 1})) == (4,)


def test_the_richest_window_is_that_with_the_most_mass_around_its_middle() -> None:
    places = np.arange(7) * 4.0
    assert richest(np.array([0, 0, 1, 2, 1, 0, 9.0]), places, 4.0) == 5
    assert richest(np.array([0, 3, 3, 3, 0, 0, 8.0]), places, 4.0) == 2
    assert richest(np.ones(7), places, 4.0) == 3


def test_a_checkpoint_predicts_as_its_module_and_one_missing_key_is_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=TINY)
    _, experiment, cases = read_job(job)
    built = task(experiment, cases)
    assert isinstance(built, Task)
    weights = {name: tensor.clone() for name, tensor in built.weights().items()}
    folder = tmp_path / "checkpoint"
    write_text(folder / "experiment.json", experiment.to_json())
    torch.save(weights, folder / "weights.pt")
    case = PreparedCase.open(cases[0].folder)
    found = load_predictor(folder)(case)
    expected = predict_case(built.module.network, case, loaded(), views=True)
    assert np.array_equal(found.view_heats, expected.view_heats)
    assert built.module.network.training
    del weights["logit.bias"]
    torch.save(weights, folder / "weights.pt")
    with pytest.raises(CheckpointMismatch, match=r"1 missing: \['logit\.bias'\]"):
        load_predictor(folder)


def test_the_mean_position_is_a_fraction_of_the_image(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "a"))
    finer = PreparedCase.open(write_prepared(tmp_path / "b", shape=(9, 240, 192), pixel_mm=(1.0, 0.75)))
    weights = mean_position.fit([case], 7)
    heats, points = mean_position.place(weights, finer)
    marked = case.levels["l3_l4"]
    found = points["l3_l4"]
    assert marked is not None
    assert found is not None
    assert found == pytest.approx((marked[0], 2 * marked[1] + 0.5, 2 * marked[2] + 0.5), abs=1e-3)
    assert heats.shape == (5, 160, 160)
    assert set(np.unique(heats)) == {0, 1}


def two_peaks(case: PreparedCase) -> np.ndarray:
    """Maps of single slices (3, level, y, x): L1/L2 is highest 36 mm below its place, and there in the last slice alone."""
    points = map_points(case)
    single = np.zeros((3, 5, 160, 160), np.float32)
    for index, point in enumerate(points):
        single[:, index] = 0.9 * (discs(point[None], 7) > 0)
    place, lower = (discs(points[:1] + np.array([rows, 0]), 7) > 0 for rows in (0, 24))
    single[:, 0] = 0.5 * place
    single[2, 0] += 1.0 * lower
    single[1, 0] += 0.6 * lower
    return single


def test_a_point_is_one_peak_in_the_plane_and_across_it_and_a_sequence_may_take_another(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case"))
    single, slices = two_peaks(case), (2, 4, 6)
    # 24 pixels of the map are 36 mm; the combined maximum is 1.6 / 3 of the lower place, against 0.5 at the level's own.
    heats = single.mean(axis=0)
    inference = loaded().inference
    alone = level_points(heats, single, slices, case, inference)
    together = level_points(heats, single, slices, case, inference.model_copy(update={"decoding": "sequence"}))
    marked = case.levels["l1_l2"]
    assert marked is not None
    # Slice 2 has none of the lower peak, 4 has 0.6 and 6 has 1 of it: the mean weighted over both, at or above half.
    assert alone["l1_l2"] == pytest.approx(((4 * 0.6 + 6) / 1.6, marked[1] + 18, marked[2]), abs=0.35)
    assert together["l1_l2"] == pytest.approx((4.0, marked[1], marked[2]), abs=0.35)
    assert {level: alone[level] for level in LEVELS[1:]} == {level: together[level] for level in LEVELS[1:]}


def test_neither_decoding_finds_a_level_in_an_empty_map(tmp_path: Path) -> None:
    case = PreparedCase.open(write_prepared(tmp_path / "case"))
    empty, inference = np.zeros((3, 5, 160, 160), np.float32), loaded().inference
    for decoding in ("peaks", "sequence"):
        settings = inference.model_copy(update={"decoding": decoding})
        assert level_points(empty.mean(axis=0), empty, (2, 4, 6), case, settings) == dict.fromkeys(LEVELS)
