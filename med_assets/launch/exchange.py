"""What whoever asked for a stage and the process that runs it leave for each other: request, heartbeat, log and result.

    ID/                       folder of the stage, `Settings.runs` of a home; a launcher's job folder
        request.json          what is asked, as it was submitted last
        heartbeat.json        a count that grows while the process lives, and how far it is
        log.txt               what it prints
        history.csv           the epochs of its training
        result/  result.json  its outcome (`storage.outcome_files`) or its error; result.json is written last

Where the process sees another disk, the same goes through the bucket of the home, below `runs/ID/`:

    request.json              what is asked, as it was submitted last: by it others find a stage that runs
    TOKEN/request.json        the same of each submission, for its process
    TOKEN/followed            that another machine follows it, and fetches the result too
    TOKEN/heartbeat.json      as above, with the number of pieces of the log, and whether there is a result
    TOKEN/log/NNNNNN          pieces of the log, from 1
    TOKEN/history.csv         as above
    TOKEN/result/NAME, TOKEN/result.json

Objects are read by their keys, and nothing is listed. TOKEN is of one submission, so that what an earlier one writes late is never read.
"""

import csv
import fcntl
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.errors import ConfigurationError, LockHeld, MedAssetsError, RemoteFailed, StageFailed
from med_assets.launch.follow import HISTORY
from med_assets.launch.jobs import KIND, LOG, RESULT, Kind
from med_assets.launch.stage_request import Asked, Request
from med_assets.storage.files import replacing, write_json, write_text
from med_assets.storage.locks import alone, alone_here
from med_assets.storage.outcome_files import read_error, read_outcome, write_error, write_outcome
from med_assets.storage.result import StageOutcome
from med_assets.storage.s3 import bucket
from med_assets.storage.s3.bucket import Location, in_words

if TYPE_CHECKING:
    from med_assets.settings import Settings

REQUEST, HEARTBEAT, FILES, FOLLOWED, FETCHED = "request.json", "heartbeat.json", "result", "followed", "fetched.json"

FETCHING, READING = "fetching.lock", "reading.lock"
"""Locks in the folder of a stage: of what fetches its log and its result, and of all who have yet to read what their submission left."""

HEARTBEAT_S = 15.0
"""Time between two heartbeats, s."""

LOG_S = 2.0
"""Least time between two pieces of a log, s."""

KEPT_DAYS = 7.0
"""Age from which what is left of a stage that nobody asks for any more is removed, days; it is a log and a result that were read, or never will be."""

SILENT_S = 10 * HEARTBEAT_S
"""A process without a heartbeat for so long counts as silent, s; nothing else follows from it."""


class Objects:
    """Small objects below `runs/ID/` of the bucket of a home."""

    def __init__(self, ws: "Settings", run_id: str) -> None:
        self._ws, self._run_id = ws, run_id

    @cached_property
    def _at(self) -> tuple[Any, Any]:
        home = self._ws.store_location
        if home is None:
            raise ConfigurationError(
                "expected MED_ASSETS_STORE=s3://bucket/prefix, since the process of this stage sees no folder of this machine, got none; "
                "see docs/stages-as-jobs.md"
            )
        return bucket.client(), Location(home.bucket, f"{home.prefix}/runs/{self._run_id}".lstrip("/"))

    def put(self, name: str, content: bytes) -> None:
        """Write an object. Raises RemoteFailed."""
        from med_assets.storage.s3 import conditional

        conditional.put(*self._at, name, content)

    def get(self, name: str) -> bytes | None:
        """An object as it is now, None where there is none. Raises RemoteFailed."""
        from med_assets.storage.s3 import conditional

        found = conditional.get(*self._at, name)
        return None if found is None else found.content

    def remove(self, names: list[str]) -> None:
        """Remove objects, those that are not there too. Raises RemoteFailed."""
        client, at = self._at
        with in_words("removing from the bucket"):
            for name in names:
                client.delete_object(Bucket=at.bucket, Key=at.key(name))


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, allow_nan=False).encode()


def read_request(ws: "Settings", run_id: str) -> Asked | None:
    """What was submitted last under an id: by this machine, else, in a shared home, by any; None where nothing was."""
    path = ws.runs / run_id / REQUEST
    content = path.read_bytes() if path.is_file() else None
    if content is None or (ws.store_location is not None and Asked.of(json.loads(content)).through_bucket):
        content = (Objects(ws, run_id).get(REQUEST) if ws.store_location else None) or content
    return None if content is None else Asked.of(json.loads(content))


def read_submission(ws: "Settings", run_id: str, token: str) -> Asked:
    """What one submission asks for, in the process that runs it. Raises ConfigurationError where there is none (any more)."""
    path = ws.runs / run_id / REQUEST
    asked = Asked.of(json.loads(path.read_bytes())) if path.is_file() else None
    if (asked is None or asked.token != token) and ws.store_location is not None:
        content = Objects(ws, run_id).get(f"{token}/{REQUEST}")
        asked = Asked.of(json.loads(content)) if content is not None else None
    if asked is None or asked.token != token:
        raise ConfigurationError(
            f"expected the request {run_id}/{token} in this home, got none: it was asked for anew since, or MED_ASSETS_HOME or "
            "MED_ASSETS_STORE is another here than where it was asked for"
        )
    return asked


class Asker:
    """The side of whoever asked: submits a request, and fetches what the process writes into the folder of this machine."""

    def __init__(self, ws: "Settings", asked: Asked) -> None:
        self.asked, self.folder = asked, ws.runs / asked.id
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ws, self._reading = ws, (self.folder / READING).open("a")
        self._objects = Objects(ws, asked.id) if asked.through_bucket else None
        self._pieces, self._epochs, self._beat, self._beat_at = 0, 0, -1, time.monotonic()
        self.silent_s = 0.0
        """How long no heartbeat came, s, by the clock of this machine."""

    def begin(self) -> None:
        """Put what an earlier submission left aside, once all of this machine who follow that have read it, and say what is asked now."""
        self._clear()
        if self._objects is not None:
            for name in (f"{self.asked.token}/{REQUEST}", REQUEST):
                self._objects.put(name, _json(self.asked.row()))

    def adopt(self) -> None:
        """Follow a submission that another process made: what this machine has of others is put aside."""
        path = self.folder / REQUEST
        if path.is_file() and Asked.of(json.loads(path.read_bytes())).token == self.asked.token:
            fcntl.flock(self._reading, fcntl.LOCK_SH)
            return
        self._clear()
        if self._objects is not None:
            self._objects.put(f"{self.asked.token}/{FOLLOWED}", b"")

    def close(self) -> None:
        """Say that what this submission left may be put aside."""
        self._reading.close()

    def _clear(self) -> None:
        fcntl.flock(self._reading, fcntl.LOCK_EX)
        (self.folder / RESULT).unlink(missing_ok=True)
        shutil.rmtree(self.folder / FILES, ignore_errors=True)
        for name in (HEARTBEAT, FETCHED, LOG, HISTORY):
            (self.folder / name).unlink(missing_ok=True)
        write_text(self.folder / KIND, Kind.STAGE + "\n")
        write_json(self.folder / REQUEST, self.asked.row())
        fcntl.flock(self._reading, fcntl.LOCK_SH)  # of those who could take it in between, none asks now

    def refresh(self, last: bool = False) -> None:
        """Fetch new lines of the log, and the result once there is one; at the `last` time also one that no heartbeat announces."""
        if self._objects is None:
            self._heard(_read(self.folder / HEARTBEAT))
            return
        try:
            beat = json.loads(self._objects.get(f"{self.asked.token}/{HEARTBEAT}") or b"{}")
            self._heard(beat)
            self._fetch_log(int(beat.get("pieces", 0)), last)
            self._fetch_epochs(int(beat.get("epochs", 0)))
            if beat.get("finished") or last:
                with alone_here(self._ws, FETCHING, file=self.folder / FETCHING):
                    if not (self.folder / RESULT).is_file():
                        self._fetch_result()
        except RemoteFailed:
            if last:
                raise  # else the next poll asks again

    def _heard(self, beat: Mapping[str, Any]) -> None:
        if (count := beat.get("count", -1)) != self._beat:
            self._beat, self._beat_at = count, time.monotonic()
        self.silent_s = time.monotonic() - self._beat_at

    def _fetch_log(self, pieces: int, last: bool) -> None:
        """Append the pieces that nobody of this machine fetched yet, however many follow here."""
        assert self._objects is not None
        if self._pieces >= pieces and not last:
            return
        with alone_here(self._ws, FETCHING, file=self.folder / FETCHING), (self.folder / LOG).open("ab") as log:
            self._pieces = int(_read(self.folder / FETCHED).get("pieces", 0))
            while self._pieces < pieces or last:
                piece = self._objects.get(_piece(self.asked.token, self._pieces + 1))
                if piece is None:
                    break
                log.write(piece)
                log.flush()
                self._pieces += 1
                write_json(self.folder / FETCHED, {"pieces": self._pieces}, durable=False)

    def _fetch_epochs(self, epochs: int) -> None:
        assert self._objects is not None
        if epochs != self._epochs and (content := self._objects.get(f"{self.asked.token}/{HISTORY}")) is not None:
            with replacing(self.folder / HISTORY, durable=False) as path:
                path.write_bytes(content)
            self._epochs = epochs

    def _fetch_result(self) -> None:
        assert self._objects is not None
        content = self._objects.get(f"{self.asked.token}/{RESULT}")
        if content is None:
            return
        shutil.rmtree(self.folder / FILES, ignore_errors=True)
        for name in _files(json.loads(content)):
            # Checked against its hash when it is read.
            with replacing(self.folder / FILES / name, durable=False) as path:
                path.write_bytes(self._objects.get(f"{self.asked.token}/{FILES}/{name}") or b"")
        with replacing(self.folder / RESULT) as path:
            path.write_bytes(content)

    def outcome(self) -> StageOutcome:
        """The outcome of the stage. Raises the error with which it ended, and ArtifactCorrupt."""
        content = json.loads((self.folder / RESULT).read_bytes())
        if "error" in content:
            raise read_error(content["error"])
        return read_outcome(content["outcome"], self.folder / FILES)

    def end(self) -> None:
        """Remove from the bucket what was fetched, unless another machine has yet to fetch it: then, and after a failure, it goes with age."""
        if self._objects is None:
            return
        try:
            # Under the lock with which others begin to follow.
            with alone(self._ws, asking(self.asked.request), wait=False):
                if self._objects.get(f"{self.asked.token}/{FOLLOWED}") is None:
                    self.remove()
        except (LockHeld, RemoteFailed):
            return

    def remove(self) -> None:
        """Remove from the bucket what is there of this submission. Raises RemoteFailed."""
        if self._objects is None:
            return
        content, token = _read(self.folder / RESULT), self.asked.token
        names = [_piece(token, number) for number in range(1, self._pieces + 1)]
        names += [f"{token}/{FILES}/{name}" for name in _files(content)]
        names += [f"{token}/{name}" for name in (RESULT, HEARTBEAT, HISTORY, FOLLOWED, REQUEST)]
        last = self._objects.get(REQUEST)
        if last is not None and Asked.of(json.loads(last)).token == token:
            names.append(REQUEST)
        self._objects.remove(names)


def asking(request: Request) -> str:
    """Name of the lock under which a stage is asked for, or one that runs is followed."""
    return f"ask-{request.program}-{request.stage}"


def _piece(token: str, number: int) -> str:
    return f"{token}/log/{number:06d}"


def _files(content: Mapping[str, Any]) -> list[str]:
    """Names of the files of a result. Raises StageFailed for one that would lie elsewhere."""
    found = list(content.get("outcome", {}).get("files", ()))
    if any(Path(name).name != name for name in found):
        raise StageFailed("expected names of files in the result of a stage, got a path; it is not read")
    return found


def _table(epochs: Sequence[Mapping[str, float]]) -> str:
    """Epochs as `follow.Progress` reads them; what an epoch has no number for stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for epoch in epochs for name in epoch)))
    writer.writeheader()
    writer.writerows(epochs)
    return text.getvalue()


def _read(path: Path) -> Mapping[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def remove_old(ws: "Settings", runs: Callable[[Path], bool]) -> int:
    """Remove what is left of stages that were asked for long ago and do not run, here and in the bucket; returns how many."""
    removed = 0
    for request in ws.runs.glob(f"*/{REQUEST}"):
        if time.time() - request.stat().st_mtime < KEPT_DAYS * 86400 or runs(request.parent):
            continue
        try:
            with closing(Asker(ws, Asked.of(_read(request)))) as asker:
                asker.refresh(last=True)
                asker.remove()
        except (MedAssetsError, OSError, ValueError):
            continue  # the next one tries again
        shutil.rmtree(request.parent, ignore_errors=True)
        removed += 1
    return removed


class Reporter:
    """The side of the process that runs a stage: tells how far it is, what it prints, and how it ended."""

    def __init__(self, ws: "Settings", asked: Asked) -> None:
        self.asked, self.folder = asked, ws.runs / asked.id
        self._objects = Objects(ws, asked.id) if asked.through_bucket else None
        self._lock, self._sending, self._over = threading.Lock(), threading.Lock(), threading.Event()
        self._waiting: list[str] = []
        self._epochs: list[Mapping[str, float]] = []
        self._sent_epochs = 0
        self._pieces = self._count = 0
        self._progress = ""
        self._finished = False

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Beat, and send what is printed, as long as the block lasts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._objects is not None:
            # A requeued job goes on in the log of the same submission, and its heartbeat counts on.
            beat = json.loads(self._objects.get(f"{self.asked.token}/{HEARTBEAT}") or b"{}")
            self._pieces, self._count = int(beat.get("pieces", 0)), int(beat.get("count", 0))
        thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._send(beat=True)

    def done(self) -> bool:
        """Whether this submission has a result already, of a process that was taken for dead. Raises RemoteFailed."""
        if self._objects is None:
            return (self.folder / RESULT).is_file()
        return self._objects.get(f"{self.asked.token}/{RESULT}") is not None

    def log(self, text: str) -> None:
        """Send what was printed, with the next piece."""
        if self._objects is not None and text:
            with self._lock:
                self._waiting.append(text)

    def epoch(self, numbers: Mapping[str, float]) -> None:
        """Say with the next heartbeat that an epoch of the training ended, with its numbers."""
        with self._lock:
            self._epochs.append(dict(numbers))

    def progress(self, text: str) -> None:
        """Say with the next heartbeat how far the stage is."""
        self._progress = text

    def _beat(self) -> None:
        beat_at = -HEARTBEAT_S
        while True:
            due = time.monotonic() - beat_at >= HEARTBEAT_S
            if self._send(beat=due):
                beat_at = time.monotonic()
            if self._over.wait(LOG_S):
                return

    def _send(self, *, beat: bool) -> bool:
        """Send what is new, and a heartbeat where it is due or something was new. What can't be sent now is sent later."""
        with self._sending:
            return self._send_new(beat)

    def _send_new(self, beat: bool) -> bool:
        with self._lock:
            text, self._waiting = "".join(self._waiting), []
            epochs = self._epochs[:] if len(self._epochs) > self._sent_epochs else []
        if self._objects is None:
            if epochs:
                write_text(self.folder / HISTORY, _table(epochs), durable=False)
                self._sent_epochs = len(epochs)
            return beat and self._write_beat()
        if not (text or beat or epochs):
            return False
        try:
            if epochs:
                self._objects.put(f"{self.asked.token}/{HISTORY}", _table(epochs).encode())
                self._sent_epochs = len(epochs)
            if text:
                self._objects.put(_piece(self.asked.token, self._pieces + 1), text.encode())
                self._pieces, text = self._pieces + 1, ""
            return self._write_beat()
        except RemoteFailed:
            with self._lock:
                self._waiting.insert(0, text)
            return False

    def _write_beat(self) -> bool:
        self._count += 1
        beat = {
            "count": self._count,
            "pieces": self._pieces,
            "epochs": self._sent_epochs,
            "progress": self._progress,
            "finished": self._finished,
        }
        if self._objects is None:
            with replacing(self.folder / HEARTBEAT, durable=False) as path:
                path.write_bytes(_json(beat))
        else:
            self._objects.put(f"{self.asked.token}/{HEARTBEAT}", _json(beat))
        return True

    def succeed(self, outcome: StageOutcome) -> None:
        """Leave the outcome. Raises RemoteFailed."""
        files = self.folder / FILES
        shutil.rmtree(files, ignore_errors=True)
        self._end({"outcome": write_outcome(outcome, files)})

    def fail(self, error: BaseException) -> None:
        """Leave the error. Raises RemoteFailed."""
        self._end({"error": write_error(error)})

    def _end(self, content: Mapping[str, Any]) -> None:
        self._send(beat=True)  # whoever sees the result has all that came before it
        # Not sorted: people see counts and tables in this order.
        result = json.dumps(content, allow_nan=False).encode()
        if self._objects is None:
            # One that was taken for dead leaves nothing to the submission after it.
            if Asked.of(_read(self.folder / REQUEST)).token == self.asked.token:
                with replacing(self.folder / RESULT) as path:
                    path.write_bytes(result)
            return
        for name in _files(content):
            self._objects.put(f"{self.asked.token}/{FILES}/{name}", (self.folder / FILES / name).read_bytes())
        self._objects.put(f"{self.asked.token}/{RESULT}", result)
        self._finished = True
