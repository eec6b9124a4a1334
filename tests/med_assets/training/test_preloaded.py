"""A training forked from the preloaded parent of the tests gives the bytes of one that imports for itself."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from med_assets.launch import jobs
from med_assets.launch.launcher import Phase
from med_assets.launch.local import LocalLauncher
from med_assets.settings import without_secrets
from med_assets.storage import preloaded
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

RESULTS = ("weights.pt", "history.csv")


def train(job: Path) -> preloaded.Process:
    launcher = LocalLauncher()
    handle = launcher.submit(job, jobs.command(job), without_secrets(os.environ))
    process = launcher._children[handle.id]
    while launcher.state(handle).phase is Phase.RUNNING:
        time.sleep(0.05)
    assert launcher.state(handle).phase is Phase.ENDED
    return process


@pytest.mark.drill
def test_a_forked_training_gives_the_bytes_of_an_ordinary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked, ordinary = (write_job(tmp_path / name, overrides=TINY) for name in ("forked", "ordinary"))
    # As in a process that has imported MONAI, and with it OpenCV and MLflow.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'no such folder'}:")
    monkeypatch.setenv("_MLFLOW_TELEMETRY_SESSION_ID", "0" * 32)
    process = train(forked)
    monkeypatch.delenv(preloaded.VARIABLE)
    assert isinstance(train(ordinary), subprocess.Popen)
    assert {name: (forked / name).read_bytes() for name in RESULTS} == {
        name: (ordinary / name).read_bytes() for name in RESULTS
    }
    assert isinstance(process, preloaded.Forked)
    assert process.returncode == 0
    assert not psutil.pid_exists(process.pid)
