"""Run one job folder that predicts: a checkpoint applied to prepared cases, each prediction whole and durable once it is made.

In: `program` (a name), `experiment.json` of the checkpoint, `checkpoint` (its folder), `cases.json` ([{prediction, folder}]; a
relative folder is relative to the job, `prediction` is a key). Out: `predictions/`, a store with an artifact for each prediction; at the
end `result.json` with the reasons of the cases that failed, by key, and the most memory that the job took. A prediction that is there is not made again: a job goes on.

It imports no Lightning, which would double the time that a process takes to start.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from med_assets.errors import AcceleratorFailed, DiskFull, OutOfMemory, TrainingStopped
from med_assets.experiments.configuration import from_json
from med_assets.launch.jobs import CHECKPOINT, PREDICTIONS, RESULT
from med_assets.storage.artifacts import LocalStore
from med_assets.storage.files import read_json, write_json
from med_assets.storage.versions import part_of
from med_assets.training.ensemble import load_model
from med_assets.training.events import note
from med_assets.training.failures import ending
from med_assets.training.heartbeat import Beats
from med_assets.training.peak_memory import measured_peak
from med_assets.training.stopping import StopRequest

SAY_EVERY_S = 1.0
"""Least time between two lines of progress in the log, s."""

Predict = Callable[[Path, Path], None]
"""`CasePredictor.predict` of a loaded checkpoint: of a prepared case, into a folder."""


@part_of("predict")
def run(job: Path) -> dict[str, Any]:
    """Predict the cases of a job that are not predicted yet, and return the result.

    A case that fails is in `failed` of the result, and the others go on. Raises DiskFull, AcceleratorFailed, TrainingStopped at the end
    of a case after SIGTERM, and OutOfMemory, after writing a result that says so.
    """
    program = (job / "program").read_text(encoding="utf-8").strip()
    runtime = from_json(program, (job / "experiment.json").read_text(encoding="utf-8")).runtime
    heartbeat = Beats(job / "heartbeat.json", runtime.hang_after_s)
    heartbeat.beat("start")
    note(job, "start")
    (job / RESULT).unlink(missing_ok=True)
    try:
        with StopRequest(runtime.piece_s) as stop:
            failed = _predict(job, program, heartbeat, stop)
    except OutOfMemory as error:
        note(job, "out_of_memory", message=str(error))
        write_json(job / RESULT, {"status": "out_of_memory", "message": str(error)})
        raise
    except (TrainingStopped, AcceleratorFailed) as error:
        note(job, "stopped" if isinstance(error, TrainingStopped) else "accelerator_failed", message=str(error))
        raise
    finally:
        heartbeat.stop("end")
    result = {"status": "completed", "failed": failed, "peak_memory": measured_peak()}
    write_json(job / RESULT, result)
    return result


def _predict(job: Path, program: str, heartbeat: Beats, stop: StopRequest) -> dict[str, str]:
    """Predict what is not there; the failures by key."""
    made, cases = LocalStore(job / PREDICTIONS), read_json(job / "cases.json")
    predict: Predict | None = None
    failed: dict[str, str] = {}
    last_report = time.monotonic()
    for number, case in enumerate(cases, 1):
        key = case["prediction"]
        if made.has(key):
            continue
        heartbeat.beat("predict", (0, number))
        try:
            predict = predict or _load(job, program)
            with made.create(key) as folder:
                predict(job / case["folder"], folder)
        except DiskFull:
            raise
        except Exception as error:  # one bad case never stops a batch; it is reported
            if (ends := ending(error, job)) is not None:
                raise ends from error
            failed[key] = f"{type(error).__name__}: {error}"
        if number == len(cases) or time.monotonic() - last_report >= SAY_EVERY_S:
            last_report = time.monotonic()
            print(f"predicted {number - len(failed)} of {len(cases)} cases, {len(failed)} failed", flush=True)
        if stop.due and number < len(cases):
            raise TrainingStopped(
                f"predicting was asked to stop and did after case {number} of {len(cases)}; start the same command again and it goes on"
            )
    return failed


def _load(job: Path, program: str) -> Predict:
    checkpoint = job / (job / CHECKPOINT).read_text(encoding="utf-8").strip()
    return load_model(program, checkpoint, job.parent).predict
