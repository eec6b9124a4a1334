"""The Kubernetes launcher against a small API server over HTTP, which plays what clusters do and can run Jobs as processes."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from med_assets.errors import ConfigurationError, LaunchFailed
from med_assets.launch import kubernetes, kubernetes_jobs
from med_assets.launch.configuration import StageLaunch
from med_assets.launch.follow import Finished, Submitted, Unfinished, follow
from med_assets.launch.jobs import LOG, RESULT
from med_assets.launch.kubernetes import KubernetesLauncher
from med_assets.launch.kubernetes_jobs import Configuration, job_name, load_cluster
from med_assets.launch.launcher import Handle, Phase
from med_assets.launch.stages import Stage
from tests.docs_blocks import blocks
from tests.kubernetes_api import NAMESPACE, Cluster, Fault, api_server, wait_until

COMMAND = ["med-assets", "run", "dataset", "rt_dose", "--to", "0123456789abcdef/0123456789abcdef"]
OTHER = [*COMMAND[:-1], "0123456789abcdef/fedcba9876543210"]
FILE = f"""
namespace: {NAMESPACE}
image: registry.example.org/imaging/med-assets:1.2.3-cuda
secrets: [med-assets]
image_pull_secrets: [registry]
service_account: med-assets-jobs
pools:
  gpu:
    node_selector: {{accelerator: a100}}
    tolerations: [{{key: nvidia.com/gpu, effect: NoSchedule}}]
    priority_class: batch
stop_s: 5
"""


def use(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be one that uses the cluster."""
    (folder / "kubernetes.yaml").write_text(FILE)
    monkeypatch.setenv("MED_ASSETS_KUBERNETES", str(folder / "kubernetes.yaml"))
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kubernetes, "MAX_PAUSE_S", 0.01)
    monkeypatch.setattr(kubernetes, "GONE_POLL_S", 0.02)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with api_server(tmp_path) as serving:
        use(serving, tmp_path, monkeypatch)
        yield serving


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "0123456789abcdef"
    folder.mkdir(parents=True)
    return folder


def launcher(**asked: Any) -> KubernetesLauncher:
    return KubernetesLauncher(Configuration(**{"ask_s": 0, **asked}))


def only(cluster: Cluster) -> dict[str, Any]:
    (there,) = cluster.jobs.values()
    return there


def test_a_job_asks_for_what_the_stage_does_and_has_no_more_rights_than_it_needs(cluster: Cluster, job: Path) -> None:
    asking = launcher(gpus=1, cpus=4, memory_gb=16, time_min=90, pool="gpu")
    handle = asking.submit(job, COMMAND, {"MED_ASSETS_PURPOSE": "demo", "MED_ASSETS_PSEUDONYM_KEY": "a-secret"})
    assert handle.started_here
    made = only(cluster)
    assert made["metadata"]["name"] == "med-assets-0123456789abcdef"
    spec, pod = made["spec"], made["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (spec["backoffLimit"], pod["activeDeadlineSeconds"], pod["restartPolicy"]) == (0, 5400, "Never")
    assert container["command"] == COMMAND
    assert container["resources"] == {
        "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1", "ephemeral-storage": "50Gi"},
        "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"},
    }
    assert pod["nodeSelector"] == {"accelerator": "a100"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("batch", "med-assets-jobs")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert container["envFrom"] == [{"secretRef": {"name": "med-assets"}}]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables == {
        "MED_ASSETS_PURPOSE": "demo", "MED_ASSETS_HOME": "/data", "DAGSTER_HOME": "/data/dagster", "OMP_NUM_THREADS": "4",
    }  # fmt: skip
    # The restricted standard of Pod Security.
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    assert "a-secret" not in str(made)


def test_the_user_of_a_job_is_that_of_the_image() -> None:
    dockerfile = Path(__file__).parents[3] / "deploy" / "images" / "Dockerfile"
    assert f"USER {kubernetes_jobs.USER}:{kubernetes_jobs.USER}" in dockerfile.read_text()


def test_a_job_is_found_again_from_another_machine_and_made_once(cluster: Cluster, job: Path, tmp_path: Path) -> None:
    handle = launcher().submit(job, COMMAND, {})
    elsewhere = tmp_path / "another machine" / job.name
    elsewhere.mkdir(parents=True)
    assert launcher().find(elsewhere) == Handle(elsewhere, handle.id, handle.title)
    again = launcher().submit(elsewhere, OTHER, {})
    assert (again.id, again.started_here) == (handle.id, False)
    assert len(cluster.jobs) == 1
    assert launcher().find(tmp_path / "fedcba9876543210") is None


def test_a_job_whose_answer_was_lost_is_the_one_that_was_made(cluster: Cluster, job: Path) -> None:
    cluster.faults = [Fault("POST", "/jobs$", after=True), Fault("POST", "/jobs$", 500)]
    handle = launcher().submit(job, COMMAND, {})
    assert handle.started_here
    assert handle.id == only(cluster)["metadata"]["uid"]


@pytest.mark.parametrize("how", ["complete", "failed", "node lost"])
def test_one_that_ended_gives_way_to_the_next_start_and_its_pods_count_for_nothing(
    cluster: Cluster, job: Path, how: str
) -> None:
    first = launcher().submit(job, COMMAND, {})
    pod = cluster.add_pod(only(cluster), phase="Failed")
    if how == "complete":
        cluster.complete(only(cluster))
    elif how == "failed":
        cluster.fail(only(cluster), message="failed with exit code 1")
    else:
        pod["status"] = {
            "phase": "Running",
            "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}],
        }
        pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    assert launcher().find(job) is None
    asking = launcher()
    second = asking.submit(job, OTHER, {})
    assert second.started_here
    assert second.id != first.id
    cluster.pods["left"] = pod
    assert asking.state(second).message == "Kubernetes job med-assets-0123456789abcdef waits for its pod"
    assert launcher().state(first).phase is Phase.ENDED, "the first one is gone"


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"containerStatuses": [{"name": "stage", "state": {"waiting": {"reason": reason, "message": message}}}]}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason}}
    return {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": state}]}


def disrupted(why: str, **status: Any) -> dict[str, Any]:
    return {"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": why}], **status}


UNSCHEDULABLE = {
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}
    ]
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (UNSCHEDULABLE, "is pending (Unschedulable): 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        (waiting("ContainerCreating"), "starts on gpu7; its image is pulled if it is not there"),
        (waiting("ImagePullBackOff", "not found"), "can't start (ImagePullBackOff): its node can't pull the image registry.example.org/imaging/med-assets:1.2.3-cuda; is it pushed, and does kubernetes.yaml name a login in image_pull_secrets? (not found)"),
        (waiting("CreateContainerConfigError", 'secret "med-assets" not found'), 'can\'t start (CreateContainerConfigError): a Secret or ConfigMap that kubernetes.yaml names is missing in the namespace, or lacks what is needed (secret "med-assets" not found)'),
        ({"phase": "Running"}, "is running on gpu7"),
        ({"phase": "Running", "reason": "NodeLost"}, "runs on gpu7, which does not answer now"),
        ({"phase": "Failed"}, "has ended; the cluster has not counted it yet"),
        (disrupted("EvictionByEvictionAPI", phase="Running"), "is being stopped: it was evicted from gpu7, which is drained, or by somebody"),
    ],
)  # fmt: skip
def test_one_that_has_not_ended_says_where_it_is_and_why_it_waits(
    cluster: Cluster, job: Path, status: dict[str, Any], words: str
) -> None:
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    assert asking.state(handle).message == f"{handle.title} waits for its pod"
    cluster.add_pod(only(cluster), **status)
    state = asking.state(handle)
    assert state.phase is Phase.RUNNING
    assert state.message == f"{handle.title} {words}"


def test_without_a_pod_the_cluster_says_why(cluster: Cluster, job: Path) -> None:
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    message = 'Error creating: pods "x" is forbidden: exceeded quota: gpus'
    cluster.events = [{"metadata": {}, "involvedObject": {}, "type": "Warning", "message": message}]
    assert asking.state(handle).message == f"{handle.title} has no pod yet: {message}"
    only(cluster)["spec"]["suspend"] = True
    assert "is suspended" in asking.state(handle).message


@pytest.mark.parametrize(
    ("status", "failure", "phase", "words"),
    [
        (ended(1), "", Phase.ENDED, "ended with exit code 1 and no result"),
        (ended(137, "OOMKilled"), "", Phase.ENDED, "used more memory than it asked for"),
        (ended(75), "", Phase.RESUMABLE, "was asked to stop and goes on"),
        (ended(143), "", Phase.RESUMABLE, "was killed by signal 15 on gpu7"),
        (disrupted("PreemptionByScheduler"), "", Phase.RESUMABLE, "gave way to a pod of higher priority"),
        (disrupted("DeletionByTaintManager"), "", Phase.RESUMABLE, "lost its node gpu7"),
        (disrupted("TerminationByKubelet", reason="Evicted", message="The node was low on resource: memory."), "", Phase.RESUMABLE, "ran short of memory or disk, or was shut down (The node was low on resource: memory.)"),
        ({"phase": "Failed", "reason": "Evicted", "message": 'Usage of EmptyDir volume "scratch" exceeds the limit "50Gi".'}, "", Phase.ENDED, "raise scratch_gb"),
        ({"phase": "Failed", "reason": "NodeShutdown"}, "", Phase.RESUMABLE, "was ended by gpu7, which was shut down"),
        ({"phase": "Failed", "reason": "OutOfmemory"}, "", Phase.RESUMABLE, "was refused by gpu7"),
        (None, "Pod imaging/x has condition DisruptionTarget matching FailJob rule at index 0", Phase.RESUMABLE, "was taken away by the cluster"),
        (None, "Container stage for pod imaging/x failed with exit code 1 matching FailJob rule at index 1", Phase.ENDED, "exit code 1"),
        (None, "", Phase.RESUMABLE, "lost its pod"),
    ],
)  # fmt: skip
def test_an_end_says_what_happened_and_whether_to_start_it_again(
    cluster: Cluster, job: Path, status: dict[str, Any] | None, failure: str, phase: Phase, words: str
) -> None:
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    if status is not None:
        cluster.add_pod(only(cluster), **status)
    cluster.fail(only(cluster), message=failure)
    state = asking.state(handle)
    assert state.phase is phase
    assert state.message.startswith(f"{handle.title} ")
    assert words in state.message


def test_the_limit_of_its_time_is_named(cluster: Cluster, job: Path) -> None:
    asking = launcher(time_min=90)
    handle = asking.submit(job, COMMAND, {})
    cluster.add_pod(
        only(cluster),
        **ended(143),
        reason="DeadlineExceeded",
        message="Pod was active on the node longer than the specified deadline",
    )
    cluster.fail(
        only(cluster),
        message="Container stage for pod imaging/x failed with exit code 143 matching FailJob rule at index 1",
    )
    state = asking.state(handle)
    assert (state.phase, state.message) == (
        Phase.RESUMABLE, f"{handle.title} reached its limit of 90 min; raise launch.time_min",
    )  # fmt: skip


def test_a_result_may_come_after_the_end_and_without_one_it_is_started_again(
    cluster: Cluster, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    cluster.complete(only(cluster))
    assert asking.state(handle).message == f"{handle.title} ended; waiting for its result"
    (job / RESULT).write_text("{}")
    assert asking.state(handle).phase is Phase.ENDED
    (job / RESULT).unlink()
    monkeypatch.setattr(kubernetes, "RESULT_WITHIN_S", 0.0)
    assert asking.state(handle) == kubernetes.State(Phase.RESUMABLE, f"{handle.title} ended without a result")


def test_the_end_of_a_pods_log_is_kept_where_nothing_came_through_the_bucket(cluster: Cluster, job: Path) -> None:
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    pod = cluster.add_pod(only(cluster), **ended(1))
    cluster.logs[pod["metadata"]["name"]] = "".join(f"line {number}\n" for number in range(100))
    cluster.fail(only(cluster))
    asking.state(handle)
    assert (job / LOG).read_text().splitlines() == [f"line {number}" for number in range(80, 100)]
    (job / LOG).write_text("what came through the bucket\n")
    asking.state(handle)
    assert (job / LOG).read_text() == "what came through the bucket\n"


def test_an_image_that_is_not_there_is_waited_for_and_then_given_up(
    cluster: Cluster, job: Path, tmp_path: Path
) -> None:
    (tmp_path / "kubernetes.yaml").write_text(f"{FILE}start_within_min: 0.001\n")
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    cluster.add_pod(only(cluster), **waiting("ErrImagePull"))
    assert asking.state(handle).phase is Phase.RUNNING
    wait_until(lambda: asking.state(handle).phase is Phase.ENDED)
    assert not cluster.jobs


def test_cancelling_deletes_what_runs_and_leaves_what_ended_and_what_is_anothers(cluster: Cluster, job: Path) -> None:
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    asking.cancel(Handle(job, "another uid", handle.title))
    cluster.complete(only(cluster))
    asking.cancel(handle)
    assert cluster.jobs, "one that ended stays as it is"
    only(cluster)["status"] = {}
    asking.cancel(handle)
    assert not cluster.jobs
    asking.cancel(handle)
    assert "is no longer in the cluster" in asking.state(handle).message
    assert asking.state(handle).phase is Phase.ENDED


def test_a_start_waits_for_one_that_is_being_cancelled(cluster: Cluster, job: Path) -> None:
    first = launcher().submit(job, COMMAND, {})
    cluster.add_pod(only(cluster), phase="Running")
    only(cluster)["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    asking = launcher()
    assert asking.state(first).message == f"{first.title} is being cancelled"
    assert asking.find(job) is None

    def gone() -> None:
        cluster.jobs.clear()

    import threading

    threading.Timer(0.3, gone).start()
    second = asking.submit(job, OTHER, {})
    assert second.started_here
    assert second.id != first.id


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_is_made_again_and_a_silent_cluster_takes_nothing_for_ended(
    cluster: Cluster, job: Path, status: int
) -> None:
    cluster.faults = [Fault("POST", "/jobs$", status, headers={"Retry-After": "1"}) for _ in range(3)]
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    cluster.faults = [Fault("GET", "/jobs/", status), Fault("GET", "/pods$", status)]
    for _ in range(2):
        state = asking.state(handle)
        assert state.phase is Phase.RUNNING
        assert "does not answer" in state.message
    assert asking.state(handle).message == f"{handle.title} waits for its pod"
    cluster.faults = [Fault("GET", "/jobs/", status) for _ in range(kubernetes.TRIES)]
    with pytest.raises(LaunchFailed, match=f"the cluster answered {status}"):
        asking.find(job)


def test_what_answers_and_is_no_cluster_ends_nothing(cluster: Cluster, job: Path) -> None:
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    cluster.faults = [Fault("GET", "/jobs/", 200, text="<html>log in first</html>")]
    state = asking.state(handle)
    assert state.phase is Phase.RUNNING
    assert "is no API server of Kubernetes" in state.message


def test_a_cluster_is_asked_no_more_often_than_it_may_be(cluster: Cluster, job: Path) -> None:
    asking = launcher(ask_s=3600)
    handle = asking.submit(job, COMMAND, {})
    cluster.requests.clear()
    for _ in range(5):
        asking.state(handle)
    assert sum("/jobs/" in request for request in cluster.requests) == 1


Change = Callable[[Cluster, Path, pytest.MonkeyPatch], None]


def _denied(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.denied = {"create jobs", "delete jobs"}


def _unknown(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "kubeconfig"
    path.write_text(path.read_text().replace("token: a", "token: b"))


def _no_namespace(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "kubernetes.yaml").write_text(FILE.replace("imaging\n", "elsewhere\n"))


def _no_kubeconfig(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(folder / "absent"))


def _nobody(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "kubeconfig"
    path.write_text(path.read_text().replace(cluster.address, "http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_denied, "refuses this account .*deploy/kubernetes/launcher.yaml"),
        (_unknown, "does not know these credentials"),
        (_no_namespace, 'lacks the namespace .*"elsewhere" not found'),
        (_no_kubeconfig, "expected a kubeconfig"),
        (_nobody, "can't be reached"),
    ],
)
def test_the_message_names_what_a_person_must_mend(
    cluster: Cluster, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, words: str
) -> None:
    change(cluster, tmp_path, monkeypatch)
    with pytest.raises(LaunchFailed, match=words):
        launcher().submit(job, COMMAND, {})


def test_the_doctor_asks_for_version_and_rights(cluster: Cluster) -> None:
    assert launcher().examine() == (
        f"Kubernetes v1.32.4, namespace {NAMESPACE}, image registry.example.org/imaging/med-assets:1.2.3-cuda"
    )
    cluster.denied = {"delete jobs"}
    with pytest.raises(LaunchFailed, match="the right to delete jobs in the namespace imaging"):
        launcher().examine()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image: a/b:1", "namespace: Field required"),
        ("namespace: x\nimage: registry.example.org/med-assets", "image: expected an image with a version"),
        ("namespace: x\nimage: registry.example.org:5000/med-assets:latest", "image: expected an image with a version"),
        ("namespace: x\nimage: a/b:1\nsecrets: [Not_a_name]", "expected the name of an object of Kubernetes"),
        ("namespace: x\nimage: a/b:1\ndefault_pool: gpu", "default_pool: expected one of pools"),
        ("namespace: x\nimage: a/b:1\nprivileged: true", "privileged: Extra inputs are not permitted"),
    ],
)
def test_a_file_of_the_cluster_that_can_not_be_meant_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "kubernetes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        load_cluster(path)
    with pytest.raises(ConfigurationError, match="found none"):
        load_cluster(tmp_path / "absent.yaml")
    path.write_text("namespace: x\nimage: registry.example.org:5000/a@sha256:" + "0" * 64)
    assert load_cluster(path).secrets == ()


def test_an_experiment_chooses_among_the_pools_of_the_operator_and_nothing_else(cluster: Cluster, job: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"launch.pool: expected one of the pools of kubernetes.yaml \(gpu\)"):
        launcher(pool="tpu").submit(job, COMMAND, {})
    fields = set(Configuration.model_fields) - {"launcher"}
    assert fields == {"time_min", "memory_gb", "cpus", "gpus", "pool", "ask_s"}, "no image, secret, volume or command"


def test_the_stages_of_the_page_are_what_a_program_may_say() -> None:
    page = Path(__file__).parents[3] / "docs" / "kubernetes.md"
    (block,) = [block for block in blocks(page) if block.language == "yaml"]
    for stage, section in yaml.safe_load(block.text)["stages"].items():
        assert stage in set(Stage)
        asked = StageLaunch.model_validate(section["launch"]).configuration("kubernetes")
        assert isinstance(asked, Configuration)
        assert asked.memory_gb == 64
    named = set(re.findall(r"`(?:launch\.)?(\w+)`", page.read_text()))
    assert {*kubernetes_jobs.Cluster.model_fields, *Configuration.model_fields} - {"launcher"} <= named


def test_a_name_that_kubernetes_can_not_have_is_hashed(tmp_path: Path) -> None:
    assert job_name(tmp_path / "0123456789abcdef") == "med-assets-0123456789abcdef"
    odd = job_name(tmp_path / ("Rt_Dose" * 20))
    assert odd == job_name(Path("elsewhere") / ("Rt_Dose" * 20))
    assert kubernetes_jobs.NAME.fullmatch(odd)


SCRIPT = """#!{python}
import json, os, pathlib, signal, sys, time
print("purpose", os.environ["MED_ASSETS_PURPOSE"], "key", len(os.environ["MED_ASSETS_PSEUDONYM_KEY"]), flush=True)
bucket = pathlib.Path({bucket!r})
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
while not (bucket / "go on").exists():
    time.sleep(0.02)
if (bucket / "fail").exists():
    raise SystemExit("the stage failed")
(bucket / "result.json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Path]]:
    """A cluster that runs its Jobs, with a `med-assets` in its image that writes its result into a folder instead of a bucket."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    command = tmp_path / "image" / "med-assets"
    command.parent.mkdir()
    command.write_text(SCRIPT.format(python=sys.executable, bucket=str(bucket)))
    command.chmod(0o700)
    with api_server(tmp_path, runs=True, path=f"{command.parent}:{os.environ['PATH']}") as serving:
        serving.secrets = {"med-assets": {"MED_ASSETS_PSEUDONYM_KEY": "a-key-that-only-the-tests-know"}}
        use(serving, tmp_path, monkeypatch)
        yield serving, bucket


def test_a_job_runs_to_its_result(running: tuple[Cluster, Path], job: Path) -> None:
    _, bucket = running
    (bucket / "go on").touch()
    events = []
    for event in follow(launcher(), job, COMMAND, {"MED_ASSETS_PURPOSE": "demo"}, 0.05):
        events.append(event)
        if (bucket / RESULT).is_file():
            (job / RESULT).write_text((bucket / RESULT).read_text())
    assert isinstance(events[0], Submitted)
    assert isinstance(events[-1], Finished)
    assert (job / RESULT).read_text() == '["run", "dataset", "rt_dose", "--to", "0123456789abcdef/0123456789abcdef"]'


def test_a_job_that_fails_before_it_reaches_the_bucket_leaves_its_log(running: tuple[Cluster, Path], job: Path) -> None:
    _, bucket = running
    (bucket / "go on").touch()
    (bucket / "fail").touch()
    *_, last = follow(launcher(), job, COMMAND, {"MED_ASSETS_PURPOSE": "demo"}, 0.05)
    assert isinstance(last, Unfinished)
    assert last.state.phase is Phase.ENDED
    assert last.log.splitlines() == ["purpose demo key 30", "the stage failed"]


def test_a_job_is_cancelled_with_time_to_save_and_a_dead_node_starts_it_elsewhere(
    running: tuple[Cluster, Path], job: Path
) -> None:
    cluster, bucket = running
    asking = launcher()
    first = asking.submit(job, COMMAND, {"MED_ASSETS_PURPOSE": "demo"})
    wait_until(lambda: asking.state(first).message.endswith("is running on gpu7"))
    cluster.kill_node(only(cluster))
    wait_until(lambda: asking.state(first).phase is Phase.RESUMABLE)
    second = asking.submit(job, OTHER, {"MED_ASSETS_PURPOSE": "demo"})
    assert second.started_here
    process = cluster.processes
    wait_until(lambda: second.id in process and asking.state(second).message.endswith("is running on gpu7"))
    wait_until(lambda: any("purpose" in path.read_text() for path in cluster.folder.glob("*.log") if second.id))
    asking.cancel(second)
    wait_until(lambda: asking.state(second).phase is Phase.ENDED)
    assert process[second.id].wait(10) in (75, -15)
    assert not (bucket / RESULT).exists()


def test_a_job_without_its_secret_waits_and_names_it(running: tuple[Cluster, Path], job: Path) -> None:
    cluster, _ = running
    cluster.secrets = {}
    asking = launcher()
    handle = asking.submit(job, COMMAND, {})
    wait_until(lambda: "CreateContainerConfigError" in asking.state(handle).message)
    assert asking.state(handle).phase is Phase.RUNNING
