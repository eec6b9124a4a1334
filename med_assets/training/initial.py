"""Warm start: a training that begins with the weights of another checkpoint or of a release, all of them or none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.experiments import RELEASED, Experiment
from med_assets.training.ranks import rank
from med_assets.training.task import ClosedForm, Task
from med_assets.training.tensors import SHOWN, demand_fit

INITIAL = "initial.pt"
"""File of a job folder with the weights to begin with; without it a training begins with random ones."""

WRAPPERS = ("model", "state_dict", "model_state_dict", "network")
"""Keys under which a released file may hold its state dict, next to an optimiser and other things."""

PREFIX = "module."
"""What training on several devices puts before all names."""


def state_dict(content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a file: bare, or under one of WRAPPERS; PREFIX is taken off where all have it.

    Raises CheckpointMismatch where there is no such thing.
    """
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    found = dict(content) if isinstance(content, Mapping) else {}
    if not found or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise CheckpointMismatch(
            f"expected a file of tensors by name, alone or under one of {', '.join(WRAPPERS)}; got {type(content).__name__} "
            f"with {sorted(map(str, found))[:SHOWN]}"
        )
    if all(name.startswith(PREFIX) for name in found):
        found = {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}
    return found


def start_from(job: Path, experiment: Experiment, task: Task | ClosedForm) -> None:
    """Put the job's initial weights, if it has any, into a task that was just built; a resumed checkpoint comes after.

    Raises CheckpointMismatch, and changes nothing, unless the names and shapes of all tensors are those of the task, or of
    the part of it that begins so.
    """
    path = job / INITIAL
    if not path.is_file():
        return
    if isinstance(task, ClosedForm):
        raise ConfigurationError(
            "this experiment is computed without a loop and begins with nothing; use initial=random"
        )
    content = torch.load(path, map_location="cpu", weights_only=True)
    found = state_dict(content) if task.reads is None else task.reads(content)
    if task.released is not None and experiment.initial.startswith(RELEASED):
        found = task.released(found)
    expected = (task.begins or task.weights)()
    fit = demand_fit(
        expected, found, f"the weights of initial={experiment.initial}",
        "train with initial=random, or give the experiment the network that these weights are of",
    )  # fmt: skip
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
    if rank() == 0:
        print(
            f"begins with initial={experiment.initial}: {len(fit.matched)} of {len(expected)} tensors match", flush=True
        )
