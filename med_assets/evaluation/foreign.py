"""A file of weights from elsewhere, put into the network of an experiment and scored on a split of the present cases.

It is no experiment of the program: nothing of it is recorded, and no leaderboard, gate or champion ever sees it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.errors import CheckpointMismatch, ConfigurationError, DiskFull
from med_assets.evaluation.aggregates import Aggregate, aggregate
from med_assets.evaluation.scoring import case_scores, demand_scores
from med_assets.launch.training import NamedModel, experiment
from med_assets.records import CaseScore
from med_assets.settings import Settings
from med_assets.storage.files import file_sha256, write_text
from med_assets.storage.scratch import scratch
from med_assets.training.reading import open_weights

if TYPE_CHECKING:
    from med_assets.experiments.configuration import Experiment
    from med_assets.metrics.score import Score

NAME = "file "
"""What stands before the first characters of a file's SHA-256 in place of the name of an experiment."""


@dataclass(frozen=True)
class ForeignScores:
    """Scores of a file of weights: its hash, how many tensors it filled, scores by case and aggregated, failures by case id."""

    sha256: str
    tensors: int
    scores: list[CaseScore]
    aggregates: list[Aggregate]
    failures: dict[str, str]


def score_file(
    ws: Settings, program_name: str, name: str, file: Path, split: str, overrides: Sequence[str] = ()
) -> ForeignScores:
    """Score the weights of a file in the network of an experiment on the cases of a split, predicted here and kept nowhere.

    The file has the names of our own checkpoints or of a release that the experiment takes, and fills the whole network. Raises
    CheckpointMismatch for any other, ConfigurationError without a case with labels, and ScoringFailed where all cases fail.
    """
    chosen = experiment(ws, program_name, name, overrides)
    if chosen.members:
        raise ConfigurationError(
            f"expected an experiment with one network, got an ensemble; name one of its members: {', '.join(chosen.members)}"
        )
    cases = Catalog(ws, program_name).cases(split)
    if not cases:
        raise ConfigurationError(
            f"expected cases of {program_name} in the split {split}, got none; choose another --split"
        )
    sha256 = file_sha256(file)
    with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as kept:
        checkpoint = Path(kept) / "checkpoint"
        tensors = _write_checkpoint(program_name, chosen, file, checkpoint)
        found, failures = _scored(ws, program_name, checkpoint, cases, Path(kept))
    demand_scores(found, failures, program_name)
    scores = case_scores(ws, program_name, NamedModel(f"{NAME}{sha256[:12]}", f"file/{sha256}"), cases, found)
    return ForeignScores(sha256, tensors, scores, aggregate(program_name, scores), failures)


def _write_checkpoint(program_name: str, chosen: "Experiment", file: Path, folder: Path) -> int:
    """Write the folder of a checkpoint with the file's weights, and return how many tensors it has. Raises CheckpointMismatch."""
    import torch

    from med_assets.training.callbacks import save_tensors
    from med_assets.training.initial import state_dict
    from med_assets.training.released import take, trial
    from med_assets.training.tensors import compare, demand_values

    on, content = trial(program_name, chosen), open_weights(file)
    own = _tensors(state_dict, content)
    if own is not None and compare(on.weights, own).whole:
        demand_values(on.weights, own)
        with torch.no_grad():
            for name, tensor in on.weights.items():
                tensor.copy_(own[name])
    else:
        taken = take(on, content)
        if taken.matched < taken.tensors:
            raise CheckpointMismatch(
                f"expected a file that fills the whole network of {program_name}/{chosen.name}, got {taken.matched} of its "
                f"{taken.tensors} tensors: the others would begin at random, and their scores would mean nothing; train it first"
            )
    folder.mkdir()
    write_text(folder / "experiment.json", chosen.to_json())
    save_tensors(folder / "weights.pt", dict(on.weights))
    return len(on.weights)


def _tensors(read: Any, content: Any) -> Any:
    """The tensors of a file by name; None where they lie deeper than our own checkpoints have them."""
    try:
        return read(content)
    except CheckpointMismatch:
        return None


def _scored(
    ws: Settings, program_name: str, checkpoint: Path, cases: Sequence[Case], kept: Path
) -> tuple[dict[str, list["Score"]], dict[str, str]]:
    """Scores and failures by case id."""
    about = program.get(program_name)
    predictor = about.predictor(checkpoint, kept)
    scores: dict[str, list[Score]] = {}
    failures: dict[str, str] = {}
    for case in cases:
        try:
            with tempfile.TemporaryDirectory(dir=kept) as predicted:
                prepared = ws.store.fetch(case.artifact)
                predictor.predict(prepared, Path(predicted))
                scores[case.case_id] = about.score(ws, prepared, Path(predicted))
        except DiskFull:
            raise
        except Exception as error:  # one bad case never stops a batch; it is reported, and missing from n
            failures[case.case_id] = f"{type(error).__name__}: {error}"
    return scores, failures
