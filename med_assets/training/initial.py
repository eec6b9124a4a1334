"""Warm start: a training that begins with the weights of another checkpoint, all of them or none."""

from pathlib import Path

import torch

from med_assets.errors import ConfigurationError
from med_assets.training.task import ClosedForm, Task
from med_assets.training.tensors import demand_fit

INITIAL = "initial.pt"
"""File of a job folder with the weights to begin with; without it a training begins with random ones."""


def start_from(job: Path, task: Task | ClosedForm) -> None:
    """Put the job's initial weights, if it has any, into a task that was just built; a resumed checkpoint comes after.

    Raises CheckpointMismatch, and changes nothing, unless the names and shapes of all tensors are those of the task.
    """
    path = job / INITIAL
    if not path.is_file():
        return
    if isinstance(task, ClosedForm):
        raise ConfigurationError(
            "this experiment is computed without a loop and begins with nothing; use initial=random"
        )
    found = torch.load(path, map_location="cpu", weights_only=True)
    expected = task.weights()
    demand_fit(
        expected,
        found,
        "the champion's weights",
        "train with initial=random, or give the experiment the champion's network",
    )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
