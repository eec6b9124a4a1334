"""Bounding boxes of masks."""

import numpy as np
import pytest
from scipy.ndimage import find_objects

from med_assets.metrics.boxes import box_of


def test_the_box_of_an_empty_mask_is_none() -> None:
    assert box_of(np.zeros((3, 4, 5), bool)) is None
    assert box_of(np.zeros((0, 4), bool)) is None


@pytest.mark.parametrize("shape", [(6,), (5, 7), (4, 6, 5), (3, 4, 5, 6)])
def test_the_box_is_the_smallest_that_holds_all_that_is_true(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    for _ in range(20):
        mask = np.zeros(shape, bool)
        mask[tuple(rng.integers(0, shape, (3, len(shape))).T)] = True
        assert box_of(mask) == find_objects(mask.astype(np.uint8))[0]
        turned = np.moveaxis(mask, 0, -1)
        assert box_of(turned) == find_objects(turned.astype(np.uint8))[0]
