"""A training of a shared home that goes on without its follower: its lock stays held, and whoever follows it next has the lock at once."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from med_assets.errors import LockHeld
from med_assets.launch import jobs, keeper
from med_assets.launch.configuration import runs
from med_assets.launch.keeper import LOG, kept
from med_assets.launch.launcher import Phase
from med_assets.launch.local import LocalLauncher, running
from med_assets.launch.mirror import mirrored
from med_assets.settings import Settings
from med_assets.storage.locks import alone, alone_among_machines
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.states import JobState
from med_assets.storage.s3.store import S3Store
from tests.code import Code
from tests.med_assets.s3.faults import Faults
from tests.med_assets.s3.test_shared_training import checkpoint, job_of

PATIENCE_S = 60.0

FOLLOWER = """
import sys, time
from pathlib import Path
from med_assets.launch import jobs
from med_assets.launch.keeper import kept
from med_assets.launch.local import LocalLauncher
from med_assets.storage.locks import alone
from tests.med_assets.s3.test_keeper import machine
ws, job = machine(Path(sys.argv[1]), sys.argv[2]), Path(sys.argv[3])
with alone(ws, job.name, file=job / jobs.FOLLOWED), kept(ws, job, job.name):
    LocalLauncher().submit(job, ["sleep", "300"], {})
    print("follows", flush=True)
    time.sleep(300)
"""


def machine(home: Path, bucket: str) -> Settings:
    return Settings(home=home, landing=home / "landing", store_location=Location(bucket, "home"))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    made = job_of(tmp_path / "one")
    yield made
    if (process := running(made)) is not None:
        process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_lock_and_the_state_of_a_training_are_kept_until_it_is_followed_again(
    faults: Faults, name: str, tmp_path: Path, job: Path
) -> None:
    one, two = machine(tmp_path / "one", name), machine(tmp_path / "two", name)
    follower = Code(FOLLOWER, str(one.home), name, str(job))
    assert follower.stdout.readline() == "follows\n"
    follower.kill()
    follower.communicate()
    wait_until(lambda: "whose training goes on" in (job / LOG).read_text())
    assert runs(job)
    with pytest.raises(LockHeld, match="process"), alone_among_machines(two, job.name, wait=False):
        pass
    checkpoint(job, 6)
    assert isinstance(two.store, S3Store)
    state = JobState(two.store, job.name)
    wait_until(lambda: state.read().step == 6)
    with alone(one, job.name, wait=False, file=job / jobs.FOLLOWED):
        wait_until(lambda: "followed again" in (job / LOG).read_text())
        with pytest.raises(LockHeld), alone_among_machines(two, job.name, wait=False):
            pass


def test_the_lock_is_free_when_a_training_without_a_follower_ends(
    faults: Faults, name: str, tmp_path: Path, job: Path
) -> None:
    one, two = machine(tmp_path / "one", name), machine(tmp_path / "two", name)
    launcher = LocalLauncher()
    with (
        alone(one, job.name, file=job / jobs.FOLLOWED),
        kept(one, job, job.name),
    ):  # and Ctrl-C, which leaves jobs of a cluster running
        handle = launcher.submit(job, ["sleep", "300"], {})
    wait_until(lambda: "whose training goes on" in (job / LOG).read_text())
    process = running(job)
    assert process is not None
    checkpoint(job, 9)
    (job / jobs.RESULT).write_text("{}")
    process.kill()
    wait_until(lambda: launcher.state(handle).phase is not Phase.RUNNING)
    wait_until(lambda: "the training has ended" in (job / LOG).read_text())
    with alone_among_machines(two, job.name):
        assert isinstance(two.store, S3Store)
        assert JobState(two.store, job.name).read().step == 9, "which another machine finishes in no time"
    assert [each.wait() for each in keeper._left] == [0]
    keeper._left.clear()


def test_a_training_that_has_its_result_is_kept_no_longer_though_its_process_has_not_ended(
    faults: Faults, name: str, tmp_path: Path, job: Path
) -> None:
    one = machine(tmp_path / "one", name)
    launcher = LocalLauncher()
    checkpoint(job, 6)
    with alone(one, job.name, file=job / jobs.FOLLOWED), kept(one, job, job.name):
        handle = launcher.submit(job, ["sleep", "300"], {})
        (job / jobs.RESULT).write_text("{}")
    assert keeper._left == []
    assert runs(job)
    with mirrored(one, job):
        pass
    assert isinstance(one.store, S3Store)
    assert JobState(one.store, job.name).read().files == {}
    launcher.cancel(handle)
    wait_until(lambda: launcher.state(handle).phase is not Phase.RUNNING)


def test_nothing_stays_when_the_training_ends_before_its_follower(
    faults: Faults, name: str, tmp_path: Path, job: Path
) -> None:
    one = machine(tmp_path / "one", name)
    before = {child.pid for child in psutil.Process().children()}
    with alone(one, job.name, file=job / jobs.FOLLOWED), kept(one, job, job.name):
        assert len({child.pid for child in psutil.Process().children()} - before) == 1
    assert {child.pid for child in psutil.Process().children()} <= before
    assert (job / LOG).read_text() == ""
