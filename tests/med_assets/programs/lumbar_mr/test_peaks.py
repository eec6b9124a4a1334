"""Peaks of maps, by values worked out by hand: which is the strongest, what joins two, and what lies at a border."""

import numpy as np
import pytest

from med_assets.programs.lumbar_mr.peaks import SecondPeak, peaks, second_peak, strongest


def plane(**pixels: float) -> np.ndarray:
    """A map of 12 x 12 with pixels given as r3c4=0.5."""
    heat = np.zeros((12, 12))
    for name, value in pixels.items():
        row, column = name[1:].split("c")
        heat[int(row), int(column)] = value
    return heat


def test_the_point_is_the_centroid_of_the_part_that_holds_the_maximum_and_not_between_two_parts() -> None:
    heat = plane(r2c3=0.9, r2c4=0.6, r2c5=0.4, r9c3=0.8, r9c4=0.8)
    first, second = peaks(heat)
    # 0.4 is below half of 0.9; the second part has more mass and is lower.
    assert first.point == pytest.approx((2.0, (3 * 0.9 + 4 * 0.6) / 1.5))
    assert (first.height, first.mass) == pytest.approx((0.9, 1.5))
    assert second.point == pytest.approx((9.0, 3.5))
    assert (second.height, second.mass) == pytest.approx((0.8, 1.6))
    other = second_peak([first, second], (2.0, 1.0))
    assert other.share == pytest.approx(1.6 / 3.1)
    assert other.distance_mm == pytest.approx(np.hypot(14.0, 3.5 - 3.4))


def test_pixels_that_touch_by_a_corner_are_one_peak() -> None:
    (one,) = peaks(plane(r4c4=0.8, r5c5=0.4, r6c6=0.6))
    assert one.point == pytest.approx(((4 * 0.8 + 5 * 0.4 + 6 * 0.6) / 1.8,) * 2)
    first, second = peaks(plane(r4c4=0.8, r4c6=0.6))
    assert (first.point, second.point) == ((4.0, 4.0), (4.0, 6.0))


def test_a_way_between_two_summits_joins_them_from_half_of_the_lower_on() -> None:
    apart = plane(r4c2=0.8, r4c3=0.29, r4c4=0.6)
    joined = plane(r4c2=0.8, r4c3=0.30, r4c4=0.6)
    assert [peak.point for peak in peaks(apart)] == [(4.0, 2.0), (4.0, 4.0)]
    # The lower summit is part of the slope of the higher one, and not of its half, which starts at 0.4.
    (one,) = peaks(joined)
    assert one.point == (4.0, 2.0)


def test_the_slope_of_a_summit_is_no_peak_of_its_own() -> None:
    rows, columns = np.indices((40, 40))
    smooth = np.exp(-((rows - 20.0) ** 2 + (columns - 14.0) ** 2) / 50)
    (one,) = peaks(smooth)
    assert one.point == pytest.approx((20.0, 14.0))


def test_equal_summits_go_by_mass_and_then_from_head_to_feet() -> None:
    heavier = plane(r2c2=0.5, r8c2=0.5, r8c3=0.3)
    assert [peak.centre[0] for peak in peaks(heavier)] == [8.0, 2.0]
    alike = plane(r8c2=0.5, r2c9=0.5, r2c2=0.5)
    assert [peak.point for peak in peaks(alike)] == [(2.0, 2.0), (2.0, 9.0), (8.0, 2.0)]
    assert second_peak(peaks(alike), (1.0, 1.0)) == SecondPeak(0.5, 7.0)


def test_a_level_plateau_is_one_peak() -> None:
    (one,) = peaks(np.full((12, 12), 0.2))
    assert one.point == pytest.approx((5.5, 5.5))
    assert second_peak([one], (1.0, 1.0)) == SecondPeak(0.0, 0.0)


def test_peaks_at_a_border_are_cut_there_and_opposite_borders_do_not_touch() -> None:
    first, second = peaks(plane(r0c0=0.8, r0c1=0.4, r11c11=0.6))
    assert first.point == pytest.approx((0.0, 1 / 3))
    assert second.point == (11.0, 11.0)


def test_an_empty_map_has_no_peak() -> None:
    assert peaks(np.zeros((12, 12))) == []
    assert strongest(np.zeros((12, 12))) is None
    with pytest.raises(ValueError, match="not empty"):
        second_peak([], (1.0, 1.0))


def test_what_is_lower_than_a_twentieth_of_the_maximum_is_no_peak() -> None:
    assert len(peaks(plane(r2c2=1.0, r8c8=0.05))) == 2
    assert len(peaks(plane(r2c2=1.0, r8c8=0.049))) == 1


def test_along_a_line_a_peak_is_a_run() -> None:
    first, second = peaks(np.array([0.1, 1.0, 0.6, 0.2, 0.8]))
    assert first.centre == pytest.approx(((1 * 1.0 + 2 * 0.6) / 1.6,))
    assert second.centre == (4.0,)
