"""Changes of patches that leave them true."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.programs.rt_dose.augment import change_ct, margins, rotate
from med_assets.programs.rt_dose.experiment import Patches
from med_assets.programs.rt_dose.patches import PatchDataset, cut
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import load_site
from tests.med_assets.programs.rt_dose.builders import write_case

SITE = load_site("prostate_sib")
SIZE = (4, 12, 16)


def turned(case: PreparedCase, corner: tuple[int, int, int], angle: float) -> dict[str, np.ndarray]:
    more = margins(SIZE, case.spacing_mm, angle)
    wide = [side + 2 * margin for side, margin in zip(SIZE, more, strict=True)]
    item = cut(case, [start - margin for start, margin in zip(corner, more, strict=True)], wide)
    return rotate(item, SIZE, case.spacing_mm, angle)


def ramps(wide: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """An item whose input channels are y and x in mm from its centre, and whose dose is y + 2 x."""
    y, x = (
        np.broadcast_to(((np.arange(side) - (side - 1) / 2) * step).reshape(shape), wide).astype(np.float32)
        for side, step, shape in zip(wide[1:], spacing_mm[1:], ((1, -1, 1), (1, 1, -1)), strict=True)
    )
    masks = np.stack([y > 0, x > 0])
    return {
        "input": np.stack([y, x]),
        "target": (y + 2 * x)[None],
        "masks": masks,
        "body": masks[:1],
        "valid": masks[:1] | True,
    }


def test_a_turn_is_one_in_mm_whatever_the_spacing() -> None:
    spacing, angle = (3.0, 2.0, 5.0), 20.0
    more = margins(SIZE, spacing, angle)
    wide = (SIZE[0], SIZE[1] + 2 * more[1], SIZE[2] + 2 * more[2])
    item, before = rotate(ramps(wide, spacing), SIZE, spacing, angle), ramps(SIZE, spacing)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    y, x = before["input"]
    np.testing.assert_allclose(item["input"][0], cos * y + sin * x, atol=1e-4)
    np.testing.assert_allclose(item["input"][1], cos * x - sin * y, atol=1e-4)
    np.testing.assert_allclose(item["target"][0], item["input"][0] + 2 * item["input"][1], atol=1e-4)
    # Distances from the centre, and so those from any surface, stay what they were.
    np.testing.assert_allclose(np.hypot(*item["input"]), np.hypot(y, x), atol=1e-4)


def test_masks_turn_with_their_signed_distances(tmp_path: Path) -> None:
    case = PreparedCase.open(write_case(tmp_path / "case"))
    item = turned(case, (14, 10, 8), 15.0)
    assert item["masks"].any()
    clear = np.abs(item["input"][1:]) > 5 / 50  # more than a voxel from the surface
    agree = (item["input"][1:] < 0) == item["masks"]
    assert agree[clear].all()


def test_a_quarter_turn_of_square_voxels_moves_them_one_to_one(tmp_path: Path) -> None:
    case = PreparedCase.open(write_case(tmp_path / "case"))
    item = cut(case, (0, 4, 4), (4, 16, 16))
    found = rotate(item, (4, 16, 16), case.spacing_mm, 90.0)
    np.testing.assert_allclose(found["input"], np.rot90(item["input"], axes=(2, 3)), atol=1e-5)
    np.testing.assert_array_equal(found["masks"], np.rot90(item["masks"], axes=(2, 3)))


def test_no_turn_needs_no_margin_and_a_patch_near_the_border_turns_in_air(tmp_path: Path) -> None:
    case = PreparedCase.open(write_case(tmp_path / "case"))
    assert margins(SIZE, case.spacing_mm, 0.0) == (0, 0, 0)
    item = turned(case, (0, 0, 0), 30.0)
    assert item["input"][0, 0, 0, 0] == 0
    assert (item["input"][1:, 0, 0, 0] == 1).all()


def test_ct_numbers_get_one_offset_and_noise_of_the_given_size() -> None:
    item = {"input": np.full((2, 20, 20, 20), 0.5, np.float32)}
    found = change_ct(item, 0.0, 40.0, np.random.default_rng(0))["input"]
    assert found[0].std() * 4000 == pytest.approx(40, rel=0.05)
    assert (found[1] == 0.5).all()
    offset = change_ct(item, 100.0, 0.0, np.random.default_rng(0))["input"][0] - 0.5
    assert np.ptp(offset) == 0
    assert 0 < abs(offset[0, 0, 0]) * 4000 <= 100
    assert change_ct(item, 0.0, 0.0, np.random.default_rng(0)) is item


def test_a_changed_patch_depends_only_on_seed_epoch_and_position(tmp_path: Path) -> None:
    case = PreparedCase.open(write_case(tmp_path / "case"))
    patches = Patches(
        size=(16, 16, 16), per_case=4, per_epoch=None, high_dose_share=0.5, high_dose_level=0.1, flip_x=True,
        rotate_deg=10.0, ct_offset_hu=20.0, ct_noise_hu=10.0,
    )  # fmt: skip
    first, again = (PatchDataset([case], SITE, patches, seed=1, noisy=True)[(3, 2)] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        "input": (9, 16, 16, 16), "target": (1, 16, 16, 16), "masks": (8, 16, 16, 16), "body": (1, 16, 16, 16), "valid": (1, 16, 16, 16), "constraints": (13,),
        "prescription_gy": (), "time": (), "noise": (1, 16, 16, 16),
    }  # fmt: skip
    plain = PatchDataset([case], SITE, patches.model_copy(update={"rotate_deg": 0.0}), seed=1)[(3, 2)]
    assert not torch.equal(first["target"], plain["target"])
