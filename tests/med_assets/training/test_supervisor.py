"""What the supervisor does when the training below it hangs, dies, is asked to stop, or is there already."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from med_assets.errors import ConfigurationError
from med_assets.launch.jobs import exit_status
from med_assets.training import status, supervisor
from med_assets.training.events import events
from med_assets.training.supervisor import Supervisor, only_one, oom_kills
from tests.conftest import REPOSITORY
from tests.med_assets.programs.rt_dose.builders import TINY, write_job

# The start of each small training below; it counts its starts, and beats by hand.
BEGIN = """
import json, os, signal, sys, time
from pathlib import Path
job = Path(sys.argv[1])
with (job / "starts").open("a") as stream:
    stream.write(sys.argv[2] + " ")
starts = len((job / "starts").read_text().split())
def beat(number):
    (job / "heartbeat.json").write_text(json.dumps({"pid": os.getpid(), "step": number}))
"""


class Scripted(Supervisor):
    """A supervisor of a few lines in place of a training."""

    body = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", BEGIN + self.body, str(self.job), self.resume]


def of(job: Path, body: str, resume: str = "auto", **runtime: float) -> Scripted:
    (job / "experiment.json").write_text(json.dumps({"runtime": {"hang_after_s": 1.0, "restarts": 2, **runtime}}))
    made = Scripted(job, resume)
    made.body = body
    return made


def starts(job: Path) -> list[str]:
    return (job / "starts").read_text().split()


def happened(job: Path) -> list[str]:
    return [event["event"] for event in events(job)]


def test_a_training_that_ends_well_is_started_once(tmp_path: Path) -> None:
    assert of(tmp_path, "beat(1)", "never").run() == status.DONE
    assert exit_status(tmp_path) == status.DONE
    assert starts(tmp_path) == ["never"]


def test_a_training_that_fails_by_itself_is_not_started_again(tmp_path: Path) -> None:
    assert of(tmp_path, "sys.exit(1)").run() == status.FAILED
    assert starts(tmp_path) == ["auto"]


def test_a_killed_training_goes_on_and_does_not_start_over(tmp_path: Path) -> None:
    assert of(tmp_path, "if starts == 1: os.kill(os.getpid(), 9)", "never").run() == status.DONE
    assert starts(tmp_path) == ["never", "auto"]
    assert happened(tmp_path) == ["killed", "restart"]


def test_a_lost_accelerator_is_worth_another_process_but_not_for_ever(tmp_path: Path) -> None:
    assert of(tmp_path, f"sys.exit({status.ACCELERATOR})").run() == status.ACCELERATOR
    assert len(starts(tmp_path)) == 3


def test_a_training_that_hangs_is_ended_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = (
        "import subprocess\nbeat(starts)\n"
        "if starts == 1:\n    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n    beat(2)\n    time.sleep(60)"
    )
    assert of(tmp_path, body, hang_after_s=1.0).run() == status.DONE
    log = capfd.readouterr().err
    states = re.findall(r"^  (\d+) (\d+) sleeping \d+ [\d.]+ \d+ python", log, re.MULTILINE)
    assert len(states) == 2, log
    assert states[1][1] == states[0][0], "a process that it started is named below it"
    assert re.search(r"^memory: \d+ of \d+ MiB available", log, re.MULTILINE)
    assert "\nGPU: " in log or "\nGPU:\n" in log
    assert happened(tmp_path) == ["hang", "restart"]


def test_one_that_hangs_each_time_is_given_up(tmp_path: Path) -> None:
    assert of(tmp_path, "beat(starts)\ntime.sleep(60)", hang_after_s=0.5, restarts=1).run() == status.HUNG
    assert len(starts(tmp_path)) == 2


def test_a_slow_training_that_beats_does_not_hang(tmp_path: Path) -> None:
    assert of(tmp_path, "for n in range(10): beat(n); time.sleep(0.3)", hang_after_s=1.5).run() == status.DONE
    assert happened(tmp_path) == []


def test_the_kernels_out_of_memory_killer_is_told_from_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = iter([7, 8])
    monkeypatch.setattr(supervisor, "oom_kills", lambda: next(counted))
    assert of(tmp_path, "os.kill(os.getpid(), 9)").run() == status.OUT_OF_MEMORY
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "out_of_memory"
    assert "want of host memory" in capsys.readouterr().err


def test_where_the_kernel_does_not_say_a_kill_is_probably_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "oom_kills", lambda: None)
    assert of(tmp_path, "os.kill(os.getpid(), 9)", restarts=1).run() == status.SIGNALLED + 9
    assert "probably by the kernel, out of memory" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the counter is Linux's")
def test_this_kernel_counts_its_out_of_memory_kills() -> None:
    assert oom_kills() is not None


def test_told_to_stop_it_hands_that_on_and_asks_to_be_requeued(tmp_path: Path) -> None:
    body = """
def stop(*_):
    (job / "saved").write_text("")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(job / "ready").write_text("")
time.sleep(60)
"""

    def tell() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell).start()
    assert of(tmp_path, body, hang_after_s=60).run() == status.REQUEUE
    assert (tmp_path / "saved").exists()


def test_a_job_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOCK_WAIT_S", 0.1)
    with only_one(tmp_path), pytest.raises(ConfigurationError, match="another process is training this job"):
        of(tmp_path, "").run()


# A real training whose fifth step hangs in its first process.
HANGS_ONCE = """
import sys, time
from pathlib import Path
from med_assets.programs.rt_dose.lit import DoseModule
from med_assets.training.__main__ import main

once, original = Path(sys.argv[1]) / "hung", DoseModule.training_step

def hanging_step(self, *arguments):
    if self._trainer is not None and self.trainer.global_step == 4 and not once.exists():
        once.touch()
        time.sleep(600)
    return original(self, *arguments)

DoseModule.training_step = hanging_step
sys.exit(main(sys.argv[1:]))
"""


class HangsOnce(Supervisor):
    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.fresh", str(REPOSITORY), HANGS_ONCE, *super().command()[3:]]


@pytest.mark.drill
def test_a_real_training_that_hangs_once_leaves_its_stacks_and_is_finished(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path / "job", overrides=(*TINY, "runtime.hang_after_s=4", "runtime.save_every_s=0"))
    assert HangsOnce(job, "auto").run() == status.DONE
    assert "in hanging_step" in capfd.readouterr().err
    result = json.loads((job / "result.json").read_text())
    assert [event["event"] for event in result["events"]] == ["start", "hang", "restart", "start"]
    assert result["events"][-1]["step"] == 4


@pytest.mark.drill
def test_when_the_supervisor_is_killed_its_training_is_killed_too_and_the_command_given_again_goes_on(
    tmp_path: Path,
) -> None:
    job = write_job(tmp_path / "job", overrides=(*TINY, "patches.per_epoch=200", "runtime.save_every_s=0"))
    command = [sys.executable, "-m", "med_assets.training", str(job)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list((job / "checkpoints").glob("step-*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    child = psutil.Process(json.loads((job / "heartbeat.json").read_text())["pid"])
    process.kill()
    process.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
    again = subprocess.Popen([*command, "--resume", "must"], stdout=subprocess.DEVNULL)
    while [event["event"] for event in events(job)].count("start") < 2:
        assert again.poll() is None
        time.sleep(0.05)
    assert events(job)[-1]["step"] > 0
    time.sleep(0.5)
    again.terminate()
    assert again.wait(30) == status.REQUEUE
