"""Measures of heat maps, by values worked out by hand."""

import math

import numpy as np
import pytest

from med_assets.programs.lumbar_mr import uncertainty as u
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.peaks import strongest

SIDE = 160


def disc(y: float, x: float, radius: float, value: float = 1.0) -> np.ndarray:
    rows, columns = np.indices((SIDE, SIDE))
    return np.where((rows - y) ** 2 + (columns - x) ** 2 <= radius**2, value, 0.0)


def centre(heat: np.ndarray) -> tuple[float, float]:
    peak = strongest(heat)
    assert peak is not None
    return peak.point


def five(radius: float = 7.0, value: float = 1.0) -> np.ndarray:
    return np.stack([disc(20 + 28 * index, 80, radius, value) for index in range(5)])


@pytest.mark.parametrize(("radius", "area"), [(7, 149), (3, 29)])
def test_the_published_entropy_of_a_crisp_disc_is_the_logarithm_of_its_area(radius: int, area: int) -> None:
    heat = disc(80, 80, radius)
    assert u.num_pixels_above_threshold(heat) == area
    assert u.entropy(heat) == pytest.approx(math.log(area), abs=1e-5)
    assert u.excess_entropy(heat) == pytest.approx(0.0, abs=1e-5)


def test_a_disc_of_seven_pixels_has_the_published_threshold_of_five() -> None:
    assert round(u.entropy(disc(80, 80, 7)) or 0, 2) == 5.00


def test_a_uniform_map_has_the_highest_entropies_there_are() -> None:
    heat = np.full((SIDE, SIDE), 0.2)
    assert u.entropy(heat) == pytest.approx(math.log(25600), abs=1e-3)
    assert u.spatial_entropy(heat) == pytest.approx(math.log(100), abs=1e-5)


def test_spatial_entropy_counts_cells_of_sixteen_pixels() -> None:
    heat = np.zeros((SIDE, SIDE))
    heat[15, 0] = heat[16, 0] = 0.5
    assert u.spatial_entropy(heat) == pytest.approx(math.log(2), abs=1e-5)
    heat[16, 0], heat[14, 0] = 0.0, 0.5
    assert u.spatial_entropy(heat) == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(ValueError, match="multiples of 10"):
        u.spatial_entropy(np.ones((64, 64)))


def test_an_empty_map_is_not_found_and_has_no_entropy() -> None:
    empty = np.zeros((SIDE, SIDE))
    assert u.confidence(empty) == 0.0
    assert u.num_pixels_above_threshold(empty) == 0
    for found in (u.entropy, u.spatial_entropy, u.excess_entropy, u.point, strongest):
        assert found(empty) is None, found
    maps = np.zeros((5, SIDE, SIDE))
    rows = u.measure(maps, maps[None], maps[None], (1.0, 1.0), 0.1)
    assert rows["l5_s1"] == dict.fromkeys(u.MEASURES) | {"confidence": 0.0}


def test_a_faint_map_is_not_found_rather_than_unsure() -> None:
    maps = five()
    maps[4] *= 0.05
    rows = u.measure(maps, maps[None], maps[None], (1.0, 1.0), 0.1)
    assert rows["l5_s1"]["entropy"] is None
    assert rows["l4_l5"]["entropy"] == pytest.approx(5.004, abs=1e-3)
    assert u.least_certain(rows, "entropy") is None
    assert u.least_certain(rows, "confidence") == pytest.approx(0.05)


def test_the_published_point_is_a_rounded_mean_and_ours_is_weighted() -> None:
    heat = np.zeros((SIDE, SIDE))
    heat[10, 20], heat[10, 21], heat[10, 25] = 0.9, 0.6, 0.3
    assert u.point(heat) == (10, 20)
    assert centre(heat) == pytest.approx((10.0, (20 * 0.9 + 21 * 0.6) / 1.5))
    assert u.point(heat * 0.5) is None
    assert centre(heat * 0.5) == pytest.approx((10.0, 20.4))


def test_two_equal_peaks_have_the_excess_entropy_of_none_but_the_region_tells_levels_apart() -> None:
    sure = five()
    assert u.region_entropy(sure, 4) == pytest.approx(0.0, abs=1e-9)
    assert u.level_entropy(sure, 4) == pytest.approx(0.0, abs=1e-9)
    unsure = five()
    unsure[4] = 0.5 * unsure[4] + 0.5 * unsure[3]
    unsure[3] = unsure[3] * 0.5
    expected = u.share_entropy([0.5 * 149, 149])
    assert u.region_entropy(unsure, 4) == pytest.approx(expected)
    assert expected == pytest.approx(-(1 / 3) * math.log(1 / 3) - (2 / 3) * math.log(2 / 3))
    # No pixel is above 0.5, so there is no disc to compare with; at the first of two equal peaks both levels are as probable.
    assert u.excess_entropy(unsure[4]) is None
    assert u.level_entropy(unsure, 4) == pytest.approx(math.log(2))


def test_spread_is_a_root_mean_square_in_mm() -> None:
    assert u.spread_mm([(0.0, 0.0), (2.0, 0.0), None], (3.0, 1.0)) == pytest.approx(3.0)
    assert u.spread_mm([(0.0, 0.0), (0.0, 2.0)], (3.0, 1.0)) == pytest.approx(1.0)
    assert u.spread_mm([(1.0, 1.0), (1.0, 1.0)], (3.0, 1.0)) == 0.0
    assert u.spread_mm([(1.0, 1.0), None], (3.0, 1.0)) is None
    assert u.spread_mm([], (3.0, 1.0)) is None


def test_views_without_overlap_diverge_by_the_logarithm_of_their_number() -> None:
    views = np.stack([disc(30, 30, 3), disc(100, 100, 7, 0.4)])
    assert u.divergence(views) == pytest.approx(math.log(2))
    assert u.divergence(views[[0, 0]]) == pytest.approx(0.0, abs=1e-12)
    assert u.divergence(views[:1]) is None
    assert u.divergence(np.stack([views[0], np.zeros((SIDE, SIDE))])) is None


def test_each_level_has_every_measure_and_a_moved_slice_spreads_only_its_own() -> None:
    maps = five()
    moved = maps.copy()
    moved[1] = disc(48, 84, 7)
    rows = u.measure(maps, np.stack([maps, moved]), np.stack([maps, maps]), (1.5, 2.0), 0.1)
    assert tuple(rows) == LEVELS
    assert all(set(row) == set(u.MEASURES) for row in rows.values())
    assert rows["l2_l3"]["slice_spread"] == pytest.approx(4.0)
    assert rows["l3_l4"]["slice_spread"] == 0.0
    assert rows["l2_l3"]["augmented_divergence"] == 0.0
    assert u.least_certain(rows, "slice_spread") == pytest.approx(4.0)


def test_a_second_peak_has_its_share_of_the_mass_and_its_distance_in_mm() -> None:
    maps = five()
    maps[2] = disc(76, 80, 7, 0.9) + disc(104, 80, 7, 0.7)
    rows = u.measure(maps, maps[None], maps[None], (1.5, 2.0), 0.1)
    assert rows["l3_l4"]["second_peak_share"] == pytest.approx(0.7 / 1.6)
    assert rows["l3_l4"]["second_peak_distance"] == pytest.approx(42.0)
    assert (rows["l2_l3"]["second_peak_share"], rows["l2_l3"]["second_peak_distance"]) == (0.0, 0.0)
    assert u.least_certain(rows, "second_peak_distance") == pytest.approx(42.0)
    assert u.shifted_levels(rows) == ("l3_l4",)


@pytest.mark.parametrize(
    ("share", "distance_mm", "warned"),
    [
        (0.4, 36.0, True), (0.39, 36.0, False), (0.5, 19.9, False), (0.5, 20.0, True), (0.5, 50.0, True),
        (0.5, 50.1, False), (0.0, 0.0, False), (None, None, False),
    ],
)  # fmt: skip
def test_the_count_may_be_shifted_where_the_second_peak_is_strong_and_one_level_away(
    share: float | None, distance_mm: float | None, warned: bool
) -> None:
    rows: dict[str, dict[str, float | None]] = {level: dict.fromkeys(u.MEASURES, 0.0) for level in LEVELS}
    rows["l4_l5"] |= {"second_peak_share": share, "second_peak_distance": distance_mm}
    rows["all"] = dict.fromkeys(u.MEASURES, 30.0)
    assert u.shifted_levels(rows) == (("l4_l5",) if warned else ())
