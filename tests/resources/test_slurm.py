"""Trainings as jobs of a real Slurm cluster: who dies with whom, what is requeued, and the messages about it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import resources
from assets import build_program, keys
from med_assets.cli import doctor
from med_assets.cli.main import main
from med_assets.evaluation.predicting import predict_cases
from med_assets.launch import slurm, slurm_scripts
from med_assets.launch.configuration import build, launch_of
from med_assets.launch.follow import Event, Submitted, finish
from med_assets.launch.jobs import LOG, RESULT, command
from med_assets.launch.launcher import Handle, Phase, State
from med_assets.launch.local import LocalLauncher
from med_assets.settings import Workspace
from med_assets.storage.files import read_json
from med_assets.training import status
from resources.launcher import TRAINING_TAG, LauncherResource
from tests.med_assets.evaluation import untrained
from tests.med_assets.programs.rt_dose.builders import write_job
from tests.med_assets.stages.builders import P, drop, ingest
from tests.resources.slurm_cluster import Cluster, until

TRAINING = """
import os, sys, time
from pathlib import Path
job = Path(sys.argv[1])
with (job / "starts").open("a") as stream:
    stream.write("x")
start = len((job / "starts").read_text())
print(f"start {{start}}", flush=True)
def checkpoint():
    (job / "checkpoints").mkdir(exist_ok=True)
    (job / "checkpoints" / "last.ckpt").write_text(str(start))
def prediction():
    (job / "predictions").mkdir(exist_ok=True)
    (job / "predictions" / "manifest.json").write_text("{{}}")
{body}
"""
EPOCHS = """
(job / "history.csv").write_text("epoch,train/loss\\n0,1.0\\n1,0.5\\n")
(job / "result.json").write_text("{}")
"""
INTERRUPTED_ONCE = (
    """
if start == 1:
    checkpoint()
    time.sleep(300)
"""
    + EPOCHS
)


class Scripted(LauncherResource):
    """The launcher with a small script in place of the training command."""

    def command(self, job: Path) -> list[str]:
        return [sys.executable, str(job / "training.py"), str(job)]


SEEDS = (6, 7, 8)
"""With the tests' key, one patient each for training, test and validation."""
TINY = (
    "patches.size=[16,16,16]", "patches.per_epoch=4", "inference.window=[32,32,32]", "schedule.val_every=1",
    "schedule.patience=12", "network.base_channels=8",
)  # fmt: skip
LAUNCHER = Scripted(launcher="slurm", poll_s=0.1)
SLURM = slurm.SlurmLauncher(slurm.Configuration(ask_s=0.2))


def job_of(folder: Path, body: str, **launch: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "training.py").write_text(TRAINING.format(body=body))
    (folder / "experiment.json").write_text(json.dumps({"launch": {"cpus": 1, "ask_s": 0.2, **launch}}))
    return folder


def submit(job: Path) -> Handle:
    return build("slurm", job).submit(job, LAUNCHER.command(job), dict(os.environ))


def run(job: Path, instance: dg.DagsterInstance, launcher: LauncherResource = LAUNCHER) -> dg.ExecuteInProcessResult:
    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        launcher.run(context, job)
        return dg.MaterializeResult()

    return dg.materialize([checkpoint], instance=instance, raise_on_error=False)


def messages(instance: dg.DagsterInstance, run_id: str) -> str:
    return "\n".join(str(entry) for entry in instance.all_logs(run_id))


def starts(job: Path) -> int:
    return len((job / "starts").read_text()) if (job / "starts").exists() else 0


def of_slurm(job: Path, field: str) -> str:
    fields = slurm.show(json.loads((job / slurm.JOB).read_text())["job_id"])
    assert fields is not None
    return fields[field]


def test_a_job_is_submitted_followed_and_finished(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "a-key-that-no-node-may-see")
    job = job_of(tmp_path / "job", "(job / 'environment').write_text(str(dict(os.environ)))" + EPOCHS)
    with dg.DagsterInstance.ephemeral() as instance:
        done = run(job, instance)
        assert done.success
        output = messages(instance, done.run_id)
        observed = instance.fetch_observations(dg.AssetKey("checkpoint"), limit=10).records
        record = instance.get_run_by_id(done.run_id)
    job_id = json.loads((job / slurm.JOB).read_text())["job_id"]
    assert record is not None
    assert record.tags[TRAINING_TAG] == f"Slurm job {job_id}"
    assert "start 1" in output
    assert "epoch 1: train/loss 0.5" in output
    assert len(observed) == 2
    seen = (job / "environment").read_text()
    assert f"'SLURM_JOB_ID': '{job_id}'" in seen
    assert "a-key-that-no-node-may-see" not in seen


@pytest.mark.parametrize("note", ["kept", "never written"])
def test_a_run_that_died_leaves_its_job_and_the_next_one_finds_it(
    slurm_cluster: Cluster, tmp_path: Path, note: str
) -> None:
    job = job_of(tmp_path / "job", "while not (job / 'go').exists(): time.sleep(0.05)" + EPOCHS)

    class Dying(Scripted):
        def show(self, context: dg.AssetExecutionContext, event: Event) -> None:
            assert isinstance(event, Submitted)
            until(lambda: starts(job), "the job runs")
            raise KeyboardInterrupt

    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with pytest.raises(KeyboardInterrupt):
            Dying(launcher="slurm").run(context, job)
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize([checkpoint], instance=instance).success
        assert of_slurm(job, "JobState") == "RUNNING"
        if note == "never written":
            (job / slurm.JOB).unlink()
        second = submit(job)
        assert not second.started_here
        (job / "go").touch()
        assert run(job, instance).success
    assert starts(job) == 1


def test_cancelling_the_run_cancels_the_job(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", "time.sleep(300)")

    class Cancelled(Scripted):
        def show(self, context: dg.AssetExecutionContext, event: Event) -> None:
            assert isinstance(event, Submitted)
            context.instance.report_run_canceling(context.run)
            raise KeyboardInterrupt

    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with pytest.raises(KeyboardInterrupt):
            Cancelled(launcher="slurm").run(context, job)
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([checkpoint], instance=instance, raise_on_error=False)
        until(lambda: of_slurm(job, "JobState") == "CANCELLED", "the job is cancelled")


def test_a_failed_training_fails_the_run_with_the_end_of_its_log(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", "sys.exit('expected a patch that is a multiple of 8, got 33')")
    with dg.DagsterInstance.ephemeral() as instance:
        done = run(job, instance)
        assert not done.success
        output = messages(instance, done.run_id)
    assert "ended with exit code 1 and no result" in output
    assert "multiple of 8, got 33" in output
    assert starts(job) == 1


def test_a_killed_training_is_submitted_again(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", "if start == 1: os.kill(os.getpid(), 9)" + EPOCHS)
    with dg.DagsterInstance.ephemeral() as instance:
        done = run(job, instance)
        assert done.success
        assert "was killed by signal 9" in messages(instance, done.run_id)
    assert starts(job) == 2


def requeue(cluster: Cluster, job: Path) -> None:
    cluster.run("scontrol", "requeue", of_slurm(job, "JobId"))


def preempt(cluster: Cluster, job: Path) -> None:
    cluster.run("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")


def lose_the_node(cluster: Cluster, job: Path) -> None:
    cluster.run("scontrol", "update", f"NodeName={cluster.host}", "State=DOWN", "Reason=drill")
    until(lambda: of_slurm(job, "JobState") == "PENDING", "the job is requeued")
    until(cluster.resume, "the node is back")


@pytest.mark.parametrize("disturb", [requeue, preempt, lose_the_node])
def test_a_requeued_job_goes_on_as_the_same_job(
    slurm_cluster: Cluster, tmp_path: Path, disturb: Callable[[Cluster, Path], None]
) -> None:
    job = job_of(tmp_path / "job", INTERRUPTED_ONCE)
    training = submit(job)
    until(lambda: (job / "checkpoints" / "last.ckpt").exists(), "the first checkpoint is written")
    disturb(slurm_cluster, job)
    with dg.DagsterInstance.ephemeral() as instance:
        done = run(job, instance)
        assert done.success
        assert "requeued 1 times so far" in messages(instance, done.run_id)
    assert starts(job) == 2
    assert of_slurm(job, "JobId") == training.id


def test_the_wall_clock_limit_stops_requeues_and_resumes(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", INTERRUPTED_ONCE, time_min=1, stop_before_limit_s=45)
    with dg.DagsterInstance.ephemeral() as instance:
        done = run(job, instance)
        assert done.success
        output = messages(instance, done.run_id)
    assert "stopped before the wall-clock limit" in output
    assert starts(job) == 2
    assert of_slurm(job, "Restarts") == "1"


def test_a_real_training_stops_before_the_limit_and_resumes_from_its_last_epoch(
    slurm_cluster: Cluster, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "job", overrides=(*TINY, "schedule.epochs=12"))
    training = SLURM.submit(job, command(job), os.environ)
    until(lambda: any((job / "checkpoints").glob("*.ckpt")), "the first checkpoint is written", 120)
    # What Slurm sends before the limit, and to the batch script alone.
    slurm_cluster.run("scancel", "--batch", "--signal=USR1", training.id)
    until(lambda: "requeued 1 times" in SLURM.state(training).message, "the job is requeued")
    epochs = len((job / "history.csv").read_text().splitlines()) - 1
    until(lambda: SLURM.state(training).phase is not Phase.RUNNING, "the training is done", 120)
    result = read_json(job / RESULT)
    assert (result["status"], result["resumed"], result["epochs_run"]) == ("completed", True, 12)
    assert 1 <= epochs < 12
    assert "Traceback" not in (job / LOG).read_text()


def test_while_slurm_does_not_answer_a_job_is_taken_to_go_on(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", "while not (job / 'go').exists(): time.sleep(0.05)\nsys.exit(7)")
    training = submit(job)
    until(lambda: starts(job), "the job runs")
    slurm_cluster.stop("slurmctld")
    state = SLURM.state(training)
    assert state.phase is Phase.RUNNING
    assert "Slurm does not answer" in state.message
    with pytest.raises(slurm.LaunchFailed):
        submit(job)
    slurm_cluster.start_controller()
    (job / "go").touch()
    until(lambda: SLURM.state(training).phase is not Phase.RUNNING, "the job ended")
    assert "exit code 7" in SLURM.state(training).message
    assert starts(job) == 1


def test_why_a_job_waits_and_who_ended_it_is_told_in_words(slurm_cluster: Cluster, tmp_path: Path) -> None:
    training = submit(job_of(tmp_path / "job", EPOCHS, options=["--hold"]))
    waits = SLURM.state(training)
    assert waits.phase is Phase.RUNNING
    assert f"Slurm job {training.id} is pending (JobHeldUser): is held; `scontrol release` lets it go" in waits.message
    SLURM.cancel(training)
    until(lambda: SLURM.state(training).phase is not Phase.RUNNING, "the job is cancelled")
    assert "was cancelled by a person" in SLURM.state(training).message
    assert SLURM.state(training).phase is Phase.ENDED


@pytest.mark.parametrize("there", [None, "another folder"])
def test_a_node_that_does_not_see_the_folder_of_the_job_says_so(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str | None
) -> None:
    monkeypatch.setattr(slurm_scripts, "SEEN_WITHIN_S", 1)
    job = job_of(tmp_path / "job", EPOCHS, options=["--hold"])
    training, own = submit(job), tmp_path / "own"
    token = (job / slurm_scripts.SEEN).read_text()
    job.rename(own)  # what the node has under this path while the job runs
    if there is not None:
        job.mkdir()
        (job / slurm_scripts.SEEN).write_text("another token")
    slurm_cluster.run("scontrol", "release", training.id)
    until(lambda: slurm.ended(slurm.show(training.id) or {}), "the job ended")
    if there is not None:
        shutil.rmtree(job)
    own.rename(job)
    state = SLURM.state(training)
    assert state.phase is Phase.ENDED
    assert f"does not see the folder of this job on {slurm_cluster.host}" in state.message
    assert starts(job) == 0
    again = submit(job)
    slurm_cluster.run("scontrol", "release", again.id)
    until(lambda: (job / RESULT).is_file(), "the training is done")
    assert (job / slurm_scripts.SEEN).read_text() == token, "a node may remember the file"


def test_what_slurm_does_not_take_fails_with_its_words(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", EPOCHS, partition="no_such_partition")
    with dg.DagsterInstance.ephemeral() as instance:
        done = run(job, instance)
        assert not done.success
        assert "invalid partition specified: no_such_partition" in messages(instance, done.run_id)
    assert not (job / slurm.JOB).exists()


def test_of_a_job_that_slurm_forgot_the_folder_says_how_it_ended(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", EPOCHS)
    forgotten = Handle(job, "999999", "Slurm job 999999")
    (job / slurm.EXIT).write_text("999999 1\n")
    assert "exit code 1" in slurm.SlurmLauncher().state(forgotten).message
    (job / slurm.EXIT).write_text("5 1\n")
    gone = slurm.SlurmLauncher().state(forgotten)
    assert gone == State(Phase.RESUMABLE, "Slurm job 999999 is no longer known to Slurm, and ended without a result")
    (job / slurm.JOB).write_text(json.dumps({"job_id": "999999", "name": slurm.job_name(job)}))
    assert SLURM.find(job) is None


def test_missing_cases_are_predicted_by_a_job_and_nothing_is_submitted_for_those_that_are_there(
    slurm_cluster: Cluster, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    model, launch = untrained.checkpoint(workspace, "launch.cpus=1"), partial(finish, asked="slurm", poll_s=0.2)
    cases = [untrained.case(workspace, number) for number in range(2)]
    made = predict_cases(workspace, P, model, cases, launch)
    assert made.new == {one.artifact for one in cases}
    output = capfd.readouterr().err
    assert "prediction started as Slurm job" in output
    assert "predicted 2 of 2 cases, 0 failed" in output
    assert predict_cases(workspace, P, model, cases, launch).new == frozenset()
    assert capfd.readouterr().err == ""


def test_the_graph_and_the_command_line_train_the_same_checkpoint_on_slurm(
    slurm_cluster: Cluster, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in SEEDS:
        drop(workspace, seed)
    ingest(workspace)
    assert main(["train", f"{P}/mean_dose", "launch.cpus=1", "--launcher", "slurm"]) == 0
    output = capsys.readouterr()
    assert "training started as Slurm job" in output.err
    assert "completed: best val_mae_gy" in output.err
    assert "1 new, 0 reused" in output.out
    monkeypatch.setenv("MED_ASSETS_LAUNCHER", "slurm")
    key = keys.experiment_key(P, "mean_dose", "checkpoint")

    def through_the_graph(*overrides: str) -> dict[str, object]:
        config = {"ops": {"__".join(key.path): {"config": {"overrides": list(overrides)}}}}
        done = dg.materialize(build_program(P), selection=[key], resources=resources.build(), run_config=config)
        (event,) = done.get_asset_materialization_events()
        return {name: value.value for name, value in event.materialization.metadata.items()}

    assert through_the_graph("launch.partition=urgent", "launch.time_min=60")["count/reused"] == 1
    assert through_the_graph("launch.partition=urgent", "seed=7")["count/new"] == 1
    jobs = {read_json(path)["job_id"] for path in workspace.jobs.glob(f"*/{slurm.JOB}")}
    shown = [slurm.show(job_id) for job_id in sorted(jobs, key=int)]
    assert [fields["Partition"] for fields in shown if fields] == ["main", "urgent"]


@pytest.mark.parametrize(
    ("saves", "code"), [("", slurm.STUCK), ("checkpoint()", status.REQUEUE), ("prediction()", status.REQUEUE)]
)
def test_at_the_limit_a_job_that_saved_nothing_new_is_not_requeued(tmp_path: Path, saves: str, code: int) -> None:
    """The script that nodes run, on its own; where the node has no scontrol, the launcher submits again."""
    job = job_of(tmp_path / "job", f"{saves}\n(job / 'ready').touch()\ntime.sleep(300)")
    (job / slurm_scripts.SEEN).write_text("a-token")
    (job / slurm.SCRIPT).write_text(slurm.shared_script(Scripted().command(job), "a-token"))
    env = {**os.environ, "SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin", "SLURM_CONF": "/dev/null"}
    process = subprocess.Popen(["bash", slurm.SCRIPT], cwd=job, env=env, stderr=subprocess.PIPE)
    until(lambda: (job / "ready").exists(), "the training runs")
    time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert (job / slurm.EXIT).read_text() == f"7 {code}\n"


@pytest.mark.parametrize(
    ("fields", "message", "again"),
    [
        ("JobState=TIMEOUT ExitCode=0:15", "raise launch.stop_before_limit_s", True),
        ("JobState=OUT_OF_MEMORY ExitCode=0:125", "raise launch.memory_gb", False),
        ("JobState=NODE_FAIL ExitCode=0:0 NodeList=gpu7", "lost its node gpu7", True),
        ("JobState=PREEMPTED ExitCode=0:15", "higher priority", True),
        ("JobState=DEADLINE ExitCode=0:15", "deadline", False),
        ("JobState=FAILED ExitCode=76:0", "would never get further", False),
        ("JobState=FAILED ExitCode=75:0", "was not requeued by its node", True),
        ("JobState=FAILED ExitCode=137:0 NodeList=gpu7", "killed by signal 9 on gpu7", True),
        ("JobState=FAILED ExitCode=0:9 NodeList=gpu7", "killed by signal 9 on gpu7", True),
        ("JobState=FAILED ExitCode=0:53 NodeList=gpu7", "could not write to launch.scratch on gpu7", False),
        ("JobState=FAILED ExitCode=81:0 NodeList=gpu7", "does not see the Python environment", False),
        ("JobState=FAILED ExitCode=1:0", "exit code 1", False),
    ],
)
def test_ends_are_told_apart(tmp_path: Path, fields: str, message: str, again: bool) -> None:
    state = slurm.state_of(Handle(tmp_path, "7", "Slurm job 7"), dict(slurm.FIELD.findall(fields)))
    assert state is not None
    assert message in state.message
    assert state.phase is (Phase.RESUMABLE if again else Phase.ENDED)


def test_reasons_with_blanks_are_read_whole() -> None:
    text = "JobState=PENDING Reason=Nodes required for job are DOWN, DRAINED or reserved Dependency=(null) Restarts=0"
    fields = dict(slurm.FIELD.findall(text))
    assert fields["Reason"] == "Nodes required for job are DOWN, DRAINED or reserved"
    assert fields["Restarts"] == "0"


def slurm_configuration(job: Path) -> slurm.Configuration:
    found = launch_of(job).configuration("slurm")
    assert isinstance(found, slurm.Configuration)
    return found


def test_what_an_experiment_asks_for_reaches_sbatch_and_what_it_does_not_is_left_to_the_cluster(tmp_path: Path) -> None:
    job = job_of(
        tmp_path / "job", "", partition="gpu", time_min=90, memory_gb=64, cpus=8, gpus=2, options=["--account=imaging"]
    )
    asked = slurm.options(job, slurm_configuration(job))
    wanted = {"--partition=gpu", "--time=90", "--mem=64G", "--cpus-per-task=8", "--gres=gpu:2", "--account=imaging"}
    assert wanted <= set(asked)
    assert "--signal=B:USR1@300" in asked
    (job / "experiment.json").unlink()
    names = {option.split("=")[0] for option in slurm.options(job, slurm_configuration(job))}
    assert not names & {"--partition", "--time", "--mem", "--cpus-per-task", "--gres"}


@pytest.mark.parametrize(
    ("of_experiment", "of_environment", "chosen"),
    [
        (None, None, LocalLauncher),
        (None, "slurm", slurm.SlurmLauncher),
        ("local", "slurm", LocalLauncher),
        ("slurm", "local", slurm.SlurmLauncher),
    ],
)
def test_the_experiment_chooses_its_launcher_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_experiment: str | None, of_environment: str | None, chosen: type
) -> None:
    monkeypatch.delenv("MED_ASSETS_LAUNCHER", raising=False)
    if of_environment:
        monkeypatch.setenv("MED_ASSETS_LAUNCHER", of_environment)
    job = job_of(tmp_path / "job", "", launcher=of_experiment)
    assert type(LauncherResource().of(job)) is chosen


def test_a_training_that_goes_on_stays_where_it_is(slurm_cluster: Cluster, tmp_path: Path) -> None:
    job = job_of(tmp_path / "job", EPOCHS, launcher="slurm", options=["--hold"])
    training = submit(job)
    job_of(tmp_path / "job", EPOCHS, launcher="local")
    assert type(LauncherResource().of(job)) is slurm.SlurmLauncher
    SLURM.cancel(training)
    until(lambda: SLURM.find(job) is None, "the job is over")
    assert type(LauncherResource().of(job)) is LocalLauncher


def test_without_slurm_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slurm.LaunchFailed, match="MED_ASSETS_LAUNCHER=local"):
        submit(job_of(tmp_path / "job", EPOCHS))
    assert not (tmp_path / "job" / LOG).exists()


def test_the_doctor_asks_slurm_when_trainings_go_there(
    slurm_cluster: Cluster, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MED_ASSETS_LAUNCHER", "slurm")
    found = {finding.subject: finding for finding in doctor._workspace()}
    assert (found["launcher"].state, found["launcher"].found) == (doctor.GOOD, "Slurm partitions main*, urgent")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {finding.subject: finding.state for finding in doctor._workspace()}["launcher"] == doctor.BAD
    monkeypatch.setenv("MED_ASSETS_LAUNCHER", "cloud")
    assert {finding.subject: finding.state for finding in doctor._workspace()}["settings"] == doctor.BAD
