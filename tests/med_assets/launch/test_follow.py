"""What the command line does with a job: it follows it to its end, Ctrl-C ends it, and the same command goes on."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from med_assets.errors import ConfigurationError, LaunchFailed
from med_assets.launch import jobs
from med_assets.launch.follow import Finished, finish, follow
from med_assets.launch.local import LocalLauncher, running
from med_assets.storage.files import read_json
from tests.code import Code
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

FINISH = (
    "import sys\nfrom pathlib import Path\nfrom med_assets.launch.follow import finish\nfinish(Path(sys.argv[1]))\n"
)
LONG = (*TINY, "schedule.epochs=400", "schedule.patience=400")


class Command:
    """A process that follows the training of a job, and its messages."""

    def __init__(self, job: Path, log: Path) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = Code(FINISH, str(job), stderr=stream.fileno())

    def says(self, text: str) -> None:
        """Wait until a text is among its messages."""
        until(lambda: text in self.log.read_text(), self)

    def end(self) -> str:
        """Wait for its end; returns its messages."""
        self.process.communicate(timeout=60)
        return self.log.read_text()


def until(condition: Callable[[], object], command: Command) -> None:
    while not condition():
        assert command.process.poll() is None, command.log.read_text()
        time.sleep(0.05)


def test_ctrl_c_ends_the_training_of_this_command_which_saves_and_a_kill_leaves_it_to_the_next_command(
    tmp_path: Path,
) -> None:
    job = write_job(tmp_path / "job", overrides=LONG)
    first = Command(job, tmp_path / "first")
    until(lambda: list((job / "checkpoints").glob("*.ckpt")), first)
    with pytest.raises(ConfigurationError, match="a training of this job is running"):
        finish(job, resume="never")
    os.kill(first.process.pid, signal.SIGINT)
    first.end()
    assert running(job) is None
    assert not (job / jobs.RESULT).exists()

    second = Command(job, tmp_path / "second")
    until(lambda: running(job), second)
    process = running(job)
    assert process is not None
    second.process.kill()
    second.end()
    third = Command(job, tmp_path / "third")
    third.says("following it")
    assert process.is_running()
    third.process.send_signal(signal.SIGINT)  # it did not start the training, which goes on
    assert "goes on" in third.end()
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
