"""What fine-tuning gained: an experiment with initial weights, compared with those very weights.

The record has the fields of the `output.json` of NVIDIA's fine-tuning wrapper for VISTA3D (schema 0.4.1), with the metric's
name in place of "dice" where a program has another. Two kinds of number never mix: those of the training-time validation,
on the grid of training (`baseline_*`, `best_*`), and the formal evaluation's (`formal_*`).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.catalog import Case, Catalog
from med_assets.errors import CheckpointMismatch
from med_assets.evaluation.comparison import SPLIT, Comparison, ScoredModel, compare, scored_model
from med_assets.evaluation.costs import prediction_peak
from med_assets.evaluation.data_audit import data_audit
from med_assets.experiments import policies
from med_assets.experiments.configuration import from_json, names, with_present_names
from med_assets.experiments.parts import Published
from med_assets.launch.endings import Ending
from med_assets.launch.runs import command_of
from med_assets.launch.training import Launch, NamedModel
from med_assets.metrics.bootstrap import Interval, mean_with_interval
from med_assets.program import Metric
from med_assets.records import EpochMetric, TrainingRun
from med_assets.settings import Settings
from med_assets.storage.files import read_json, write_json
from med_assets.storage.provenance import cases_used_by, provenance

SCHEMA_VERSION = "2"
"""Version of the record's fields; raised when one changes its meaning or another is there."""

RECORD = "output.json"

PUBLISHED = (
    "What others measured with the recipe, beside ours; the difference is ours minus theirs, empty where one is missing. Numbers of "
    "other cases, weights or software differ, and nothing is refused by them."
)

ABOUT = (
    "Experiments against their initial weights. At the start and best: measured by training itself on the "
    "validation cases, on the grid of training; epoch 0 is the start. Formal: the mean over validation cases of the paired "
    "difference in the primary metric, above 0 is better, with its interval over patients. Fine-tuned weights are "
    "recommended if that mean is above the policy's tolerance; the gate asks for more, that it is shown to be better."
)


@dataclass(frozen=True)
class ReferenceCheck:
    """A number that others reached with the same recipe, beside ours."""

    field: str
    """Field of the record."""
    expected_at_least: float
    got: float | None
    passed: bool


@dataclass(frozen=True)
class FineTuning:
    """What fine-tuning gained, as the record of an experiment's last evaluation says."""

    checkpoint: str
    recommended: str | None
    """Key of the recommended checkpoint: the fine-tuned one, the initial one, or None where neither does the task."""
    at_start: float | None
    best: float | None
    """The training's own metric, before the first epoch and in the best one."""
    best_epoch: int | None
    improvement: Interval | None
    """Formal improvement over the initial weights, above 0 is better; None where these cannot be scored."""
    same_weights: bool
    """Whether the weights are still the initial ones."""
    every_epoch_worse: bool
    checks: tuple[ReferenceCheck, ...]
    output: Mapping[str, object]
    """All fields of `output` in the record."""

    @classmethod
    def of(cls, program_name: str, output: Mapping[str, Any]) -> "FineTuning":
        """Read the fields of `output` in a record."""
        metric = program.get(program_name).training_metric.name
        gain = output.get("formal_improvement_over_pretrained")
        low, high = output.get("formal_improvement_interval") or (None, None)
        return cls(
            checkpoint=output["finetuned_ckpt"],
            recommended=output["recommended_ckpt"],
            at_start=output[f"baseline_{metric}"],
            best=output[f"best_{metric}"],
            best_epoch=output["best_epoch_index"],
            improvement=None if gain is None else Interval(gain, low, high, output["formal_n"]),
            same_weights=bool(output.get("finetuned_ckpt_matches_pretrained_weights")),
            every_epoch_worse=bool(output["regressed"]),
            checks=tuple(ReferenceCheck(field, **check) for field, check in output["sanity_reference_checks"].items()),
            output=output,
        )


def record_path(ws: Settings, program_name: str, name: str) -> Path:
    """Where the record of an experiment is written."""
    return ws.reports / program_name / "experiments" / name / RECORD


def recorded(ws: Settings, program_name: str, name: str) -> FineTuning | None:
    """The record of an experiment's last evaluation; None where its initial weights were random or it was not evaluated."""
    path = record_path(ws, program_name, name)
    return FineTuning.of(program_name, read_json(path)["output"]) if path.is_file() else None


def formal_gain(ws: Settings, program_name: str, name: str) -> Interval | None:
    """Recorded improvement in the primary metric over the initial weights, above 0 is better; None where nothing was compared."""
    record = recorded(ws, program_name, name)
    return record.improvement if record else None


def table(ws: Settings, program_name: str) -> pd.DataFrame:
    """The records of all experiments for people: a row each, without those whose initial weights were random."""
    rows, metric = [], program.get(program_name).training_metric.name
    for name in names(program_name):
        record = recorded(ws, program_name, name)
        if record is None:
            continue
        rows.append(
            {
                "experiment": name,
                f"{metric}, at the start": _number(record.at_start),
                f"{metric}, best": f"{_number(record.best)} (epoch {record.best_epoch})",
                "formal improvement": _improvement(record.improvement),
                "recommended": {record.checkpoint: "fine-tuned", None: ""}.get(record.recommended, "initial weights"),
                "every epoch worse": "yes" if record.every_epoch_worse else "no",
                "reference": _references(record.checks),
            }
        )
    return pd.DataFrame(rows)


def published_table(ws: Settings, program_name: str) -> pd.DataFrame:
    """What others measured with the recipe of an experiment beside ours, epoch by epoch: a row each; empty where nothing is published."""
    rows, metric = [], program.get(program_name).training_metric.name
    for name in names(program_name):
        record = recorded(ws, program_name, name)
        if record is None or "published_run" not in record.output:
            continue
        run = record.output["published_run"]
        assert isinstance(run, Mapping)
        values = [(f"{metric}, epoch {epoch}", value) for epoch, value in enumerate(run[f"{metric}_per_epoch"])]
        values += [("best epoch", run["best_epoch_index"]), ("most memory of the accelerator, MiB", run["peak_gpu_mb"])]
        rows += [{"experiment": name, "what": what} | dict(value) for what, value in values]
    return pd.DataFrame(rows).rename(columns={"got": "ours"})


def _improvement(found: Interval | None) -> str:
    if found is None or found.mean is None:
        return ""
    ends = "" if found.low is None or found.high is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.mean:+.3f}{ends} (n = {found.n})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _references(checks: Sequence[ReferenceCheck]) -> str:
    return f"{sum(check.passed for check in checks)} of {len(checks)} reached" if checks else ""


def finetuning(
    ws: Settings, program_name: str, name: str, checkpoint: str, launch: Launch | None = None
) -> FineTuning | None:
    """Write and return the record of a checkpoint of experiment `name`; None where nothing was fine-tuned."""
    folder = ws.store.fetch(checkpoint)
    made = read_json(folder / "provenance.json")
    chosen, experiment = (
        program.get(program_name),
        from_json(program_name, (folder / "experiment.json").read_text(encoding="utf-8")),
    )
    if not made.get("initial") or not experiment.schedule.epochs:
        record_path(ws, program_name, name).unlink(missing_ok=True)
        return None
    result = with_present_names(read_json(folder / "result.json"))
    catalog, ending = Catalog(ws, program_name), Ending.read(folder)
    epochs = [row for row in catalog.rows(EpochMetric, name) if row.checkpoint == checkpoint]
    out = _training(chosen.training_metric, epochs, policies.of(program_name).promotion.tolerance)
    out |= _formal(ws, program_name, name, checkpoint, made, launch)
    out["oom"] = any(event.get("event") == "out_of_memory" for event in result.get("events", []))
    checks = {field: _check(out.get(field), least) for field, least in experiment.expected.items()}
    out["sanity_reference_checks"] = checks
    out["sanity_recovery_demonstrated"] = all(check["passed"] for check in checks.values()) if checks else None
    peaks = (result.get("peak_memory") or {}) | {"evaluate": prediction_peak(ws, program_name, checkpoint)}
    gpu, host = (
        {phase: peak[name] for phase, peak in peaks.items() if name in peak}
        for name in ("peak_accelerator_mb", "peak_host_mb")
    )
    peak_gpu_mb = max(gpu.values(), default=None)
    if experiment.published:
        out["published_run"] = _beside(experiment.published, out, chosen.training_metric, peak_gpu_mb)
    record = {
        "schema_version": SCHEMA_VERSION,
        "skill": f"{program_name}/{name}",
        "model": checkpoint,
        "version": provenance(),
        "input": {
            "dataset_version": catalog.dataset().version,
            "pretrained": made["initial"],
            "data_audit": data_audit(ws, program_name).fields(),
            "cases": dict(Counter(case.split for case in cases_used_by(ws.store, checkpoint))),
        },
        "environment": {key: result.get(key) for key in ("python", "torch", "lightning", "device", "precision")},
        "plan": {key: result[key] for key in ("batch", "patch", "accumulate", "memory_plan") if key in result},
        "invocation": _invocation(ws, program_name, name, checkpoint),
        "output": out,
        "runtime": {
            "wall_seconds": result.get("seconds"),
            "peak_gpu_mb": peak_gpu_mb,
            "phase_peak_gpu_mb": gpu,
            "phase_peak_host_mb": host,
            "return_code": ending.return_code,
            "log_tail": list(ending.log_tail),
        },
        "cost": {"steps": result.get("steps")},
    }
    path = record_path(ws, program_name, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return FineTuning.of(program_name, out)


def _check(got: float | bool | None, least: float) -> dict[str, float | bool | None]:
    """A field of the record against the least that others reached; a yes counts as 1."""
    value = None if got is None else float(got)
    return {"expected_at_least": least, "got": value, "passed": value is not None and value >= least}


def _beside(published: Published, out: Mapping[str, Any], metric: Metric, peak_gpu_mb: float | None) -> dict[str, Any]:
    """What others measured with the recipe beside ours, None where we have none; `difference` is ours minus theirs."""

    def beside(theirs: float | None, ours: float | None) -> dict[str, float | None]:
        difference = None if theirs is None or ours is None else ours - theirs
        return {"published": theirs, "got": ours, "difference": difference}

    trace = published.per_epoch
    ours = [*out[f"{metric.name}_per_epoch"], *[None] * len(trace)]
    return {
        "source": published.source,
        f"{metric.name}_per_epoch": [beside(value, own) for value, own in zip(trace, ours, strict=False)],
        "best_epoch_index": beside(published.best_epoch, out["best_epoch_index"]),
        "peak_gpu_mb": beside(published.peak_gpu_mb, peak_gpu_mb),
    }


def _invocation(ws: Settings, program_name: str, name: str, checkpoint: str) -> str:
    """The command that ran, with its overrides and the variables that it depended on."""
    runs = Catalog(ws, program_name).rows(TrainingRun, name, checkpoint)
    return command_of(runs[0]) if runs else f"med-assets train {program_name}/{name}"


def _training(metric: Metric, epochs: Sequence[EpochMetric], tolerance: float) -> dict[str, Any]:
    """What training itself measured, epoch by epoch; epoch 0 is that of the initial weights."""
    trace = {row.epoch: row.value for row in epochs if row.metric == metric.name}
    losses = [row.value for row in sorted(epochs, key=lambda row: row.epoch) if row.metric == "train_loss"]
    sign = -1 if metric.lower_is_better else 1
    begin = trace.get(0)
    finite = {epoch: value for epoch, value in trace.items() if math.isfinite(value)}
    best = max(finite, key=lambda epoch: (sign * finite[epoch], -epoch), default=None)
    gain = None if begin is None or best is None else sign * (finite[best] - begin)
    return {
        f"baseline_{metric.name}": begin,
        f"best_{metric.name}": None if best is None else finite[best],
        "best_epoch_index": best,
        "improvement_over_baseline": gain,
        "improved": None if gain is None else gain > tolerance,
        # Against the trained epochs alone: with epoch 0 among them the best is never below the initial weights.
        "regressed": None
        if begin is None or len(finite) < 2
        else _trained_best(finite, sign) < sign * begin - tolerance,
        f"{metric.name}_per_epoch": [trace[epoch] for epoch in sorted(trace)],
        "train_loss_first": losses[0] if losses else None,
        "train_loss_last": losses[-1] if losses else None,
        "train_loss_finite": all(map(math.isfinite, losses)) if losses else None,
    }


def _trained_best(values: dict[int, float], sign: int) -> float:
    return max(sign * value for epoch, value in values.items() if epoch > 0)


def _formal(
    ws: Settings, program_name: str, name: str, checkpoint: str, made: dict[str, Any], launch: Launch | None
) -> dict[str, Any]:
    """The formal evaluation of both checkpoints on the validation cases, paired."""
    metric, initial = program.get(program_name).primary_metric, made["initial"]
    named, tolerance = f"{SPLIT}_{metric.name}", policies.of(program_name).promotion.tolerance
    out: dict[str, Any] = {
        "finetuned_ckpt": checkpoint,
        "recommended_ckpt": None,
        "checkpoint_comparisons_to_pretrained": None,
    }
    if not ws.store.has(initial):  # a released file, or a checkpoint that is gone: nothing to score
        return out
    cases = Catalog(ws, program_name).cases(SPLIT)
    ours = scored_model(ws, program_name, NamedModel(name, checkpoint), cases, launch)
    able = _able(ours, metric)
    try:
        theirs = scored_model(ws, program_name, NamedModel("initial weights", initial), cases, launch)
    except CheckpointMismatch as error:  # an encoder alone, say, predicts nothing
        return out | {"recommended_ckpt": checkpoint if able else None, "pretrained_cannot": str(error)}
    if not _able(theirs, metric):
        why = f"it gives no {metric.name} on any {SPLIT} case"
        return out | {"recommended_ckpt": checkpoint if able else None, "pretrained_cannot": why}
    found = compare(ours, theirs, cases, metric)
    gain = None if found.difference.mean is None else -found.difference.mean
    same = ours.weights_sha256 == theirs.weights_sha256
    better = gain is not None and gain > tolerance and not same
    return out | {
        "recommended_ckpt": checkpoint if better else initial,
        "checkpoint_comparisons_to_pretrained": _tensors(ws, checkpoint, initial),
        "finetuned_ckpt_matches_pretrained_weights": same,
        "finetuned_ckpt_changed": not same,
        f"formal_pretrained_{named}": _mean(theirs, found, cases),
        f"formal_finetuned_{named}": _mean(ours, found, cases),
        "formal_improvement_over_pretrained": gain,
        "formal_improvement_interval": [
            None if end is None else -end for end in (found.difference.high, found.difference.low)
        ],
        "formal_n": found.difference.n,
        "formal_convention": f"{metric.name} of {metric.subject}: {metric.meaning}; mean over the {SPLIT} cases that both have",
    }


def _able(side: ScoredModel, metric: Metric) -> bool:
    """Whether a model does the task: it has the primary metric on some case."""
    return any(values.get((metric.name, metric.subject)) is not None for values in side.values.values())


def _mean(side: ScoredModel, found: Comparison, cases: Sequence[Case]) -> float | None:
    key = (found.metric.name, found.metric.subject)
    values = [side.values.get(case.case_id, {}).get(key) for case in cases]
    if found.metric.by_class:
        return mean_with_interval(
            values, 0, strata=[side.truths.get(case.case_id, {}).get(key) for case in cases], resamples=1
        ).mean
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _tensors(ws: Settings, checkpoint: str, initial: str) -> dict[str, Any]:
    """How many tensors differ from the initial ones, and the largest difference."""
    import torch

    new, old = (
        torch.load(ws.store.fetch(key) / "weights.pt", map_location="cpu", weights_only=True)
        for key in (checkpoint, initial)
    )
    shared = new.keys() & old.keys()
    changed = [name for name in shared if not torch.equal(new[name], old[name])]
    largest = max((float((new[name].double() - old[name].double()).abs().max()) for name in changed), default=0.0)
    return {"tensors": len(shared), "changed": len(changed), "max_abs_difference": largest}
