"""How often the processes of `dagster dev` ask whether definitions are others, and that it starts them so."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dagster._cli import dev as dagster_dev
from dagster._daemon import controller
from dagster._grpc import server_watcher
from dagster._grpc.client import DagsterGrpcClient

from resources import dev
from resources.intervals import ASK_S, DAEMON, RELOAD_S, WEBSERVER, lengthen

ASK, RELOAD, TOLERANCE = "WATCH_INTERVAL", "RELOAD_WORKSPACE_INTERVAL", "DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((server_watcher, ASK), (controller, RELOAD), (controller, TOLERANCE)):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that it is so again after the test


def refreshes(age_s: float) -> int:
    """How often a daemon reads definitions that it read so long ago."""
    done: list[bool] = []
    context = SimpleNamespace(refresh_workspace=lambda: done.append(True))
    held = SimpleNamespace(_grpc_server_registry=None, _workspace_process_context=context)
    controller.DagsterDaemonController.check_workspace_freshness(cast(Any, held), time.time() - age_s)
    return len(done)


class Asked(DagsterGrpcClient):
    """A code server that counts how often it is asked for its id."""

    def __init__(self) -> None:
        super().__init__(port=1)
        self.n = 0

    def get_server_id(self, timeout: int = 0) -> str:
        self.n += 1
        return "one"


class Until(threading.Event):
    """The end of a thread after so many seconds of waiting, of which none pass."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.left_s = seconds

    def wait(self, timeout: float | None = None) -> bool:
        self.left_s -= timeout or 0.0
        if self.left_s <= 0:
            self.set()
        return self.is_set()


def questions(seconds: float) -> int:
    """How often the id of a code server is asked for in so many seconds."""
    server, ignore = Asked(), lambda *_: None
    server_watcher.watch_grpc_server_thread(
        "definitions",
        server,
        Until(seconds),
        on_disconnect=ignore,
        on_reconnected=ignore,
        on_updated=ignore,
        on_error=ignore,
        get_location_entry=ignore,
        refresh_code_location=ignore,
    )
    return server.n


def test_the_daemon_reads_definitions_that_did_not_change_once_an_hour() -> None:
    before_s, margin_s = getattr(controller, RELOAD), getattr(controller, TOLERANCE) - getattr(controller, RELOAD)
    assert refreshes(2 * before_s) == 1
    lengthen(DAEMON)
    assert refreshes(2 * before_s) == 0
    assert refreshes(2 * RELOAD_S) == 1
    assert getattr(controller, TOLERANCE) - getattr(controller, RELOAD) == margin_s > 0


@pytest.mark.parametrize("process", [WEBSERVER, DAEMON])
def test_the_code_server_is_asked_for_its_id_every_few_seconds(process: str) -> None:
    assert questions(60.0) == 60
    lengthen(process)
    assert questions(60.0) == 60 / ASK_S


def test_dagster_dev_starts_both_with_these_intervals() -> None:
    code = dagster_dev.dev_command_impl.__code__
    assert "open_ipc_subprocess" in code.co_names
    assert {WEBSERVER, DAEMON} <= {*code.co_consts}
    process = dev.start([sys.executable, "-m", DAEMON, "run", "--help"], stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert process.args == [sys.executable, "-m", "resources.intervals", DAEMON, "run", "--help"]
    assert b"--code-server-log-level" in output
    other = dev.start([sys.executable, "-c", "pass"])
    assert (other.args, other.wait(timeout=60)) == ([sys.executable, "-c", "pass"], 0)
