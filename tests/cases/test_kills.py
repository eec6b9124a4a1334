"""Intake that is killed at random moments: nothing is lost, nothing is taken in twice, no original stays in the home."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from med_assets.cli.main import main
from med_assets.landing import batches
from med_assets.programs.breast_us.phantom import write_case
from med_assets.settings import Workspace
from tests.conftest import settings_of
from tests.med_assets.stages.builders import stored_now
from tests.med_assets.stages.processes import ingesting

P = "breast_us"

KILLS = int(os.environ.get("KILLS", "6"))
"""How often intake is killed; `make kills N=100` for more."""

SEED = int(os.environ.get("SEED", "0"))


PATIENTS = 3
"""Patients of an entry, which two processes read together when none waits for a process of its own."""


def drop(ws: Workspace, number: int) -> None:
    """An archive with some patients, or a folder with others; each under a name that identifies a patient."""
    folder = ws.home / "away" / f"{number}"
    for patient in range(PATIENTS):
        write_case(folder / str(patient), PATIENTS * number + patient)
    name = ws.landing / P / f"DOE^JANE-{number}"
    name.parent.mkdir(parents=True, exist_ok=True)
    if number % 2:
        shutil.make_archive(str(name), "zip", folder)
    else:
        folder.rename(name)


def content(ws: Workspace) -> tuple[dict[str, str], dict[str, list[str]]]:
    """All that is kept of the cases: artifacts, and rows without the batch."""
    rows = {
        table: sorted(json.dumps({**row, "batch": None}, sort_keys=True) for row in ws.lake.rows(table, P))
        for table in ("raw_cases", "prepared_cases", f"{P}_facts", "dataset")
    }
    return stored_now(ws, P), rows


def readers_of(pid: int) -> list[str]:
    """Readers that a process started and that still live: ordinary ones, see `ordinary_readers`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if words[2:4] == ["-m", "med_assets.intake.reader"] and str(pid) in words:
            found.append(path.parent.name)
    return found


@pytest.mark.drill
@pytest.mark.usefixtures("ordinary_readers")
def test_intake_killed_at_random_moments_loses_nothing_takes_nothing_twice_and_leaves_no_originals(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MED_ASSETS_WORKERS", "2")
    rng = random.Random(SEED)
    longest_s = 0.0
    for number in range(KILLS):
        for each in (2 * number, 2 * number + 1):  # one for each worker
            drop(workspace, each)
        begin = time.monotonic()
        process = ingesting(P, help_s=0.0)
        if number:
            process.join(rng.uniform(0.0, longest_s))
            assert process.pid is not None
            if process.exitcode is None:
                os.kill(process.pid, rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
        process.join()
        longest_s = longest_s or time.monotonic() - begin
        assert process.pid is not None
        deadline = time.monotonic() + 5
        while readers_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not readers_of(process.pid)
        assert main(["batches", P]) == 0  # any command removes what the killed one left behind
        left = [path for path in (workspace.home / "tmp").rglob("*") if path.is_file() and path.suffix != ".lock"]
        goes_on = {
            f"{P}-{batch}" for batch in batches.unfinished(workspace, P)
        }  # empty files that say: its space is already spoken for
        assert all(path.parent.name == "begun" and path.name in goes_on and not path.stat().st_size for path in left), (
            left
        )
    assert main(["ingest", P, "--now"]) == 0
    assert not batches.untaken(workspace, P)
    assert not batches.unfinished(workspace, P)
    taken = [pair for batch in batches.known(workspace, P) for pair in batches.manifest(workspace, P, batch).items()]
    assert len(taken) == len(set(taken)) == 2 * KILLS
    shown = "".join(capfd.readouterr())
    assert "DOE" not in shown
    assert "Traceback" not in shown

    for name, value in settings_of(tmp_path / "undisturbed").items():
        monkeypatch.setenv(name, value)
    undisturbed = Workspace.from_env()
    for number in range(2 * KILLS):
        drop(undisturbed, number)
    assert main(["ingest", P, "--now"]) == 0
    expected_files, expected_rows = content(undisturbed)
    files, rows = content(workspace)
    assert rows == expected_rows
    assert {name: value for name, value in files.items() if not name.startswith("intake/")} == {
        name: value for name, value in expected_files.items() if not name.startswith("intake/")
    }
    assert len(rows["dataset"]) == 2 * KILLS * PATIENTS
