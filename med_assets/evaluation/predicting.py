"""A checkpoint applied to prepared cases: each prediction is an artifact, made once and scored as often as scoring changes.

Its key covers what the model sees of a case and none of its reader labels, so that a corrected label, a label that
arrives later and a new metric infer nothing. What is missing is predicted by a job, where the accelerator is, as training is.
"""

import shutil
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from med_assets import program
from med_assets.catalog import Case
from med_assets.errors import DiskFull, MedAssetsError, OutOfMemory, RemoteFailed
from med_assets.evaluation.costs import record_prediction_peak
from med_assets.launch import jobs
from med_assets.launch.ensembles import model_folder
from med_assets.launch.follow import finish
from med_assets.launch.training import Launch
from med_assets.records import DatasetCase, PreparedCase
from med_assets.settings import Settings
from med_assets.storage.artifacts import MANIFEST, LocalStore
from med_assets.storage.files import digest, link_or_copy, read_json, write_json, write_text
from med_assets.storage.locks import alone_among_machines, alone_here
from med_assets.storage.memo import Memo

PreparedArrays = Case | DatasetCase | PreparedCase
"""A case whose prepared arrays are in the store, under the key `artifact`."""

ADOPT_S = 2.0
"""Time between two looks for predictions that a running job has finished, in a shared home, s."""

LOCK_CHARS = 3
"""Characters of the hash of a request in the name of its lock."""

_hashes: Memo[Mapping[str, str]] = Memo()
"""File hashes of prepared cases by home and key, of which sensors ask at each tick."""


@dataclass(frozen=True)
class PredictedCases:
    """What came of predicting cases, each by the key of its prepared arrays."""

    keys: Mapping[str, str]
    """Keys of the predictions, which are in the store."""
    new: frozenset[str]
    """Those that were predicted now."""
    failures: Mapping[str, str]
    """Exceptions of the others."""


def prediction_key(ws: Settings, program_name: str, checkpoint: str, prepared: str) -> str:
    """Key of one case's prediction: the checkpoint, what it sees of the prepared case, and the code that predicts."""
    chosen = program.get(program_name)
    hashes = _hashes.get((ws.home, prepared), lambda: ws.store.file_hashes(prepared))
    seen = {name: hashes.get(name) for name in chosen.inputs}
    return "prediction/" + digest(checkpoint, seen, chosen.code_versions["predict"])


def predict_cases(
    ws: Settings, program_name: str, checkpoint: str, cases: Iterable[PreparedArrays], launch: Launch | None = None
) -> PredictedCases:
    """Predict the cases that have no prediction yet, all in one job; without such a case there is no job and no process.

    `launch` replaces the launcher that the experiment or the workspace names. A bad case fails alone. A job that was begun goes on, also
    when other cases are missing now. Raises what the launch does, such as TrainingStopped and LaunchFailed, OutOfMemory, and ArtifactMissing
    for a checkpoint that is gone.
    """
    keys: dict[str, str] = {}
    folders: dict[str, Path] = {}
    failures: dict[str, str] = {}
    for prepared in dict.fromkeys(case.artifact for case in cases):
        try:
            key = prediction_key(ws, program_name, checkpoint, prepared)
            if not ws.store.has(key):
                folders[key] = ws.store.fetch(prepared)
        except (DiskFull, RemoteFailed):  # no fault of the case
            raise
        except Exception as error:  # one bad case never stops a batch; it is reported
            failures[prepared] = f"{type(error).__name__}: {error}"
        else:
            keys[prepared] = key
    failed: dict[str, str] = {}
    if folders:
        # Callers of one checkpoint on this machine take turns: what one predicts the next has. Machines that are asked for the same cases do
        # too, and those with other cases predict side by side. So few names leave few objects, and hardly ever let strangers wait.
        name = f"predict-{checkpoint.replace('/', '-')}"
        same = f"predict-{digest(checkpoint, sorted(folders))[:LOCK_CHARS]}"
        with alone_here(ws, name), alone_among_machines(ws, same):
            failed = _predict(ws, program_name, checkpoint, folders, launch or partial(finish, default=ws.launcher))
    failures |= {prepared: failed[key] for prepared, key in keys.items() if key in failed}
    done = {prepared: key for prepared, key in keys.items() if key not in failed}
    return PredictedCases(done, frozenset(prepared for prepared, key in done.items() if key in folders), failures)


def _predict(
    ws: Settings, program_name: str, checkpoint: str, folders: Mapping[str, Path], launch: Launch
) -> dict[str, str]:
    """Put the predictions of prepared folders, by key, into the store; the failures by key."""
    job = ws.jobs / digest("predict", checkpoint)
    failed: dict[str, str] = {}
    _adopt(ws, job)
    missing = {key for key in folders if not ws.store.has(key)}
    for _ in range(2):  # twice where the first follows a job of an earlier call, which had other cases
        if not missing:
            return failed
        _prepare_job(ws, program_name, checkpoint, job, {key: folders[key] for key in folders if key in missing})
        with _adopting(ws, job):
            launch(job)
        result = _result(job)
        failed |= result["failed"]
        record_prediction_peak(ws, program_name, checkpoint, result.get("peak_memory", {}))
        missing -= _adopt(ws, job) | failed.keys()
        # It has ended. A folder in which none was started now may be that of one that runs, and stays.
        shutil.rmtree(job, ignore_errors=True)
    if missing:
        raise MedAssetsError(f"expected the predictions of {len(missing)} more cases, the job ended without them")
    return failed


def _prepare_job(ws: Settings, program_name: str, checkpoint: str, job: Path, missing: Mapping[str, Path]) -> None:
    job.mkdir(parents=True, exist_ok=True)
    (job / jobs.RESULT).unlink(missing_ok=True)
    model = model_folder(ws, checkpoint)
    write_text(job / "program", program_name + "\n")
    write_text(job / jobs.KIND, jobs.Kind.PREDICTION + "\n")
    write_text(job / jobs.CHECKPOINT, f"{model}\n")
    write_text(job / "experiment.json", (model / "experiment.json").read_text(encoding="utf-8"))
    write_json(job / "cases.json", [{"prediction": key, "folder": str(path)} for key, path in missing.items()])


def _result(job: Path) -> dict[str, Any]:
    """The result of a job that ended. Raises OutOfMemory if that ended it, and MedAssetsError without a result."""
    path = job / jobs.RESULT
    result: dict[str, Any] = read_json(path) if path.is_file() else {"status": "no result"}
    if result["status"] == "out_of_memory":
        path.unlink()
        raise OutOfMemory(result["message"])
    if result["status"] != "completed":
        raise MedAssetsError(
            f"expected a completed prediction, got {result['status']}; see log.txt in its job folder, and start it again"
        )
    return result


@contextmanager
def _adopting(ws: Settings, job: Path) -> Iterator[None]:
    """Put predictions into the bucket of a shared home as a job finishes them: when this machine dies, others have them."""
    if ws.leases is None:
        yield
        return
    over, known = threading.Event(), set[str]()

    def run() -> None:
        while not over.wait(ADOPT_S):
            with suppress(MedAssetsError, OSError):  # what does not get there now does at the end, or says why
                known.update(_adopt(ws, job, known))

    thread = threading.Thread(target=run, name=f"predictions {job.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _adopt(ws: Settings, job: Path, known: Container[str] = ()) -> set[str]:
    """Put what a job has predicted, but for what is known to be there, into the store; its keys."""
    made = LocalStore(job / jobs.PREDICTIONS)
    keys = made.keys("prediction")
    for key in keys:
        if key not in known and not ws.store.has(key):
            with ws.store.create(key) as folder:
                shutil.copytree(
                    made.fetch(key), folder, dirs_exist_ok=True, copy_function=link_or_copy,
                    ignore=shutil.ignore_patterns(MANIFEST),
                )  # fmt: skip
    return set(keys)
