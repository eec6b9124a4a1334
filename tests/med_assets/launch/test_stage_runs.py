"""Stages as jobs: the same outcome wherever they run, found while they run, and asked for again when they were killed."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from med_assets.cli.main import main
from med_assets.cli.stage_work import WORK, perform
from med_assets.errors import ConfigurationError, MedAssetsError, TrainingStopped
from med_assets.launch import exchange, stage_runs
from med_assets.launch.exchange import Asker
from med_assets.launch.follow import Event, Submitted
from med_assets.launch.launcher import Launcher
from med_assets.launch.local import running
from med_assets.launch.stage_request import TAKES, Asked, Basis, Request, parse
from med_assets.launch.stages import Stage
from med_assets.settings import Workspace
from med_assets.storage.result import StageOutcome
from tests.med_assets.stages.builders import P, drop, take
from tests.med_assets.stages.models import configure
from tests.resources.slurm_cluster import until


@pytest.fixture
def batch(workspace: Workspace) -> str:
    drop(workspace, 6)
    return take(workspace)


def local(ws: Workspace, request: Request) -> Launcher:
    launcher = stage_runs.launcher_of(ws, request, "local")
    assert launcher is not None
    return launcher


def run(ws: Workspace, request: Request, inputs: str | None = None) -> tuple[StageOutcome, list[Event]]:
    events: list[Event] = []
    return stage_runs.run_stage(ws, request, local(ws, request), events.append, inputs, poll_s=0.05), events


def same(one: StageOutcome, other: StageOutcome) -> None:
    first, second = one.result, other.result
    assert (first.data_version, first.counts, first.summary) == (second.data_version, second.counts, second.summary)
    assert first.tables.keys() == second.tables.keys()
    for name, frame in first.tables.items():
        pd.testing.assert_frame_equal(frame, second.tables[name], check_exact=True)
    assert {name: path.read_bytes() for name, path in first.images.items()} == {
        name: path.read_bytes() for name, path in second.images.items()
    }
    assert {name: (check.passed, check.reason) for name, check in one.checks.items()} == {
        name: (check.passed, check.reason) for name, check in other.checks.items()
    }


def test_every_stage_has_its_work_and_its_words() -> None:
    assert WORK.keys() == set(Stage)
    assert {parse(stage, P, ()).stage for stage in Stage if stage not in TAKES} == set(Stage) - TAKES.keys()


@pytest.mark.slow
def test_a_stage_gives_the_same_in_this_process_and_as_a_job(workspace: Workspace, batch: str) -> None:
    for request in (Request(Stage.INTAKE, P, (batch,)), Request(Stage.DATASET, P)):
        first, events = run(workspace, request)
        assert first.result.counts["new"] > 0 or request.stage is Stage.DATASET
        assert isinstance(events[0], Submitted)
        # What is there is reused, wherever it was made.
        here, (again, _) = perform(workspace, request), run(workspace, request)
        same(here, again)
        assert here.result.data_version == first.result.data_version


def test_the_same_stage_has_the_same_id_on_every_machine_of_a_home_and_another_for_other_work(
    workspace: Workspace,
) -> None:
    basis = Basis.of(workspace, P)
    ids = {
        Request(stage, P, names, overrides).id(workspace, basis)
        for stage, names, overrides in (
            (Stage.DATASET, (), ()), (Stage.SPLITS, (), ()), (Stage.TRAIN, ("baseline",), ()),
            (Stage.TRAIN, ("baseline",), ("schedule.epochs=2",)), (Stage.TRAIN, ("mean_dose",), ()),
        )
    }  # fmt: skip
    assert len(ids) == 5
    assert Request(Stage.DATASET, P).id(workspace, Basis.of(workspace, P)) in ids


@pytest.mark.parametrize(
    "words",
    [
        ("intake", P),
        ("intake", P, "../elsewhere"),
        ("dataset", P, "extra"),
        ("evaluate", P, "baseline", "mean_dose"),
        ("evaluate", P, "baseline", "schedule.epochs=2"),
        ("leaderboard", P, "a=b"),
        ("sleep", P),
    ],
)
def test_words_that_ask_for_no_stage_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        parse(words[0], words[1], words[2:])


def test_an_error_of_a_stage_arrives_as_itself(workspace: Workspace) -> None:
    with pytest.raises(ConfigurationError, match="has no checkpoint yet"):
        run(workspace, Request(Stage.EVALUATE, P, ("baseline",)))


def test_a_job_that_was_killed_is_asked_for_again_and_reuses_what_is_there(workspace: Workspace, batch: str) -> None:
    request = Request(Stage.INTAKE, P, (batch,))

    def kill(event: Event) -> None:
        if isinstance(event, Submitted):
            process = running(event.handle.job)
            assert process is not None
            os.killpg(process.pid, signal.SIGKILL)

    with pytest.raises(TrainingStopped, match="give the same command again"):
        stage_runs.run_stage(workspace, request, local(workspace, request), kill, poll_s=0.05)
    outcome, _ = run(workspace, request)
    assert outcome.result.counts["new"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["the same", "others", None])
def test_a_job_that_runs_is_followed_and_asked_for_anew_where_it_read_other_inputs(
    workspace: Workspace, batch: str, inputs: str | None
) -> None:
    request = Request(Stage.INTAKE, P, (batch,))
    handles = []

    class Gone(Exception):
        pass

    def leave(event: Event) -> None:
        handles.append(event)
        raise Gone

    first = local(workspace, request)
    with pytest.raises(Gone):
        stage_runs.run_stage(workspace, request, first, leave, "the same", poll_s=0.05)
    outcome, events = run(workspace, request, inputs)
    started = [event.handle.started_here for event in events if isinstance(event, Submitted)]
    if started[0]:
        pytest.skip("the job ended before it was found")
    assert started == ([False] if inputs == "the same" else [False, True])
    assert outcome.result.counts["new"] == int(inputs == "the same")
    for child in first._children.values():  # type: ignore[attr-defined]  # of the local launcher
        child.wait(10)


def test_another_machine_with_other_settings_or_code_refuses_the_stage(
    workspace: Workspace, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(Stage.INTAKE, P, (batch,))
    asked = Asked(request, "0" * 16, "1" * 16, Basis.of(workspace, P))
    with closing(Asker(workspace, asked)) as asker:
        asker.begin()
        monkeypatch.setenv("MED_ASSETS_PROFILE", "full")
        assert main(["run", *request.words(), "--to", asked.name]) == 1
        with pytest.raises(ConfigurationError, match="MED_ASSETS_PROFILE"):
            asker.outcome()


def test_a_submission_that_was_replaced_leaves_no_result(workspace: Workspace) -> None:
    request = Request(Stage.DATASET, P)
    asked = Asked(request, "0" * 16, "1" * 16, Basis.of(workspace, P))
    with closing(Asker(workspace, asked)) as asker:
        asker.begin()
    late = exchange.Reporter(workspace, asked)
    newer = Asked(request, asked.id, "2" * 16, asked.basis)
    with closing(Asker(workspace, newer)) as asker:
        asker.begin()
    late.fail(MedAssetsError("late"))
    assert not (workspace.runs / asked.id / "result.json").exists()
    assert main(["run", *request.words(), "--to", asked.name]) == 1  # and is not run either


def test_a_stage_that_is_stopped_says_that_it_goes_on(workspace: Workspace, batch: str) -> None:
    request = Request(Stage.INTAKE, P, (batch,))
    launcher = local(workspace, request)

    def stop(event: Event) -> None:
        if isinstance(event, Submitted):
            until(lambda: (event.handle.job / exchange.HEARTBEAT).exists(), "the first heartbeat")
            launcher.cancel(event.handle)

    with pytest.raises(TrainingStopped, match="asked to stop"):
        stage_runs.run_stage(workspace, request, launcher, stop, poll_s=0.05)


def test_the_command_prints_what_the_command_of_the_stage_prints(
    workspace: Workspace, batch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "intake", P, batch]) == 0
    assert "taken in: 1 new" in capsys.readouterr().out
    assert main(["run", "intake", P, batch, "--launcher", "local"]) == 0
    printed = capsys.readouterr()
    assert "taken in: 0 new, 1 reused" in printed.out
    assert "stage started as process" in printed.err


def test_settings_and_configuration_choose_the_launcher(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(Stage.DATASET, P)
    assert stage_runs.launcher_of(workspace, request) is None
    monkeypatch.setenv("MED_ASSETS_STAGE_LAUNCHER", "local")
    assert stage_runs.launcher_name(Workspace.from_env(), request) == "local"
    monkeypatch.setenv("MED_ASSETS_RT_DOSE_STAGE_LAUNCHER", "slurm")
    assert stage_runs.launcher_name(Workspace.from_env(), request) == "slurm"
    assert stage_runs.launcher_name(Workspace.from_env(), Request(Stage.DATASET, "lung_ct")) == "local"
    monkeypatch.setenv("MED_ASSETS_STAGE_LAUNCHER", "elsewhere")
    with pytest.raises(ConfigurationError, match="MED_ASSETS_STAGE_LAUNCHER"):
        Workspace.from_env()


def test_an_experiment_asks_for_what_its_stages_need(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, stages={"train": {"launch": {"partition": "cpu", "time_min": 60}}})
    plain = Request(Stage.TRAIN, P, ("baseline",))
    asking = Request(Stage.TRAIN, P, ("baseline",), ("launch.gpus=2", "launch.partition=gpu"))
    assert stage_runs.section_of(workspace, plain).configuration("slurm").model_dump()["partition"] == "cpu"
    asked = stage_runs.section_of(workspace, asking).configuration("slurm").model_dump()
    assert (asked["partition"], asked["gpus"], asked["time_min"]) == ("gpu", 2, 60)


def test_the_launcher_of_an_experiment_is_that_of_its_training_unless_its_jobs_are_whole_stages(
    workspace: Workspace,
) -> None:
    def name(*overrides: str) -> str:
        return stage_runs.launcher_name(workspace, Request(Stage.TRAIN, P, ("baseline",), overrides))

    assert name("launch.launcher=slurm") == "in_process"
    assert name("launch.launcher=slurm", "+launch.shared_folder=false") == "slurm"
    assert name("launch.launcher=kubernetes") == "kubernetes"
    with pytest.raises(ConfigurationError, match="MED_ASSETS_STORE"):
        stage_runs.launcher_of(workspace, Request(Stage.TRAIN, P, ("baseline",), ("launch.launcher=kubernetes",)))


@pytest.mark.slow
def test_of_two_that_ask_at_once_one_starts_the_stage(workspace: Workspace, batch: str) -> None:
    request = Request(Stage.INTAKE, P, (batch,))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: run(workspace, request, "the same"), range(2)))
    started = [event.handle.started_here for _, events in found for event in events if isinstance(event, Submitted)]
    assert sorted(started) == [False, True]
    assert [outcome.result.counts["new"] for outcome, _ in found] == [1, 1]


def test_what_one_asker_has_yet_to_read_is_put_aside_by_another_once_it_was_read(workspace: Workspace) -> None:
    request = Request(Stage.DATASET, P)
    asked = Asked(request, "0" * 16, "1" * 16, Basis.of(workspace, P))
    with ThreadPoolExecutor(1) as threads, closing(Asker(workspace, replace(asked, token="2" * 16))) as anew:
        with closing(Asker(workspace, asked)) as first, closing(Asker(workspace, asked)) as follower:
            first.begin()
            follower.adopt()
            exchange.Reporter(workspace, asked).fail(MedAssetsError("the first"))
            begins = threads.submit(anew.begin)
            with pytest.raises(TimeoutError):
                begins.result(0.3)
            for asker in (first, follower):
                with pytest.raises(MedAssetsError, match="the first"):
                    asker.outcome()
        begins.result(10)
        assert not (anew.folder / "result.json").exists()
