"""Labels that do not lie where they were drawn."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from med_assets.programs.lung_ct.alignment import better_place, contrast_hu
from med_assets.programs.lung_ct.expectations import AS_DRAWN, LUNG_TUMOUR, expectations


def chest() -> tuple[np.ndarray, np.ndarray]:
    """A body of 40 HU with two lungs of -820 HU, and a tumour of 55 HU in one, with noise of 8 HU; arrays are (z, y, x)."""
    z, y, x = np.meshgrid(*[np.arange(float(n)) for n in (24, 64, 64)], indexing="ij")
    hu = np.full(x.shape, -1000.0)
    hu[((x - 32) / 28) ** 2 + ((y - 32) / 22) ** 2 < 1] = 40
    for middle in (18, 46):
        hu[((x - middle) / 9) ** 2 + ((y - 32) / 14) ** 2 + ((z - 12) / 14) ** 2 < 1] = -820
    tumour = ((x - 44) / 4) ** 2 + ((y - 28) / 4) ** 2 + ((z - 9) / 3) ** 2 < 1
    hu[tumour] = 55
    return hu + np.random.default_rng(1).normal(0, 8, hu.shape), tumour


@pytest.mark.parametrize(
    ("move", "found"),
    [
        (lambda mask: mask, AS_DRAWN),
        (lambda mask: np.roll(mask, -1, 0), "one slice higher"),
        (lambda mask: np.roll(mask, 1, 0), "one slice lower"),
        (lambda mask: mask[:, :, ::-1], "mirrored left to right"),
        (lambda mask: mask[::-1], "mirrored head to feet"),
        (lambda mask: np.roll(mask, 1, 2), AS_DRAWN),
    ],
)
def test_a_label_that_lies_elsewhere_is_seen(move: Callable[[np.ndarray], np.ndarray], found: str) -> None:
    hu, tumour = chest()
    assert better_place(hu, move(tumour)) == found


def test_an_outline_that_is_too_wide_or_too_narrow_is_no_mistake_of_place() -> None:
    hu, tumour = chest()
    assert better_place(hu, binary_dilation(tumour)) == AS_DRAWN
    assert better_place(hu, binary_erosion(tumour)) == AS_DRAWN


def test_what_can_not_be_measured_is_undefined() -> None:
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    for mask in (empty, full):
        assert contrast_hu(np.zeros((3, 4, 5)), mask) is None
        assert better_place(np.zeros((3, 4, 5)), mask) is None


def test_it_is_a_warning_for_lung_tumours() -> None:
    found = {one.column: one.severity for one in expectations(LUNG_TUMOUR, "lung tumor")}
    assert (found["target_hu_median"], found["target_better_at"]) == ("warn", "warn")
    assert "target_better_at" not in {one.column for one in expectations(1, "liver")}
