"""Stages as Jobs of a cluster: whoever asks and the Job share a bucket, and nothing else."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from med_assets.catalog import Catalog
from med_assets.cli import doctor
from med_assets.cli.main import main
from med_assets.errors import ConfigurationError, TrainingStopped
from med_assets.launch import kubernetes, stage_runs
from med_assets.launch.configuration import choose
from med_assets.launch.follow import Event, StateChanged, Submitted
from med_assets.launch.kubernetes import KubernetesLauncher
from med_assets.launch.kubernetes_jobs import Configuration
from med_assets.launch.stage_request import Request
from med_assets.launch.stages import Stage
from med_assets.records import CaseVersion
from med_assets.settings import Workspace
from med_assets.storage.s3 import bucket, local
from med_assets.storage.s3.bucket import Location
from tests.conftest import REPOSITORY
from tests.kubernetes_api import NAMESPACE, Cluster, api_server
from tests.med_assets.stages.builders import P, phantom, take

FILE = f"""
namespace: {NAMESPACE}
image: registry.example.org/imaging/med-assets:1.2.3-cpu
secrets: [med-assets]
config_maps: [med-assets]
"""
SECRET = ("MED_ASSETS_PSEUDONYM_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def cluster(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose image has this `med-assets`, and a bucket that this process and its Jobs reach."""
    command = tmp_path / "image" / "med-assets"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m med_assets.cli "$@"\n')
    command.chmod(0o700)
    path = f"{command.parent}:/usr/bin:/bin"
    with local.endpoint() as variables, api_server(tmp_path, runs=True, path=path) as serving:
        (tmp_path / "kubernetes.yaml").write_text(FILE)
        named = variables | {
            "MED_ASSETS_KUBERNETES": str(tmp_path / "kubernetes.yaml"), "KUBECONFIG": str(serving.kubeconfig()),
            "MED_ASSETS_STORE": "s3://site/home", "MED_ASSETS_LANDING": "s3://site/landing",
        }  # fmt: skip
        for name, text in named.items():
            monkeypatch.setenv(name, text)
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setattr(kubernetes, "RESULT_WITHIN_S", 5.0)
        key = workspace.key.decode()
        serving.secrets = {
            "med-assets": {"MED_ASSETS_PSEUDONYM_KEY": key, **{name: variables[name] for name in SECRET[1:]}}
        }
        serving.config_maps = {"med-assets": {"S3_ENDPOINT_URL": variables["S3_ENDPOINT_URL"], "MED_ASSETS_WORKERS": "1", "MED_ASSETS_SETTLE_S": "0"}}  # fmt: skip
        bucket.client(variables).create_bucket(Bucket="site")
        local.upload(phantom(6), Location("site", f"landing/{P}/export-6"), bucket.client(variables))
        yield serving


@pytest.mark.slow
def test_a_stage_goes_on_after_its_node_died_and_its_tables_are_here(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = Workspace.from_env()
    batch = take(ws)
    request = Request(Stage.INTAKE, P, (batch,))
    launcher = KubernetesLauncher(Configuration(ask_s=0))
    events: list[Event] = []

    def kill(event: Event) -> None:
        if isinstance(event, StateChanged) and event.state.message.endswith("is running on gpu7"):
            cluster.kill_node(next(iter(cluster.jobs.values())))

    with pytest.raises(TrainingStopped, match="lost its node gpu7"):
        stage_runs.run_stage(ws, request, launcher, kill, poll_s=0.05)
    outcome = stage_runs.run_stage(ws, request, launcher, events.append, poll_s=0.05)
    assert outcome.result.counts["new"] == 1
    assert isinstance(events[0], Submitted)
    assert events[0].handle.started_here
    (case,) = Catalog(ws, P).rows(CaseVersion)
    assert case.batch == batch
    (job,) = cluster.jobs.values()
    assert ws.key.decode() not in str(job)
    variables = {each["name"]: each["value"] for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert variables["MED_ASSETS_STORE"] == "s3://site/home"
    assert not set(SECRET) & set(variables)
    assert main(["run", "dataset", P, "--launcher", "kubernetes"]) == 0
    assert "Kubernetes job med-assets-" in capsys.readouterr().err


def test_two_machines_that_ask_for_a_stage_at_once_both_get_its_result(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, begun, follows = Request(Stage.EVALUATE, P, ("baseline",)), threading.Event(), threading.Event()
    machines = []
    for name in ("one", "two"):
        monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path / name))
        machines.append(Workspace.from_env())
    started = []

    def first(event: Event) -> None:
        if isinstance(event, Submitted):
            begun.set()
            assert follows.wait(60)

    def second(event: Event) -> None:
        if isinstance(event, Submitted):
            started.append(event.handle.started_here)
            follows.set()

    def ask(ws: Workspace, listen: Callable[[Event], None], poll_s: float) -> None:
        launcher = KubernetesLauncher(Configuration(ask_s=0))
        stage_runs.run_stage(ws, request, launcher, listen, "the same", poll_s=poll_s)

    with ThreadPoolExecutor(2) as threads:
        quick = threads.submit(ask, machines[0], first, 0.05)
        assert begun.wait(60)
        slow = threads.submit(ask, machines[1], second, 3.0)  # it looks when the first has fetched the result
        for asked in (quick, slow):
            with pytest.raises(ConfigurationError, match="has no checkpoint yet"):
                asked.result(60)
    assert started == [False]
    assert len(cluster.jobs) == 1


def test_a_stage_needs_a_bucket_and_a_training_by_itself_is_no_job_of_a_cluster(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="MED_ASSETS_STAGE_LAUNCHER=kubernetes"):
        choose(tmp_path, "kubernetes")
    monkeypatch.delenv("MED_ASSETS_STORE")
    assert main(["run", "dataset", P, "--launcher", "kubernetes"]) == 1
    assert not cluster.jobs


def test_the_doctor_asks_the_cluster_where_stages_go_there(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED_ASSETS_RT_DOSE_STAGE_LAUNCHER", "kubernetes")
    launchers = [finding for finding in doctor.examine() if finding.subject == "launcher"]
    assert [(finding.state, finding.found) for finding in launchers] == [
        ("ok", f"Kubernetes v1.32.4, namespace {NAMESPACE}, image registry.example.org/imaging/med-assets:1.2.3-cpu")
    ]
    cluster.denied = {"create jobs"}
    (denied,) = [finding for finding in doctor.examine() if finding.subject == "launcher"]
    assert denied.state == "bad"
    assert "the right to create jobs" in denied.found
