"""Run one job folder to its end.

In: `program` (a name), `experiment.json`, `cases.json` ([{case_id, patient_id, split, folder}]; a relative folder is
relative to the job). Out, as it runs: `heartbeat.json`, `history.csv`, `checkpoints/`, `tensorboard/`; at the end, each
atomically: `weights.pt`, the best epoch's state dict, then `result.json`.
"""

import hashlib
import json
import logging
import platform
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from med_assets.errors import CheckpointMismatch, ConfigurationError, OutOfMemory
from med_assets.experiments import Experiment, from_json
from med_assets.files import file_sha256, read_json, write_json
from med_assets.training.callbacks import BestEpoch, Heartbeat, History, LastCheckpoint, PeakMemory, save_tensors
from med_assets.training.initial import start_from
from med_assets.training.task import ClosedForm, Task, TrainingCase, build

RESUME = ("auto", "must", "never")
"""auto continues if there is a checkpoint, must refuses if there is none, never starts over."""

SPLITS = ("train", "val")


def run(job: Path, resume: str = "auto") -> dict[str, Any]:
    """Train the job and return its result; a job that is done already returns the result it has.

    Raises ConfigurationError for a job that can't be run as given, CheckpointMismatch for a checkpoint of another
    experiment or other cases, and OutOfMemory, after writing a result that says so.
    """
    if resume not in RESUME:
        raise ConfigurationError(f"resume is one of {', '.join(RESUME)}; found {resume!r}")
    program, experiment, cases = read_job(job)
    key = job_key(experiment, cases)
    last = job / "checkpoints" / "last.ckpt"
    if resume == "never":
        _start_over(job)
    elif (finished := _finished(job, key)) is not None:
        return finished
    if resume == "must" and not last.is_file():
        raise ConfigurationError("resume=must, but the job has no checkpoints/last.ckpt; use auto or never to start it")
    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    heartbeat = Heartbeat(job / "heartbeat.json", experiment.runtime.hang_after_s)
    heartbeat.beat("start")
    started = time.monotonic()
    task = build(program, experiment, cases)
    start_from(job, task)
    tried: dict[str, Any] = task.tried if isinstance(task, Task) else {}
    try:
        outcome = (
            _closed_form(job, task) if isinstance(task, ClosedForm) else _fit(job, experiment, task, key, heartbeat)
        )
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        write_json(job / "result.json", {"status": "out_of_memory", "job_key": key, **tried, **PeakMemory.measured()})
        raise OutOfMemory(
            f"tried {tried}; lower schedule.batch or patches.size, or use a larger accelerator"
        ) from error
    finally:
        heartbeat.stop("end")
    result = {
        "status": "completed",
        "program": program,
        "experiment": experiment.name,
        "experiment_hash": experiment.hash(),
        "job_key": key,
        "monitor": task.monitor,
        "n_train": sum(case.split == "train" for case in cases),
        "n_val": sum(case.split == "val" for case in cases),
        "weights_sha256": file_sha256(job / "weights.pt"),
        "seconds": round(time.monotonic() - started, 2),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        **tried,
        **outcome,
        **PeakMemory.measured(),
    }
    write_json(job / "result.json", result)
    return result


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
    if empty := [split for split in SPLITS if not patients[split]]:
        raise ConfigurationError(
            f"cases.json: no case in {' and '.join(empty)}; training needs at least one in train and in val"
        )
    if shared := patients["train"] & patients["val"]:
        raise ConfigurationError(
            f"cases.json: {len(shared)} patients are in train and in val; a patient belongs to one split"
        )
    return program, experiment, cases


def job_key(experiment: Experiment, cases: Sequence[TrainingCase]) -> str:
    """Return 64 hex digits over what a checkpoint may be resumed with: the experiment and the cases in their splits."""
    rows = [[case.case_id, case.version, case.split] for case in cases]
    return hashlib.sha256(json.dumps([experiment.hash(), rows]).encode()).hexdigest()


def _fit(job: Path, experiment: Experiment, task: Task, key: str, heartbeat: Heartbeat) -> dict[str, Any]:
    folder = job / "checkpoints"
    last, best_path = folder / "last.ckpt", folder / "best.pt"
    resumed = last.is_file()
    if resumed:
        found = torch.load(last, map_location="cpu", weights_only=True, mmap=True).get("job_key")
        if found != key:
            raise CheckpointMismatch(
                "checkpoints/last.ckpt was written by another experiment or for other cases; "
                "use --resume never to start over"
            )
    history, best = History(job / "history.csv"), BestEpoch(best_path, task, experiment.schedule.patience)
    on_cpu = experiment.runtime.accelerator == "cpu" or not torch.cuda.is_available()
    precision: Any = "32-true" if on_cpu else experiment.precision
    # Tips of Lightning, one of them an advertisement; warnings and errors still pass.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Advice of Lightning on workers and log intervals, and a deprecation inside it; none is about the result.
        warnings.filterwarnings(
            "ignore", message=".*(does not have many workers|is smaller than the logging interval).*"
        )
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning|torch")
        trainer = lightning.Trainer(
            accelerator="cpu" if on_cpu else experiment.runtime.accelerator,
            devices=1,
            precision=precision,
            max_epochs=experiment.schedule.epochs,
            check_val_every_n_epoch=experiment.schedule.val_every,
            gradient_clip_val=experiment.optimiser.clip,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            logger=TensorBoardLogger(save_dir=job, name="tensorboard", version=""),
            callbacks=[heartbeat, PeakMemory(), history, best, LastCheckpoint(last, key)],
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task.module, task.train, task.val, ckpt_path=last if resumed else None, weights_only=True)
    if best.best is None:
        raise ConfigurationError(
            f"no epoch has a finite {task.monitor}: training diverged (lower optimiser.lr) or never validated "
            "(schedule.val_every is above schedule.epochs)"
        )
    if trainer.interrupted:
        raise KeyboardInterrupt
    save_tensors(job / "weights.pt", torch.load(best_path, map_location="cpu", weights_only=True))
    history.write()
    return {
        "best_epoch": best.epoch,
        "best_value": best.best,
        "best_metrics": next(row for row in history.rows if row["epoch"] == best.epoch),
        "epochs_run": len(history.rows),
        "stopped_early": best.waited >= best.patience,
        "resumed": resumed,
        "device": str(trainer.strategy.root_device),
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in task.module.parameters()),
    }


def _closed_form(job: Path, task: ClosedForm) -> dict[str, Any]:
    weights, metrics = task.compute()
    save_tensors(job / "weights.pt", weights)
    History(job / "history.csv").add({"epoch": 0, "step": 0, **metrics})
    return {
        "best_epoch": 0,
        "best_value": metrics[task.monitor],
        "best_metrics": metrics,
        "epochs_run": 1,
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
    for folder in ("checkpoints", "tensorboard"):
        shutil.rmtree(job / folder, ignore_errors=True)
    for name in ("result.json", "weights.pt", "history.csv"):
        (job / name).unlink(missing_ok=True)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "out of memory" in text or "can't allocate memory" in text
