"""What the command line does with a job: it follows it to its end, Ctrl-C ends it, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from med_assets.errors import ConfigurationError, LaunchFailed
from med_assets.launch import jobs
from med_assets.launch.follow import Finished, finish, follow
from med_assets.launch.local import LocalLauncher, running
from med_assets.storage.files import read_json
from tests.conftest import REPOSITORY
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

FINISH = (
    "import sys\nfrom pathlib import Path\nfrom med_assets.launch.follow import finish\nfinish(Path(sys.argv[1]))\n"
)
LONG = (*TINY, "schedule.epochs=400", "schedule.patience=400")


def until_it_trains(job: Path, command: "subprocess.Popen[str]") -> None:
    while not list((job / "checkpoints").glob("*.ckpt")):
        assert command.poll() is None, command.communicate()[1]
        time.sleep(0.1)


def command(job: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", FINISH, str(job)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_ctrl_c_ends_the_training_of_this_command_which_saves_and_a_kill_leaves_it_to_the_next_command(
    tmp_path: Path,
) -> None:
    job = write_job(tmp_path / "job", overrides=LONG)
    first = command(job)
    until_it_trains(job, first)
    with pytest.raises(ConfigurationError, match="a training of this job is running"):
        finish(job, resume="never")
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=60)
    assert running(job) is None
    assert not (job / jobs.RESULT).exists()

    second = command(job)
    while (process := running(job)) is None:
        assert second.poll() is None
        time.sleep(0.05)
    second.kill()
    second.communicate()
    third = command(job)
    time.sleep(2)
    assert third.poll() is None
    assert process.is_running()
    third.send_signal(signal.SIGINT)  # it did not start the training, which goes on
    assert "goes on" in third.communicate(timeout=30)[1]
    assert process.is_running()
    os.kill(process.pid, signal.SIGTERM)
    process.wait(60)


def test_a_job_that_cannot_be_trained_ends_with_its_log_and_one_with_a_result_is_not_started(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", overrides=TINY)
    (job / "cases.json").write_text("[]")
    with pytest.raises(
        LaunchFailed, match=r"exit code 1 and no result; the end of its log:\n.*no case in train and val"
    ):
        finish(job, poll_s=0.1)
    (job / jobs.RESULT).write_text("{}")
    assert list(follow(LocalLauncher(), job, ["false"], {})) == [Finished(None)]
    assert read_json(job / jobs.RESULT) == {}
