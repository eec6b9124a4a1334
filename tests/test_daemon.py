"""The whole of it once, for real: a Dagster daemon, its sensors and conditions, and DICOM files in a folder."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from assets import keys
from med_assets.settings import Workspace
from tests.med_assets.stages.models import configure

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 240.0
P = "rt_dose"


@dataclass(frozen=True)
class Clinic:
    """A running daemon with its home."""

    ws: Workspace
    instance: dg.DagsterInstance
    log: Path

    def drop(self, name: str, seed: int, damage: Callable[[Path], None] | None = None) -> None:
        """Copy one phantom case into the landing folder, damaged if asked."""
        from med_assets.programs.rt_dose.phantom import write_case

        made = self.ws.home.parent / "made" / name
        write_case(made, seed)
        if damage:
            damage(made)
        target = self.ws.landing / P / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, target)

    def refusals(self) -> set[str]:
        """Codes for which cases were refused so far."""
        tables = (self.ws.lake.read(name, P) for name in ("raw_cases", "prepared_cases"))
        return {code for table in tables for code in table["reason_code"].dropna()} - {""}

    def version(self, stage: str) -> str | None:
        """Newest data version of an asset."""
        event = self.instance.get_latest_materialization_event(keys.key(P, stage))
        return (
            (event.asset_materialization.tags or {})["dagster/data_version"]
            if event and event.asset_materialization
            else None
        )

    def wait_for(self, what: str, met: Callable[[], bool]) -> None:
        """Wait until something is so; on timeout the failed runs and the end of the daemon's log are shown."""
        end = time.monotonic() + PATIENCE_S
        while not met():
            if time.monotonic() > end:
                runs = [
                    (run.status.value, sorted(map(str, run.asset_selection or ()))) for run in self.instance.get_runs()
                ]
                pytest.fail(f"waited {PATIENCE_S:.0f} s for {what}; runs: {runs}\n{self.log.read_text()[-4000:]}")
            time.sleep(0.5)


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clinic]:
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\nconcurrency:\n  pools:\n    default_limit: 1\n")
    settings = {
        "DAGSTER_HOME": str(home),
        "MED_ASSETS_HOME": str(tmp_path / "home"),
        "MED_ASSETS_PSEUDONYM_KEY": "a key for tests that is long enough",
        "MED_ASSETS_PURPOSE": "demo",
        "MED_ASSETS_PROGRAMS": P,
        "MED_ASSETS_PROFILE": "demo",
        "MED_ASSETS_SETTLE_S": "1",
        "MED_ASSETS_TICK_S": "1",
        "OMP_NUM_THREADS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    configure(tmp_path, monkeypatch, retraining={"min_new_cases": 1000})
    with dg.DagsterInstance.from_config(str(home)) as first:
        first.get_runs_count()  # two processes that make the storage at the same moment spoil it
    log = tmp_path / "daemon.log"
    command = [sys.executable, "-m", "dagster._daemon", "run", "-m", "definitions", "-d", str(ROOT)]
    with log.open("wb") as stream:
        daemon = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield Clinic(Workspace.from_env(os.environ), instance, log)
    finally:
        os.killpg(daemon.pid, signal.SIGINT)
        try:
            daemon.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def lose_a_slice(case: Path) -> None:
    """Take one image from the middle of the series away; the structure set still refers to it."""
    slices = sorted((case / "CT").iterdir())
    slices[len(slices) // 2].unlink()


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_a_dropped_case_reaches_the_splits_and_a_broken_one_is_quarantined_beside_a_good_one(clinic: Clinic) -> None:
    clinic.drop("SMITH^JOHN first", 1)
    clinic.wait_for("the splits of the first case", lambda: clinic.version("splits") is not None)
    assert len(clinic.instance.get_dynamic_partitions("rt_dose_batches")) == 1
    assert clinic.ws.lake.read("dataset", P)["case_id"].nunique() == 1, clinic.refusals()
    first = clinic.version("splits")

    clinic.drop("second", 2)
    clinic.drop("third", 3, damage=lose_a_slice)
    # Cases that arrive a moment apart may settle at different ticks and then are two batches: each outcome is an event of its own.
    clinic.wait_for("the splits to grow", lambda: clinic.version("splits") != first)
    clinic.wait_for("the broken case to be refused", lambda: clinic.refusals() == {"missing_slice"})
    assert clinic.ws.lake.read("dataset", P)["case_id"].nunique() == 2

    assert not clinic.instance.get_runs(filters=dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    kept = [*(Path(os.environ["DAGSTER_HOME"]).rglob("*")), *(clinic.ws.home / "lake").rglob("*"), clinic.log]
    for path in kept:
        if path.is_file():
            assert b"SMITH^JOHN" not in path.read_bytes(), f"{path.name} holds the name of a patient"
