"""Homes of any name, that can't be written, that are full: each ends in what was asked for or in one line."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import which

import pytest

from med_assets import program
from med_assets.cli.main import main
from med_assets.reporting.notebooks import stop_kernel
from med_assets.settings import Workspace
from tests.conftest import REPOSITORY, settings_of

ODD = 'it\'s [a] "home" #1 100%25 *{x}? é 病院'
COMMAND = f"{shlex.quote(sys.executable)} -m med_assets.cli.main"
MOUNTS = (
    bool(which("unshare"))
    and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
)

UNWRITTEN = {
    "cases breast_us": 0,
    "query 'select count(*) as n from withdrawals'": 0,
    "batches breast_us": 0,
    "ingest breast_us --now": 1,
    "withdraw breast_us c --reason x": 1,
    "report breast_us": 1,
}
"""Exit status of commands in a home that can't be written."""

IN_TURN = """
import io, json, shlex, sys
from contextlib import redirect_stderr, redirect_stdout
from med_assets.cli.main import main

found = {}
for command in sys.argv[1:]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        code = main(shlex.split(command))
    found[command] = code, errors.getvalue()
print(json.dumps(found))
"""
"""Commands one after another in one process: exit status and what is written to standard error, by command."""


@pytest.mark.slow
def test_a_whole_program_runs_in_a_home_of_any_name_and_all_it_writes_is_for_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, name = tmp_path / ODD, "lumbar_mr"
    for variable, value in settings_of(home).items():
        monkeypatch.setenv(variable, value)
    ws, before = Workspace.from_env(), os.umask(0o022)
    try:
        program.get(name).write_phantoms(ws.landing / name, 16, 0)
        experiment = f"{name}/mean_position"
        for command in (
            ["ingest", name, "--now"], ["train", experiment], ["evaluate", experiment], ["record", experiment],
            ["leaderboard", name], ["promote", name], ["monitor", name], ["report", name], ["experiments", name],
            ["cases", name], ["verify"], ["query", "select count(*) as n from dataset", "--format", "csv"],
        ):  # fmt: skip
            assert main(command) == 0, command
    finally:
        os.umask(before)
        stop_kernel()
    assert capsys.readouterr().out.endswith("n\n16\n")
    written = [path for path in home.rglob("*") if not path.is_relative_to(ws.landing)]
    assert {path.suffix for path in written} >= {".parquet", ".html", ".ipynb", ".png", ".pt", ".json"}
    assert [path for path in written if path.stat().st_mode & 0o077] == []
    import assets

    assert name in assets.programs(assets.build_program(name))


def _run(command: str, home: Path, setup: str = "true", **more: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **settings_of(home), "PYTHONPATH": str(REPOSITORY), **more}
    words = ["unshare", "-m", "bash", "-c", f"set -e; {setup}; exec {command}"]
    return subprocess.run(words, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not MOUNTS, reason="this system lets nobody here mount")
def test_a_home_that_can_not_be_written_is_read_and_else_ends_with_one_line(workspace: Workspace) -> None:
    workspace.lake.write("withdrawals", "breast_us", [{"program": "breast_us", "case_id": "c", "reason": "x"}])
    (workspace.home / "tmp").mkdir(exist_ok=True)
    (workspace.home / "tmp" / "scratch-1-x.lock").touch()
    program.get("breast_us").write_phantoms(workspace.landing / "breast_us", 1, 0)
    home = shlex.quote(str(workspace.home))
    in_turn = shlex.join([sys.executable, "-c", IN_TURN, *UNWRITTEN])
    done = _run(in_turn, workspace.home, f"mount --bind {home} {home}; mount -o remount,ro,bind {home}")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {command: code for command, (code, _) in found.items()} == UNWRITTEN, found
    for command, (code, errors) in found.items():
        assert len(errors.splitlines()) <= 1, command
        assert errors.startswith("med-assets ") == bool(code), command
        assert "Traceback" not in errors, command


@pytest.mark.skipif(not MOUNTS, reason="this system lets nobody here mount")
def test_a_full_disk_ends_with_one_line_and_what_was_there_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, landing, kept = tmp_path / "home", tmp_path / "landing", tmp_path / "kept"
    for folder in (home, kept):
        folder.mkdir()
    program.get("breast_us").write_phantoms(landing / "breast_us", 6, 0)
    mount = f"mount -t tmpfs -o size=300k tmpfs {shlex.quote(str(home))}"
    ingest = f"bash -c '{COMMAND} ingest breast_us --now 2>{kept}/err >{kept}/out; echo $? >{kept}/rc; {COMMAND} verify >{kept}/verify 2>&1; cp -r {home}/. {kept}/home'"
    _run(ingest, home, mount, MED_ASSETS_LANDING=str(landing))
    assert (kept / "rc").read_text().strip() == "1"
    lines = (kept / "err").read_text().splitlines()
    assert "no space to write" in lines[-1]
    assert not [line for line in lines if "Traceback" in line]
    for path in (kept / "home").rglob("*.parquet"):
        assert path.read_bytes()[-4:] == b"PAR1"
    assert len(list((landing / "breast_us").iterdir())) >= 6
    for name, value in {**settings_of(tmp_path / "roomy"), "MED_ASSETS_LANDING": str(landing)}.items():
        monkeypatch.setenv(name, value)
    assert main(["ingest", "breast_us", "--now"]) == 0


def test_ctrl_c_ends_with_one_line_and_130(workspace: Workspace) -> None:
    endless = "select count(*) from range(1000000000) a, range(1000000000) b where hash(a.range + b.range) = 1"
    process = subprocess.Popen(
        [sys.executable, "-m", "med_assets.cli.main", "query", endless],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 60
    while not list((workspace.home / "tmp").glob("scratch-*/*")) and time.monotonic() < limit:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "interrupted" in err
    assert not list((workspace.home / "tmp").glob("scratch-*/*"))
