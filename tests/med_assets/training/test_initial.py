"""Warm start: all weights of the champion or none, and they are the initial weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from med_assets.errors import BelowReference, CheckpointMismatch, ConfigurationError
from med_assets.experiments.configuration import Experiment, load
from med_assets.programs.rt_dose.lit import task
from med_assets.training.initial import INITIAL, start_from, state_dict
from med_assets.training.job import read_job, run
from med_assets.training.task import ClosedForm, Task
from tests.med_assets.programs.rt_dose.builders import write_job

SMALL = (
    "patches.size=[16,16,16]",
    "patches.per_epoch=2",
    "inference.window=[32,32,32]",
    "schedule.epochs=1",
    "schedule.batch=2",
)


def experiment_of(job: Path) -> Experiment:
    return read_job(job)[1]


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


def test_a_task_has_the_initial_weights_of_its_job_and_without_any_its_own(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=SMALL)
    found = built(job)
    own = {name: tensor.clone() for name, tensor in found.weights().items()}
    start_from(job, experiment_of(job), found)
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.weights().items())
    wanted = others(found)
    torch.save(wanted, job / INITIAL)
    start_from(job, experiment_of(job), found)
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
    with pytest.raises(CheckpointMismatch, match=r"of \d+ tensors fit, 1 differ"):
        start_from(job, experiment_of(job), found)
    assert all(torch.equal(tensor, own[key]) for key, tensor in found.weights().items())


def test_what_is_computed_without_a_loop_can_not_have_initial_weights(tmp_path: Path) -> None:
    torch.save({}, tmp_path / INITIAL)
    with pytest.raises(ConfigurationError, match="initial=random"):
        start_from(tmp_path, load("rt_dose", "mean_dose"), ClosedForm("val_mae_gy", lambda _: ({}, {})))


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict", "network"])
def test_a_released_file_may_be_wrapped_and_come_from_several_devices(wrapper: str | None) -> None:
    bare = {"module.conv.weight": torch.ones(2), "module.conv.bias": torch.zeros(1)}
    found = state_dict({wrapper: bare, "epoch": 3} if wrapper else bare)
    assert sorted(found) == ["conv.bias", "conv.weight"]


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"model": {"conv": "not a tensor"}}])
def test_a_file_without_tensors_is_refused(content: object) -> None:
    with pytest.raises(CheckpointMismatch, match="expected a file of tensors by name"):
        state_dict(content)


FIRST = ("schedule.validate_first=true",)


def test_without_epochs_the_initial_weights_are_validated_and_published(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=(*SMALL, *FIRST, "schedule.epochs=0"))
    wanted = others(built(job))
    torch.save(wanted, job / INITIAL)
    result = run(job)
    assert (result["status"], result["best_epoch"], result["epochs_run"]) == ("completed", 0, 1)
    assert result["best_metrics"]["val_mae_gy"] == result["best_value"]
    published = torch.load(job / "weights.pt", weights_only=True)
    assert all(torch.equal(published[name], tensor) for name, tensor in wanted.items())


def test_a_training_that_only_harms_ends_with_its_initial_weights(tmp_path: Path) -> None:
    harmful = ("optimiser.lr=10", "optimiser.min_lr=10")
    job = write_job(tmp_path / "job", overrides=(*SMALL, *FIRST, *harmful))
    began = {name: tensor.clone() for name, tensor in built(job).weights().items()}
    torch.save(began, job / INITIAL)
    result = run(job)
    rows = (job / "history.csv").read_text().splitlines()
    assert (result["best_epoch"], len(rows)) == (0, 3), rows
    published = torch.load(job / "weights.pt", weights_only=True)
    assert all(torch.equal(published[name], tensor) for name, tensor in began.items())


def test_weights_below_their_reference_stop_the_training_before_its_first_step(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=(*SMALL, *FIRST, "+schedule.reference.val_mae_gy=1e6"))
    with pytest.raises(BelowReference, match=r"expected val_mae_gy of at least 1e\+06 .* got"):
        run(job)
    rows = (job / "history.csv").read_text().splitlines()
    assert len(rows) == 2
    assert rows[1].startswith("0,0,")
    assert not (job / "weights.pt").exists()


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
