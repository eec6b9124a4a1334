"""Predictions are made by jobs: one for all that is missing, which survives what trainings survive, and none where nothing is missing."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
import torch

from med_assets import program
from med_assets.errors import AcceleratorFailed, DiskFull, MedAssetsError, OutOfMemory, TrainingStopped
from med_assets.evaluation.costs import prediction_peak
from med_assets.evaluation.predicting import predict_cases
from med_assets.evaluation.scoring import score_cases
from med_assets.launch import jobs
from med_assets.launch.follow import finish
from med_assets.launch.launcher import Phase
from med_assets.launch.local import LocalLauncher
from med_assets.launch.training import Launch
from med_assets.settings import Workspace, without_secrets
from med_assets.storage.artifacts import LocalStore
from med_assets.storage.files import read_json, write_text
from med_assets.training.predict import run
from resources.launcher import LauncherResource
from tests.med_assets.evaluation.untrained import P, case, checkpoint

SLOW = (48, 48, 48)
"""Shape of a case that takes long enough to be killed in."""


@dataclass
class Counting:
    """Runs jobs as the command line does, or in this process, and keeps how many cases each had."""

    run: Callable[[Path], object]
    jobs: list[int] = field(default_factory=list)

    def __call__(self, job: Path) -> None:
        self.jobs.append(len(read_json(job / "cases.json")))
        self.run(job)


def killed_after(done: int, job: Path) -> None:
    """Launch a job and kill its supervisor, with which its process dies, once so many cases are predicted."""
    launcher = LocalLauncher()
    handle = launcher.submit(job, jobs.command(job), without_secrets(os.environ))
    while len(LocalStore(job / jobs.PREDICTIONS).keys("prediction")) < done:
        assert launcher.state(handle).phase is Phase.RUNNING, jobs.tail(job)
        time.sleep(0.01)
    os.kill(int(handle.id), signal.SIGKILL)
    while launcher.state(handle).phase is Phase.RUNNING:
        time.sleep(0.01)
    raise TrainingStopped(launcher.state(handle).message)


def bytes_of(ws: Workspace, keys: Sequence[str]) -> list[dict[str, str]]:
    """Hashes of the files of predictions."""
    return [ws.store.file_hashes(key) for key in keys]


def test_killed_after_two_of_four_cases_it_predicts_the_other_two_and_the_bytes_are_those_of_one_go(
    workspace: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    elsewhere, launch = replace(workspace, home=tmp_path / "elsewhere"), Counting(partial(finish, poll_s=0.1))
    made = {}
    for ws in (workspace, elsewhere):
        model = checkpoint(ws)
        cases = [case(ws, 0), case(ws, 1), case(ws, 2, SLOW), case(ws, 3, SLOW)]
        if ws is workspace:
            with pytest.raises(TrainingStopped, match="the prediction process was killed"):
                predict_cases(ws, P, model, cases, partial(killed_after, 2))
            assert ws.store.keys("prediction") == []
        made[ws.home] = predict_cases(ws, P, model, cases, launch)
        assert list(ws.jobs.iterdir()) == []
    assert launch.jobs == [2, 4]
    resumed, whole = made[workspace.home], made[elsewhere.home]
    assert resumed == whole
    assert len(whole.new) == len(set(whole.keys.values())) == 4
    keys = list(whole.keys.values())
    assert bytes_of(workspace, keys) == bytes_of(elsewhere, keys)
    assert {"prediction_gy.npy"} == set(bytes_of(workspace, keys)[0])
    assert "prediction started as process" in capfd.readouterr().err


def test_a_bad_case_fails_alone_and_what_is_stored_starts_no_process(workspace: Workspace) -> None:
    launch, model = Counting(run), checkpoint(workspace)
    cases = [case(workspace, number) for number in range(3)]
    (workspace.store.fetch(cases[1].artifact) / "case.json").unlink()
    made = predict_cases(workspace, P, model, cases, launch)
    assert made.new == {cases[0].artifact, cases[2].artifact}
    assert list(made.failures) == [cases[1].artifact]
    assert made.failures[cases[1].artifact].startswith(("ArtifactCorrupt:", "FileNotFoundError:"))
    scores, counts, failures = score_cases(workspace, P, model, cases, launch)
    assert (launch.jobs, counts) == ([3, 1], {"new": 2, "reused": 0}), "what failed is tried again"
    assert (set(scores), set(failures)) == ({"c0", "c2"}, {"c1"})
    assert prediction_peak(workspace, P, model)["peak_host_mb"] > 50, "a process with torch takes more"
    good = [cases[0], cases[2]]
    assert predict_cases(workspace, P, model, good, launch).new == frozenset()
    assert score_cases(workspace, P, model, good, launch)[1] == {"new": 0, "reused": 2}
    assert launch.jobs == [3, 1]


def test_a_job_that_another_call_left_is_followed_and_what_it_lacks_comes_after_it(workspace: Workspace) -> None:
    model, rounds = checkpoint(workspace), []
    cases = [case(workspace, 0), case(workspace, 1)]

    def left(job: Path) -> None:
        raise KeyboardInterrupt

    def earlier(job: Path) -> None:
        """In the first round the process of the earlier call, which has read its own list of cases."""
        rounds.append(read_json(job / "cases.json"))
        if len(rounds) == 1:
            write_text(job / "cases.json", before)
        run(job)

    with pytest.raises(KeyboardInterrupt):
        predict_cases(workspace, P, model, cases[:1], left)
    (job,) = workspace.jobs.iterdir()
    before = (job / "cases.json").read_text()
    assert predict_cases(workspace, P, model, cases, earlier).new == {one.artifact for one in cases}
    assert [len(cases) for cases in rounds] == [2, 1]


def prepared_job(ws: Workspace, n: int = 2) -> Path:
    """The folder of a job that nobody started."""

    def left(job: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_cases(ws, P, checkpoint(ws), [case(ws, number) for number in range(n)], left)
    (job,) = ws.jobs.iterdir()
    return job


@pytest.mark.parametrize(
    ("error", "expected", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), OutOfMemory, "out_of_memory"),
        (RuntimeError("CUDA error: device-side assert triggered"), AcceleratorFailed, None),
        (OSError(28, "No space left on device"), DiskFull, None),
        (ValueError("a bad case"), None, "completed"),
    ],
)
def test_what_is_no_fault_of_a_case_ends_the_job_as_it_ends_a_training(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: type[MedAssetsError] | None,
    status: str | None,
) -> None:
    job = prepared_job(workspace)

    class Failing(program.CasePredictor):
        def predict(self, prepared: Path, out: Path) -> None:
            raise error

    monkeypatch.setattr(type(program.get(P)), "predictor", lambda *_: Failing())
    if expected is None:
        assert set(run(job)["failed"].values()) == {"ValueError: a bad case"}
    else:
        with pytest.raises(expected):
            run(job)
    result = read_json(job / jobs.RESULT)["status"] if (job / jobs.RESULT).is_file() else None
    assert result == status
    if expected is OutOfMemory:
        with pytest.raises(OutOfMemory, match="Tried to allocate 9 GiB"):
            predict_cases(workspace, P, checkpoint(workspace), [case(workspace, 0)], run_again(job))
        assert not (job / jobs.RESULT).exists(), "the next call starts without it"


def run_again(job: Path) -> Launch:
    """A launch that runs the job here."""

    def launch(folder: Path) -> None:
        assert folder == job
        with pytest.raises(OutOfMemory):
            run(folder)

    return launch


def test_asked_to_stop_it_ends_at_a_case_and_goes_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepared_job(workspace, 3)
    of_case: list[Path] = []
    model = program.get(P).predictor(Path((job / jobs.CHECKPOINT).read_text().strip()), job.parent)

    class Stopped(program.CasePredictor):
        def predict(self, prepared: Path, out: Path) -> None:
            of_case.append(prepared)
            os.kill(os.getpid(), signal.SIGTERM)
            model.predict(prepared, out)

    monkeypatch.setattr(type(program.get(P)), "predictor", lambda *_: Stopped())
    with pytest.raises(TrainingStopped, match="after case 1 of 3"):
        run(job)
    with pytest.raises(TrainingStopped, match="after case 2 of 3"):
        run(job)
    done = run(job)
    assert (done["status"], done["failed"]) == ("completed", {})
    assert done["peak_memory"]["peak_host_mb"] > 0
    assert len(LocalStore(job / jobs.PREDICTIONS).keys("prediction")) == len(set(of_case)) == len(of_case) == 3


def test_a_run_of_the_graph_shows_its_progress(workspace: Workspace) -> None:
    model, cases = checkpoint(workspace), [case(workspace, 0), case(workspace, 1)]

    @dg.asset
    def evaluation(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        launch: Callable[[Path], None] = partial(LauncherResource(poll_s=0.1).run, context)
        return dg.MaterializeResult(metadata={"new": len(predict_cases(workspace, P, model, cases, launch).new)})

    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize([evaluation], instance=instance)
        output = [entry.user_message for entry in instance.all_logs(done.run_id)]
    (event,) = done.get_asset_materialization_events()
    assert event.materialization.metadata["new"].value == 2
    assert any("predicted 2 of 2 cases, 0 failed" in line for line in output)
    assert any(line.startswith("prediction started as process") for line in output)
