"""Stages as Jobs of a Kubernetes cluster: submit, find again, ask for the state, cancel. Needs the extra `kubernetes`.

Jobs see no folder of this machine; request, log and result of a stage go through the bucket of the home (`stage_runs`). The name of a
Job is made of the stage's id and Kubernetes has each name once, so two machines that ask for one stage at the same time make one Job.
A Job that ended keeps its name until it is asked for again or its time in the cluster is over.

dagster-k8s (0.29, Apache-2.0) was read first. Its Pipes client makes a pod with a random name from within a step of Dagster, waits for
it and deletes it: a step that dies leaves a pod that nobody finds, and the command line has no step. `deploy/kubernetes` uses its run
launcher for the runs of Dagster themselves, which it is made for; `execute_k8s_job` waits within a step too.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from med_assets.errors import ConfigurationError, LaunchFailed
from med_assets.launch import launcher
from med_assets.launch.clusters import ClusterLauncher, Known
from med_assets.launch.jobs import LOG, TAIL_LINES
from med_assets.launch.kubernetes_jobs import (
    CONTAINER,
    LABEL,
    Cluster,
    Configuration,
    cluster_file,
    job_name,
    load_cluster,
    manifest,
)
from med_assets.launch.kubernetes_states import finished, newest, no_start, state_of
from med_assets.launch.launcher import Handle, Phase, State
from med_assets.storage.files import write_json, write_text

RECORD = "kubernetes.json"

INSTALL = "pip install 'med-assets[kubernetes]'"

CONNECT_S, ANSWER_S = 10.0, 30.0
"""How long the cluster may take to accept a connection, and to answer, s."""

TRIES = 6
"""How often a request is made that a person waits for, with pauses of 0.5 s and twice as long each time."""

AGAIN = (429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""

MAX_PAUSE_S = 10.0
"""Longest pause between two tries, whatever the cluster asks for, s."""

GONE_POLL_S = 0.5
"""Time between two looks whether an earlier Job is gone, s."""

REPLACED_WITHIN_S = 60.0
"""How long a Job that is deleted may take to go beyond the time that its pod has to stop, s."""

RESULT_WITHIN_S = 30.0
"""How long after the end of a Job its result may come, s: what brings it was asked before the cluster was."""

LOG_BYTES = 64 * 1024
"""Most that is read of the log of a pod."""


class KubernetesLauncher(ClusterLauncher):
    """Runs a stage as a Job, on the cluster that `kubernetes.yaml` describes."""

    configuration: Configuration
    configuration_type: ClassVar[type[launcher.Configuration]] = Configuration
    record: ClassVar[str] = RECORD

    @property
    def shares_folder(self) -> bool:
        return False

    @cached_property
    def cluster(self) -> Cluster:
        """What the file of the cluster says. Raises ConfigurationError."""
        return load_cluster(cluster_file())

    def submit(self, job: Path, command: Sequence[str], env: Mapping[str, str]) -> Handle:
        name = job_name(job)
        body = manifest(name, command, env, self.cluster, self.configuration)
        until = time.monotonic() + self.cluster.stop_s + REPLACED_WITHIN_S
        while time.monotonic() < until:
            made = self._ask(self._batch.create_namespaced_job, self.cluster.namespace, body, missing="the namespace")
            if made is not None:
                return self._handle(job, made.metadata.uid, started_here=True)
            # There is one of this name: ours, whose answer was lost, or somebody's, or one that ended, which gives way.
            there = self._read(name)
            if there is None:
                continue
            if there.spec.template.spec.containers[0].command == list(command):
                return self._handle(job, there.metadata.uid, started_here=True)
            if not there.metadata.deletion_timestamp and self._runs(name, there):
                return self._handle(job, there.metadata.uid)
            if not there.metadata.deletion_timestamp:
                self._delete(there, "Background")
            time.sleep(GONE_POLL_S)
        raise LaunchFailed(
            f"{title(name)} of an earlier start is being deleted and does not go; `kubectl describe job {name}` says what holds it"
        )

    def find(self, job: Path) -> Handle | None:
        """The Job of this folder's name that runs, or None. Raises LaunchFailed when the cluster does not answer."""
        there = self._read(job_name(job))
        if there is None or there.metadata.deletion_timestamp or not self._runs(job_name(job), there):
            return None
        return self._handle(job, there.metadata.uid)

    def cancel(self, handle: Handle) -> None:
        there = self._read(job_name(handle.job))
        if there is not None and there.metadata.uid == handle.id and not finished(there):
            self._delete(there, "Foreground")

    def examine(self) -> str:
        """Version of the cluster, and that this account may do what the launcher does. Raises LaunchFailed."""
        try:
            cluster = self.cluster
        except ConfigurationError as error:
            raise LaunchFailed(str(error)) from error
        version = self._ask(self._client.VersionApi(self._api).get_code).git_version
        rights = (("create", "batch", "jobs", ""), ("get", "batch", "jobs", ""), ("delete", "batch", "jobs", ""), ("list", "", "pods", ""), ("get", "", "pods", "log"))  # fmt: skip
        reviews = self._client.AuthorizationV1Api(self._api)
        for verb, group, resource, part in rights:
            attributes = {"namespace": cluster.namespace, "verb": verb, "group": group, "resource": resource}
            review = {"spec": {"resourceAttributes": {**attributes, **({"subresource": part} if part else {})}}}
            if not self._ask(reviews.create_self_subject_access_review, review).status.allowed:
                what = f"{resource}/{part}" if part else resource
                raise LaunchFailed(
                    f"expected the right to {verb} {what} in the namespace {cluster.namespace}, which this account does not have; "
                    "deploy/kubernetes/launcher.yaml has the role"
                )
        return f"Kubernetes {version}, namespace {cluster.namespace}, image {cluster.image}"

    def _handle(self, job: Path, uid: str, *, started_here: bool = False) -> Handle:
        name = job_name(job)
        write_json(job / RECORD, {"name": name, "namespace": self.cluster.namespace, "uid": uid})
        return Handle(job, uid, title(name), started_here)

    def _state(self, handle: Handle, known: Known, now: float) -> State:
        name = job_name(handle.job)
        there = self._read(name, tries=1)
        if there is None or there.metadata.uid != handle.id:
            words = "is no longer in the cluster: it was cancelled, or somebody deleted it"
            return State(Phase.ENDED, f"{handle.title} {words}; ask for it again to go on with what it has done")
        pods = self._pods(name, there, tries=1)
        pod = newest(pods)
        state = self._words(handle.title, there, pods)
        if state is None:
            if known.may_have_result(now, RESULT_WITHIN_S):
                return State(Phase.RUNNING, f"{handle.title} ended; waiting for its result")
            state = State(Phase.RESUMABLE, f"{handle.title} ended without a result")
        if state.phase is Phase.RUNNING and no_start(pod) is not None:
            known.stuck_at = known.stuck_at or now
            if now - known.stuck_at >= self.cluster.start_within_min * 60:
                self._delete(there, "Background")
                state = State(Phase.ENDED, f"{state.message}; given up after {self.cluster.start_within_min:g} min")
        else:
            known.stuck_at = None
        if state.phase is not Phase.RUNNING:
            self._keep_log(handle.job, pod)
        return state

    def _words(self, job_title: str, there: Any, pods: Sequence[Any]) -> State | None:
        events = [] if pods or finished(there) else self._events(there)
        return state_of(job_title, there, pods, self.cluster.image, cluster_file().name, events)

    def _runs(self, name: str, there: Any) -> bool:
        """Whether a Job waits or runs; one whose node is lost does not."""
        if finished(there):
            return False
        state = self._words(title(name), there, self._pods(name, there))
        return state is not None and state.phase is Phase.RUNNING

    def _keep_log(self, job: Path, pod: Any | None) -> None:
        """Keep the end of a pod's log where nothing came through the bucket: it may have ended before it could write there."""
        if pod is None or ((job / LOG).is_file() and (job / LOG).stat().st_size):
            return
        try:
            # Without the client's own reading, which takes a line of JSON for something else than text.
            answer = self._ask(
                self._core.read_namespaced_pod_log, pod.metadata.name, self.cluster.namespace, container=CONTAINER,
                tail_lines=TAIL_LINES, limit_bytes=LOG_BYTES, tries=1, _preload_content=False,
            )  # fmt: skip
        except LaunchFailed:
            return
        if answer is not None and (text := answer.data.decode(errors="replace")):
            write_text(job / LOG, text if text.endswith("\n") else f"{text}\n")

    def _read(self, name: str, tries: int = TRIES) -> Any | None:
        return self._ask(self._batch.read_namespaced_job, name, self.cluster.namespace, tries=tries)

    def _pods(self, name: str, there: Any, tries: int = TRIES) -> list[Any]:
        """The pods of this very Job, not of an earlier one of its name."""
        listed = self._ask(
            self._core.list_namespaced_pod, self.cluster.namespace, label_selector=f"{LABEL}={name}", tries=tries
        )
        uid = there.metadata.uid
        owned = listed.items if listed is not None else []
        return [pod for pod in owned if any(owner.uid == uid for owner in pod.metadata.owner_references or ())]

    def _events(self, there: Any) -> list[str]:
        """What the cluster says about a Job that has no pod, such as that the quota is used up; nothing where events can't be read."""
        try:
            listed = self._ask(
                self._core.list_namespaced_event, self.cluster.namespace, tries=1,
                field_selector=f"involvedObject.uid={there.metadata.uid},type=Warning",
            )  # fmt: skip
        except LaunchFailed:
            return []
        return [event.message for event in (listed.items if listed is not None else ()) if event.message]

    def _delete(self, there: Any, propagation: str) -> None:
        """Delete this very Job; one that is gone, or another of its name by now, stays."""
        options = {"propagationPolicy": propagation, "preconditions": {"uid": there.metadata.uid}}
        self._ask(self._batch.delete_namespaced_job, there.metadata.name, self.cluster.namespace, body=options)

    def _ask(self, call: Callable[..., Any], *words: Any, tries: int = TRIES, missing: str = "", **more: Any) -> Any:
        """Make a request, again where that may help. Returns None where there is no such object, or another of its name.

        `missing` names what must be there. Raises LaunchFailed with what the cluster answered.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        for attempt in range(1, tries + 1):
            pause = min(0.5 * 2 ** (attempt - 1), MAX_PAUSE_S)
            try:
                answer = call(*words, _request_timeout=(CONNECT_S, ANSWER_S), **more)
                if getattr(answer, "metadata", answer) is None:
                    raise LaunchFailed(
                        "what answers is no API server of Kubernetes; is a proxy between, see HTTPS_PROXY?"
                    )
                return answer
            except ApiException as error:
                if error.status == 409 or (error.status == 404 and not missing):
                    return None
                if error.status not in AGAIN or attempt == tries:
                    raise LaunchFailed(_refusal(error, missing)) from error
                pause = max(pause, min(_retry_after_s(error), MAX_PAUSE_S))
            except HTTPError as error:
                if attempt == tries:
                    raise LaunchFailed(
                        f"the API server of the cluster can't be reached ({type(error).__name__}); `kubectl version` tells more"
                    ) from error
            time.sleep(pause)
        raise AssertionError("a request has at least one try")

    @cached_property
    def _client(self) -> Any:
        try:
            from kubernetes import client
        except ImportError as error:
            raise LaunchFailed(f"jobs on Kubernetes need its client: {INSTALL}") from error
        return client

    @cached_property
    def _api(self) -> Any:
        """The connection, by the service account of the pod that this runs in, else by the user's kubeconfig."""
        configuration = self._client.Configuration()
        from kubernetes import config

        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and self.cluster.context is None:
                config.load_incluster_config(client_configuration=configuration)
            else:
                # The client reads KUBECONFIG when it is imported, and not again.
                config.load_kube_config(os.environ.get("KUBECONFIG"), self.cluster.context, configuration)
        except config.ConfigException as error:
            raise LaunchFailed(
                f"expected a kubeconfig of the cluster, or the service account of a pod ({error}); KUBECONFIG names the file"
            ) from error
        configuration.retries = False
        # A server of another version than the client's may leave out a field that the client holds for required.
        configuration.client_side_validation = False
        return self._client.ApiClient(configuration)

    @cached_property
    def _batch(self) -> Any:
        return self._client.BatchV1Api(self._api)

    @cached_property
    def _core(self) -> Any:
        return self._client.CoreV1Api(self._api)


def title(name: str) -> str:
    """Name of a Job for people."""
    return f"Kubernetes job {name}"


def _message(error: Any) -> str:
    """What the cluster says in an answer, or what its status is called."""
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason or "no message")


def _refusal(error: Any, missing: str) -> str:
    answer = f"{error.status}: {_message(error)}"
    if error.status == 401:
        return f"the cluster does not know these credentials ({answer}); log in again, or renew the kubeconfig"
    if error.status == 403:
        return (
            f"the cluster refuses this account ({answer}); deploy/kubernetes/launcher.yaml has the role that it needs"
        )
    if error.status == 404:
        return f"the cluster lacks {missing} ({answer}); see kubernetes.yaml"
    return f"the cluster answered {answer}"


def _retry_after_s(error: Any) -> float:
    try:
        return float((error.headers or {}).get("Retry-After", 0))
    except ValueError:
        return 0.0
