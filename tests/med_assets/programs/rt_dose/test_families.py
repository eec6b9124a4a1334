"""Each family of models trains, goes on where it was stopped, to the bit, and predicts."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from med_assets.errors import CheckpointMismatch, ConfigurationError, TrainingStopped
from med_assets.experiments import configuration as experiments
from med_assets.programs.rt_dose.lit import DoseModule
from med_assets.programs.rt_dose.perceptual import random_weights
from med_assets.programs.rt_dose.predict import load_predictor
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.training.job import run
from tests.med_assets.programs.rt_dose.builders import TINY, write_job
from tests.med_assets.training.test_resume import assert_same, newest

torch.set_num_threads(1)

FEW = (*TINY, "patches.per_epoch=4", "schedule.epochs=2", "losses.perceptual_stride=16")
DIFFUSION = ("diffusion.widths=[1,1,1]", "diffusion.val_steps=2", "diffusion.steps=2")
SWIN = ("network.base_channels=24", "inference.window=[32,32,32]")
DEEP = ("patches.size=[32,32,32]", "patches.per_epoch=2", "schedule.epochs=1")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("attention_unet", DEEP), ("deeper_unet", DEEP), ("flow_bounded", DIFFUSION), ("swin_unetr", (*DEEP, *SWIN))],
)
def test_each_network_trains_and_predicts_a_whole_case(name: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", name, (*FEW, *overrides))
    assert run(job)["status"] == "completed"
    dose = load_predictor(job)(PreparedCase.open(job / "cases" / "case2"))
    assert dose.shape == (32, 32, 32)
    assert np.isfinite(dose).all()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "combined",
            (
                "losses.adversarial=0.1",
                "adversary.base_channels=8",
                "schedule.fallbacks=[{batch:1}]",
                "runtime.memory_plan=1",
            ),
        ),
        ("ddpm", DIFFUSION),
    ],
)
def test_stopped_and_resumed_gives_the_same_bits(
    name: str, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = (*FEW, *overrides, "optimiser.ema=0.9", "runtime.save_every_s=0", "schedule.val_every=1")
    whole, broken = (write_job(tmp_path / job, name, all_of_them) for job in ("whole", "broken"))
    assert run(whole)["status"] == "completed"
    original = DoseModule.training_step
    for step in (1, 3):  # within an epoch, and in the other

        def recording(self: Any, *arguments: Any, step: int = step) -> Any:
            if self._trainer is not None and self.trainer.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(DoseModule, "training_step", recording)
            with pytest.raises(TrainingStopped, match=f"after step {step}"):
                run(broken)
    assert run(broken, "must")["resumed"]
    assert_same(whole, broken)
    weights = torch.load(broken / "weights.pt", weights_only=True)
    assert not [tensor for tensor in weights if tensor.startswith(("loss", "log_variances", "discriminator"))]
    case = PreparedCase.open(broken / "cases" / "case2")
    doses = [load_predictor(job)(case) for job in (whole, broken)]
    assert np.array_equal(*doses)


def test_what_is_trained_beside_the_network_is_logged_and_kept_for_resuming(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job", "combined", (*FEW, "losses.adversarial=0.1", "adversary.base_channels=8", "schedule.epochs=1")
    )
    run(job)
    header = (job / "history.csv").read_text().splitlines()[0].split(",")
    assert {"train_adversarial", "train_discriminator", "train_weight_mse", "train_perceptual"} <= set(header)
    state = torch.load(newest(job), weights_only=True)
    names = {name.split(".")[1] for name in state["state_dict"] if name.startswith("loss.")}
    assert names == {"discriminator", "log_variances"}
    groups = state["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups] == [3e-3, 1e-4, 3e-3]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.01, 0.0]


def test_each_group_of_parameters_is_clipped_by_its_own_norm() -> None:
    experiment = experiments.load("rt_dose", "adversarial", profile="demo")
    module = DoseModule(experiment, 1, {})  # type: ignore[arg-type]  # a DoseExperiment
    optimiser = torch.optim.AdamW(module.parameter_groups())
    for factor, group in zip((0.001, 100.0), optimiser.param_groups, strict=True):
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, factor / len(group["params"]) / parameter.numel())
    before = module.network.head.weight.grad.clone()
    module.configure_gradient_clipping(optimiser)
    assert torch.equal(module.network.head.weight.grad, before)
    norm = torch.stack([parameter.grad.norm() for parameter in module.loss.discriminator.parameters()]).norm()
    assert float(norm) == pytest.approx(min(1.0, float(norm)))


def test_training_reads_its_released_file_or_says_that_it_is_missing(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job", "grad_vgg", (*FEW, "schedule.epochs=1", "losses.perceptual_weights=released/vgg16")
    )
    with pytest.raises(ConfigurationError, match=r"has no released/vgg16; start it with `med-assets train`"):
        run(job)
    (job / "released").mkdir()
    torch.save({"features.0.weight": torch.zeros(1)}, job / "released" / "vgg16")
    with pytest.raises(CheckpointMismatch, match="expected the released weights vgg16 to fit the network, took none"):
        run(job)
    torch.save(random_weights(0), job / "released" / "vgg16")
    assert run(job)["status"] == "completed"
    other = tmp_path / "other"
    shutil.copytree(job, other)
    torch.save(random_weights(1), other / "released" / "vgg16")
    assert run(other, "never")["weights_sha256"] != run(job)["weights_sha256"]
