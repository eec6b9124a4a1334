"""Warm start: all weights of the champion or none, and they are what training begins with."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.programs.rt_dose.lit import task
from med_assets.training.initial import INITIAL, start_from
from med_assets.training.job import read_job
from med_assets.training.task import ClosedForm, Task
from tests.med_assets.programs.rt_dose.builders import write_job

SMALL = (
    "patches.size=[16,16,16]",
    "patches.per_epoch=2",
    "inference.window=[32,32,32]",
    "schedule.epochs=1",
    "schedule.batch=2",
)


def built(job: Path) -> Task:
    _, experiment, cases = read_job(job)
    found = task(experiment, cases)
    assert isinstance(found, Task)
    return found


def others(task: Task) -> dict[str, torch.Tensor]:
    """Weights of the same shapes with other values."""
    return {
        name: tensor + 0.25 if tensor.is_floating_point() else tensor.clone() for name, tensor in task.weights().items()
    }


def test_a_task_begins_with_the_weights_of_its_job_and_without_any_with_its_own(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=SMALL)
    found = built(job)
    own = {name: tensor.clone() for name, tensor in found.weights().items()}
    start_from(job, found)
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.weights().items())
    wanted = others(found)
    torch.save(wanted, job / INITIAL)
    start_from(job, found)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.module.network.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "unexpected", "other shape"])
def test_weights_that_do_not_fit_are_refused_and_none_is_taken(tmp_path: Path, damage: str) -> None:
    job = write_job(tmp_path / "job", overrides=SMALL)
    found = built(job)
    own = {name: tensor.clone() for name, tensor in found.weights().items()}
    wanted = others(found)
    name = sorted(wanted)[-1]
    if damage == "missing":
        del wanted[name]
    elif damage == "unexpected":
        wanted["extra"] = torch.zeros(1)
    else:
        wanted[name] = torch.zeros(*wanted[name].shape, 2)
    torch.save(wanted, job / INITIAL)
    with pytest.raises(CheckpointMismatch, match=r"1 of \d+ tensors"):
        start_from(job, found)
    assert all(torch.equal(tensor, own[key]) for key, tensor in found.weights().items())


def test_what_is_computed_without_a_loop_can_not_begin_with_anything(tmp_path: Path) -> None:
    torch.save({}, tmp_path / INITIAL)
    with pytest.raises(ConfigurationError, match="initial=random"):
        start_from(tmp_path, ClosedForm("val_mae_gy", lambda: ({}, {})))


@pytest.mark.slow
def test_a_training_goes_on_from_its_initial_weights(tmp_path: Path) -> None:
    still = ("optimiser.lr=1e-12", "optimiser.min_lr=0", "optimiser.weight_decay=0")
    job = write_job(tmp_path / "job", overrides=(*SMALL, *still))
    wanted = others(built(job))
    torch.save(wanted, job / INITIAL)
    done = subprocess.run(
        [sys.executable, "-m", "med_assets.training", str(job)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    trained = torch.load(job / "weights.pt", weights_only=True)
    parameters = dict(built(job).module.network.named_parameters())
    assert all(torch.allclose(trained[name], wanted[name], atol=1e-6) for name in parameters)
