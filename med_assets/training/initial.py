"""Warm start: the initial weights of a training are those of another checkpoint or of a release, all of them or none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.experiments.configuration import RELEASED, Experiment
from med_assets.training.ranks import rank
from med_assets.training.reading import open_weights
from med_assets.training.task import ClosedForm, Task
from med_assets.training.tensors import SHOWN, Fit, demand_fit, demand_values

INITIAL = "initial.pt"
"""File of a job folder with the initial weights; without it they are random."""

WRAPPERS = ("model", "state_dict", "model_state_dict", "network", "net", "module", "weights")
"""Keys under which a released file may hold its state dict, next to an optimiser and other things."""

PREFIXES = ("module.", "_orig_mod.")
"""What training on several devices and compiling put before all names, in any order."""


def state_dict(content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a file: bare, or under one or more of WRAPPERS; PREFIXES are taken off where all names have them.

    Raises CheckpointMismatch where there is no such thing.
    """
    inner = content
    while isinstance(inner, Mapping):
        name = next((name for name in WRAPPERS if isinstance(inner.get(name), Mapping)), None)
        if name is None:
            break
        inner = inner[name]
    found = dict(inner) if isinstance(inner, Mapping) else {}
    if not found or not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()):
        raise CheckpointMismatch(
            f"expected a file of tensors by name, alone or under one of {', '.join(WRAPPERS)}; got {type(inner).__name__} "
            f"with {sorted(map(str, found))[:SHOWN]}; take the file that holds the weights"
        )
    return unwrapped(found)


def unwrapped(found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take PREFIXES off where all names have them, and `_orig_mod.` from within names, where a part was compiled alone."""
    names = {name: name.replace("._orig_mod.", ".") for name in found}
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in names.values())), None):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return {short: found[name] for name, short in names.items()}


def start_from(job: Path, experiment: Experiment, task: Task | ClosedForm) -> None:
    """Put the job's initial weights, if it has any, into a task that was just built; a resumed checkpoint comes after.

    Raises CheckpointMismatch, and changes nothing, unless the names and shapes of all tensors are those of the task, or of
    the part of it that has initial weights.
    """
    path = job / INITIAL
    if not path.exists():
        return
    if isinstance(task, ClosedForm) and task.initial_tensors is None:
        raise ConfigurationError(
            "this experiment is computed without a loop and has no initial weights; use initial=random"
        )
    content = open_weights(path, f"the weights of initial={experiment.initial}")
    expected = task.weights() if isinstance(task, Task) and task.initial_tensors is None else _replaced(task)
    try:
        found, fit = _fitting(content, experiment, task, expected)
    except CheckpointMismatch as error:
        from med_assets.training.released import described

        raise CheckpointMismatch(f"{error}; {described(content)}") from error
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
    if rank() == 0:
        print(
            f"initial weights of initial={experiment.initial}: {len(fit.matched)} of {len(expected)} tensors match",
            flush=True,
        )


def _replaced(task: Task | ClosedForm) -> dict[str, torch.Tensor]:
    """The weights of a task that initial ones take the place of."""
    assert task.initial_tensors is not None
    return task.initial_tensors()


def _fitting(
    content: Any, experiment: Experiment, task: Task | ClosedForm, expected: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, torch.Tensor], Fit]:
    """The tensors of a file's content by the names of the task, and how they fit. Raises CheckpointMismatch unless all do."""
    found = state_dict(content) if task.reads is None else task.reads(content)
    if isinstance(task, Task) and task.released is not None and experiment.initial.startswith(RELEASED):
        found = task.released(found)
    fit = demand_fit(
        expected, found, f"the weights of initial={experiment.initial}",
        "train with initial=random, or give the experiment the network that these weights are of",
    )  # fmt: skip
    demand_values(expected, found)
    return found, fit
