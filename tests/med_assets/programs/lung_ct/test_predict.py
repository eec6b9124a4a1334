"""Checkpoint folders to logits of whole volumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from med_assets.errors import CheckpointMismatch
from med_assets.experiments import configuration as experiments
from med_assets.programs.lung_ct.experiment import Inference, LungExperiment
from med_assets.programs.lung_ct.network import build_network
from med_assets.programs.lung_ct.predict import load_predictor, predict_logits

torch.set_num_threads(1)


class Own(torch.nn.Module):
    """Stands for a network: the logits of class k are k times the image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, input_images: Tensor, class_vector: Tensor, transpose: bool) -> Tensor:
        assert transpose
        return input_images * self.scale * class_vector.flatten()[None, :, None, None, None]


def save(folder: Path, drop: str = "") -> LungExperiment:
    experiment = experiments.load("lung_ct", "foundation", profile="demo")
    assert isinstance(experiment, LungExperiment)
    torch.manual_seed(0)
    folder.mkdir()
    weights = {name: tensor for name, tensor in build_network(experiment.network).state_dict().items() if name != drop}
    torch.save(weights, folder / "weights.pt")
    (folder / "experiment.json").write_text(experiment.to_json())
    return experiment


@pytest.mark.parametrize("window", [(16, 16, 16), (32, 16, 48), (64, 64, 64)])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_windows_cover_every_voxel_for_every_class(window: tuple[int, int, int], mode: str) -> None:
    image = np.random.default_rng(0).random((20, 25, 30)).astype(np.float32)
    settings = Inference(window=window, overlap=0.25, mode=mode, padding="replicate", batch=2)
    found = predict_logits(Own(), image, range(1, 11), settings)
    np.testing.assert_allclose(found, np.arange(1, 11)[:, None, None, None] * image, rtol=1e-4, atol=1e-4)


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "broken", drop="class_head.mlp.0.bias")
    with pytest.raises(
        CheckpointMismatch, match=r"168 of 169 tensors fit, 1 differ .*1 missing: \['class_head.mlp.0.bias'\]"
    ):
        load_predictor(tmp_path / "broken")


def test_a_checkpoint_predicts_the_classes_it_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    image = np.random.default_rng(0).random((20, 24, 24)).astype(np.float32)
    found = load_predictor(tmp_path / "checkpoint")(image, [23, 115])
    assert found.shape == (2, 20, 24, 24)
    assert not np.array_equal(found[0], found[1])
