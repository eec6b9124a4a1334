"""Predictions for uploads, one after the other on one warm model, with a bounded number of uploads at a time."""

import json
import logging
import math
import shutil
import tempfile
import threading
import time
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from med_assets.evaluation.predict_folder import LoadedModel, Outcome, predict_cases, write_files
from med_assets.intake.reader import start_ahead
from med_assets.preparation.expectations import import_ahead
from med_assets.serving.metrics import PREFIX, Metrics
from med_assets.serving.model import ChampionModel
from med_assets.settings import Workspace
from med_assets.storage.exposition import Family, Sample, gauge
from med_assets.storage.files import write_json
from med_assets.storage.scratch import scratch

POLL_S = 2.0
"""Seconds between two looks whether the champion changed while nothing is predicted."""

GUESS_S = 10.0
"""Seconds that a prediction is taken to need before the first one."""

RESULT, ARCHIVE = "result.json", "prediction.zip"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Uploads that may wait beside the one that is predicted, bytes of an upload, and seconds of each part of a request."""

    waiting: int
    upload_bytes: int
    seconds: float


class Busy(Exception):
    """All places are taken; one is expected to be free after `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Answer:
    """What came of an upload: the model, each case, and the archive with all files and the result as JSON."""

    experiment: str
    checkpoint: str
    outcomes: tuple[Outcome, ...]
    result: str
    archive: Path

    @property
    def any_predicted(self) -> bool:
        """Whether a case was predicted."""
        return any(one.paths for one in self.outcomes)


@dataclass
class Visit:
    """A place of one upload and the folder for all that is made of it; `end` gives up both."""

    service: "Service"
    folder: Path
    job: "Future[Answer] | None" = None
    _ended: bool = field(default=False, repr=False)

    @property
    def uploads(self) -> Path:
        """Folder that the upload is written to."""
        return self.folder / "upload"

    def predict(self, *, pictures: bool, report: bool) -> "Future[Answer]":
        """Start or queue the prediction of what was uploaded."""
        self.job = self.service.thread.submit(self.service.answer, self.folder, pictures, report)
        return self.job

    def end(self) -> None:
        """Remove the folder and free the place, once nothing works in it any more; a prediction that waits is called off."""
        if self.job is None or self.job.cancel() or self.job.done():
            self._free()
        else:
            self.job.add_done_callback(lambda _: self._free())

    def _free(self) -> None:
        if not self._ended:
            self._ended = True
            shutil.rmtree(self.folder, ignore_errors=True)
            self.service.leave()


class Service:
    """The model of a program and its queue."""

    def __init__(self, ws: Workspace, program_name: str, limits: Limits) -> None:
        # One process that reads, which stays warm: cases come one at a time.
        self.ws = ws if ws.workers else replace(ws, workers=1)
        self.program, self.limits, self.metrics = program_name, limits, Metrics()
        self.model = ChampionModel(self.ws, program_name, self.metrics)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="predicts")
        self._places, self._lock = 0, threading.Lock()

    def warm_up(self) -> None:
        """Load what a prediction needs, on the thread that predicts."""

        def load() -> None:
            start_ahead(self.ws, 1)
            import_ahead()
            self.refresh()

        self.thread.submit(load)

    def poll(self) -> None:
        """Look for another champion where nothing else is to do; a prediction looks itself before it starts."""
        if not self._places:
            self.thread.submit(self.refresh)

    def refresh(self) -> None:
        """Load the champion where it changed; a problem is that of the model."""
        try:
            self.model.current()
        except Exception as error:
            if self.model.loaded is not None or not self.model.problem:
                log.error("%s: looking for the champion failed with %s", self.program, type(error).__name__)

    def enter(self) -> Visit:
        """Take a place. Raises Busy."""
        with self._lock:
            if self._places > self.limits.waiting:
                each_s = self.metrics.mean_s() or GUESS_S
                raise Busy(max(1, math.ceil(each_s)))
            self._places += 1
        try:
            folder = Path(tempfile.mkdtemp(dir=scratch(self.ws.home), prefix="upload-"))
            visit = Visit(self, folder)
            visit.uploads.mkdir()
        except BaseException:
            self.leave()
            raise
        return visit

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._places -= 1

    def answer(self, folder: Path, pictures: bool, report: bool) -> Answer:
        """Predict what lies in the folder of a visit. Raises NotReady, DiskFull, ReaderFailed."""
        model = self.model.current()
        started = time.monotonic()
        out = folder / "out"
        try:
            write = partial(write_files, self.ws, self.program, pictures=pictures, report=report)
            outcomes = predict_cases(self.ws, self.program, folder / "upload", out, lambda _: model, write)
        finally:
            self.model.forget_cases()
        shutil.rmtree(folder / "upload")
        answer = self._packed(model, tuple(outcomes), out, folder / ARCHIVE)
        statuses = [status_of(one) for one in outcomes]
        seconds = time.monotonic() - started
        self.metrics.predicted(seconds, statuses)
        log.info(
            "%s: %d of %d cases predicted in %.1f s by %s", self.program, statuses.count("predicted"), len(statuses),
            seconds, model.checkpoint,
        )  # fmt: skip
        return answer

    def _packed(self, model: LoadedModel, outcomes: tuple[Outcome, ...], out: Path, archive: Path) -> Answer:
        out.mkdir(exist_ok=True)
        result = {
            "program": self.program,
            "experiment": model.experiment,
            "checkpoint": model.checkpoint,
            "cases": [
                {
                    "case": one.case_id,
                    "status": status_of(one),
                    "reason": one.reason,
                    "measured": {name: _number(value) for name, value in one.measured.items()},
                    "warnings": list(one.warnings),
                    "files": [path.relative_to(out).as_posix() for path in one.paths],
                }
                for one in outcomes
            ],
        }
        write_json(out / RESULT, result, durable=False)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
            for path in sorted(path for path in out.rglob("*") if path.is_file()):
                packed.write(path, path.relative_to(out).as_posix())
        text = (out / RESULT).read_text()
        shutil.rmtree(out)
        return Answer(model.experiment, model.checkpoint, outcomes, text, archive)

    def gauges(self) -> list[Family]:
        """The values of now."""
        loaded = self.model.loaded
        values = (
            ("ready", "1 where the champion is loaded", float(loaded is not None)),
            ("places_taken", "uploads that are received, wait, are predicted or answered", self._places),
            ("places", "uploads that may be here at a time", self.limits.waiting + 1),
        )
        found = [gauge(f"{PREFIX}{name}", meaning, value) for name, meaning, value in values]
        if loaded is not None:
            labels = {"program": self.program, "experiment": loaded.experiment, "checkpoint": loaded.checkpoint}
            found.append(Family(f"{PREFIX}model_info", "the model that predicts", (Sample(1, labels),)))
        return found

    def close(self) -> None:
        """End the thread once it has nothing to do; what waits is called off."""
        self.thread.shutdown(wait=False, cancel_futures=True)


def status_of(outcome: Outcome) -> str:
    """What came of a case, in a word."""
    return "predicted" if outcome.paths else "refused"


def _number(value: float | str | None) -> float | str | None:
    """A measured value as JSON has it: no NaN, no infinity, no type of NumPy."""
    if value is None or isinstance(value, str):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def refusal(message: str) -> bytes:
    """A refusal of a whole request, as JSON."""
    return json.dumps({"error": message}).encode()
