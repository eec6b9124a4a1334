"""Checkpoint folders to doses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets import experiments
from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.programs.rt_dose.experiment import DoseExperiment, Inference
from med_assets.programs.rt_dose.predict import build_network, load_predictor, predict_volume
from med_assets.programs.rt_dose.prepared import PreparedCase
from tests.med_assets.programs.rt_dose.builders import write_case

torch.set_num_threads(1)


class Same(torch.nn.Module):
    """Stands for a network: predicts its own CT channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor, constraints: torch.Tensor) -> torch.Tensor:
        return image[:, :1] * self.scale


def save(
    folder: Path, weights: dict[str, torch.Tensor] | None = None, overrides: tuple[str, ...] = ()
) -> DoseExperiment:
    experiment = experiments.load("rt_dose", "baseline", overrides, profile="demo")
    assert isinstance(experiment, DoseExperiment)
    torch.manual_seed(0)
    folder.mkdir()
    torch.save(build_network(experiment).state_dict() if weights is None else weights, folder / "weights.pt")
    (folder / "experiment.json").write_text(experiment.to_json())
    return experiment


@pytest.mark.parametrize("window", [(16, 16, 16), (32, 48, 16), (64, 64, 64)])
def test_windows_cover_every_voxel_whatever_their_size(case: PreparedCase, window: tuple[int, int, int]) -> None:
    found = predict_volume(Same(), case, Inference(window=window, overlap=0.25, sigma=0.25, batch=2))
    np.testing.assert_allclose(found, case.input()[0], atol=1e-5)


def test_dose_is_in_gy_not_negative_and_of_the_whole_volume(tmp_path: Path, case: PreparedCase) -> None:
    save(tmp_path / "checkpoint")
    dose = load_predictor(tmp_path / "checkpoint")(case)
    assert dose.shape == case.shape
    assert dose.dtype == np.float32
    assert (dose >= 0).all()
    assert dose.max() > 0


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    weights = build_network(save(tmp_path / "whole")).state_dict()
    del weights["head.bias"]
    save(tmp_path / "broken", weights)
    with pytest.raises(CheckpointMismatch, match=r"1 missing: \['head.bias'\]"):
        load_predictor(tmp_path / "broken")


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    weights = build_network(save(tmp_path / "whole")).state_dict()
    weights["head.bias"] = torch.zeros(2)
    save(tmp_path / "broken", weights)
    with pytest.raises(CheckpointMismatch, match=r"head.bias expected \(1,\) found \(2,\)"):
        load_predictor(tmp_path / "broken")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=r"missing: experiment\.json, weights\.pt"):
        load_predictor(tmp_path)


def test_a_case_of_another_site_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    other = PreparedCase.open(write_case(tmp_path / "c", site="head_neck"))
    with pytest.raises(ConfigurationError, match="trained for prostate_sib"):
        load_predictor(tmp_path / "checkpoint")(other)
