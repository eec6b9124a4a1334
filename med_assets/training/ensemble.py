"""Several checkpoints, or several changed copies of a case, as one model: their outputs are averaged and kept as those of one are."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.experiments.configuration import from_json
from med_assets.metrics.spread import AGREEMENT, Agreement, Space, Spread
from med_assets.storage.artifacts import LocalStore
from med_assets.storage.files import write_json
from med_assets.storage.versions import versioned
from med_assets.training.members import members_of

if TYPE_CHECKING:
    from med_assets.program import CasePredictor

AS_IT_IS = ""
"""In place of an augmentation: the case itself."""


@dataclass(frozen=True)
class Output:
    """What a model computes of a case, before it is kept.

    `values` are averaged, and so are the `further` arrays, in the same space. `own` is of one model alone: of several, that of the first
    is kept. `averaged` is how many outputs this one is the mean of. A model that leaves a case out has no `values`.
    """

    space: Space
    values: np.ndarray | None
    further: Mapping[str, np.ndarray] = field(default_factory=dict)
    own: Any = None
    averaged: int = 1


@runtime_checkable
class Averages(Protocol):
    """A predictor whose outputs can be averaged with those of others."""

    def infer(self, prepared: Path, augmentation: str = AS_IT_IS, like: Output | None = None) -> Output:
        """Compute the output for a prepared case; with an augmentation of it, changed back to the case as it is.

        `like` is the output of the first of several: what that chose, such as slices, is taken over, so that arrays mean the same.
        """

    def keep(self, prepared: Path, output: Output, out: Path) -> None:
        """Keep an output in a folder, as `CasePredictor.predict` does."""


def probabilities(space: Space, values: np.ndarray) -> np.ndarray:
    """Return what is averaged, float64: probabilities, or Gy."""
    exact = np.asarray(values, dtype=np.float64)
    if space is Space.LOGITS:
        return np.asarray(1 / (1 + np.exp(-np.clip(exact, -700, 700))))
    if space is Space.CLASS_LOGITS:
        chances = np.exp(exact - exact.max(axis=0))
        return np.asarray(chances / chances.sum(axis=0))
    return exact


LEAST = 1e-12
"""Least probability, and least distance from 1, of which a logit is given."""


def as_output(space: Space, mean: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return averaged probabilities, or Gy, as an output is, in its type."""
    if space is Space.LOGITS:
        clipped = np.clip(mean, LEAST, 1 - LEAST)
        mean = np.log(clipped) - np.log1p(-clipped)
    elif space is Space.CLASS_LOGITS:
        mean = np.log(np.clip(mean, LEAST, None))
    return mean.astype(like.dtype)


def average(outputs: Iterator[Output]) -> tuple[Output, Agreement | None]:
    """Return the mean of outputs and how far they agree, each let go before the next is computed. Raises CheckpointMismatch for arrays of different shapes."""
    first = next(outputs)
    if first.values is None:
        return first, None
    arrays = {"values": first.values, **first.further}
    sums = {name: probabilities(first.space, array) for name, array in arrays.items()}
    spread = Spread(first.space)
    spread.add(sums["values"])
    for output in outputs:
        found = {} if output.values is None else {"values": output.values, **output.further}
        shapes = [{name: array.shape for name, array in each.items()} for each in (arrays, found)]
        if output.space != first.space or shapes[0] != shapes[1]:
            raise CheckpointMismatch(
                f"expected outputs of all members alike, {first.space} of {shapes[0]}, got {output.space} of {shapes[1] or 'nothing'}; "
                "name members that predict the same"
            )
        exact = {name: probabilities(first.space, array) for name, array in found.items()}
        spread.add(exact["values"])
        sums = {name: total + exact[name] for name, total in sums.items()}
    means = {name: as_output(first.space, total / spread.n, arrays[name]) for name, total in sums.items()}
    return replace(first, values=means.pop("values"), further=means, averaged=spread.n), spread.agreement()


class EnsemblePredictor:
    """Members applied to a case and to its augmentations; what they say is averaged."""

    def __init__(self, members: Sequence[Averages], augmentations: Sequence[str]) -> None:
        self.members, self.augmentations = tuple(members), (AS_IT_IS, *augmentations)

    def predict(self, prepared: Path, out: Path) -> None:
        """Predict one prepared case, and keep it as the first member keeps one of its own, with how far the predictions agree."""
        output, agreement = average(self._outputs(prepared))
        self.members[0].keep(prepared, output, out)
        if agreement is not None:
            write_json(out / AGREEMENT, asdict(agreement))

    def _outputs(self, prepared: Path) -> Iterator[Output]:
        first: Output | None = None
        for member in self.members:
            for augmentation in self.augmentations:
                output = member.infer(prepared, augmentation, first)
                first = first or output
                yield output


@versioned("2")
def load_model(program_name: str, checkpoint: Path, cache: Path) -> "CasePredictor | EnsemblePredictor":
    """Load the checkpoint in a folder of a store, with its members where it is an ensemble; `cache` is as that of `Program.predictor`.

    Raises CheckpointMismatch, and ConfigurationError for a program whose outputs can't be averaged.
    """
    # Imported by name, as tasks are: see training.task.build.
    program = importlib.import_module("med_assets.program").get(program_name)
    members = members_of(checkpoint)
    if not members:
        single: CasePredictor = program.predictor(checkpoint, cache)
        return single
    chosen = from_json(program_name, (checkpoint / "experiment.json").read_text(encoding="utf-8"))
    store = LocalStore(checkpoint.parents[2])
    loaded = [program.predictor(store.fetch(member.checkpoint), cache) for member in members]
    if unable := [
        member.experiment for member, one in zip(members, loaded, strict=True) if not isinstance(one, Averages)
    ]:
        raise ConfigurationError(
            f"expected members of {program_name} whose predictors have infer and keep, got {unable}: predictions of others can't be averaged"
        )
    return EnsemblePredictor(loaded, chosen.prediction.augmentations)
