"""Trainings outlive the runs that start them: who dies with whom."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psutil
import pytest

from med_assets.launch.follow import Event, Submitted
from med_assets.launch.jobs import RESULT
from med_assets.launch.launcher import Handle, Launcher
from med_assets.launch.local import PROCESS, LocalLauncher, running, started_s
from resources.launcher import LauncherResource, _cancel_if_cancelled

TRAINING = """
import os, sys, time
from pathlib import Path
job = Path(sys.argv[1])
with (job / "starts").open("a") as stream:
    stream.write("x")
print("loading cases", flush=True)
{body}
"""
EPOCHS = """
for epoch in range(3):
    new = not (job / "history.csv").exists()
    with (job / "history.csv").open("a") as stream:
        stream.write(("epoch,train/loss,val/mae_gy\\n" if new else "") + f"{epoch},{1 / (epoch + 1)},\\n")
    time.sleep(0.1)
(job / "result.json").write_text("{}")
"""


class Scripted(LauncherResource):
    """The launcher with a small script in place of the training command."""

    def command(self, job: Path) -> list[str]:
        return [sys.executable, str(job / "training.py"), str(job)]


def job_of(folder: Path, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "training.py").write_text(TRAINING.format(body=body))
    return folder


def submit(job: Path, launcher: LocalLauncher) -> Handle:
    return launcher.submit(job, Scripted().command(job), dict(os.environ))


def end(handle: Handle, launcher: LocalLauncher) -> None:
    launcher._children[handle.id].wait(10)


def run(job: Path, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        Scripted(poll_s=0.05).run(context, job)
        return dg.MaterializeResult()

    return dg.materialize([checkpoint], instance=instance, raise_on_error=False)


def starts(job: Path) -> int:
    return len((job / "starts").read_text())


def test_progress_of_a_training_shows_as_it_runs(tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", EPOCHS)
    with dg.DagsterInstance.ephemeral() as instance:
        done = run(job, instance)
        assert done.success
        observed = instance.fetch_observations(dg.AssetKey("checkpoint"), limit=10).records
        output = [entry.user_message for entry in instance.all_logs(done.run_id)]
    epochs = [
        record.asset_observation.metadata["training/epoch"].value
        for record in reversed(observed)
        if record.asset_observation
    ]
    assert epochs == [0.0, 1.0, 2.0]
    assert any("loading cases" in line for line in output)
    assert any("epoch 1: train/loss 0.5" in line for line in output)


def test_a_finished_job_is_taken_over_without_starting_anything(tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", EPOCHS)
    (job / RESULT).write_text("{}")
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(job, instance).success
    assert not (job / "starts").exists()


def test_a_running_job_is_followed_and_not_started_twice(tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", "time.sleep(1.5)" + EPOCHS)
    launcher = LocalLauncher()
    first, second = submit(job, launcher), submit(job, LocalLauncher())
    assert (first.started_here, second.started_here, second.id) == (True, False, first.id)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(job, instance).success
    end(first, launcher)
    assert starts(job) == 1


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "sys.exit(0)", "sys.exit(75)"])
def test_a_training_that_was_killed_or_told_to_stop_is_started_again(tmp_path: Path, end: str) -> None:
    body = f"if len((job / 'starts').read_text()) == 1: {end}" + EPOCHS
    job = job_of(tmp_path / "job", body)
    with dg.DagsterInstance.ephemeral() as instance:
        assert run(job, instance).success
    assert starts(job) == 2


def test_a_training_that_ends_by_itself_without_a_result_fails_with_the_end_of_its_log(tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", "sys.exit('expected a patch that is a multiple of 8, got 33')")
    with dg.DagsterInstance.ephemeral() as instance:
        done = run(job, instance)
        assert not done.success
        text = str(instance.all_logs(done.run_id))
    assert "multiple of 8, got 33" in text
    assert starts(job) == 1


def test_an_interrupted_run_leaves_its_training_running(tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", "time.sleep(30)")

    launcher = LocalLauncher()

    class Interrupting(Scripted):
        def of(self, job: Path) -> Launcher:
            return launcher

        def show(self, context: dg.AssetExecutionContext, event: Event) -> None:
            assert isinstance(event, Submitted)
            raise KeyboardInterrupt

    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with pytest.raises(KeyboardInterrupt):
            Interrupting().run(context, job)
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize([checkpoint], instance=instance).success
    process = running(job)
    assert process is not None
    os.killpg(process.pid, signal.SIGKILL)
    for child in launcher._children.values():
        child.wait(10)


def test_a_reused_pid_is_not_taken_for_the_training(tmp_path: Path) -> None:
    own = psutil.Process()
    (tmp_path / PROCESS).write_text(json.dumps({"pid": own.pid, "started_s": started_s(own)}))
    assert running(tmp_path) is not None
    (tmp_path / PROCESS).write_text(json.dumps({"pid": own.pid, "started_s": started_s(own) - 3600}))
    assert running(tmp_path) is None


@pytest.mark.parametrize(
    ("status", "stops"), [(dg.DagsterRunStatus.CANCELING, True), (dg.DagsterRunStatus.STARTED, False)]
)
def test_a_cancelled_run_stops_its_training_and_one_that_died_does_not(
    tmp_path: Path, status: dg.DagsterRunStatus, stops: bool
) -> None:
    # What a test before this one left ignored or blocked would be inherited.
    body = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
(job / "ready").touch()
time.sleep(60)
"""
    job = job_of(tmp_path / "job", body)
    launcher = LocalLauncher()
    handle = submit(job, launcher)
    process = launcher._children[handle.id]
    try:
        until = time.monotonic() + 60
        while not (job / "ready").exists() and time.monotonic() < until:
            time.sleep(0.05)
        record = SimpleNamespace(status=status)
        instance = SimpleNamespace(get_run_by_id=lambda run_id: record)
        context: Any = SimpleNamespace(instance=instance, run=SimpleNamespace(run_id="a run"))
        _cancel_if_cancelled(context, launcher, handle)
        if stops:
            assert process.wait(timeout=10) == -signal.SIGTERM
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
    finally:
        process.kill()
        process.wait()
