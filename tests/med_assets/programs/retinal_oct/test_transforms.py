"""What a network sees of a volume: mean 0 and standard deviation 1, in preparation, training, evaluation and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import ArtifactCorrupt, CheckpointMismatch
from med_assets.programs.retinal_oct.embeddings import EmbeddingCache
from med_assets.programs.retinal_oct.experiment import RetinalExperiment
from med_assets.programs.retinal_oct.export import write_prediction
from med_assets.programs.retinal_oct.kept import PREDICTION
from med_assets.programs.retinal_oct.lit import task
from med_assets.programs.retinal_oct.network import Classifier, build_encoder
from med_assets.programs.retinal_oct.network_inputs import TOLERANCE
from med_assets.programs.retinal_oct.prepare import percentiles
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.scorer import load_predictor
from med_assets.programs.retinal_oct.transforms import check_input, network_input
from med_assets.programs.retinal_oct.volumes import VolumeDataset
from med_assets.training.task import TrainingCase
from tests.med_assets.programs.retinal_oct.builders import write_prepared
from tests.med_assets.programs.retinal_oct.experiments import tiny

torch.set_num_threads(1)


def speckle(looks: int) -> np.ndarray:
    """A retina of two layers under gamma-distributed speckle of so many looks, (12, 99, 153): narrow as an AI-READI volume."""
    rng = np.random.default_rng(looks)
    layers = np.full((12, 99, 153), 30.0)
    layers[:, 40:70] = 120
    return layers * rng.gamma(looks, 1 / looks, layers.shape)


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_speckle_that_a_resize_averages_leaves_mean_0_and_deviation_1(looks: int) -> None:
    image, resized_std = network_input(speckle(looks), (16, 64, 64))[:2]
    assert image.dtype == np.float32
    assert image.mean(dtype=float) == pytest.approx(0, abs=TOLERANCE)
    assert image.std(dtype=float) == pytest.approx(1, abs=TOLERANCE)
    assert 0.3 < resized_std < 0.99


@pytest.mark.parametrize("volume", [np.full((4, 8, 8), 7.0), np.full((4, 8, 8), np.nan), np.zeros((4, 8, 8))])
def test_a_volume_without_contrast_is_refused(volume: np.ndarray) -> None:
    with pytest.raises(ValueError, match="contrast"):
        network_input(volume, (4, 8, 8))


def test_contrast_that_the_resize_loses_is_none() -> None:
    volume = np.zeros((9, 9, 9))
    volume[0, 0, 0] = 1
    with pytest.raises(ValueError, match="contrast"):
        network_input(volume, (3, 3, 3))


def test_offset_and_unit_of_the_device_do_not_matter() -> None:
    volume = speckle(4)
    first = network_input(volume, (8, 32, 32)).image
    other = network_input(volume * 200 + 40_000, (8, 32, 32)).image
    np.testing.assert_allclose(first, other, atol=2e-3)


@pytest.mark.parametrize(("scale", "shift"), [(0.72, 0.0), (0.96, 0.0), (1.0, 0.01), (1.0, float("nan"))])
def test_every_reader_refuses_a_volume_of_another_scale(tmp_path: Path, scale: float, shift: float) -> None:
    folder = write_prepared(tmp_path / "case")
    np.save(folder / "image.npy", np.load(folder / "image.npy") * np.float32(scale) + np.float32(shift))
    experiment, case = tiny(), PreparedCase.open(folder)
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, experiment)
    (tmp_path / "predicted").mkdir()
    (tmp_path / "predicted" / PREDICTION).write_text(json.dumps({"probabilities": {}}))
    built = task(experiment, [TrainingCase("a", "p", split, folder) for split in ("train", "val")])
    pretraining = task(
        tiny("pretrain_multi_domain"), [TrainingCase("a", "p", split, folder) for split in ("train", "val")]
    )
    for use in (
        lambda: check_input(np.asarray(case.image)),
        lambda: VolumeDataset([case], experiment)[0, 0],
        lambda: EmbeddingCache(tmp_path / "cache").of(build_encoder(experiment.network), experiment.network, [case], 1),
        lambda: load_predictor(checkpoint, tmp_path / "cache").predict(folder, tmp_path),
        lambda: built.module.measured(case),  # type: ignore[union-attr]  # both are Tasks
        lambda: pretraining.module.measured(case),  # type: ignore[union-attr]  # both are Tasks
        lambda: write_prediction(folder, tmp_path / "predicted", tmp_path / "out", "model"),
    ):
        with pytest.raises(ArtifactCorrupt, match="mean 0 and standard deviation 1"):
            use()


def test_training_sees_every_volume_at_that_scale(tmp_path: Path) -> None:
    cases = [PreparedCase.open(write_prepared(tmp_path / f"case{seed}", seed)) for seed in range(4)]
    dataset = VolumeDataset(cases, tiny())
    for epoch in range(3):
        for position in range(4):
            check_input(dataset[epoch, position]["image"].numpy())


def save_checkpoint(folder: Path, experiment: RetinalExperiment) -> None:
    folder.mkdir()
    (folder / "experiment.json").write_text(experiment.to_json())
    torch.save(Classifier(experiment.network, experiment.head).state_dict(), folder / "weights.pt")


def test_a_checkpoint_of_inputs_before_this_scale_is_refused_with_the_reason(tmp_path: Path) -> None:
    experiment, checkpoint = tiny(), tmp_path / "checkpoint"
    save_checkpoint(checkpoint, experiment)
    record = json.loads((checkpoint / "experiment.json").read_text())
    assert record.pop("input_scaling") == "after_resize"
    load_predictor(checkpoint, tmp_path / "cache")
    (checkpoint / "experiment.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointMismatch, match="train it again"):
        load_predictor(checkpoint, tmp_path / "cache")
    before = RetinalExperiment.model_validate(record)
    assert before.hash() != experiment.hash()
    assert "before_resize" in str(experiment.objection_to(before))
    assert experiment.objection_to(experiment) is None


@pytest.mark.parametrize("kind", ["uint8", "uint16", "negative", "fractions", "wide", "two"])
def test_percentiles_are_those_of_numpy_to_the_last_bit(kind: str) -> None:
    rng = np.random.default_rng(5)
    volume = {
        "uint8": rng.integers(0, 256, (6, 31, 17)),
        "uint16": rng.gamma(2, 9000, (5, 40, 33)).clip(0, 65_535).round(),
        "negative": rng.integers(-400, 3000, (4, 9, 11)),
        "fractions": rng.uniform(0, 255, (4, 9, 11)),
        "wide": rng.integers(0, 10**6, (4, 9, 11)),
        "two": np.array([[[0, 255]]]),
    }[kind].astype(np.float32)
    percents = (0, 0.1, 33.3, 50, 75, 99.9, 100)
    assert percentiles(volume, percents) == [float(value) for value in np.percentile(volume, percents)]
