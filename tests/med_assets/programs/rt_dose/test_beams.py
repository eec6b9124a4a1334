"""The crude plan of a case."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from med_assets.programs.rt_dose.beams import ATTENUATION_PER_MM, BUILD_UP_MM, SKIN_MM, _Places, plan
from med_assets.programs.rt_dose.site import BeamPlan
from tests.med_assets.programs.rt_dose.builders import sphere

SHAPE, SPACING = (12, 40, 40), (5.0, 5.0, 5.0)
NONE = np.zeros(SHAPE, bool)


def settings(*gantry_deg: float, iterations: int = 0) -> BeamPlan:
    return BeamPlan(gantry_deg=gantry_deg, iterations=iterations, organ_weight=0.05, elsewhere_weight=0.01)


def water() -> tuple[np.ndarray, np.ndarray]:
    """A block of water as CT and body."""
    body = np.zeros(SHAPE, bool)
    body[1:-1, 4:-4, 4:-4] = True
    return np.where(body, 0, -1000).astype(np.int16), body


def level(mask: np.ndarray, value: float = 1.0) -> np.ndarray:
    return (mask * value).astype(np.float32)


def target() -> np.ndarray:
    return sphere(SHAPE, (6, 20, 20), 4)


@pytest.mark.parametrize(
    ("gantry_deg", "axis", "towards"),
    [(0.0, 1, 1), (90.0, 2, -1), (180.0, 1, -1), (270.0, 2, 1)],
)
def test_a_beam_enters_where_its_gantry_stands_and_loses_dose_with_depth(
    gantry_deg: float, axis: int, towards: int
) -> None:
    # IEC 61217, head first supine: 0 from the front (low y), 90 from the patient's left (high x).
    ct, body = water()
    dose = plan(ct, body, level(target()), NONE, SPACING, settings(gantry_deg))[0]
    line = [6, 20, 20]
    near, far = line.copy(), line.copy()
    near[axis], far[axis] = 20 - 6 * towards, 20 + 6 * towards
    assert dose[tuple(near)] > dose[tuple(line)] > dose[tuple(far)] > 0
    skin = 3.5 if towards > 0 else 35.5
    first, last = (abs(place[axis] - skin) * 5 for place in (near, far))  # mm of water before the two places
    lost = np.exp(-ATTENUATION_PER_MM * (last - first))
    built_up = [1 - np.exp(-(depth + SKIN_MM) / BUILD_UP_MM) for depth in (first, last)]
    assert dose[tuple(far)] / dose[tuple(near)] == pytest.approx(lost * built_up[1] / built_up[0], rel=0.02)


def test_rays_that_miss_the_target_carry_nothing() -> None:
    ct, body = water()
    dose = plan(ct, body, level(target()), NONE, SPACING, settings(0.0))
    assert dose[0][6, 10, 20] > 0.5
    assert dose[0][6, 10, 32] < 0.01  # 60 mm beside it, the target's radius being 20 mm
    assert not dose[:, ~body].any()


def test_the_optimised_plan_is_nearer_to_the_prescription_and_spares_the_organ() -> None:
    ct, body = water()
    organ = sphere(SHAPE, (6, 30, 20), 3)
    angles = [40.0 * index for index in range(9)]
    open_, planned = plan(ct, body, level(target()), organ, SPACING, settings(*angles, iterations=20))
    inside = target()
    assert np.abs(planned[inside] - 1).mean() < 0.06
    assert np.abs(planned[inside] - 1).mean() < np.abs(open_[inside] - 1).mean()
    assert planned[organ].mean() < 0.7 * open_[organ].mean()
    assert planned.min() >= 0


def test_two_levels_get_their_own_dose() -> None:
    ct, body = water()
    high, low = sphere(SHAPE, (6, 20, 15), 3), sphere(SHAPE, (6, 20, 25), 3)
    wanted = np.maximum(level(high), level(low, 0.8))
    planned = plan(ct, body, wanted, NONE, SPACING, settings(*[20.0 * index for index in range(18)], iterations=20))[1]
    assert planned[high].mean() == pytest.approx(1.0, abs=0.06)
    assert planned[low].mean() == pytest.approx(0.8, abs=0.06)


def test_finer_voxels_give_the_same_plan() -> None:
    ct, body = water()
    wanted = level(target())
    coarse = plan(ct, body, wanted, NONE, SPACING, settings(0.0, 120.0, 240.0, iterations=10))[1]

    def fine(array: np.ndarray) -> np.ndarray:
        return array.repeat(2, axis=1).repeat(2, axis=2)

    found = plan(
        fine(ct), fine(body), fine(wanted), fine(NONE), (5.0, 2.5, 2.5), settings(0.0, 120.0, 240.0, iterations=10)
    )
    again = found[1].reshape(SHAPE[0], SHAPE[1], 2, SHAPE[2], 2).mean(axis=(2, 4))
    assert np.abs(again - coarse)[body].mean() < 0.03


def test_without_a_target_in_the_body_there_is_no_plan() -> None:
    ct, body = water()
    assert not plan(ct, body, level(NONE), NONE, SPACING, settings(0.0)).any()


def test_interpolation_of_all_slices_at_once_is_that_of_scipy_to_the_last_bit() -> None:
    rng = np.random.default_rng(3)
    volume = rng.uniform(0, 2, (7, 9, 11)).astype(np.float32)
    rows, columns = rng.uniform(0, 8, 500), rng.uniform(0, 10, 500)
    rows[:3], columns[:3] = (0, 8, 8), (10, 10, 3.5)
    found = _Places.between(rows, columns, (9, 11)).of(np.ascontiguousarray(volume.transpose(1, 2, 0)).reshape(-1, 7))
    expected = [map_coordinates(one, [rows, columns], order=1, mode="nearest") for one in volume]
    np.testing.assert_array_equal(found, np.array(expected).T)
