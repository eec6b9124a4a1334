"""What a program hands to the training process: either a module that Lightning trains, or weights computed at once.

`Program.task` returns one of the two.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.experiments.configuration import Experiment

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainingCase:
    """One line of a job's cases.json; `split` is train or val, `folder` holds the prepared arrays."""

    case_id: str
    patient_id: str
    split: str
    folder: Path
    version: str = ""
    """Version of the case's content, when cases.json gives one: a corrected case is not resumed with."""


@dataclass(frozen=True)
class Teacher:
    """The checkpoint that a training is distilled from: its key, its folder, and the root of the store for what is computed of it."""

    key: str
    folder: Path
    store: Path


@dataclass(frozen=True)
class Task:
    """A Lightning training, that can be stopped after any step.

    The module's `epoch_metrics` are the epoch's numbers, the same in every process of a training; the lowest `monitor`
    is the best. What it sums up within an epoch is in its checkpoint. Its `training_step` works without a trainer, to
    measure memory. `train` is a DataLoader over an EpochSampler, of a dataset with what divergence.TrainingData says; `val` one over a ValidationSampler. All three are None where
    an experiment is `untrained` and no case can validate it: its weights are published as they came.
    """

    module: Any
    train: Any
    val: Any
    monitor: str
    weights: Callable[[], "dict[str, Tensor]"]
    released: "Callable[[dict[str, Tensor]], dict[str, Tensor]] | None" = None
    """Gives the tensors of a released file the names that they have here; None where they have them already."""
    initial_tensors: "Callable[[], dict[str, Tensor]] | None" = None
    """The weights that initial ones take the place of; None where these are all, as without a head of its own."""
    left_out: tuple[str, ...] = ()
    """Ids of the cases that it neither learns from nor is selected on."""
    reads: "Callable[[Any], dict[str, Tensor]] | None" = None
    """Finds the tensors of `initial_tensors`, by their names here, in the content of any file of initial weights; None where it is a state
    dict. Raises CheckpointMismatch."""
    adapters: "Callable[[dict[str, Tensor]], dict[str, Tensor]] | None" = None
    """Gives, of the final weights, the tensors of an adapter-only file, published beside them; None where all weights are trained."""
    rests: bool = False
    """Whether trained parameters have no gradient in some epochs, as while an encoder is frozen; several devices must look for those at each step."""


@dataclass(frozen=True)
class ClosedForm:
    """Weights that need no loop: `compute`, given the folder of the job, returns them and their validation metrics, among them `monitor`."""

    monitor: str
    compute: Callable[[Path], "tuple[dict[str, Tensor], dict[str, float]]"]
    left_out: tuple[str, ...] = ()
    """Ids of the cases that it does not learn from."""
    initial_tensors: "Callable[[], dict[str, Tensor]] | None" = None
    """The weights that initial ones take the place of; None where it can start from none."""
    reads: "Callable[[Any], dict[str, Tensor]] | None" = None
    """As that of a Task."""
    selects: bool = False
    """Whether something is selected on the validation cases, as the number of neighbours is."""
    device: str = "cpu"
    """Where it is computed."""


def used(task: Task | ClosedForm, epochs: int, cases: Sequence[TrainingCase]) -> tuple[str, ...]:
    """Return the ids of the cases that a training of so many epochs learns from or is selected on.

    Weights that need no loop are selected on no case unless they say so, and those of no epoch are as they came.
    """
    closed = isinstance(task, ClosedForm)
    if not closed and not epochs:
        return ()
    unselected = isinstance(task, ClosedForm) and not task.selects
    kept = [case for case in cases if case.case_id not in task.left_out and not (unselected and case.split != "train")]
    return tuple(case.case_id for case in kept)


def build(
    program: str,
    experiment: Experiment,
    cases: Sequence[TrainingCase],
    teacher: Teacher | None = None,
    files: Mapping[str, Path] | None = None,
) -> Task | ClosedForm:
    """Return the task of a program, with the teacher and the paths of the `released_files` of an experiment that has them."""
    given = ({"teacher": teacher} if teacher else {}) | ({"files": files} if files else {})
    # Imported by name, since the import contracts count the late imports of that module, among them that of Great Expectations.
    contract = importlib.import_module("med_assets.program")
    built: Task | ClosedForm = contract.get(program).task(experiment, cases, **given)
    return built
