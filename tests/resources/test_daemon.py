"""The daemon of `make ui`: when it reads the definitions, and that `dagster dev` starts it."""

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dagster._cli import dev as dagster_dev
from dagster._daemon import controller

from resources import daemon, dev

NAMES = ("RELOAD_WORKSPACE_INTERVAL", "DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE")


def refreshes(age_s: float) -> int:
    """How often a daemon reads definitions that it read so long ago."""
    done: list[bool] = []
    context = SimpleNamespace(refresh_workspace=lambda: done.append(True))
    held = SimpleNamespace(_grpc_server_registry=None, _workspace_process_context=context)
    controller.DagsterDaemonController.check_workspace_freshness(cast(Any, held), time.time() - age_s)
    return len(done)


def test_the_daemon_reads_definitions_that_did_not_change_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: getattr(controller, name) for name in NAMES}
    for name, value in before.items():
        monkeypatch.setattr(controller, name, value)  # as it is, so that it is so again after the test
    assert refreshes(2 * before[NAMES[0]]) == 1
    daemon.read_when_changed()
    assert refreshes(2 * before[NAMES[0]]) == 0
    assert refreshes(2 * daemon.RELOAD_S) == 1
    margin_s = getattr(controller, NAMES[1]) - getattr(controller, NAMES[0])
    assert margin_s == before[NAMES[1]] - before[NAMES[0]] > 0


def test_dagster_dev_starts_its_daemon_as_ours() -> None:
    code = dagster_dev.dev_command_impl.__code__
    assert "open_ipc_subprocess" in code.co_names
    assert dev.DAEMON[1] in code.co_consts
    process = dev.start([sys.executable, *dev.DAEMON, "run", "--help"], stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert process.args == [sys.executable, *dev.OURS, "run", "--help"]
    assert b"--code-server-log-level" in output
    other = dev.start([sys.executable, "-c", "pass"])
    assert (other.args, other.wait(timeout=60)) == ([sys.executable, "-c", "pass"], 0)
