"""Warm start: a training that begins with the weights of another checkpoint, all of them or none."""

from pathlib import Path

import torch

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.training.task import ClosedForm, Task

INITIAL = "initial.pt"
"""File of a job folder with the weights to begin with; without it a training begins with random ones."""

SHOWN = 5
"""Tensors named in an error message, of those that do not fit."""


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
    wrong = sorted(name for name in found.keys() ^ expected.keys())
    wrong += sorted(name for name in found.keys() & expected.keys() if found[name].shape != expected[name].shape)
    if wrong:
        raise CheckpointMismatch(
            f"expected the champion's weights to fit the network, got {len(wrong)} of {len(expected)} tensors that differ in name "
            f"or shape: {wrong[:SHOWN]}; train with initial=random, or give the experiment the champion's network"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
