"""Levels decoded together, by values worked out by hand."""

import math
from itertools import pairwise, product

import numpy as np
import pytest

from med_assets.programs.lumbar_mr.peaks import Peak
from med_assets.programs.lumbar_mr.sequence import Gaps, decode

GAPS = Gaps(36.0, 6.0)
MM = (1.0, 1.0)


def at(y: float, height: float, x: float = 50.0) -> Peak:
    return Peak((y, x), height, height, np.zeros((1, 1), bool))


def rows(found: list[Peak | None]) -> list[float | None]:
    return [None if peak is None else peak.centre[0] for peak in found]


def test_a_level_that_took_its_neighbours_place_is_put_back_by_its_second_peak() -> None:
    found = [[at(50, 0.6), at(14, 0.5)], [at(50, 0.9)], [at(86, 0.9)], [at(122, 0.9)], [at(158, 0.9)]]
    assert rows(decode(found, MM, GAPS)) == [14, 50, 86, 122, 158]


def test_a_prior_yields_to_a_probability_that_is_far_greater() -> None:
    # 12 mm off are 2 SD, twice: exp(-2) for each distance, of which 0.9 against 0.01 makes more.
    likely = [[at(14, 0.9)], [at(62, 0.9), at(50, 0.01)], [at(86, 0.9)]]
    assert 0.9 * math.exp(-4) > 0.01
    assert rows(decode(likely, MM, GAPS)) == [14, 62, 86]
    even = [[at(14, 0.9)], [at(62, 0.9), at(50, 0.02)], [at(86, 0.9)]]
    assert 0.9 * math.exp(-4) < 0.02
    assert rows(decode(even, MM, GAPS)) == [14, 50, 86]


def test_distances_are_in_millimetres_of_the_plane() -> None:
    found = [[at(20, 0.9)], [at(56, 0.9), at(38, 0.5)]]
    assert rows(decode(found, (1.0, 1.0), GAPS)) == [20, 56]
    assert rows(decode(found, (2.0, 1.0), GAPS)) == [20, 38]


def test_a_level_that_is_not_found_leaves_room_for_itself() -> None:
    found = [[at(14, 0.9)], [], [at(50, 0.9), at(86, 0.8)]]
    assert rows(decode(found, MM, GAPS)) == [14, None, 86]
    assert rows(decode([[], [], [at(5, 0.2)]], MM, GAPS)) == [None, None, 5]
    assert decode([[], []], MM, GAPS) == [None, None]


def test_where_nothing_is_in_order_each_level_has_its_strongest_peak() -> None:
    found = [[at(90, 0.9), at(80, 0.5)], [at(50, 0.9), at(20, 0.1)]]
    assert rows(decode(found, MM, GAPS)) == [90, 50]


def test_of_equal_sums_the_first_of_the_peaks_wins() -> None:
    found = [[at(50, 0.5)], [at(86, 0.5, x=49), at(86, 0.5, x=51)]]
    chosen = decode(found, MM, GAPS)[1]
    assert chosen is not None
    assert chosen.centre == (86, 49)


@pytest.mark.parametrize("seed", range(5))
def test_the_sequence_is_the_best_of_all_there_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = [[at(float(rng.uniform(0, 160)), float(rng.uniform(0.05, 1))) for _ in range(3)] for _ in range(5)]

    def value(path: tuple[Peak, ...]) -> float:
        total = sum(math.log(peak.height) for peak in path)
        for upper, lower in pairwise(path):
            step = lower.centre[0] - upper.centre[0]
            total += -(((step - 36) / 6) ** 2) / 2 if step > 0 else -math.inf
        return total

    best = max(product(*found), key=value)
    expected = best if math.isfinite(value(best)) else tuple(peaks[0] for peaks in found)
    assert decode(found, MM, GAPS) == list(expected)
