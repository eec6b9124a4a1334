"""A stage on a machine that shares nothing but the bucket with whoever asked: its own home, its own folders."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError, StageFailed, TrainingStopped
from med_assets.launch import stage_runs
from med_assets.launch.exchange import REQUEST, Asker, Objects, Reporter, remove_old
from med_assets.launch.follow import EpochEnded, Event, LogLine, Progress, Submitted
from med_assets.launch.jobs import LOG, RESULT
from med_assets.launch.launcher import Handle
from med_assets.launch.local import LocalLauncher, running
from med_assets.launch.stage_request import Asked, Basis, Request
from med_assets.launch.stages import Stage
from med_assets.settings import Workspace
from med_assets.storage import preloaded
from med_assets.storage.result import StageOutcome
from med_assets.storage.s3 import bucket, local
from med_assets.storage.s3.bucket import Location
from tests.conftest import settings_of
from tests.med_assets.stages.builders import P, phantom, take


class OtherMachine(LocalLauncher):
    """Starts stages as processes that know another home, and nothing of the asking machine but what the bucket has."""

    passes_secrets: ClassVar[bool] = False

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home

    @property
    def shares_folder(self) -> bool:
        return False

    def submit(self, job: Path, command: Sequence[str], env: Mapping[str, str]) -> Handle:
        assert command[0] == "med-assets"
        assert not any(str(job.parent) in word for word in command)
        secrets = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_ENDPOINT_URL")}
        system = {
            name: text for name, text in os.environ.items() if not name.startswith(("MED_ASSETS_", "AWS_", "S3_"))
        }
        cache = {name: os.environ[name] for name in ("MED_ASSETS_CACHE", preloaded.VARIABLE) if name in os.environ}
        there = system | settings_of(self.home) | cache | secrets | dict(env)
        scratch = self.home / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        return super().submit(job, [sys.executable, "-m", "med_assets.cli", *command[1:]], there)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Mapping[str, str]]:
    with local.endpoint() as variables:
        yield variables


@pytest.fixture
def shared(
    workspace: Workspace, endpoint: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Workspace:
    """The home of the asking machine: a cache of a bucket of its own, with one case in the bucket's landing zone."""
    name = f"shared-{tmp_path.parent.name}-{tmp_path.name}".replace("_", "-").lower()[-60:].strip("-")
    for variable, text in endpoint.items():
        monkeypatch.setenv(variable, text)
    client = bucket.client()
    local.upload(phantom(6), Location(name, f"landing/{P}/export-6"), client)
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/home")
    monkeypatch.setenv("MED_ASSETS_LANDING", f"s3://{name}/landing")
    return Workspace.from_env()


@pytest.fixture
def batch(shared: Workspace) -> str:
    shared.landing_zone(P).refresh()
    return take(shared)


def run(ws: Workspace, request: Request, machine: LocalLauncher) -> StageOutcome:
    return stage_runs.run_stage(ws, request, machine, lambda event: None, poll_s=0.1)


def names_of(ws: Workspace, request: Request) -> list[str]:
    """Names of all objects below the prefix of a stage."""
    assert ws.store_location is not None
    prefix = ws.store_location.key(f"runs/{request.id(ws, Basis.of(ws, request.program))}/")
    found = bucket.client().list_objects_v2(Bucket=ws.store_location.bucket, Prefix=prefix).get("Contents", [])
    return [each["Key"].removeprefix(prefix) for each in found]


@pytest.mark.slow
def test_a_batch_is_taken_in_elsewhere_and_nothing_stays_in_the_bucket_but_its_cases(
    shared: Workspace, batch: str, tmp_path: Path
) -> None:
    machine = OtherMachine(tmp_path / "node")
    request = Request(Stage.INTAKE, P, (batch,))
    outcome = run(shared, request, machine)
    assert outcome.result.counts["new"] == 1
    assert outcome.checks["residual_phi"].passed
    shared.lake.refresh()
    (case,) = Catalog(shared, P).case_versions(batch)
    assert shared.store.has(case.artifact)
    assert (tmp_path / "node" / "store").is_dir()
    assert names_of(shared, request) == []
    # A second machine asks for the same, and a third does it: all is there.
    again = run(shared, request, OtherMachine(tmp_path / "another"))
    assert again.result.counts["reused"] == 1
    assert again.result.data_version == outcome.result.data_version


def test_the_error_and_the_log_of_a_stage_elsewhere_arrive(shared: Workspace, tmp_path: Path) -> None:
    request = Request(Stage.EVALUATE, P, ("baseline",))
    events: list[Event] = []
    with pytest.raises(ConfigurationError, match="has no checkpoint yet"):
        stage_runs.run_stage(shared, request, OtherMachine(tmp_path / "node"), events.append, poll_s=0.1)
    lines = [event.text for event in events if isinstance(event, LogLine)]
    assert any("has no checkpoint yet" in line for line in lines)
    assert (shared.runs / request.id(shared, Basis.of(shared, P)) / LOG).is_file()


def test_a_stage_that_runs_elsewhere_is_found_by_another_machine(
    shared: Workspace, batch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the bucket says: the second machine has no folder of the stage."""
    request = Request(Stage.INTAKE, P, (batch,))
    machine = OtherMachine(tmp_path / "node")

    class Gone(Exception):
        pass

    def leave(event: Event) -> None:
        raise Gone

    with pytest.raises(Gone):
        stage_runs.run_stage(shared, request, machine, leave, "the same", poll_s=0.1)
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path / "second"))
    second = Workspace.from_env()
    first_folder = shared.runs / request.id(shared, Basis.of(shared, P))

    class Cluster(OtherMachine):
        """Finds a job by its name, as a cluster does, whoever submitted it."""

        def find(self, job: Path) -> Handle | None:
            process = running(first_folder) if job.name == first_folder.name else None
            return None if process is None else Handle(first_folder, str(process.pid), f"process {process.pid}")

    events: list[Event] = []
    cluster = Cluster(tmp_path / "node")
    cluster._children = machine._children
    outcome = stage_runs.run_stage(second, request, cluster, events.append, "the same", poll_s=0.1)
    assert [event.handle.started_here for event in events if isinstance(event, Submitted)] == [False]
    assert outcome.result.counts["new"] == 1


def test_a_stage_that_was_killed_elsewhere_is_asked_for_again(shared: Workspace, batch: str, tmp_path: Path) -> None:
    request = Request(Stage.INTAKE, P, (batch,))

    def kill(event: Event) -> None:
        if isinstance(event, Submitted):
            process = running(event.handle.job)
            assert process is not None
            os.killpg(process.pid, signal.SIGKILL)

    with pytest.raises(TrainingStopped):
        stage_runs.run_stage(shared, request, OtherMachine(tmp_path / "node"), kill, poll_s=0.1)
    outcome = run(shared, request, OtherMachine(tmp_path / "node"))
    assert outcome.result.counts["new"] == 1


def test_a_launcher_without_shared_folders_needs_a_shared_home(workspace: Workspace) -> None:
    request = Request(Stage.DATASET, P)
    basis = Basis.of(workspace, P)
    with pytest.raises(ConfigurationError, match="MED_ASSETS_STORE"):
        Objects(workspace, request.id(workspace, basis)).put(REQUEST, b"{}")


def test_what_goes_elsewhere_has_no_secret_and_no_place(shared: Workspace, tmp_path: Path) -> None:
    request = Request(Stage.DATASET, P)
    asked = Asked(request, "0" * 16, "1" * 16, Basis.of(shared, P), through_bucket=True)
    machine = OtherMachine(tmp_path)
    words, sent = stage_runs.command(asked, machine), stage_runs.environment(shared, asked, machine, os.environ)
    assert words[0] == "med-assets"
    assert sent["MED_ASSETS_STORE"] == str(shared.store_location)
    assert sent["MED_ASSETS_LANDING"].startswith("s3://")
    text = " ".join([*words, *sent.values()])
    for name in ("MED_ASSETS_PSEUDONYM_KEY", "AWS_SECRET_ACCESS_KEY", "MED_ASSETS_HOME"):
        assert os.environ[name] not in text
        assert name not in sent


@pytest.mark.parametrize("through_bucket", [True, False])
def test_epochs_of_a_training_within_a_stage_arrive_once_and_before_its_result(
    shared: Workspace, through_bucket: bool, tmp_path: Path
) -> None:
    request = Request(Stage.TRAIN, P, ("baseline",))
    basis = Basis.of(shared, P)
    asked = Asked(request, request.id(shared, basis), "1" * 16, basis, through_bucket=through_bucket)
    with closing(Asker(shared, asked)) as asker:
        asker.begin()
        progress = Progress(asker.folder)
        node = (
            Workspace.from_env(os.environ | {"MED_ASSETS_HOME": str(tmp_path / "node")}) if through_bucket else shared
        )
        reporter = Reporter(node, asked)
        with reporter.reporting():
            reporter.epoch({"epoch": 0.0, "train/loss": 1.0})
            reporter.epoch({"epoch": 1.0, "train/loss": 0.5, "val_mae_gy": 3.25})
            reporter.fail(ConfigurationError("expected more"))
            asker.refresh(last=True)
            found = [event.numbers for event in progress.new() if isinstance(event, EpochEnded)]
            assert (asker.folder / RESULT).is_file()
        assert found == [{"epoch": 0.0, "train/loss": 1.0}, {"epoch": 1.0, "train/loss": 0.5, "val_mae_gy": 3.25}]
        asker.refresh(last=True)
        assert [event for event in progress.new() if isinstance(event, EpochEnded)] == []


def test_what_is_left_of_old_stages_is_removed_here_and_in_the_bucket(shared: Workspace) -> None:
    request = Request(Stage.DATASET, P)
    basis = Basis.of(shared, P)
    asked = Asked(request, request.id(shared, basis), "1" * 16, basis, through_bucket=True)
    with closing(Asker(shared, asked)) as asker:
        asker.begin()
    reporter = Reporter(shared, asked)
    with reporter.reporting():
        reporter.log("a line\n")
        reporter.fail(ConfigurationError("expected a case, got none"))
    assert len(names_of(shared, request)) == 5  # two requests, heartbeat, log and result
    assert remove_old(shared, lambda folder: False) == 0
    path = shared.runs / asked.id / REQUEST
    os.utime(path, (0, 0))
    assert remove_old(shared, lambda folder: True) == 0
    assert remove_old(shared, lambda folder: False) == 1
    assert names_of(shared, request) == []
    assert not path.parent.exists()


def test_who_follows_on_one_machine_has_each_line_of_the_log_once(shared: Workspace) -> None:
    request = Request(Stage.DATASET, P)
    basis = Basis.of(shared, P)
    asked = Asked(request, request.id(shared, basis), "1" * 16, basis, through_bucket=True)
    with closing(Asker(shared, asked)) as first, closing(Asker(shared, asked)) as second:
        first.begin()
        second.adopt()
        reporter = Reporter(shared, asked)
        with reporter.reporting():
            for line in ("one\n", "two\n"):
                reporter.log(line)
                reporter._send(beat=True)
                for asker in (first, second):
                    asker.refresh()
            reporter.log("three\n")
        with closing(Asker(shared, asked)) as third:
            third.adopt()
            third.refresh(last=True)
            second.refresh(last=True)
        assert (first.folder / LOG).read_text() == "one\ntwo\nthree\n"
        first.refresh(last=True)
        first.remove()
    assert names_of(shared, request) == []


def test_a_result_that_names_a_path_is_not_read(shared: Workspace) -> None:
    from med_assets.launch.exchange import _files

    with pytest.raises(StageFailed, match="path"):
        _files({"outcome": {"files": {"../../key": "0"}}})
