"""Training patches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.programs.rt_dose.experiment import Patches
from med_assets.programs.rt_dose.patches import PatchDataset, choose_corner, cut, flip_x, high_voxel
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.resident import Keys, Resident
from med_assets.programs.rt_dose.site import load_site
from tests.med_assets.programs.rt_dose.builders import write_case

SITE = load_site("prostate_sib")
PATCHES = Patches(
    size=(16, 16, 16),
    per_case=4,
    per_epoch=None,
    high_dose_share=0.5,
    high_dose_level=0.1,
    within_body=False,
    resident=False,
    flip_x=True,
)


@pytest.fixture
def cases(tmp_path: Path) -> list[PreparedCase]:
    return [PreparedCase.open(write_case(tmp_path / f"c{seed}", seed)) for seed in range(3)]


def test_an_epoch_takes_each_case_equally_often(cases: list[PreparedCase]) -> None:
    dataset = PatchDataset(cases, SITE, PATCHES, seed=1)
    assert np.bincount(dataset.order(0)).tolist() == [4, 4, 4]


def test_a_patch_depends_only_on_seed_epoch_and_position(cases: list[PreparedCase]) -> None:
    first, again = (PatchDataset(cases, SITE, PATCHES, seed=1)[(3, 5)] for _ in range(2))
    other = PatchDataset(cases, SITE, PATCHES, seed=1)[(4, 5)]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["input"], other["input"])


def test_a_patch_without_flip_is_the_cut_of_its_case(cases: list[PreparedCase]) -> None:
    spans = tuple(slice(start, start + 16) for start in (3, 4, 5))
    item = cut(cases[0], (3, 4, 5), (16, 16, 16))
    np.testing.assert_array_equal(item["input"], cases[0].input(spans))
    np.testing.assert_array_equal(item["target"][0], cases[0].target(spans))
    np.testing.assert_array_equal(item["masks"], cases[0].all_masks(spans))


def test_beyond_the_volume_there_is_air_without_dose(cases: list[PreparedCase]) -> None:
    item = cut(cases[0], (-8, 0, 0), (16, 16, 16))
    assert (item["input"][0, :8] == 0).all()
    assert (item["input"][1:, :8] == 1).all()
    assert not item["target"][0, :8].any()
    assert not item["masks"][:, :8].any()


def test_a_volume_smaller_than_the_patch_is_centred(cases: list[PreparedCase]) -> None:
    large = PATCHES.model_copy(update={"size": (64, 16, 16)})
    assert choose_corner(cases[0], large, False, np.random.default_rng(0))[0] == -16


def test_a_high_dose_patch_has_a_dosed_voxel_at_its_centre(cases: list[PreparedCase]) -> None:
    for seed in range(20):
        rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
        voxel = high_voxel(cases[0], 7.0, same)
        assert voxel is not None
        assert cases[0].dose[voxel] > 7.0
        corner = choose_corner(cases[0], PATCHES, True, rng)
        expected = [min(max(middle - 8, 0), 16) for middle in voxel]
        assert list(corner) == expected


def test_a_level_that_no_voxel_reaches_has_no_high_voxel(cases: list[PreparedCase]) -> None:
    assert high_voxel(cases[0], 1000.0, np.random.default_rng(0)) is None


def test_a_single_hot_voxel_is_found(cases: list[PreparedCase]) -> None:
    hottest = np.unravel_index(int(np.argmax(cases[0].dose)), cases[0].shape)
    below = float(np.sort(np.asarray(cases[0].dose).ravel())[-2])
    level = (below + float(cases[0].dose[hottest])) / 2
    if level < float(cases[0].dose[hottest]):
        assert high_voxel(cases[0], level, np.random.default_rng(0)) == tuple(int(i) for i in hottest)


def test_within_the_body_a_patch_reaches_no_further_than_its_box(cases: list[PreparedCase]) -> None:
    inside = PATCHES.model_copy(update={"within_body": True})
    box = cases[0].body_box()
    assert [span.stop - span.start for span in box] < [32, 32, 32]
    corners = np.array(
        [choose_corner(cases[0], inside, high, np.random.default_rng(i)) for i in range(40) for high in (0, 1)]
    )
    assert (corners.min(axis=0) >= [span.start for span in box]).all()
    assert (corners.max(axis=0) + 16 <= [span.stop for span in box]).all()


def test_the_crude_plan_is_the_last_part_of_the_input_and_nothing_beyond_the_volume(cases: list[PreparedCase]) -> None:
    item = cut(cases[0], (-8, 0, 0), (16, 16, 16), beams=True)
    assert len(item["input"]) == 9 + 2
    assert not item["input"][9:, :8].any()
    np.testing.assert_array_equal(item["input"][9:, 8:], cases[0].beams[:, :8, :16, :16].astype(np.float32))


@pytest.mark.parametrize("size", [(16, 16, 16), (48, 16, 16)])
def test_patches_cut_on_the_device_are_those_of_the_loader(cases: list[PreparedCase], size: tuple[int, ...]) -> None:
    patches = PATCHES.model_copy(update={"size": size, "within_body": True})
    dataset = PatchDataset(cases, SITE, patches, seed=4, beams=True)
    resident, keys = Resident(dataset), Keys(dataset)
    positions = [(2, position) for position in range(len(dataset))]
    assert {dataset.chosen(key)[2] for key in positions} == {True, False}
    found = resident.batch(torch.stack([keys[key]["key"] for key in positions]))
    for index, key in enumerate(positions):
        expected = dataset[key]
        assert set(expected) == set(found)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name][index], tensor, rtol=0, atol=0)


def test_a_flip_mirrors_x_and_swaps_left_and_right(cases: list[PreparedCase]) -> None:
    item = cut(cases[0], (0, 0, 0), (32, 32, 32))
    flipped = flip_x(item, SITE.mirrored())
    left, right = SITE.structures.index("Femur_L"), SITE.structures.index("Femur_R")
    np.testing.assert_array_equal(flipped["masks"][left], item["masks"][right][..., ::-1])
    np.testing.assert_array_equal(flipped["input"][1 + left], item["input"][1 + right][..., ::-1])
    np.testing.assert_array_equal(flipped["input"][0], item["input"][0][..., ::-1])
    np.testing.assert_array_equal(flipped["target"], item["target"][..., ::-1])


def test_flipping_twice_changes_nothing(cases: list[PreparedCase]) -> None:
    item = cut(cases[0], (0, 0, 0), (16, 16, 16))
    twice = flip_x(flip_x(item, SITE.mirrored()), SITE.mirrored())
    assert all(np.array_equal(twice[name], item[name]) for name in item)
