"""What is known of one experiment's checkpoint, read once for its record: run, scores, verdict, differences, figures and files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med_assets import program
from med_assets.capabilities import Doubts
from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError
from med_assets.evaluation.comparison import paired, primary_scores
from med_assets.evaluation.costs import checkpoint_facts
from med_assets.evaluation.finetuning import formal_gain
from med_assets.evaluation.sweeps import Sweep, recorded
from med_assets.evaluation.targets import Comparison, comparisons
from med_assets.experiments.configuration import Experiment, from_json, with_present_names
from med_assets.launch.training import NamedModel, stored_checkpoint
from med_assets.metrics.bootstrap import Interval
from med_assets.program import Metric, Program
from med_assets.records import AggregateScore, CaseScore, EpochMetric, FoldScore, RunScore, TrainingRun, Verdict
from med_assets.reporting.figures import Figures, plot_figures
from med_assets.reporting.run_status import RunStatus, run_status, verdict_of
from med_assets.settings import Settings
from med_assets.storage.files import read_json

RAN_WITH = ("device", "precision", "batch", "patch", "accumulate", "memory_plan")
"""What a notebook says of how the training ran."""


@dataclass(frozen=True)
class Facts:
    """All that a notebook is written from."""

    catalog: Catalog
    name: str
    run: TrainingRun
    configured: Experiment
    ran_with: Mapping[str, object]
    """Device, precision and sizes of the training as it ran, by name."""
    versions: Mapping[str, str]
    """Versions of Python and the libraries that trained it."""
    status: RunStatus
    verdict: Verdict | None
    scores: Sequence[RunScore | AggregateScore]
    """The deciding metrics of the evaluation, aggregated, one per split and metric."""
    worst: Sequence[CaseScore]
    """The held-out cases with the worst primary metric, worst first."""
    differences: Mapping[str, Interval]
    """Paired difference in the primary metric on validation, this minus the other, by what the other is."""
    last_epoch: int | None
    """The last epoch of its history, None where it has one only; the first is 0 where training validated the initial weights."""
    doubts: tuple[str, ...]
    gained: Interval | None
    """Improvement in the primary metric over the initial weights, above 0 is better; None where nothing was fine-tuned or compared."""
    targets: Sequence[Comparison]
    """Its scores, time and memory beside what they are held against."""
    costs: Mapping[str, float]
    sweeps: Sequence[Sweep]
    """Sweeps over its fields."""
    crossval: int
    """Cases of a cross-validation of this experiment, 0 where there is none."""
    dataset_now: str
    figures: Figures
    artifacts: Mapping[str, Path]
    """Files and folders that belong to it, by what they are."""
    home: Path
    folder: Path
    """Where the notebook is."""

    @property
    def program(self) -> str:
        """Name of the program."""
        return self.catalog.program

    def relative(self, path: Path) -> str:
        """A path as the notebook names it: relative to the home."""
        return Path(os.path.relpath(path, self.home)).as_posix()


def folder_of(ws: Settings, program_name: str, name: str) -> Path:
    """Where the record of an experiment is."""
    return ws.reports / program_name / "experiments" / name


def gather(ws: Settings, program_name: str, name: str, checkpoint: str) -> Facts:
    """Read all that is known of an experiment's checkpoint, and plot its figures. Raises ConfigurationError."""
    named, chosen, catalog = f"{program_name}/{name}", program.get(program_name), Catalog(ws, program_name)
    evaluated = [row for row in catalog.rows(AggregateScore, name) if row.checkpoint == checkpoint]
    if not evaluated:
        raise ConfigurationError(
            f"{named}: expected an evaluation of {checkpoint}, got none; run `med-assets evaluate {named}` first"
        )
    stored = stored_checkpoint(ws, program_name, NamedModel(name, checkpoint))
    configured = from_json(program_name, (stored / "experiment.json").read_text(encoding="utf-8"))
    recorded_runs = catalog.rows(TrainingRun, name, checkpoint)
    if not recorded_runs:
        raise ConfigurationError(
            f"{named}: expected the record of the training of {checkpoint}, got none; run `med-assets evaluate {named}` first"
        )
    run = recorded_runs[0]
    result = with_present_names(read_json(stored / "result.json"))
    scores, history = catalog.rows(CaseScore, name), catalog.rows(EpochMetric, name)
    epochs = {row.epoch for row in history}
    return Facts(
        catalog=catalog,
        name=name,
        run=run,
        configured=configured,
        ran_with={key: result[key] for key in RAN_WITH if result.get(key) is not None},
        versions=_versions(read_json(stored / "provenance.json")),
        status=run_status(ws, program_name, run),
        verdict=verdict_of(catalog, name, checkpoint),
        scores=catalog.rows(RunScore, name, checkpoint) or _deciding(chosen, evaluated),
        worst=_worst(chosen.primary_metric, scores)[:3],
        differences=_differences(catalog, name, checkpoint),
        last_epoch=max(epochs) if len(epochs) > 1 else None,
        doubts=tuple(chosen.doubts(scores, history)) if isinstance(chosen, Doubts) else (),
        gained=formal_gain(ws, program_name, name),
        targets=comparisons(ws, program_name, name),
        costs=checkpoint_facts(ws, program_name, checkpoint),
        sweeps=recorded(ws, program_name, name),
        crossval=len({row.case_id for row in catalog.rows(FoldScore, name)}),
        dataset_now=catalog.dataset().version,
        figures=plot_figures(ws, program_name, name, checkpoint, run.best_epoch),
        artifacts={
            "checkpoint: weights, configuration, history, provenance": stored,
            "predictions and scores, a row per case": catalog.file(CaseScore, name),
            "aggregated scores": catalog.file(AggregateScore, name),
            "training history": catalog.file(EpochMetric, name),
        },
        home=ws.home,
        folder=folder_of(ws, program_name, name),
    )


def _versions(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The versions of a checkpoint's provenance, and that of CUDA which torch was built for, where there is one."""
    cuda = provenance.get("environment", {}).get("cuda")
    return provenance.get("versions", {}) | ({"CUDA": cuda} if cuda else {})


def _worst(metric: Metric, scores: Sequence[CaseScore]) -> list[CaseScore]:
    """The scores in a metric, the worst first."""
    sign = -1 if metric.lower_is_better else 1
    defined = [
        (sign * score.value, score.case_id, score)
        for score in scores
        if (score.metric, score.subject) == (metric.name, metric.subject) and score.value is not None
    ]
    return [score for _, _, score in sorted(defined, key=lambda entry: entry[:2])]


def _deciding(chosen: Program, evaluated: Sequence[AggregateScore]) -> list[AggregateScore]:
    wanted = {(metric.name, metric.subject) for metric in chosen.deciding_metrics}
    return [row for row in evaluated if (row.metric, row.subject) in wanted]


def _differences(catalog: Catalog, name: str, checkpoint: str) -> dict[str, Interval]:
    """Against the baseline and the champion, where these are others and their present evaluation is of that checkpoint."""
    chosen, champion = program.get(catalog.program), catalog.champion()
    others = {f"the baseline {chosen.baseline}": chosen.baseline} if chosen.baseline and chosen.baseline != name else {}
    if (
        champion is not None
        and champion.checkpoint != checkpoint
        and champion.experiment not in (name, chosen.baseline)
    ):
        newest = catalog.checkpoint(champion.experiment)
        if newest is not None and newest.checkpoint == champion.checkpoint:
            others[f"the champion {champion.experiment}"] = champion.experiment
    values = primary_scores(catalog.ws, catalog.program, [name, *others.values()])
    return {
        text: paired(chosen.primary_metric, values[name], values[other])
        for text, other in others.items()
        if values[other]
    }
