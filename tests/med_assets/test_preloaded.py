"""A process forked from a preloaded parent is what an ordinary process of the same command is."""

import json
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from med_assets.intake import reader
from med_assets.launch.jobs import PRELOADED
from med_assets.storage import preloaded
from tests import code, worker
from tests.conftest import COMMANDS, GIVEN

SUBJECT = "subject"

STATE = """
import json, os, random, resource, signal, stat, sys, threading, warnings
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("this goes to stderr", file=sys.stderr)
print(json.dumps({
    "name": __name__,
    "module": __spec__.name,
    "arguments": sys.argv,
    "path": sys.path,
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "leader": os.getsid(0) == os.getpgrp() == os.getpid(),
    "input": sys.stdin.read(),
    "buffering": [sys.stdout.line_buffering, sys.stderr.line_buffering],
    "files": {file: os.readlink(f"/proc/self/fd/{file}") for file in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{file}")},
    "inherited": sorted(int(file) for file in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{file}") and os.get_inheritable(int(file))),
    "signals": [status[name].strip() for name in ("SigBlk", "SigIgn", "SigCgt", "Umask", "Threads")],
    "threads": threading.active_count(),
    "handlers": {number.name: str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)},
    "limits": [resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")],
    "warnings": sys.warnoptions,
}))
"""

ENDS = {
    "by itself": ("", 0),
    "with a status": ("sys.exit(3)", 3),
    "with a large status": ("sys.exit(256 + 3)", 3),
    "with none": ("sys.exit()", 0),
    "with a text": ("sys.exit('reason')", 1),
    "with an exception": ("raise ValueError('reason')", 1),
    "by a signal": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "with a thread that goes on": ("threading.Timer(0.1, print, ['last']).start()", 0),
}

WAIT = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"

STARTER = """
import os, subprocess, sys, time
from med_assets.storage import preloaded
child = preloaded.start([sys.executable, "-m", "subject"], os.environ, tied=sys.argv[1] == "tied")
assert isinstance(child, preloaded.Forked), child
print("parent", os.stat(f"/proc/{child.pid}").st_uid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, in which `subject.py` is what is run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Process]:
    """A parent that has imported numpy and `decimal`, and nothing of ours."""
    children = set(psutil.Process().children())
    with preloaded.parents({SUBJECT: ("decimal", "numpy")}, os.environ) as found:
        (process,) = set(psutil.Process().children()) - children
        for name, text in found.items():
            monkeypatch.setenv(name, text)
        yield process


def run(folder: Path, source: str, *arguments: str, keep: tuple[int, ...] = ()) -> tuple[preloaded.Process, str, str]:
    """Run `subject.py` to its end: the process, and what it wrote."""
    (folder / f"{SUBJECT}.py").write_text("import atexit, os, signal, sys, threading\n" + source)
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        command = [sys.executable, "-m", SUBJECT, *arguments]
        process = preloaded.start(command, os.environ, out.fileno(), err.fileno(), keep)
    process.wait()
    return process, (folder / "out").read_text(), (folder / "err").read_text()


def ordinary(
    folder: Path, source: str, *arguments: str, keep: tuple[int, ...] = ()
) -> tuple[subprocess.Popen[bytes], str, str]:
    with pytest.MonkeyPatch.context() as patch:
        # A folder without sockets, since what is run is to see the same environment.
        patch.setattr(preloaded, "available", lambda: False)
        process, out, err = run(folder, source, *arguments, keep=keep)
    assert isinstance(process, subprocess.Popen)
    return process, out, err


def test_all_that_a_process_can_see_of_itself_is_as_in_an_ordinary_one(
    parent: psutil.Process, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_OF_THE_STARTER", "set after the parent began")
    before = os.umask(0o027)
    try:
        with (folder / "kept").open("wb") as kept:
            forked, out, err = run(folder, STATE, "--flag", "text", keep=(kept.fileno(),))
            _, expected, _ = ordinary(folder, STATE, "--flag", "text", keep=(kept.fileno(),))
    finally:
        os.umask(before)
    assert isinstance(forked, preloaded.Forked)
    assert err == "this goes to stderr\n"
    assert json.loads(out) == json.loads(expected)


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_an_ordinary_one(parent: psutil.Process, folder: Path, end: str) -> None:
    source, code = ENDS[end]
    source = f"atexit.register(print, 'at exit')\nprint('first')\n{source}"
    forked, out, err = run(folder, source)
    expected = ordinary(folder, source)
    assert isinstance(forked, preloaded.Forked)
    assert forked.returncode == expected[0].returncode == code
    assert out == expected[1]
    assert err.splitlines()[-1:] == expected[2].splitlines()[-1:]
    assert not psutil.pid_exists(forked.pid)


def test_what_it_leaves_open_is_written(parent: psutil.Process, folder: Path) -> None:
    """It is not taken apart as an ordinary one is: that would copy all that it shares with its parent."""
    text = "import ctypes\nleft = open('left', 'w')\nleft.write('text')\nctypes.CDLL(None).printf(b'by C')\nsys.exit(0)"
    forked, out, _ = run(folder, text)
    assert isinstance(forked, preloaded.Forked)
    assert (out, (folder / "left").read_text()) == ("by C", "text")


def test_a_status_says_that_the_output_could_not_be_written(parent: psutil.Process, folder: Path) -> None:
    text = "sys.stdout = open('/dev/full', 'w'); print('lost')"
    forked, _, err = run(folder, text)
    assert isinstance(forked, preloaded.Forked)
    expected = ordinary(folder, text)
    assert forked.returncode == expected[0].returncode == 120
    assert err == expected[2]


def test_it_has_the_imports_of_its_parent_and_random_numbers_of_its_own(parent: psutil.Process, folder: Path) -> None:
    source = """
assert {"numpy", "decimal"} <= set(sys.modules)
import random, uuid, numpy
print(random.random(), numpy.random.random(), uuid.uuid4())
"""
    outputs = [run(folder, source)[1].split() for _ in range(2)]
    assert all(len({*numbers}) == 2 for numbers in zip(*outputs, strict=True))


def test_variables_that_imports_set_are_there_in_each_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "setter.py").write_text("import os\nos.environ['SET_BY_AN_IMPORT'] = 'yes'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(preloaded.ROOT), str(folder)]))
    with preloaded.parents({SUBJECT: ("setter",)}, os.environ) as found:
        for name, text in found.items():
            monkeypatch.setenv(name, text)
        for _ in range(2):
            process, out, _ = run(folder, "print(os.environ['SET_BY_AN_IMPORT'])")
            assert (type(process), out) == (preloaded.Forked, "yes\n")
        for text, kind in (
            ("yes", preloaded.Forked),
            ("no", subprocess.Popen),
        ):  # as in a starter with the same imports, and another
            monkeypatch.setenv("SET_BY_AN_IMPORT", text)
            process, out, _ = run(folder, "print(os.environ['SET_BY_AN_IMPORT'])")
            assert (type(process), out) == (kind, f"{text}\n")


@pytest.mark.parametrize("difference", ["variable", "limit", "package of that name", "other python"])
def test_where_an_ordinary_process_would_be_another_one_it_is_started(
    parent: psutil.Process, folder: Path, monkeypatch: pytest.MonkeyPatch, difference: str
) -> None:
    (folder / f"{SUBJECT}.py").write_text("")
    command = [sys.executable, "-m", SUBJECT]
    environment = dict(os.environ)
    match difference:
        case "variable":
            environment["OMP_NUM_THREADS"] = "7"
        case "limit":
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
            resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else min(4096, hard), hard))
        case "package of that name":
            (folder / SUBJECT).mkdir()
            (folder / SUBJECT / "__init__.py").touch()
            (folder / SUBJECT / "__main__.py").touch()
        case _:
            command[1:1] = ["-W", "error"]
    process = preloaded.start(command, environment)
    assert isinstance(process, subprocess.Popen)
    assert process.wait() == 0
    if difference == "limit":
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_without_a_parent_an_ordinary_process_is_started(parent: psutil.Process, folder: Path) -> None:
    parent.kill()
    parent.wait()
    process, out, _ = run(folder, "print('ran')")
    assert (out, type(process)) == ("ran\n", subprocess.Popen)


def test_a_parent_that_cannot_import_says_so_and_ordinary_processes_are_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with preloaded.parents({SUBJECT: ("no_such_module",)}, os.environ) as found:
        for name, text in found.items():
            monkeypatch.setenv(name, text)
        process, out, _ = run(folder, "print('ran')")
    assert (out, type(process)) == ("ran\n", subprocess.Popen)
    assert "no_such_module" in capfd.readouterr().err


def test_signals_reach_it(parent: psutil.Process, folder: Path) -> None:
    (folder / f"{SUBJECT}.py").write_text(WAIT)
    for end, number in ((preloaded.Forked.terminate, signal.SIGTERM), (preloaded.Forked.kill, signal.SIGKILL)):
        process = preloaded.start([sys.executable, "-m", SUBJECT], os.environ)
        assert isinstance(process, preloaded.Forked)
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0)
        end(process)
        assert process.wait() == -number
        end(process)  # of one that has ended: nothing


def _starter(folder: Path, how: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A process that started another, and that other."""
    (folder / f"{SUBJECT}.py").write_text(WAIT)
    (folder / "starter.py").write_text(STARTER)
    starter = subprocess.Popen([sys.executable, "-m", "starter", how], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    lines = sorted((starter.stdout.readline() for _ in range(2)), key=lambda line: line.startswith(b"parent"))
    return starter, psutil.Process(int(lines[0]))


def ended(process: psutil.Process) -> None:
    """Wait for the end of a process that is nobody's child here."""
    try:
        file = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    select.select([file], [], [])
    os.close(file)


@pytest.mark.parametrize("killed", ["starter", "parent"])
@pytest.mark.parametrize("how", ["tied", "free"])
def test_one_that_is_tied_ends_with_its_starter_and_its_parent_and_another_with_neither(
    parent: psutil.Process, folder: Path, how: str, killed: str
) -> None:
    starter, process = _starter(folder, how)
    assert process.ppid() == parent.pid
    (parent if killed == "parent" else starter).kill()
    (parent if killed == "parent" else starter).wait()
    if how == "tied":
        ended(process)
    else:
        # Whoever kills those that are tied has seen the end of the starter before it answers this.
        run(folder, "")
        assert process.is_running()
        process.kill()
        ended(process)
    starter.kill()
    starter.communicate()


def test_one_that_outlives_its_parent_is_seen_to_run_and_counts_as_killed_when_it_ends(
    parent: psutil.Process, folder: Path
) -> None:
    (folder / f"{SUBJECT}.py").write_text(WAIT)
    process = preloaded.start([sys.executable, "-m", SUBJECT], os.environ)
    parent.kill()
    parent.wait()
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == -signal.SIGKILL


def test_the_parent_ends_with_its_owner(folder: Path) -> None:
    source = """
import os, sys, time
from med_assets.storage import preloaded
with preloaded.parents({"subject": ()}, os.environ):
    print("ready", flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    (parent,) = psutil.Process(owner.pid).children()
    owner.kill()
    owner.communicate()
    ended(parent)


@pytest.mark.parametrize("module", [*PRELOADED, *reader.PRELOADED, *COMMANDS, "tests.fresh", "tests.code"])
def test_what_jobs_import_leaves_one_thread_so_that_they_are_forked(module: str) -> None:
    """A library that starts a thread when it is imported would make each process import all by itself, see THREADLESS for pyarrow."""
    environment = {name: text for name, text in os.environ.items() if name in GIVEN}
    process = preloaded.start([sys.executable, "-m", module], environment, tied=True)
    process.kill()
    process.wait()
    assert isinstance(process, preloaded.Forked)


def test_code_runs_in_a_forked_process_with_its_words_and_its_input() -> None:
    process = code.Code(
        "import sys; print(sys.argv, sys.stdin.read(), 'moto.server' in sys.modules); sys.exit(4)", "word"
    )
    assert process.communicate("text") == "['-c', 'word'] text True\n"
    assert process.poll() == 4
    assert isinstance(process._process, preloaded.Forked)


def test_a_process_of_xdist_has_the_libraries_of_the_tests_and_is_to_its_starter_an_ordinary_one() -> None:
    source = (
        f"import json, os, sys; given = json.loads(os.environ[{worker.GIVEN_VARIABLE!r}]); "
        "print(json.dumps(['torch' in sys.modules, 'med_assets' in sys.modules, sys.stdin.read(), given])); sys.exit(4)"
    )
    environment = {name: text for name, text in os.environ.items() if name in GIVEN}
    command = [*shlex.split(worker.COMMAND), "-u", "-c", source]
    done = subprocess.run(command, input="text", env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 4
    has_libraries, has_ours, read, given = json.loads(done.stdout)
    assert (has_libraries, has_ours, read) == (True, False, "text")
    assert set(environment) == set(given) - {"LC_CTYPE"}, "and none that imports of its parent set"


def test_a_parent_that_has_imported_pyarrow_forks_processes_with_the_environment_of_ordinary_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "print(int('pyarrow' in sys.modules), len(os.listdir('/proc/self/task')), os.environ.get('JE_ARROW_MALLOC_CONF'))"
    with preloaded.parents({SUBJECT: ("pyarrow",)}, os.environ) as found:
        monkeypatch.setenv(preloaded.VARIABLE, found[preloaded.VARIABLE])
        forked, out, _ = run(folder, text)
    assert isinstance(forked, preloaded.Forked)
    assert out.split() == ["1", "1", str(os.environ.get("JE_ARROW_MALLOC_CONF"))]


ECHO = (
    "text = sys.stdin.buffer.read(); sys.stderr.write(str(len(text))); sys.stdout.buffer.write(text[::-1]); sys.exit(7)"
)


@pytest.mark.parametrize("forks", [True, False])
def test_one_is_given_more_than_a_pipe_holds_and_its_answer_is_read(
    parent: psutil.Process, folder: Path, monkeypatch: pytest.MonkeyPatch, forks: bool
) -> None:
    (folder / f"{SUBJECT}.py").write_text("import sys\n" + ECHO)
    monkeypatch.setattr(preloaded, "available", lambda: forks)
    given, command = os.urandom(3_000_000), [sys.executable, "-m", SUBJECT]
    done = preloaded.run(command, os.environ, given, 60)
    assert (done.returncode, done.stdout, done.stderr) == (7, given[::-1], b"3000000")


@pytest.mark.parametrize("forks", [True, False])
def test_one_that_reads_nothing_and_does_not_end_is_killed(
    parent: psutil.Process, folder: Path, monkeypatch: pytest.MonkeyPatch, forks: bool
) -> None:
    (folder / f"{SUBJECT}.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    monkeypatch.setattr(preloaded, "available", lambda: forks)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(subprocess.TimeoutExpired):
        preloaded.run([sys.executable, "-m", SUBJECT], os.environ, bytes(1_000_000), 0.5)
    written = (folder / "pid").read_text() if (folder / "pid").exists() else ""  # it may not have come to it
    assert not written or not psutil.pid_exists(int(written))
    assert os.listdir("/proc/self/fd") == before
