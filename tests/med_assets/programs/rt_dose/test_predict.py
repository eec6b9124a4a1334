"""Checkpoint folders to doses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.experiments import configuration as experiments
from med_assets.programs.rt_dose.experiment import DoseExperiment, Inference
from med_assets.programs.rt_dose.predict import Volume, build_network, load_predictor, predict_volume
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import load_site
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
    experiment = experiments.load("rt_dose", "baseline", profile="demo")
    assert isinstance(experiment, DoseExperiment)
    inference = Inference(window=window, overlap=0.25, sigma=0.25, batch=2)
    volume = Volume.of(case, experiment.model_copy(update={"inference": inference}), torch.device("cpu"))
    found = predict_volume(Same(), volume)
    np.testing.assert_allclose(found, case.input()[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["residual", "cascade"])
def test_only_the_body_gets_dose_and_a_mirrored_patient_the_mirrored_dose(
    tmp_path: Path, case: PreparedCase, kind: str
) -> None:
    overrides = (
        f"network.kind={kind}", "network.beams=true", "network.widths=[8,16]", "network.blocks=[1,1]", "network.stem=2",
        "patches.within_body=true", "inference.flips=true", "inference.window=[32,32,32]", "losses.body_only=true",
    )  # fmt: skip
    save(tmp_path / "checkpoint", overrides=overrides)
    predictor = load_predictor(tmp_path / "checkpoint")
    dose = predictor(case)
    body = np.asarray(case.body)
    assert not dose[~body].any()
    assert dose[body].any()
    mirrored = mirrored_case(case)
    np.testing.assert_allclose(predictor(mirrored), dose[..., ::-1], atol=2e-4)


def mirrored_case(case: PreparedCase) -> PreparedCase:
    """The patient seen in a mirror: left structures become right ones."""
    order = list(load_site(case.site).mirrored())
    bits = [((np.asarray(case.masks) >> index) & 1) << place for place, index in enumerate(order)]
    flipped = {
        name: np.ascontiguousarray(getattr(case, name)[..., ::-1])
        for name in ("ct", "planned_dose", "body", "where_planned", "beams")
    }
    masks = np.ascontiguousarray(sum(bits)[..., ::-1]).astype(np.uint16)
    return replace(case, **flipped, masks=masks, sdf=np.ascontiguousarray(case.sdf[order][..., ::-1]))


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
