"""Run one job folder to its end.

In: `program` (a name), `experiment.json`, `cases.json` ([{case_id, patient_id, split, folder}]; a relative folder is
relative to the job). Out, as it runs: `heartbeat.json`, `events.jsonl`, `history.csv`, `checkpoints/`, `tensorboard/`;
at the end, each atomically: `weights.pt`, the best epoch's state dict, then `result.json`.
"""

import hashlib
import json
import platform
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch

from med_assets.errors import AcceleratorFailed, ConfigurationError, OutOfMemory, TrainingDiverged, TrainingStopped
from med_assets.experiments.configuration import Experiment, MemoryPlan, from_json
from med_assets.launch.jobs import ADAPTERS, RELEASED, TEACHER
from med_assets.storage.files import file_sha256, read_json, write_json
from med_assets.storage.provenance import git_state, packages
from med_assets.storage.versions import part_of
from med_assets.training import accelerator
from med_assets.training.accelerator import Plan
from med_assets.training.callbacks import Heartbeat, History, save_tensors
from med_assets.training.checkpoints import FOLDER, Checkpoints
from med_assets.training.events import EVENTS, events, note
from med_assets.training.failures import ending
from med_assets.training.fit import fit
from med_assets.training.hardware import hardware
from med_assets.training.initial import INITIAL, start_from
from med_assets.training.peak_memory import peak_memory
from med_assets.training.ranks import rank
from med_assets.training.stopping import StopRequest
from med_assets.training.task import ClosedForm, Task, Teacher, TrainingCase, build, used
from med_assets.training.tracking import RUNS, WANDB_FOLDER, tracked

RESUME = ("auto", "must", "never")
"""auto continues if there is a checkpoint, must refuses if there is none, never starts over."""

DISCARDED = "discarded"
"""Folder in a job to which `never` moves what a training before it left; it holds one such training, the last."""

SPLITS = ("train", "val")


@part_of("train")
def run(job: Path, resume: str = "auto") -> dict[str, Any]:
    """Train the job and return its result; a job that is done already returns the result it has.

    `never` starts in a clean folder: checkpoints and results that are there are moved to `discarded/`, and those that
    were discarded before are removed. Raises ConfigurationError for a job that can't be run as given,
    CheckpointMismatch for a checkpoint of another experiment or other cases, ArtifactCorrupt when no checkpoint is
    whole, DiskFull, TrainingStopped after SIGTERM, AcceleratorFailed, and OutOfMemory, after writing a result that
    says so. In a training of several processes all but the first return an empty dictionary.
    """
    if resume not in RESUME:
        raise ConfigurationError(f"resume is one of {', '.join(RESUME)}; found {resume!r}")
    program, experiment, cases = read_job(job)
    teacher, files = read_teacher(job, experiment), read_files(job, experiment)
    key = job_key(experiment, cases)
    checkpoints = Checkpoints(job, key, experiment.runtime.keep)
    if rank() == 0:
        if resume == "never":
            _start_over(job)
        elif (finished := _finished(job, key)) is not None:
            return finished
        (job / "result.json").unlink(missing_ok=True)
        checkpoints.clean()
    with tracked(job, experiment.runtime.tracking):
        return _run(job, resume, program, experiment, cases, teacher, files, checkpoints)


def _run(
    job: Path,
    resume: str,
    program: str,
    experiment: Experiment,
    cases: Sequence[TrainingCase],
    teacher: Teacher | None,
    files: Mapping[str, Path],
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    """Train a job that is not done, and return what `run` does."""
    key = job_key(experiment, cases)
    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    heartbeat = Heartbeat(job / "heartbeat.json", experiment.runtime.hang_after_s)
    heartbeat.beat("start")
    started = time.monotonic()
    try:
        with StopRequest(experiment.runtime.piece_s) as stop:
            found = checkpoints.newest()
            if resume == "must" and found is None:
                raise ConfigurationError(
                    f"resume=must, but there is no checkpoint in {checkpoints.folder}; use auto or never to start it"
                )
            if rank() == 0:
                note(job, "start", resume=resume, step=found and found.step, git_commit=git_state())
            plan: Plan | None = None
            try:
                torch.manual_seed(experiment.seed)
                probe = build(program, experiment.probe(), cases, teacher, files)
                if isinstance(probe, ClosedForm):
                    start_from(job, experiment, probe)
                    monitor, outcome = probe.monitor, _closed_form(job, probe)
                elif probe.val is None:
                    start_from(job, experiment, probe)
                    monitor, outcome = probe.monitor, _as_it_came(job, probe)
                else:
                    plan = _plan(job, experiment, probe, began=found is not None)
                    torch.manual_seed(experiment.seed)
                    task = build(program, _at(experiment, plan), cases, teacher, files)
                    assert isinstance(task, Task)
                    start_from(job, experiment, task)
                    monitor = task.monitor
                    outcome = fit(job, experiment, task, plan, checkpoints, found, heartbeat, stop)
            except (RuntimeError, MemoryError, OSError, OutOfMemory) as error:
                _classified(job, key, error, experiment, plan)
                raise
    except TrainingDiverged as error:
        if rank() == 0:
            note(job, "diverged", message=str(error))
        raise
    except TrainingStopped:
        if rank() == 0:
            note(job, "stopped", seconds=round(time.monotonic() - started, 2))
        raise
    finally:
        heartbeat.stop("end")
    if rank():
        return {}
    learned = set(used(probe, experiment.schedule.epochs, cases))
    result: dict[str, Any] = {
        "status": "completed",
        "program": program,
        "experiment": experiment.name,
        "experiment_hash": experiment.hash(),
        "job_key": key,
        "monitor": monitor,
        "n_train": sum(case.split == "train" and case.case_id in learned for case in cases),
        "n_val": sum(case.split == "val" and case.case_id not in probe.left_out for case in cases),
        "used": sorted(learned),
        "weights_sha256": file_sha256(job / "weights.pt"),
        "seconds": round(time.monotonic() - started + sum(event.get("seconds", 0.0) for event in events(job)), 2),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        **(plan.named() if plan else {}),
        "memory": plan and {"needed_mb": plan.needed_mb, "free_mb": plan.free_mb, "processes": plan.processes},
        **outcome,
        "events": events(job),
    }
    # Of the code that began, not of what lies there hours later; a training resumed with other code names both.
    starts = [event["git_commit"] for event in result["events"] if "git_commit" in event]
    result |= {"git_commits": list(dict.fromkeys(starts)), "hardware": hardware(result["device"])}
    result["environment"] = {"cuda": torch.version.cuda, "packages": packages()}
    write_json(job / "result.json", result)
    return result


def _plan(job: Path, experiment: Experiment, probe: Task, *, began: bool) -> Plan:
    """The plan of the first process, which the others of the training take over."""
    if rank():
        return accelerator.planned(job)
    with warnings.catch_warnings():
        # The step is measured without a trainer, so what it logs goes nowhere, as Lightning says.
        warnings.filterwarnings("ignore", message=".*trainer.* reference is not registered.*")
        measured = accelerator.measure(probe, experiment)
    return accelerator.plan(job, experiment, measured, began=began)


def _at(experiment: Experiment, plan: Plan) -> Experiment:
    return experiment.at(MemoryPlan(batch=plan.batch, patch=None if plan.patch is None else tuple(plan.patch)))


def _classified(job: Path, key: str, error: BaseException, experiment: Experiment, plan: Plan | None) -> None:
    """Raise an error by its name, when it has one: OutOfMemory, after writing the result, DiskFull, AcceleratorFailed."""
    ends = ending(error, job)
    if isinstance(ends, OutOfMemory):
        message, tried = str(error), plan.named() if plan else {}
        if plan is not None:
            named = ", ".join(f"{name} {value}" for name, value in tried.items())
            message = (
                f"memory ran out with {named}; before it, {accelerator.free_text(plan)}. "
                f"{accelerator.change(plan, experiment)}"
            )
        note(job, "out_of_memory", message=message)
        failed = {"status": "out_of_memory", "job_key": key, "message": message, **tried, **peak_memory()}
        write_json(job / "result.json", failed)
        raise OutOfMemory(message) from error
    if isinstance(ends, AcceleratorFailed):
        note(job, "accelerator_failed", message=str(error).splitlines()[0])
    if ends is not None:
        raise ends from error


def read_job(job: Path) -> tuple[str, Experiment, list[TrainingCase]]:
    """Read and check a job folder. Raises ConfigurationError, saying which part is missing or wrong."""
    for name in ("program", "experiment.json", "cases.json"):
        if not (job / name).is_file():
            raise ConfigurationError(f"a job folder holds program, experiment.json and cases.json; {name} is missing")
    program = (job / "program").read_text(encoding="utf-8").strip()
    experiment = from_json(program, (job / "experiment.json").read_text(encoding="utf-8"))
    cases = sorted(
        (
            TrainingCase(row["case_id"], row["patient_id"], row["split"], job / row["folder"], row.get("version", ""))
            for row in read_json(job / "cases.json")
        ),
        key=lambda case: case.case_id,
    )
    patients = {split: {case.patient_id for case in cases if case.split == split} for split in SPLITS}
    if other := sorted({case.split for case in cases} - set(SPLITS)):
        raise ConfigurationError(
            f"cases.json: a split is train or val, found {other}; a test case has no place in a training"
        )
    empty = [split for split in SPLITS if not patients[split]]
    if empty and not (experiment.untrained and (job / INITIAL).is_file()):
        raise ConfigurationError(
            f"cases.json: no case in {' and '.join(empty)}; training needs at least one in train and in val"
        )
    if shared := patients["train"] & patients["val"]:
        raise ConfigurationError(
            f"cases.json: {len(shared)} patients are in train and in val; a patient belongs to one split"
        )
    return program, experiment, cases


def read_teacher(job: Path, experiment: Experiment) -> Teacher | None:
    """The teacher of a job, None where its experiment has none. Raises ConfigurationError when it is missing."""
    if experiment.teacher is None:
        return None
    if not (job / TEACHER).is_file():
        raise ConfigurationError(
            f"experiment {experiment.name} is distilled from {experiment.teacher}, but the job has no {TEACHER}; start it "
            "with `med-assets train`, which puts it there"
        )
    kept = read_json(job / TEACHER)
    return Teacher(kept["key"], job / kept["folder"], job / kept["store"])


def read_files(job: Path, experiment: Experiment) -> dict[str, Path]:
    """The released files that an experiment reads, by name. Raises ConfigurationError when the job lacks one."""
    found = {name: job / RELEASED / name for name in experiment.released_files()}
    if missing := sorted(name for name, path in found.items() if not path.is_file()):
        raise ConfigurationError(
            f"experiment {experiment.name} reads the released files {sorted(found)}, but the job has no {RELEASED}/{missing[0]}; "
            "start it with `med-assets train`, which puts it there"
        )
    return found


def job_key(experiment: Experiment, cases: Sequence[TrainingCase]) -> str:
    """Return 64 hex digits over what a checkpoint may be resumed with: the experiment and the cases in their splits."""
    rows = [[case.case_id, case.version, case.split] for case in cases]
    return hashlib.sha256(json.dumps([experiment.hash(), rows]).encode()).hexdigest()


def _closed_form(job: Path, task: ClosedForm) -> dict[str, Any]:
    weights, metrics = task.compute(job)
    save_tensors(job / "weights.pt", weights)
    History(job / "history.csv").add({"epoch": 0, "step": 0, **metrics})
    return {
        "best_epoch": 0,
        "best_value": metrics[task.monitor],
        "best_metrics": metrics,
        "epochs_run": 1,
        "stopped_early": False,
        "resumed": False,
        "device": task.device,
        "precision": "32-true",
        "parameters": sum(tensor.numel() for tensor in weights.values()),
    }


def _as_it_came(job: Path, task: Task) -> dict[str, Any]:
    weights = task.weights()
    save_tensors(job / "weights.pt", weights)
    if task.adapters is not None:
        save_tensors(job / ADAPTERS, task.adapters(weights))
    History(job / "history.csv").add({"epoch": 0, "step": 0})
    return {
        "best_epoch": 0,
        "best_value": None,
        "best_metrics": {},
        "epochs_run": 0,
        "stopped_early": False,
        "resumed": False,
        "device": "cpu",
        "precision": "32-true",
        "parameters": sum(tensor.numel() for tensor in weights.values()),
    }


def _finished(job: Path, key: str) -> dict[str, Any] | None:
    path = job / "result.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = read_json(path)
    done = result.get("status") == "completed" and result.get("job_key") == key and (job / "weights.pt").is_file()
    return result if done else None


def _start_over(job: Path) -> None:
    old = [
        job / name
        for name in (
            FOLDER,
            "tensorboard",
            "result.json",
            "weights.pt",
            ADAPTERS,
            "history.csv",
            EVENTS,
            RUNS,
            WANDB_FOLDER,
        )
    ]
    if present := [path for path in old if path.exists()]:
        shutil.rmtree(job / DISCARDED, ignore_errors=True)
        (job / DISCARDED).mkdir()
        for path in present:
            path.rename(job / DISCARDED / path.name)
