"""The process that reads files of strangers: it may crash, hang or run out of memory, and intake goes on without that file.

`python -m med_assets.intake.reader` is the process, `Readers` what watches it; `med_assets.intake.workers` lets several work
side by side. A step that takes longer than it announced, or that ends the process, is refused in the next attempt; all that is
beside it goes through. Requests are pickled, since they come from us; answers are JSON, since what parses files of strangers
may have been taken over by one.
"""

import atexit
import base64
import gc
import json
import math
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Condition
from types import TracebackType
from typing import Any

from med_assets.errors import CaseRejected, DiskFull, ReaderFailed
from med_assets.intake.division import Division
from med_assets.intake.parts import CASES, Part
from med_assets.intake.reading import (
    FILES_PER_LIMIT,
    OUT_OF_MEMORY,
    PREPARATION_FAILED,
    EntryReader,
    FileOutcome,
    Help,
    Originals,
    Preparation,
    StoredCase,
    Task,
    prepare_case,
    read_originals,
    where,
)
from med_assets.intake.steps import Note, NoteFile, Step, ending
from med_assets.landing.batches import UNREADABLE
from med_assets.records import CaseVersion
from med_assets.settings import Settings, without_secrets
from med_assets.storage import preloaded
from med_assets.storage.memory import give_back_memory, keep_freed_memory
from med_assets.storage.scratch import scratch

START_LIMIT_S = 300.0
"""Seconds within which the process has imported what it needs; usually one."""

END_LIMIT_S = 10.0
"""Seconds to wait for the end of a process that was killed."""

PREPARATION_LIMITS = 10
"""Preparation may take this many times the time limit of a file for each 50 files of a case: it draws structures and resamples."""

MAX_REFUSED = 20
"""Steps of an entry that may end the process, or their time, before the whole entry is refused."""

CRASHED, TIME_LIMIT = "reader_crashed", "reader_time_limit"
"""Reasons of what ended the process, or had to be ended with it."""

NOT_FINAL = (UNREADABLE, CRASHED, TIME_LIMIT, OUT_OF_MEMORY)
"""Reasons that may not hold another time or on another machine: the entry is read anew when its batch is taken in again."""

MAY_LACK_MEMORY = frozenset({*NOT_FINAL, PREPARATION_FAILED, "undecodable_pixels"})
"""Reasons that a lack of memory may have, since decoders and libraries say what they like then."""

NOTHING_YET = Step("", 0.0)
"""The step of a process that ended before it was given anything to do."""

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Environment of each process: there is one for each core, and sums do not depend on how many threads share them."""

PRELOADED = {
    "med_assets.intake.reader": (
        "med_assets.deidentification.residual",
        "med_assets.deidentification.deidentify",
        "med_assets.deidentification.profiles",
        "med_assets.dicom.discover",
        "med_assets.dicom.write",
        "med_assets.intake.reader",
        "highdicom",
        "scipy.ndimage",
    )
}
"""What `storage.preloaded.parents` imports for the processes of many short intakes: no torch, which counts towards their memory."""

_idle: list["_Process"] = []
"""Processes of this one that wait for work; to start one takes a second."""

_starters: dict[int, ThreadPoolExecutor] = {}
"""By process id the thread that starts readers. The system ends a reader with the thread that started it: this one lives as
long as the process, so that a reader may work for any of its threads."""

_lock = threading.Lock()
"""Held while `_idle` or `_starters` change."""


@dataclass
class EntryResult:
    """What came of an entry: its cases and what was refused, accepted cases are given to `keep`, and the outcome of each file.

    Of originals it is the fields of their headers.
    """

    cases: list[CaseVersion] = field(default_factory=list)
    files: list[FileOutcome] = field(default_factory=list)
    headers: list[dict[str, Any]] = field(default_factory=list)


class _Ended(Exception):
    """The process ended, or had to be ended, in a step."""

    def __init__(self, key: str, code: str, message: str) -> None:
        super().__init__(message)
        self.key, self.code, self.message = key, code, message


class RetryAlone(Exception):
    """Work that others were done beside ended its process, or may have lacked memory: it is to be done again, alone."""


class _Process:
    """A running reader and the connection to it; `working` while an answer is still to come."""

    def __init__(self, memory_gb: float) -> None:
        self.owner, self.limits, self.working, self.ready = os.getpid(), _limits(memory_gb), False, False
        self.notes = NoteFile.new()
        ours, theirs = socket.socketpair()
        environment = without_secrets() | ONE_THREAD
        searched = environment.get("PYTHONPATH", "").split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, (str(preloaded.ROOT), *searched))))
        with theirs, Path(os.devnull).open("wb") as nowhere:
            # -P: a module in the present folder, which may be one of strangers, is never imported.
            keep = [theirs.fileno(), self.notes.descriptor]
            command = [sys.executable, "-P", "-m", __name__, *map(str, (*keep, os.getpid(), memory_gb))]

            def start() -> preloaded.Process:
                nothing = nowhere.fileno()  # libraries print values of files
                return preloaded.start(command, environment, nothing, nothing, keep=keep, tied=True)

            self.process = _starter().submit(start).result()
        self.connection, self._answers = Connection(ours.detach()), select.poll()
        self._answers.register(self.connection.fileno(), select.POLLIN)

    def answers_within(self, limit_s: float | None) -> bool:
        """Wait for an answer, or the end of the process; whether there was one in time. A slice has several: `Connection.poll` takes ten times as long."""
        return bool(self._answers.poll(None if limit_s is None else max(0, math.ceil(1000 * limit_s))))

    def wait_until_ready(self) -> None:
        """Wait until the process has imported what it needs. Raises ReaderFailed."""
        if self.ready:
            return
        try:
            self.ready = self.answers_within(START_LIMIT_S) and self.connection.recv_bytes() == b"ready"
        except (EOFError, OSError):
            self.ready = False
        if not self.ready:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_LIMIT_S)
            self.end()
            raise ReaderFailed(
                f"the process that reads files of the landing zone does not start (exit status {self.process.returncode}); it needs "
                f"half a GB of memory and may take {self.limits[0]:.1f} GB (MED_ASSETS_INTAKE_MEMORY_GB). Raise that, or see with "
                "`med-assets doctor` whether the installation is whole"
            )

    def end(self) -> None:
        """End the process and wait for it."""
        self.connection.close()
        self.notes.close()
        if self.owner == os.getpid():
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):  # the system may hold it until a disk answers
                self.process.wait(END_LIMIT_S)


def _starter() -> ThreadPoolExecutor:
    with _lock:
        return _starters.setdefault(os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="starts readers"))


def _limits(memory_gb: float) -> tuple[float, tuple[int, int]]:
    """What a process is started with, for good: a process with others is not used."""
    return memory_gb, resource.getrlimit(resource.RLIMIT_FSIZE)


@atexit.register
def end_idle() -> None:
    """End the processes that wait for work."""
    while (process := _take_idle()) is not None:
        process.end()


def start_ahead(ws: Settings, n: int) -> None:
    """Start processes, up to `n` that wait for work, which import while this one does something else."""
    started = [_Process(ws.intake_memory_gb) for _ in range(n - len(_idle))]
    with _lock:
        _idle.extend(started)


def _take_idle() -> _Process | None:
    with _lock:
        return _idle.pop() if _idle else None


Keep = Callable[[StoredCase], None]


class Readers:
    """The one process at a time that reads the entries of a batch; a new one is started when it ends.

    It may take `memory_gb`, all that reading may take unless given. Not `alone`, it is one of several: what ends it, or may
    have lacked memory, is no fault of what it read and raises RetryAlone.
    """

    def __init__(self, ws: Settings, memory_gb: float | None = None, *, alone: bool = True) -> None:
        self.ws, self.alone = ws, alone
        self.memory_gb = ws.intake_memory_gb if memory_gb is None else memory_gb
        self._process: _Process | None = None
        self.stopped = False

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None and kind is None and not self._process.working:
            with _lock:
                _idle.append(self._process)
        elif self._process is not None:
            self._process.end()
        self._process = None

    def stop(self) -> None:
        """End the process for good, from another thread than the one that it works for, which is left with RetryAlone."""
        self.stopped = True
        if (process := self._process) is not None:
            process.process.kill()

    def originals(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        """Read the headers of original files, with the fields of `Header`; a file that ends the process, or its time, is left out.

        Raises CaseRejected as `read` does, DiskFull, ReaderFailed.
        """
        task = Originals(replace(self.ws), tuple(files))
        return self._read(task, lambda case: None, Division(Condition(), {})).headers

    def read(self, task: Task, keep: Keep, division: Division | None = None) -> EntryResult:
        """Read an entry; `keep` takes each accepted case, whose folder is gone afterwards. The task's scratch is ignored.

        A `division` has cases of earlier attempts, and says what helpers do. Raises CaseRejected ("reader_crashed",
        "reader_time_limit") when nothing of the entry can be read, DiskFull, ReaderFailed, and RetryAlone.
        """
        return self._read(replace(task, ws=replace(task.ws)), keep, division or Division(Condition(), {}))

    def _read(self, task: Task | Originals, keep: Keep, division: Division) -> EntryResult:
        refused: dict[str, tuple[str, str]] = {}
        while True:
            with tempfile.TemporaryDirectory(dir=scratch(self.ws.home)) as folder:
                try:
                    attempt = replace(task, scratch=Path(folder), refused=dict(refused))
                    result = self._attempt(attempt, keep, division)
                except _Ended as ended:
                    if not self.alone:
                        self._leave(keep, division)
                        raise RetryAlone from None
                    reason = ended.code, ended.message
                    if ended.key in ("", *refused) or len(refused) == MAX_REFUSED:
                        raise CaseRejected(*reason) from None
                    refused[ended.key] = reason
                    continue
                except CaseRejected as rejected:
                    self._require_enough_memory([rejected.code])
                    raise
                finally:
                    division.close()
            self._require_enough_memory([case.reason_code for case in result.cases])
            if division.undone:
                raise RetryAlone
            return result

    def _leave(self, keep: Keep, division: Division) -> None:
        """End the work on an entry of which a part ended the process: the other cases are finished, that one is not."""
        if division.kind == CASES and division.task is not None and division.task.shared:
            self.help(keep, division, lambda: False)
            division.next()

    def help(self, keep: Keep, division: Division, stay: Callable[[], bool]) -> None:
        """Work on parts of an entry that another process reads, or read, until none is left, see `Division.last`."""
        process: _Process | None = None
        while not self.stopped and (order := division.last(stay)) is not None:
            kind, number = order
            try:
                assert division.task is not None
                process = process or self._send(Help(division.task))
                process.notes.clear()
                self._order(process, order)
                self._helped(process, keep, division, number)
            except _Ended:
                process = None
                if kind != CASES:
                    division.failed(RetryAlone())
                division.again()
            except BaseException as error:
                process = None
                division.failed(error)
            finally:
                division.done()
        if process is not None and not self.stopped:
            with suppress(_Ended):  # all that it did is kept
                self._order(process, None)
                next(self._answers(process))
                process.working = False

    def _helped(self, process: _Process, keep: Keep, division: Division, number: int) -> None:
        """Wait until a part of another's entry is done."""
        for kind, values in self._answers(process):
            if kind == "next":
                return
            if kind in ("case", "refused"):
                self._keep(kind, values, keep, division, number)
            else:
                process.working = False
                self._require_done(kind, values)

    def _keep(self, kind: str, values: Any, keep: Keep, division: Division, number: int) -> None:
        """Keep what came of a case."""
        if kind == "case":
            stored = StoredCase(
                CaseVersion.of(values["case"]), Path(values["folder"]), values["hashes"], values["counts"]
            )
            keep(stored)
            row = stored.case
        else:
            row = CaseVersion.of(values)
        if self._may_lack_memory([row.reason_code]):
            division.again()
        else:
            division.keep(number, row)

    def _may_lack_memory(self, codes: Iterable[str | None]) -> bool:
        """Whether a reason may be a lack of memory, of which one alone may take more."""
        return self.memory_gb < self.ws.intake_memory_gb and not MAY_LACK_MEMORY.isdisjoint(codes)

    def _require_enough_memory(self, codes: Iterable[str | None]) -> None:
        if self._may_lack_memory(codes):
            raise RetryAlone

    def prepare(self, task: Preparation) -> None:
        """Prepare a stored case, which parses and decodes what strangers sent, with the limits of reading.

        Raises CaseRejected, DiskFull, ReaderFailed, and RetryAlone.
        """
        n_files = sum(1 for _ in task.stored.iterdir())
        limit_s = PREPARATION_LIMITS * self.ws.intake_file_s * (1 + n_files // FILES_PER_LIMIT)
        self.call(partial(prepare_case, replace(task, ws=replace(task.ws))), f"case {task.case_id}", limit_s)

    def call(self, work: Callable[[], None], key: str, limit_s: float | None = None) -> None:
        """Call a function that can be pickled in the process, for what `key` names, such as a case, and within a time if given.

        Raises CaseRejected where the function does, or fails, DiskFull, ReaderFailed, and RetryAlone.
        """
        step = Step(key, limit_s or 0.0)
        try:
            process = self._send(work)
            try:
                if not process.answers_within(limit_s):
                    raise self._ended(step, TIME_LIMIT)
                kind, values = json.loads(process.connection.recv_bytes())
            except (EOFError, OSError):
                raise self._ended(step, CRASHED) from None
        except _Ended as ended:
            if not self.alone:
                raise RetryAlone from None
            raise CaseRejected(ended.code, ended.message) from None
        process.working = False
        try:
            self._require_done(kind, values)
        except CaseRejected as rejected:
            self._require_enough_memory([rejected.code])
            raise

    def _send(self, task: Any) -> _Process:
        process = self._running()
        process.working = True
        process.notes.clear()
        try:
            process.connection.send((without_secrets() | ONE_THREAD, self.memory_gb, task))
        except OSError:  # it ended while it waited for work
            raise self._ended(NOTHING_YET, CRASHED) from None
        return process

    @staticmethod
    def _require_done(kind: str, values: Any) -> None:
        """Raise DiskFull or CaseRejected for work that was not done."""
        if kind == "full":
            raise DiskFull(values)
        if kind == "rejected":
            picture = base64.b64decode(values["picture"]) if values["picture"] else None
            raise CaseRejected(values["code"], values["message"], picture)
        if kind == "failed":
            message = f"expected an entry that can be read, got {values}; please report this place in the code"
            raise CaseRejected(UNREADABLE, message)

    def _attempt(self, task: Task | Originals, keep: Keep, division: Division) -> EntryResult:
        done = EntryResult()
        if isinstance(task, Task):
            division.task = task
        process = self._send(task)
        part: int | None = None
        for kind, values in self._answers(process):
            if kind == "files":
                done.files += [FileOutcome(Path(path), member, outcome) for path, member, outcome in values]
            elif kind == "header":
                done.headers.append(values)
            elif kind == "parts":
                part = division.begin(values["kind"], [Part(**one) for one in values["parts"]])
                self._order(process, part)
            elif kind == "next":
                part = division.next()
                self._order(process, part)
            elif part is not None and kind in ("case", "refused"):
                self._keep(kind, values, keep, division, part)
            elif kind == "refused":
                done.cases.append(CaseVersion.of(values))
            else:
                process.working = False
                self._require_done(kind, values)
                break
        if not division.undone:
            done.cases += division.cases()
        return done

    def _answers(self, process: _Process) -> Iterator[tuple[str, Any]]:
        """What the process answers, each time within the time of the step that it has noted."""
        while True:
            first = Note(Step("", self.ws.intake_file_s), time.monotonic())
            try:
                while not process.answers_within(left_s := (process.notes.read() or first).left_s(first.began_s)):
                    if left_s <= 0:
                        raise self._ended((process.notes.read() or first).step, TIME_LIMIT)
                answer = json.loads(process.connection.recv_bytes())
            except (EOFError, OSError):
                raise self._ended((process.notes.read() or first).step, CRASHED) from None
            yield answer

    def _order(self, process: _Process, order: Any) -> None:
        """Say on what part the process is to work next, None for no more."""
        try:
            process.connection.send(order)
        except OSError:
            raise self._ended(NOTHING_YET, CRASHED) from None

    def _running(self) -> _Process:
        if self._process is not None and self._process.working:  # for work that nobody waits for any more
            self._process.end()
            self._process = None
        found = self._process
        while found is None and (waiting := _take_idle()) is not None:
            usable = waiting.owner == os.getpid() and waiting.process.poll() is None
            if usable and waiting.limits == _limits(self.ws.intake_memory_gb):
                found = waiting
            else:
                waiting.end()
        found = found or _Process(self.ws.intake_memory_gb)
        found.wait_until_ready()
        self._process = found
        if self.stopped:
            self._process.process.kill()
        return self._process

    def _ended(self, step: Step, code: str) -> _Ended:
        """End the process; the error says in which step that was, and why, without the name of a file."""
        assert self._process is not None
        process, self._process = self._process, None
        if code == CRASHED:
            with suppress(subprocess.TimeoutExpired):
                process.process.wait(END_LIMIT_S)
        process.end()
        status = None if code == TIME_LIMIT else process.process.returncode or 0
        return _Ended(step.key, code, ending(step, status, self.ws.intake_memory_gb))


def _serve(connection: Connection, notes: NoteFile) -> None:
    """Read entries until the other end is closed."""
    from med_assets.deidentification import residual  # noqa: F401 - imported before the first step's time runs
    from med_assets.deidentification.deidentify import Deidentifier
    from med_assets.deidentification.profiles import profile_of
    from med_assets.dicom import discover, write  # noqa: F401 - imported before the first step's time runs
    from med_assets.dicom.elements import quietly
    from med_assets.program import get

    outcomes: list[tuple[Path, str, str]] = []

    def answer(kind: str, values: Any) -> None:
        if outcomes:  # all at once: each message wakes who watches
            connection.send_bytes(json.dumps(["files", outcomes], default=str).encode())
            outcomes.clear()
        connection.send_bytes(json.dumps([kind, values], default=str).encode())

    def report(message: Step | FileOutcome) -> None:
        if isinstance(message, Step):
            notes.write(message)
        else:
            outcomes.append((message.path, message.member, message.outcome))

    def orders(kind: str, parts: Sequence[Part]) -> Iterator[int]:
        answer("parts", {"kind": kind, "parts": [asdict(part) for part in parts]})
        while (number := connection.recv()) is not None:
            yield number
            answer("next", None)

    def helped() -> Iterator[tuple[str, int]]:
        while (order := connection.recv()) is not None:
            yield order
            answer("next", None)

    keep_freed_memory()
    gc.freeze()  # what is imported stays, and is looked through no more
    connection.send_bytes(b"ready")
    while True:
        give_back_memory()
        try:
            environment, memory_gb, task = connection.recv()
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment)
        _limit_memory(memory_gb)
        outcomes.clear()
        try:
            if callable(task):
                with quietly():
                    task()
                answer("done", None)
                continue
            if isinstance(task, Originals):
                for row in read_originals(task, report):
                    answer("header", row)
                answer("done", None)
                continue
            with quietly():  # warnings of pydicom quote values
                whole = task.task if isinstance(task, Help) else task
                vocabulary = get(whole.program).roi_vocabulary(whole.ws)
                keys = Deidentifier(whole.ws.key, vocabulary, profile_of(whole.ws, whole.program))
                entry = EntryReader(whole, keys, report, orders)
                for message in entry.help(helped()) if isinstance(task, Help) else entry.messages():
                    if isinstance(message, StoredCase):
                        answer("case", asdict(message))
                    elif message is not None:
                        answer("refused", message.row())
        except DiskFull as error:
            answer("full", str(error))
        except CaseRejected as rejected:
            picture = base64.b64encode(rejected.picture).decode() if rejected.picture else ""
            answer("rejected", {"code": rejected.code, "message": rejected.message, "picture": picture})
        except Exception as error:
            answer("failed", where(error))
        else:
            answer("done", None)


def _limit_memory(memory_gb: float) -> None:
    """Limit what this process may take, to at most what it was started with."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (min(int(memory_gb * 1e9), most), most))


def main() -> None:
    """The process: the numbers of a socket and of a file of notes, the process id of who watches, which `ps` shows, and GB of memory
    that it may use."""
    descriptor, notes, memory_gb = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[4])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # who watches gets it too, and decides
    preloaded.end_with(os.getppid())  # had who watches ended before, the connection is closed
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(memory_gb * 1e9) if hard == resource.RLIM_INFINITY else min(int(memory_gb * 1e9), hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold what was read
    _serve(Connection(descriptor), NoteFile(notes))


if __name__ == "__main__":
    main()
