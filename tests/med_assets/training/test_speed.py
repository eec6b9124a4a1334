"""How fast a training is, and that one done in pieces is one done at once."""

import time
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils

from med_assets.errors import TrainingStopped
from med_assets.training.job import run
from med_assets.training.module import PatchModule
from med_assets.training.speed import BACKWARD, PROFILE, WARM_UP, Speed, peak_tflops
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

torch.set_num_threads(1)

RESIDUAL = (
    "network.widths=[8,16]", "network.blocks=[1,1]", "patches.size=[16,16,16]", "patches.per_epoch=6",
    "inference.window=[32,32,32]", "schedule.epochs=2", "schedule.val_every=1", "optimiser.ema=0.5",
)  # fmt: skip


def test_a_result_says_how_fast_its_training_was_and_a_profile_what_a_step_is_made_of(tmp_path: Path) -> None:
    overrides = (*TINY, "patches.per_epoch=28", "schedule.epochs=1", "runtime.profile_steps=2")
    result = run(write_job(tmp_path / "job", overrides=overrides))
    speed = result["speed"]
    assert speed["timed_steps"] == 14 - WARM_UP - 2
    assert speed["items_per_s"] == pytest.approx(2 * speed["steps_per_s"], rel=1e-2)
    assert speed["steps_per_s"] < 14 / result["seconds"] * 20
    assert speed["tflops"] > 0
    assert speed["bf16_share"] is None  # a CPU has none that is listed
    text = (tmp_path / "job" / PROFILE).read_text()
    assert "2 training steps on cpu" in text
    assert "convolution" in text


def test_the_work_of_a_step_is_three_times_its_forward_pass(tmp_path: Path) -> None:
    speed = Speed(flops=5e9, batch=4, profile_steps=0, profile=tmp_path / PROFILE)
    speed.steps, speed.seconds = 10, 2.0
    assert BACKWARD == 2
    assert speed.measured()["tflops"] == pytest.approx(5e9 * 3 * 4 * 5 / 1e12)
    assert peak_tflops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0), ("NVIDIA L4", 121.0), ("NVIDIA L40", None), ("NVIDIA A10G", None),
    ],
)  # fmt: skip
def test_a_listed_card_is_known_by_its_name_and_another_is_not_taken_for_it(
    name: str, peak: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda")) == peak
    speed = Speed(flops=1e12, batch=2, profile_steps=0, profile=tmp_path / PROFILE)
    speed.steps, speed.seconds, speed._device = 10, 1.0, torch.device("cuda")
    assert speed.measured()["bf16_share"] == (peak and pytest.approx(60 / peak, abs=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["residual_beams_dvh", "cascade"])
def test_pieces_of_a_training_give_what_it_gives_at_once(tmp_path: Path, experiment: str) -> None:
    whole = write_job(tmp_path / "whole", experiment, RESIDUAL)
    result = run(whole)
    assert result["best_metrics"]["train_mae"] > 0
    assert result["best_metrics"]["train_dvh_curves"] > 0
    pieces, stops = write_job(tmp_path / "pieces", experiment, (*RESIDUAL, "runtime.piece_s=0.01")), 0
    began = time.monotonic()
    while stops < 30:
        last = time.monotonic()
        try:
            result = run(pieces)
            break
        except TrainingStopped:
            stops += 1
    assert stops == 6  # after each step
    now = time.monotonic()
    assert now - last < result["seconds"] < now - began, "the seconds of all pieces, and not those between them"
    assert (pieces / "history.csv").read_text() == (whole / "history.csv").read_text()
    first, second = (torch.load(job / "weights.pt", weights_only=True) for job in (whole, pieces))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["residual_beams_dvh", "cascade"])
def test_what_an_accelerator_compiles_is_traced_and_trains_the_same(
    tmp_path: Path, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the traced graphs are run as they are, which leaves out code generation and nothing else."""
    once = (*RESIDUAL, "schedule.epochs=1")
    plain = write_job(tmp_path / "plain", experiment, once)
    run(plain)

    def on_fit_start(module: PatchModule) -> None:
        for part in module.compiled():
            part.compile(backend="eager")

    monkeypatch.setattr(PatchModule, "on_fit_start", on_fit_start)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    traced = write_job(tmp_path / "traced", experiment, once)
    run(traced)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    first, second = (torch.load(job / "weights.pt", weights_only=True) for job in (plain, traced))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
