"""Training patches of lung_ct."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.experiments import configuration as experiments
from med_assets.programs.lung_ct.augment import Augmentation
from med_assets.programs.lung_ct.classes import Relabelling
from med_assets.programs.lung_ct.experiment import LungExperiment
from med_assets.programs.lung_ct.patches import PatchDataset, choose, choose_corner, cut
from med_assets.programs.lung_ct.prepared import PreparedCase
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared

NONE = tuple(f"augment.{name}.p=0" for name in ("zoom", "low_resolution", "smooth", "scale", "shift", "noise"))
ALWAYS = tuple(override.replace("p=0", "p=1") for override in NONE)


def experiment(*overrides: str, name: str = "auto_seg") -> LungExperiment:
    found = experiments.load("lung_ct", name, ["patches.size=[16,16,16]", "patches.per_epoch=12", *overrides], "demo")
    assert isinstance(found, LungExperiment)
    return found


@pytest.fixture
def cases(tmp_path: Path) -> list[PreparedCase]:
    return [PreparedCase.open(write_prepared(tmp_path / f"c{seed}", seed)) for seed in range(2)]


def test_a_patch_depends_only_on_seed_epoch_and_position(cases: list[PreparedCase]) -> None:
    dataset = PatchDataset(cases, experiment(*ALWAYS))
    first = dataset[(3, 5)]
    dataset[(0, 0)]
    again, fresh = dataset[(3, 5)], PatchDataset(cases, experiment(*ALWAYS))[(3, 5)]
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, fresh[name])
    assert not torch.equal(first["image"], dataset[(4, 5)]["image"])


def test_without_changes_a_patch_is_a_part_of_its_case(cases: list[PreparedCase]) -> None:
    dataset = PatchDataset(cases[:1], experiment(*NONE))
    corner = choose_corner(
        dataset.centres(0), cases[0].image.shape, dataset.patches, np.random.default_rng([0, 2, 1 + 4])
    )
    spans = tuple(slice(start, start + 16) for start in corner)
    item = dataset[(2, 4)]
    np.testing.assert_array_equal(item["image"][0], cases[0].image[spans])
    np.testing.assert_array_equal(item["label"][0], cases[0].label[spans])


def test_every_class_of_the_case_is_a_centre_equally_often(cases: list[PreparedCase]) -> None:
    dataset = PatchDataset(cases[:1], experiment("patches.size=[4,4,4]"))
    classes = np.unique(cases[0].label)
    rng, met = np.random.default_rng(0), np.zeros(256, int)
    for _ in range(600):
        corner = choose_corner(dataset.centres(0), cases[0].image.shape, dataset.patches, rng)
        met[cases[0].label[tuple(start + 2 for start in corner)]] += 1
    # A centre near the border is moved inwards, so the middle voxel may be of another class now and then.
    assert met[23] > 0.7 * 600 / len(classes), met[classes]
    assert met.sum() == 600


def test_a_class_has_at_most_so_many_centres_spread_over_it(cases: list[PreparedCase]) -> None:
    dataset = PatchDataset(cases, experiment("patches.centres_per_class=7"))
    assert {len(voxels) for voxels in dataset.centres(0)} == {7}
    assert dataset.centres(0)[0][-1] > 0.9 * cases[0].label.size


def test_beyond_the_volume_there_is_air_and_background(cases: list[PreparedCase]) -> None:
    item = cut(cases[0], (-8, 0, 0), (16, 16, 16))
    assert not item["image"][0, :8].any()
    assert not item["sources"][0, :8].any()
    np.testing.assert_array_equal(item["image"][0, 8:], cases[0].image[:8, :16, :16])


def test_augmentation_changes_the_image_and_keeps_shape_and_label_values(cases: list[PreparedCase]) -> None:
    item = cut(cases[0], (0, 0, 0), (16, 16, 16))
    changed = Augmentation(experiment(*ALWAYS).augment)(item, 1)
    assert not torch.equal(changed["image"], item["image"])
    assert {name: (t.shape, t.dtype) for name, t in changed.items()} == {n: (t.shape, t.dtype) for n, t in item.items()}
    assert set(changed["sources"].unique().tolist()) <= set(item["sources"].unique().tolist())


def test_labels_are_mapped_after_everything_else(cases: list[PreparedCase]) -> None:
    item = PatchDataset(cases, experiment(name="target_anatomy"))[(0, 0)]
    assert set(item["label"].unique().tolist()) <= {0, 23}
    assert item["prompts"].tolist() == [23]


def test_classes_that_the_patch_has_come_first_and_of_the_others_so_many() -> None:
    relabel, label = Relabelling((23, 28, 30, 115), np.zeros(256, np.uint8)), np.array([[[0, 28, 115]]], np.uint8)
    rng = np.random.default_rng(0)
    assert choose(relabel, label, None, rng) == [28, 115, 23, 30]
    assert choose(relabel, label, 0, rng) == [28, 115]
    assert len(choose(relabel, label, 1, rng)) == 3
    # A patch of background alone still trains one class.
    assert len(choose(relabel, np.zeros((1, 1, 1), np.uint8), 0, rng)) == 1
