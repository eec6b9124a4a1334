"""Processes forked from a parent that has imported what they need, so that a start costs no imports.

Whoever starts many short processes, such as `make demo` and the tests, keeps a parent for each module that they run (`parents`), and `start`
forks from it where an ordinary process of the same command would be the same one: same package, environment, limits, cores. Else, and
wherever there is no parent, `start` is `subprocess.Popen`. A forked process has its own session, open files, folder, environment,
arguments and random state, and its exit status is that of an ordinary one; only `ps` shows it under the command of its parent.

Python's own `multiprocessing.forkserver` serves one process and its descendants by pickled functions: here processes that know nothing of
each other share a parent, and what they start are commands.

A request is one message of a Unix socket, with the open files of the new process. The connection stays until one of both ends: the answer
is the process id, then the exit status.
"""

import atexit
import ctypes
import fcntl
import gc
import json
import os
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import cast

from med_assets.errors import MedAssetsError

VARIABLE = "MED_ASSETS_PRELOADED"
"""Names the folder with the sockets of the parents, each named by its module."""

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the package that runs."""

NOT_READ_BY_IMPORTS = ("MED_ASSETS_", "PYTEST_", "DAGSTER_", "AWS_", "S3_", "PG", "GX_")
"""Prefixes of variables that no preloaded module reads while it is imported, as PG of PostgreSQL, or that it sets itself before, as GX of Great
Expectations; a process gets its own."""

NOT_OF_THE_PROCESS = frozenset(
    {"PWD", "OLDPWD", "SHLVL", "_", "LINES", "COLUMNS"}
    | {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "CUBLAS_WORKSPACE_CONFIG", "_MLFLOW_TELEMETRY_SESSION_ID"}
    | {"PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR"}
)
"""Variables of shells and terminals, and those that scikit-learn, MONAI, MLflow, Lightning and torch set in whatever imports them: libraries
read these when their first threads, compiler or CUDA start, which is in the process itself, or never."""

SEARCHED = "LD_LIBRARY_PATH"
"""OpenCV, which MONAI imports, adds a folder to it that need not exist; folders that are there count."""

LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))

IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
"""Signals that Python ignores and `subprocess` restores; what else is ignored is so in what is started."""

MOST_FILES, MOST_BYTES = 16, 1 << 20
"""Of one request; a larger one is started as an ordinary process."""

THREADLESS = ("JE_ARROW_MALLOC_CONF", "background_thread:false")
"""Variable and value with which pyarrow starts no thread when it is imported: a process with two threads is not forked."""

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def available() -> bool:
    """Whether this system has what a parent needs: Linux with file descriptors of processes."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


@dataclass(frozen=True)
class Request:
    """A process to be forked: what it runs, what it is to have, and how its starter's surroundings are."""

    arguments: list[str]
    safe_path: bool
    """Whether the folder in which it starts is not searched for modules (`-P`)."""
    environment: dict[str, str]
    folder: str
    umask: int
    files: list[int]
    """The numbers of the files that come with the request."""
    tied: bool
    """Whether it is killed once its starter has ended or forgotten it."""
    surroundings: dict[str, object]


def _surroundings(environment: Mapping[str, str]) -> dict[str, object]:
    """What a process has from its parent or reads while it imports, beside what a request gives it."""
    return {
        "package": str(ROOT),
        "python": sys.executable,
        "variables": {
            name: text
            for name, text in environment.items()
            if not name.startswith(NOT_READ_BY_IMPORTS) and name not in {*NOT_OF_THE_PROCESS, SEARCHED}
        },
        "libraries": [name for name in environment.get(SEARCHED, "").split(":") if name and os.path.isdir(name)],
        "limits": {name: list(resource.getrlimit(getattr(resource, name))) for name in LIMITS},
        "cores": sorted(os.sched_getaffinity(0)),
        "niceness": os.nice(0),
        "ignored": sorted(
            number
            for number in signal.valid_signals() - IGNORED_BY_PYTHON
            if signal.getsignal(number) == signal.SIG_IGN
        ),
    }


def _umask() -> int:
    """The mask of new files, which `os.umask` gives only by changing it, for all threads."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)


class Forked:
    """A process forked from a parent; as much of `subprocess.Popen` as its starters use."""

    def __init__(self, pid: int, process: int, connection: socket.socket) -> None:
        self.pid, self._process, self._connection = pid, process, connection
        self.returncode: int | None = None

    def __del__(self) -> None:
        if self.returncode is None:
            self._close()

    def poll(self) -> int | None:
        """Exit status, -n when it was ended by signal n; None while it runs."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        if (code := self._wait(timeout)) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:  # not `poll`: another thread may wait for its end
            with suppress(ProcessLookupError):  # ended since
                signal.pidfd_send_signal(self._process, number)

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and _readable(self._connection, timeout):
            answer, _ = _received(self._connection)
            if not answer:
                # Its parent was killed. Nobody learns the status of a process that outlives it, which counts as killed.
                if not _readable(self._process, timeout):
                    return None
                answer = str(-signal.SIGKILL).encode()
            self.returncode = int(answer)
            self._close()
        return self.returncode

    def _close(self) -> None:
        self._connection.close()
        os.close(self._process)


Process = subprocess.Popen[bytes] | Forked


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    stdout: int = 1,
    stderr: int = 2,
    keep: Sequence[int] = (),
    *,
    stdin: int | None = None,
    tied: bool = False,
) -> Process:
    """Start a command in a session of its own, forked where its module has a parent and would be the same.

    It reads nothing without `stdin`; this, `stdout` and `stderr` are open files, those of `keep` are open in it under their numbers. A
    `tied` one that is forked is killed when this process ends; an ordinary one has to see to that itself.
    """
    files = {1: stdout, 2: stderr, **{number: number for number in keep}} | ({} if stdin is None else {0: stdin})
    forked = _fork(command, environment, files, tied)
    return forked or subprocess.Popen(
        command, stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=stdout, stderr=stderr,
        start_new_session=True, env=environment, pass_fds=keep,
    )  # fmt: skip


def run(
    command: Sequence[str], environment: Mapping[str, str], given: bytes, timeout_s: float
) -> subprocess.CompletedProcess[bytes]:
    """Start a command, give it its input, and wait for its end; what it writes is in memory alone.

    Raises subprocess.TimeoutExpired when it has not ended within `timeout_s` seconds; then, and when this thread is interrupted, it is killed.
    """
    (stdin, ours), *written = pipes = [os.pipe() for _ in range(3)]
    try:
        process = start(command, environment, written[0][1], written[1][1], stdin=stdin, tied=True)
    except BaseException:
        for file in chain.from_iterable(pipes):
            os.close(file)
        raise
    for file in (stdin, *(theirs for _, theirs in written)):
        os.close(file)
    found: dict[int, bytes] = {}
    threads = [threading.Thread(target=_write, args=(ours, given))]
    threads += [threading.Thread(target=_read, args=(file, found)) for file, _ in written]
    for thread in threads:
        thread.start()
    try:
        code = process.wait(timeout_s)
    finally:
        process.kill()  # unless it has ended
        process.wait()
        for thread in threads:
            thread.join()
    return subprocess.CompletedProcess(command, code, *(found[file] for file, _ in written))


def _write(file: int, given: bytes) -> None:
    """Write all into a pipe and close it, unless its reader has ended."""
    with suppress(BrokenPipeError), open(file, "wb", buffering=0) as pipe:
        while given:
            given = given[pipe.write(given) :]


def _read(file: int, found: dict[int, bytes]) -> None:
    """Put into `found` all that comes out of a pipe, and close it."""
    with open(file, "rb") as pipe:
        found[file] = pipe.read()


def _fork(
    command: Sequence[str], environment: Mapping[str, str], given: Mapping[int, int], tied: bool
) -> Forked | None:
    """Ask the parent of the command's module for a process; None where there is no parent or it has other surroundings."""
    folder = os.environ.get(VARIABLE)
    if not folder or not available():
        return None
    match command:
        case [sys.executable, "-P", "-m", module, *arguments]:
            safe_path = True
        case [sys.executable, "-m", module, *arguments]:
            safe_path = False
        case _:
            return None
    request = Request(
        arguments=arguments,
        safe_path=safe_path,
        environment=dict(environment),
        folder=os.getcwd(),
        umask=_umask(),
        files=list(given),
        tied=tied,
        surroundings=_surroundings(environment),
    )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"{folder}/{module}")
        socket.send_fds(connection, [json.dumps(asdict(request)).encode()], list(given.values()))
    except OSError:  # no parent, or the request is too large: an ordinary process does as well
        connection.close()
        return None
    answer, files = _received(connection)
    if not files:
        connection.close()
        return None
    return Forked(int(answer), files[0], connection)


def _readable(file: socket.socket | int, timeout_s: float | None) -> bool:
    """Whether there is something to read within a time; `select.select` knows no file whose number is beyond 1,023."""
    waiting = select.poll()
    waiting.register(file, select.POLLIN)
    return bool(waiting.poll(None if timeout_s is None else 1000 * max(timeout_s, 0.0)))


def _received(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The next message with its open files; no message where the other end is closed."""
    try:
        message, files, _, _ = socket.recv_fds(connection, MOST_BYTES, MOST_FILES)
    except ConnectionResetError:
        return b"", []
    return message, files


def _send(connection: socket.socket, message: bytes, files: Sequence[int] = ()) -> None:
    """Send a message with open files, unless the other end is closed."""
    with suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(connection, [message], files)


@contextmanager
def parents(
    imports: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    beside: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[dict[str, str]]:
    """Keep a parent for each module of `imports` while the block runs, and yield the variable by which `start` finds them.

    Those of another environment are found by the same variable where `beside` is what was yielded for the first. A parent imports
    the modules of its list at its first request. It ends with the thread that called this; processes that are not tied go on.
    Where the system has no parents, the block runs without.
    """
    if not available():
        yield {}
        return
    with ExitStack() as stack:
        folder = beside.get(VARIABLE) or stack.enter_context(TemporaryDirectory(prefix="preloaded-"))
        for module, names in imports.items():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(f"{folder}/{module}")
                listener.listen(64)
                command = [sys.executable, "-m", __name__, str(listener.fileno()), str(os.getpid()), module, *names]
                parent = subprocess.Popen(
                    command, cwd=ROOT, env=environment, start_new_session=True, pass_fds=[listener.fileno()],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            stack.callback(parent.wait)
            stack.callback(parent.kill)
        yield {VARIABLE: folder}


class _Parent:
    """The process that forks. It has one thread and touches no accelerator, or a child would have locks that nobody opens."""

    def __init__(self, listener: socket.socket, module: str, imports: Sequence[str]) -> None:
        self.listener, self.module, self.imports = listener, module, imports
        self.ready = False
        # Through JSON, as a request comes, in which there are no tuples; now, since imports set variables.
        self.surroundings = json.loads(json.dumps(_surroundings(os.environ)))
        self.set_by_imports: dict[str, str] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self._connected)
        self.processes: dict[socket.socket, tuple[int, bool]] = {}
        """By connection the file descriptor of the process, and whether it is tied."""

    def serve(self) -> tuple[Request, list[int]]:
        """Answer requests for ever; returns in each process that is forked, with its request and the files that came with it."""
        while True:
            for key, _ in self.selector.select():
                if (found := key.data()) is not None:
                    return found

    def _connected(self) -> None:
        connection, _ = self.listener.accept()
        self.selector.register(connection, selectors.EVENT_READ, partial(self._heard, connection))

    def _heard(self, connection: socket.socket) -> tuple[Request, list[int]] | None:
        """A request, or the end of a starter."""
        if connection.fileno() < 0:  # closed earlier in this round
            return None
        message, files = _received(connection)
        if not message:
            process, tied = self.processes.get(connection, (-1, False))
            if tied:
                signal.pidfd_send_signal(process, signal.SIGKILL)
            self._forget(connection)
            return None
        request = Request(**json.loads(message))
        if not self._same(request):
            _send(connection, b"other surroundings")
            self._forget(connection)
        else:
            parent = os.getpid()
            if not (pid := os.fork()):
                self._separate(connection, parent if request.tied else None)
                return replace(request, environment=request.environment | self.set_by_imports), files
            process = os.pidfd_open(pid)
            self.processes[connection] = (process, request.tied)
            self.selector.register(process, selectors.EVENT_READ, partial(self._ended, connection, pid, process))
        for file in files:
            os.close(file)
        return None

    def _ended(self, connection: socket.socket, pid: int, process: int) -> None:
        """A process has ended: reap it and say how, if its starter still listens."""
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.selector.unregister(process)
        os.close(process)
        if self.processes.pop(connection, None) is not None:
            _send(connection, str(code).encode())
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        self.processes.pop(connection, None)
        self.selector.unregister(connection)
        connection.close()

    def _same(self, request: Request) -> bool:
        """Whether a process of this parent is what an ordinary one would be."""
        package = Path(request.folder) / self.module.partition(".")[0]
        shadowed = not request.safe_path and package.exists() and package.parent.resolve() != ROOT
        others, own = ({**each, "variables": None} for each in (request.surroundings, self.surroundings))
        if shadowed or others != own:
            return False
        self._load()
        variables = cast(dict[str, str], request.surroundings["variables"])
        # A starter that has imported the same has the variables which these imports set.
        unset = {name: text for name, text in variables.items() if self.set_by_imports.get(name) != text}
        return unset == self.surroundings["variables"]

    def _load(self) -> None:
        """Import, once. Raises MedAssetsError when that leaves more than one thread; all that would be forked is then ordinary."""
        if self.ready:
            return
        before = dict(os.environ)
        os.environ.setdefault(*THREADLESS)
        for name in self.imports:
            import_module(name)
        if THREADLESS[0] not in before:
            del os.environ[THREADLESS[0]]
        self.set_by_imports = {name: text for name, text in os.environ.items() if before.get(name) != text}
        if (threads := len(os.listdir("/proc/self/task"))) != 1:
            raise MedAssetsError(f"expected one thread after the imports of {self.module}, got {threads}")
        gc.collect()
        gc.freeze()  # so that collecting in a child copies no page of what it shares
        self.ready = True

    def _separate(self, connection: socket.socket, tied_to: int | None) -> None:
        """In the new process: leave all that is the parent's, and answer the starter once this is a session of its own."""
        os.setsid()
        if tied_to is not None:
            end_with(tied_to)
        itself = os.pidfd_open(os.getpid())
        _send(connection, str(os.getpid()).encode(), [itself])
        os.close(itself)
        for key in list(self.selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self.selector.close()


def end_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent, of this process id, has ended; where it is not Linux, nothing happens."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _take_over(request: Request, files: Sequence[int]) -> None:
    """Give this process what the request says: files, environment, folder, module path, arguments, random numbers."""
    above = max(request.files) + 1
    aside = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for file in files]
    for number, file in zip(request.files, aside, strict=True):
        os.dup2(file, number)
    for file in {*aside, *files} - set(request.files):
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    os.umask(request.umask)
    if not sys.flags.safe_path:
        sys.path[:1] = [] if request.safe_path else [request.folder]
    sys.argv[1:] = request.arguments
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # the state of a new process is its own; Python's own generator sees to that itself


def main(arguments: Sequence[str]) -> str:
    """Be a parent of `FILE OWNER MODULE IMPORT...`; returns the module to run in each process that is forked."""
    number, owner, module, *imports = arguments
    end_with(int(owner))
    _take_over(*_Parent(socket.socket(fileno=int(number)), module, imports).serve())
    return module


def _end(code: int) -> None:
    """End with this status as the interpreter does, but for taking all modules apart: they are the parent's, and to take them apart copies
    them, which costs more than most commands do. Returns where the output can't be written; the interpreter says so.
    """
    threading._shutdown()  # type: ignore[attr-defined] # the interpreter waits for threads by this name, and there is no other
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    ctypes.CDLL(None).fflush(None)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    # At the top of the process, so that what ends it there ends as any other: status, traceback, `atexit`, threads waited for.
    status = 0
    try:
        runpy.run_module(main(sys.argv[1:]), run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        status = ended.code or 0
    _end(status)
    sys.exit(status)
