"""With MED_ASSETS_LOG=json each line of a log is an object that says what it is about, and nothing that a library quoted."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

import resources
from assets import build_program, keys
from med_assets.cli import stages
from med_assets.errors import ConfigurationError
from med_assets.settings import Workspace
from med_assets.storage import logs, preloaded
from tests.med_assets.homes.unpacked import unpack

P = "rt_dose"
NAME = "Doe^Jane"


@pytest.fixture
def ws(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A home of two phantoms, and logs as JSON."""
    unpack("0.2.0", workspace.home)
    monkeypatch.setenv(logs.VARIABLE, "json")
    return workspace


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What this process logs as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    root, level = logging.getLogger(), logs.log.level
    root.addHandler(handler)
    logs.log.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    logs.log.setLevel(level)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def run(*words: str) -> tuple[int, list[dict[str, Any]]]:
    """Run a command; returns its exit code and the lines of its log."""
    command = [sys.executable, "-P", "-m", "med_assets.cli", *words]
    done = preloaded.run(command, os.environ, b"", 300)
    return done.returncode, lines(done.stderr.decode())


def test_a_command_says_of_each_line_which_stage_and_program_it_is_about(ws: Workspace) -> None:
    code, found = run("run", "dataset", P)
    assert code == 0
    assert [line["message"].partition(" after")[0] for line in found] == ["the stage begins", "the stage ended"]
    for line in found:
        about = {name: line.get(name) for name in ("level", "command", "program", "stage")}
        assert about == {"level": "info", "command": "run", "program": P, "stage": "dataset"}
        assert line["time"].endswith("+00:00")


def test_what_fails_is_a_line_too(ws: Workspace) -> None:
    code, (*_, line) = run("run", "intake", P, "2026-01-01T00-00-00_000000")
    assert code == 1
    assert (line["level"], line["command"]) == ("error", "run")
    assert line["message"].startswith("med-assets run: expected")


def test_messages_of_libraries_are_withheld_and_errors_are_outlined(written: io.StringIO) -> None:
    logging.getLogger("pydicom").warning("invalid value %s", NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # another test may have left it on, and then it would not be begun
        logging.captureWarnings(True)
        warnings.warn(NAME, UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    try:
        raise ValueError(NAME)
    except ValueError:
        logging.getLogger("med_assets.network.inbox").exception("an instance was refused")
    pydicom, warning, ours = lines(written.getvalue())
    assert NAME not in written.getvalue()
    assert (pydicom["logger"], pydicom["message"]) == ("pydicom", logs.WITHHELD)
    assert warning["logger"] == "py.warnings"
    assert ours["message"] == "an instance was refused"
    assert ours["error"].startswith("ValueError at ")


def test_a_stage_that_fails_says_when_and_by_what_and_no_more(ws: Workspace, written: io.StringIO) -> None:
    with pytest.raises(ConfigurationError):
        stages.evaluate(ws, P, "no_such_experiment")
    begun, failed = lines(written.getvalue())
    assert begun["stage"] == failed["stage"] == "evaluate"
    assert failed["level"] == "error"
    assert failed["message"].endswith("with ConfigurationError")
    assert "program" not in json.loads(logs.JsonLines().format(logging.makeLogRecord({"name": "med_assets"})))


def test_a_run_of_dagster_is_named_in_the_lines_of_its_stages(ws: Workspace, written: io.StringIO) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            build_program(P), selection=[keys.key(P, "dataset")], instance=instance, resources=resources.build()
        )
    ours = [line for line in lines(written.getvalue()) if line["logger"] == "med_assets"]
    assert {line["stage"] for line in ours} == {"dataset"}
    assert {line["run"] for line in ours} == {done.run_id}


def test_a_server_logs_lines_and_another_form_is_refused(ws: Workspace) -> None:
    command = [sys.executable, "-P", "-m", "med_assets.cli", "metrics", "--port", "0", "--dagster", ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "metrics on http://127.0.0.1" in process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=60)
    for line in lines(log):
        assert line["command"] == "metrics"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "med_assets.cli", "cases", P],
        env={**os.environ, logs.VARIABLE: "xml"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "MED_ASSETS_LOG" in done.stderr
