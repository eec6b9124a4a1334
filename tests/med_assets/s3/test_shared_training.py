"""Trainings of a shared home: one machine at a time trains a key, and another goes on with what a dead one left."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from med_assets.catalog import Case
from med_assets.cli.main import main
from med_assets.errors import ArtifactCorrupt
from med_assets.experiments.configuration import load
from med_assets.launch.mirror import mirrored, newest_step, remove_state
from med_assets.launch.training import trained
from med_assets.settings import Settings, Workspace
from med_assets.storage.artifacts import ArtifactStore, LocalStore
from med_assets.storage.files import file_sha256, read_json, write_json
from med_assets.storage.locks import alone
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.states import JobState
from med_assets.storage.s3.store import S3Store
from tests import fresh
from tests.conftest import REPOSITORY
from tests.med_assets.programs.rt_dose.builders import TINY, write_case
from tests.med_assets.s3.faults import Faults

P = "rt_dose"
SHORT_S = 2.0
LONG = (*TINY, "schedule.epochs=8", "schedule.patience=8")
PATIENCE_S = 400.0

MACHINE = """
import sys
from pathlib import Path
from tests.med_assets.s3.test_shared_training import count_and_finish, train_on
home, bucket, how = sys.argv[1:4]
print(*train_on(Path(home), bucket or None, count_and_finish if how == "quick" else None), flush=True)
"""


def settings(home: Path, bucket: str | None) -> Settings:
    """A machine: its own home, and a bucket that it shares; a lock is taken over after SHORT_S."""
    from med_assets.storage.s3.lease import Leases

    found = Settings(
        home=home, landing=home / "landing", profile="demo", store_location=Location(bucket, "home") if bucket else None
    )
    if bucket:
        found.__dict__["leases"] = Leases(Location(bucket, "home"), SHORT_S)
    return found


def cases() -> list[Case]:
    return [
        Case(P, f"case{n}", f"p{n}", f"v{n}", f"h{n}", f"prepared/{n:016d}", None, True, "val" if n == 2 else "train")
        for n in range(3)
    ]


def train_on(home: Path, bucket: str | None, launch: Any = None) -> tuple[str, bool]:
    """Train the same as any other machine does."""
    return trained(settings(home, bucket), P, load(P, "baseline", LONG, profile="demo"), cases(), launch)


def count_and_finish(job: Path) -> None:
    """A training that takes a while and learns nothing."""
    time.sleep(0.7)
    (job / "weights.pt").write_bytes(b"weights")
    (job / "history.csv").write_text("epoch,step\n1,1\n")
    write_json(job / "result.json", {"status": "completed"})


def machine(home: Path, bucket: str, how: str = "real") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", MACHINE, str(home), bucket, how], env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip


def fill(store: ArtifactStore) -> None:
    """Write the prepared cases."""
    for number, case in enumerate(cases()):
        with store.create(case.artifact) as folder:
            write_case(folder / "case", number)
            for path in (folder / "case").iterdir():
                path.rename(folder / path.name)
            (folder / "case").rmdir()


@pytest.fixture
def bucket(faults: Faults, name: str, tmp_path: Path) -> str:
    """A bucket with the prepared cases."""
    fill(S3Store(Location(name, "home"), LocalStore(tmp_path / "writer" / "store")))
    return name


def checkpoint(job: Path, step: int, content: str = "state") -> None:
    """A finished checkpoint as a training writes it."""
    folder = job / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"step-{step:08d}.ckpt").write_text(f"{content} {step}")
    (folder / "best-00001.pt").write_text("best")
    described = {
        "sha256": file_sha256(folder / f"step-{step:08d}.ckpt"),
        "step": step,
        "best": "best-00001.pt",
        "best_sha256": file_sha256(folder / "best-00001.pt"),
    }
    write_json(folder / f"step-{step:08d}.json", described)
    (job / "history.csv").write_text(f"epoch\n{step}\n")
    (job / "log.txt").write_text(f"step {step}\n")


def keys(good: Any, bucket: str) -> list[str]:
    return [one["Key"] for one in good.list_objects_v2(Bucket=bucket, Prefix="home/jobs/").get("Contents", [])]


def saved(good: Any, bucket: str) -> int:
    """Step of the newest state of the one job."""
    [key] = [key for key in keys(good, bucket) if key.endswith("state.json")]
    return int(json.loads(good.get_object(Bucket=bucket, Key=key)["Body"].read())["step"])


def wait_until(condition: Any) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def job_of(home: Path) -> Path:
    made = home / "tmp" / "jobs" / "0123456789abcdef"
    made.mkdir(parents=True)
    (made / "program").write_text(f"{P}\n")
    write_json(made / "experiment.json", {"name": "baseline"})
    return made


def test_two_machines_that_are_asked_for_the_same_training_train_once(bucket: str, tmp_path: Path, good: Any) -> None:
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda home: fresh.run(REPOSITORY, MACHINE, str(tmp_path / home), bucket, "quick"), "12"))
    assert [one.returncode for one in done] == [0, 0], done
    (first, new), (second, other) = (one.stdout.split() for one in done)
    assert first == second
    assert sorted((new, other)) == ["False", "True"]
    assert keys(good, bucket) == []


def test_the_newest_checkpoint_is_copied_and_another_machine_gets_all_of_it(
    faults: Faults, name: str, tmp_path: Path, good: Any
) -> None:
    faults.lost = 0.05
    one, two = settings(tmp_path / "one", name), settings(tmp_path / "two", name)
    job, other = job_of(one.home), job_of(two.home)
    with mirrored(one, job, every_s=0.05):
        for step in (3, 9):
            checkpoint(job, step)
            wait_until(partial(lambda step: step == saved(good, name), step))
        wait_until(lambda: sum("/step-" in key for key in keys(good, name)) == 2)  # of a state and no other
    with mirrored(two, other):
        assert newest_step(other) == (9, other / "checkpoints" / "step-00000009.json")
        for file in ("checkpoints/step-00000009.ckpt", "checkpoints/best-00001.pt", "history.csv", "log.txt"):
            assert (other / file).read_bytes() == (job / file).read_bytes()
        assert {path.name for path in other.iterdir()} == {path.name for path in job.iterdir()}
    remove_state(two, other)
    assert keys(good, name) == []


def test_a_machine_whose_job_went_to_another_overwrites_nothing(faults: Faults, name: str, tmp_path: Path) -> None:
    one, two = settings(tmp_path / "one", name), settings(tmp_path / "two", name)
    job, other = job_of(one.home), job_of(two.home)
    checkpoint(job, 3)
    with mirrored(one, job, every_s=0.05):
        wait_until(lambda: JobState(one.store, job.name).read().step == 3)
        with mirrored(two, other, every_s=0.05):
            checkpoint(job, 30, "by the one that was paused")
            checkpoint(other, 6)
            wait_until(lambda: JobState(two.store, job.name).read().step == 6)
            time.sleep(0.3)
    assert JobState(two.store, job.name).read().step == 6
    third = job_of(tmp_path / "three")
    with mirrored(settings(tmp_path / "three", name), third):
        assert (third / "checkpoints" / "step-00000006.ckpt").read_text() == "state 6"


def test_what_is_newer_here_stays_and_never_discards_what_is_there(faults: Faults, name: str, tmp_path: Path) -> None:
    one, two = settings(tmp_path / "one", name), settings(tmp_path / "two", name)
    job, other = job_of(one.home), job_of(two.home)
    checkpoint(job, 3)
    with mirrored(one, job):
        pass
    checkpoint(other, 6, "own")
    with mirrored(two, other):
        assert (other / "checkpoints" / "step-00000006.ckpt").read_text() == "own 6"
        assert not (other / "checkpoints" / "step-00000003.ckpt").exists()
    assert JobState(one.store, job.name).read().step == 6
    shutil.rmtree(job / "checkpoints")
    with mirrored(one, job, "never"):
        assert newest_step(job) is None
    assert JobState(one.store, job.name).read().files == {}


def test_a_copy_that_fails_stops_no_training_and_comes_later(faults: Faults, name: str, tmp_path: Path) -> None:
    one = settings(tmp_path / "one", name)
    job = job_of(one.home)
    with mirrored(one, job, every_s=0.05):
        faults.always = (403, "AccessDenied")
        checkpoint(job, 3)
        time.sleep(0.5)
        faults.always = None
        wait_until(lambda: JobState(one.store, job.name).read().step == 3)


def test_a_damaged_checkpoint_is_not_copied(faults: Faults, name: str, tmp_path: Path) -> None:
    one = settings(tmp_path / "one", name)
    job = job_of(one.home)
    checkpoint(job, 3)
    checkpoint(job, 6)
    (job / "checkpoints" / "step-00000006.ckpt").write_text("damaged")
    with mirrored(one, job):
        pass
    assert JobState(one.store, job.name).read().files == {}


def test_a_state_with_files_that_no_training_has_is_refused(faults: Faults, name: str, tmp_path: Path) -> None:
    one = settings(tmp_path / "one", name)
    job, folder = job_of(one.home), tmp_path / "made"
    folder.mkdir()
    (folder / "cases.json").write_text("[]")
    assert isinstance(one.store, S3Store)
    state = JobState(one.store, job.name)
    state.claim()
    state.save(folder, {"cases.json": file_sha256(folder / "cases.json")}, 3, "title")
    with pytest.raises(ArtifactCorrupt, match="1 others"), mirrored(one, job):
        pass
    assert not (job / "cases.json").exists()


def test_a_home_of_one_machine_has_no_copies(tmp_path: Path) -> None:
    one = settings(tmp_path / "one", None)
    job = job_of(one.home)
    checkpoint(job, 3)
    before = sorted(job.rglob("*"))
    with mirrored(one, job, every_s=0.01):
        time.sleep(0.05)
    remove_state(one, job)
    assert sorted(job.rglob("*")) == before


@pytest.fixture
def killed(bucket: str, tmp_path: Path, good: Any) -> Path:
    """The folder of a machine that died by kill -9 after the first checkpoint, and lost its disk."""
    process = machine(tmp_path / "one", bucket)
    state = f"home/jobs/{trained_job()}/state.json"

    def died_late() -> bool:
        assert process.poll() is None, process.communicate()
        if state not in keys(good, bucket):
            return False
        return bool(json.loads(good.get_object(Bucket=bucket, Key=state)["Body"].read())["files"])

    wait_until(died_late)
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        each.kill()
    process.communicate()
    shutil.rmtree(tmp_path / "one")
    return tmp_path / "one"


def trained_job() -> str:
    from med_assets.launch.training import checkpoint_key

    return checkpoint_key(P, load(P, "baseline", LONG, profile="demo"), cases()).partition("/")[2]


@pytest.mark.drill
def test_another_machine_goes_on_with_the_training_of_one_that_was_killed_to_the_same_weights(
    killed: Path, bucket: str, tmp_path: Path, good: Any
) -> None:
    second = machine(tmp_path / "two", bucket)
    answer, log = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, log
    assert "going on from step " in log
    key, fresh = answer.split()
    assert fresh == "True"
    assert keys(good, bucket) == []
    resumed = settings(tmp_path / "two", bucket).store.fetch(key)
    starts = [event for event in read_json(resumed / "result.json")["events"] if event["event"] == "start"]
    assert [event["step"] is None for event in starts] == [True, False]

    alone = settings(tmp_path / "alone", None)
    fill(alone.store)
    whole = alone.store.fetch(train_on(alone.home, None)[0])
    assert (whole / "history.csv").read_bytes() == (resumed / "history.csv").read_bytes()
    assert file_sha256(whole / "weights.pt") == file_sha256(resumed / "weights.pt")


def test_people_see_who_holds_a_lock_and_which_trainings_can_be_gone_on_with(
    workspace: Workspace,
    faults: Faults,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["locks"]) == 1
    assert "expected a shared home" in capsys.readouterr().err
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/home")
    assert main(["locks"]) == 0
    assert capsys.readouterr().out == "no lock is held\n"
    one = settings(workspace.home, name)
    job = job_of(one.home)
    checkpoint(job, 3)
    with mirrored(one, job), alone(one, "champion-rt_dose"):
        pass
    with alone(one, "dataset-rt_dose"):
        assert main(["locks"]) == 0
    locks, states = capsys.readouterr().out.splitlines()[1::2]
    assert locks.startswith("dataset-rt_dose 20")
    assert locks.endswith(f"process {os.getpid()}")
    assert states.split()[:3] == [job.name, "rt_dose/baseline", "3"]
