"""Ctrl-C and SIGTERM end every command with one line and the exit code of the signal, from its first moment on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from med_assets.cli.main import INTERRUPTED, TERMINATED
from med_assets.settings import Workspace
from tests.conftest import REPOSITORY

ENDLESS = "select count(*) from range(1000000000) a, range(1000000000) b where hash(a.range + b.range) = 1"
CODES = [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)]


def started(*arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "med_assets.cli.main", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def imports(process: subprocess.Popen[str], library: str) -> bool:
    """Whether a process has loaded a library so far."""
    return f"/{library}/" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has loaded is read from /proc")
@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("library", ["yaml", "numpy", "pyarrow"])
def test_a_signal_while_libraries_are_imported(
    workspace: Workspace, library: str, number: signal.Signals, code: int
) -> None:
    process = started("query", ENDLESS)
    while process.poll() is None and not imports(process, library):
        time.sleep(0.002)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("med-assets")
    assert "interrupted" in err


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_in_the_middle_of_a_command(workspace: Workspace, number: signal.Signals, code: int) -> None:
    process = started("query", ENDLESS)
    while process.poll() is None and not list((workspace.home / "tmp").glob("scratch-*/*")):
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "med-assets query: interrupted" in err
    assert not list((workspace.home / "tmp").glob("scratch-*/*"))


def test_what_is_to_be_ignored_stays_ignored(workspace: Workspace) -> None:
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a child inherits, as from nohup
    try:
        process = started("query", "select 1 as one")
    finally:
        signal.signal(signal.SIGTERM, ignored)
    while process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "one" in out


def test_a_command_leaves_the_handlers_of_its_caller(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    from med_assets.cli.main import main

    before = [signal.getsignal(number) for number, _ in CODES]
    assert main(["query", "select 1 as one"]) == 0
    assert [signal.getsignal(number) for number, _ in CODES] == before
