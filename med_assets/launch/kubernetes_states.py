"""How a Job of Kubernetes is, in words for people: waiting and why, running and where, and what an end means for a next start."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from med_assets.launch.kubernetes_jobs import CONTAINER, DISRUPTED
from med_assets.launch.launcher import Phase, State
from med_assets.training import status

DISRUPTIONS = {
    "PreemptionByScheduler": "gave way to a pod of higher priority",
    "EvictionByEvictionAPI": "was evicted from {node}, which is drained, or by somebody",
    "DeletionByTaintManager": "lost its node {node}",
    "DeletionByPodGC": "lost its node {node}",
    "TerminationByKubelet": "was ended by its node {node}, which ran short of memory or disk, or was shut down",
}
"""Reasons of the condition DisruptionTarget."""

LOST = ("DeletionByTaintManager", "DeletionByPodGC")
"""Reasons for which nobody can say when the pod is gone: its node does not answer."""

NODE_REASONS = {
    "Evicted": "was evicted by its node {node}",
    "Preempting": "was evicted by its node {node}, which needed the space for a pod of the system",
    "NodeShutdown": "was ended by {node}, which was shut down",
    "Shutdown": "was ended by {node}, which was shut down",
    "Terminated": "was ended by {node}, which was shut down",
    "NodeLost": "lost its node {node}",
}
"""Reasons of a failed pod that are its node's; those named OutOf... are refusals of a node that had no space after all."""

NO_START = {
    "ErrImagePull": "its node can't pull the image {image}; is it pushed, and does {file} name a login in image_pull_secrets?",
    "ImagePullBackOff": "its node can't pull the image {image}; is it pushed, and does {file} name a login in image_pull_secrets?",
    "InvalidImageName": "{image} is no name of an image; correct image in {file}",
    "ErrImageNeverPull": "the image {image} is not on its node",
    "CreateContainerConfigError": "a Secret or ConfigMap that {file} names is missing in the namespace, or lacks what is needed",
    "CreateContainerError": "its container can't be made",
    "RunContainerError": "its container can't be started",
}
"""Reasons of a container that waits, for which it waits until a person acts."""

OWN_LIMIT = re.compile(
    r"emptyDir|EmptyDir|local ephemeral storage usage exceeds|container \S+ exceeded its", re.IGNORECASE
)
"""What a node says where a pod used more disk than it may, which the next start would do again."""

DEADLINE = "DeadlineExceeded"
"""Reason of a pod, or of a Job, that reached the limit of its time."""

EXIT_CODE = re.compile(r"exit code (\d+)")


def conditions(item: Any) -> dict[str, Any]:
    """The conditions of a Job or a pod that hold, by type."""
    return {each.type: each for each in (item.status.conditions or ()) if each.status == "True"}


def finished(job: Any) -> bool:
    """Whether a Job is over, well or not."""
    return bool({"Complete", "Failed"} & set(conditions(job)))


def newest(pods: Sequence[Any]) -> Any | None:
    """The pod that was made last, None without any."""
    return max(pods, key=lambda pod: pod.metadata.creation_timestamp or datetime.min.replace(tzinfo=UTC), default=None)


def no_start(pod: Any | None) -> str | None:
    """The reason for which the container of a pod can't start, None where it can or did."""
    waiting = _container(pod, "waiting")
    return waiting.reason if waiting is not None and waiting.reason in NO_START else None


def state_of(
    title: str, job: Any, pods: Sequence[Any], image: str, file: str, events: Sequence[str] = ()
) -> State | None:
    """State of a Job and its pods; None for one that ended well. `events` are messages of the cluster about a Job without a pod."""
    pod = newest(pods)
    held = conditions(job)
    if "Complete" in held:
        return None
    if "Failed" in held:
        return _failed(title, job, held["Failed"], pod)
    lost = _disruption(pod)
    if pod is not None and pod.metadata.deletion_timestamp and lost in LOST:
        return State(Phase.RESUMABLE, f"{title} {DISRUPTIONS[lost].format(node=_node(pod))}, which does not answer")
    return State(Phase.RUNNING, f"{title} {_going_on(job, pod, image, file, events)}")


def _going_on(job: Any, pod: Any | None, image: str, file: str, events: Sequence[str]) -> str:
    """A Job that has not ended, in words."""
    if job.metadata.deletion_timestamp:
        return "is being cancelled"
    if job.spec.suspend:
        return "is suspended; what queues the jobs of this cluster lets it go"
    if pod is None:
        return f"has no pod yet: {events[-1]}" if events else "waits for its pod"
    if (reason := _disruption(pod)) is not None:
        return f"is being stopped: it {DISRUPTIONS.get(reason, reason).format(node=_node(pod))}"
    if pod.status.phase == "Running":
        ready = next((each for each in pod.status.conditions or () if each.type == "Ready"), None)
        if pod.status.reason == "NodeLost" or (ready is not None and ready.reason == "NodeNotReady"):
            return f"runs on {_node(pod)}, which does not answer now"
        return f"is running on {_node(pod)}"
    if pod.status.phase != "Pending":
        return "has ended; the cluster has not counted it yet"
    scheduled = next((each for each in pod.status.conditions or () if each.type == "PodScheduled"), None)
    if scheduled is not None and scheduled.status != "True":
        return f"is pending ({scheduled.reason or 'not scheduled'}): {scheduled.message or 'waits for a node'}"
    waiting = _container(pod, "waiting")
    if waiting is None:
        return f"is pending on {_node(pod)}"
    if waiting.reason in NO_START:
        words = NO_START[waiting.reason].format(image=image, file=file)
        return f"can't start ({waiting.reason}): {words}{f' ({waiting.message})' if waiting.message else ''}"
    if waiting.reason in ("ContainerCreating", "PodInitializing"):
        return f"starts on {_node(pod)}; its image is pulled if it is not there"
    return f"is pending on {_node(pod)} ({waiting.reason})"


def _failed(title: str, job: Any, failure: Any, pod: Any | None) -> State:
    """A Job that ended without success: whether to start it again, and why it ended."""
    if DEADLINE in (failure.reason, pod.status.reason if pod is not None else None):
        limit_min = (job.spec.template.spec.active_deadline_seconds or job.spec.active_deadline_seconds or 0) / 60
        return State(Phase.RESUMABLE, f"{title} reached its limit of {limit_min:g} min; raise launch.time_min")
    message = (pod.status.message if pod is not None else None) or ""
    if (reason := _disruption(pod)) is not None or DISRUPTED in (failure.message or ""):
        if OWN_LIMIT.search(message):
            return State(
                Phase.ENDED, f"{title} used more disk than it may ({message.strip()}); raise scratch_gb of its cluster"
            )
        words = DISRUPTIONS.get(reason or "", "was taken away by the cluster").format(node=_node(pod))
        return State(Phase.RESUMABLE, f"{title} {words}{f' ({message.strip()})' if message.strip() else ''}")
    by_node = pod.status.reason if pod is not None else None
    if by_node and (by_node in NODE_REASONS or by_node.startswith("OutOf")):
        words = NODE_REASONS.get(by_node, "was refused by {node}, which had no space after all").format(node=_node(pod))
        if OWN_LIMIT.search(message):
            return State(
                Phase.ENDED, f"{title} used more disk than it may ({message.strip()}); raise scratch_gb of its cluster"
            )
        return State(Phase.RESUMABLE, f"{title} {words}{f' ({message.strip()})' if message.strip() else ''}")
    return _exited(title, failure, pod)


def _exited(title: str, failure: Any, pod: Any | None) -> State:
    """A Job whose process ended: by the exit code of its container, or by the one that the Job itself still states."""
    terminated = _container(pod, "terminated")
    stated = EXIT_CODE.search(failure.message or "")
    code = terminated.exit_code if terminated is not None else int(stated[1]) if stated else None
    if terminated is not None and terminated.reason == "OOMKilled":
        words = "used more memory than it asked for; raise launch.memory_gb, or lower MED_ASSETS_WORKERS or the batch"
        return State(Phase.ENDED, f"{title} {words}")
    if code is None:
        return State(Phase.RESUMABLE, f"{title} lost its pod: its node is gone, or somebody deleted it")
    if code == status.REQUEUE:
        return State(Phase.RESUMABLE, f"{title} was asked to stop and goes on when it is started again")
    if code > status.SIGNALLED:
        return State(Phase.RESUMABLE, f"{title} was killed by signal {code - status.SIGNALLED} on {_node(pod)}")
    if code == 0:
        return State(Phase.RESUMABLE, f"{title} ended without a result")
    return State(Phase.ENDED, f"{title} ended with exit code {code} and no result")


def _disruption(pod: Any | None) -> str | None:
    held = conditions(pod) if pod is not None else {}
    return (held[DISRUPTED].reason or "") if DISRUPTED in held else None


def _container(pod: Any | None, kind: str) -> Any | None:
    """The state of the container of a pod if it is of this kind: waiting, running or terminated."""
    statuses = (pod.status.container_statuses if pod is not None else None) or ()
    found = next((each for each in statuses if each.name == CONTAINER), None)
    return getattr(found.state, kind) if found is not None and found.state is not None else None


def _node(pod: Any | None) -> str:
    return (pod.spec.node_name if pod is not None else None) or "its node"
