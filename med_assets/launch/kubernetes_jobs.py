"""What a job on a Kubernetes cluster is made of: the cluster's file of this site, what a stage may ask for, and the Job itself.

Image, secrets, volumes and nodes come from a file of this machine's operator and from nowhere else: who may write an experiment, or type
an override in Dagster's launchpad, could otherwise run an image of their own with the key of pseudonyms in it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from med_assets.errors import ConfigurationError
from med_assets.launch import clusters
from med_assets.settings import without_secrets
from med_assets.storage.files import digest, read_yaml

VARIABLE, FILE = "MED_ASSETS_KUBERNETES", "kubernetes.yaml"
"""The variable that names the file of the cluster, and its name in the home where it is not set."""

CONTAINER = "stage"
"""Name of the container of a job."""

SCRATCH = "/data"
"""Where the home of a job is: a folder that lives as long as its pod."""

USER = 10001
"""Number of the user in the image of deploy/images."""

LABEL = "med-assets/job"
"""Label of a Job and of its pods, with the name of the Job."""

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
"""Names of job folders that can be part of a name of Kubernetes as they are. RFC 1123."""

OBJECT_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
"""Names of objects of Kubernetes."""

DISRUPTED = "DisruptionTarget"
"""Condition of a pod that the cluster takes away, and not for what its process did."""


class Part(BaseModel):
    """Base of every part of the file: frozen, and refusing keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Toleration(Part):
    """A taint of nodes that jobs accept."""

    key: str = Field(description="key of the taint")
    value: str | None = Field(default=None, description="value of the taint; without, any")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="effect of the taint; without, all"
    )

    def manifest(self) -> dict[str, Any]:
        """As Kubernetes has it."""
        operator = {"operator": "Exists"} if self.value is None else {"operator": "Equal", "value": self.value}
        return {"key": self.key, **operator, **({"effect": self.effect} if self.effect else {})}


class Pool(Part):
    """Nodes on which a job may run."""

    node_selector: Mapping[str, str] = Field(default_factory=dict, description="labels that its nodes have")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="taints of its nodes")
    priority_class: str | None = Field(default=None, description="priority class of its jobs")


class Cluster(Part):
    """How jobs run on the cluster of this site: `kubernetes.yaml`."""

    namespace: str = Field(description="namespace of the jobs")
    image: str = Field(description="image of the jobs, with a tag that is a version, or a digest")
    context: str | None = Field(
        default=None,
        description="context of the kubeconfig; without, its current one, or the service account of the pod that this runs in",
    )
    secrets: tuple[str, ...] = Field(
        default=(),
        description="Secrets whose entries are variables of the jobs: the pseudonym key, credentials of the bucket",
    )
    config_maps: tuple[str, ...] = Field(default=(), description="ConfigMaps whose entries are variables of the jobs")
    image_pull_secrets: tuple[str, ...] = Field(default=(), description="Secrets with logins at the image's registry")
    service_account: str | None = Field(
        default=None, description="service account of the jobs, which need no right in the cluster"
    )
    pools: Mapping[str, Pool] = Field(default_factory=dict, description="nodes by the names that launch.pool may have")
    default_pool: str | None = Field(default=None, description="pool of jobs that name none; without, any node")
    gpu_resource: str = Field(default="nvidia.com/gpu", description="name of GPUs among the resources of nodes")
    scratch_gb: int = Field(default=50, ge=1, description="disk for the cache and the scratch files of a job, GiB")
    shared_memory_gb: int = Field(default=8, ge=1, description="shared memory of a job, GiB; part of its memory")
    stop_s: int = Field(default=120, ge=1, description="how long a job may save what it has when it is stopped, s")
    keep_h: float = Field(default=24, gt=0, description="how long a job that ended stays in the cluster, h")
    start_within_min: float = Field(default=30, gt=0, description="how long an image or a secret may be missing, min")

    @field_validator("image")
    @classmethod
    def _is_a_version(cls, image: str) -> str:
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            raise ValueError(
                f"expected an image with a version as its tag, or with a digest, got {image!r}: a node would run the one that it pulled last"
            )
        return image

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = (self.namespace, *self.secrets, *self.config_maps, *self.image_pull_secrets)
        for name in (*named, *filter(None, (self.service_account,))):
            if not OBJECT_NAME.fullmatch(name):
                raise ValueError(
                    f"expected the name of an object of Kubernetes, in small letters, digits, - and ., got {name!r}"
                )
        if self.default_pool is not None and self.default_pool not in self.pools:
            raise ValueError(
                f"default_pool: expected one of pools ({', '.join(self.pools) or 'none'}), got {self.default_pool!r}"
            )
        return self

    def pool(self, name: str | None) -> Pool:
        """Return a pool, the default one for None. Raises ConfigurationError."""
        chosen = name or self.default_pool
        if chosen is None:
            return Pool()
        if chosen not in self.pools:
            raise ConfigurationError(
                f"launch.pool: expected one of the pools of {FILE} ({', '.join(self.pools) or 'none'}), got {chosen!r}"
            )
        return self.pools[chosen]


def cluster_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file of the cluster: the one that MED_ASSETS_KUBERNETES names, else `kubernetes.yaml` of the home."""
    return Path(environ.get(VARIABLE) or Path(environ.get("MED_ASSETS_HOME", ".med_assets")) / FILE)


def load_cluster(path: Path) -> Cluster:
    """Read the file of the cluster. Raises ConfigurationError that names the field."""
    if not path.is_file():
        raise ConfigurationError(
            f"expected a file {path} with the namespace and the image of jobs on Kubernetes, found none; docs/kubernetes.md shows one, and "
            f"{VARIABLE} may name another"
        )
    try:
        return Cluster.model_validate(read_yaml(path))
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"])) or "the file"
        raise ConfigurationError(f"{path.name}: {field}: {wrong['msg'].removeprefix('Value error, ')}") from error


class Configuration(clusters.Configuration):
    """What a stage asks the cluster for. What is None is not asked for: the defaults of the namespace hold."""

    launcher: Literal["kubernetes"] = "kubernetes"
    time_min: int | None = Field(default=None, ge=1, description="limit of one start on its node, min")
    memory_gb: int | None = Field(default=None, ge=1, description="memory, GiB")
    cpus: int | None = Field(default=None, ge=1, description="CPU cores, count")
    gpus: int | None = Field(default=None, ge=0, description="GPUs of one node, count")
    pool: str | None = Field(
        default=None, pattern=r"^[\w.-]+$", description="nodes, one of the pools of kubernetes.yaml"
    )


def job_name(job: Path) -> str:
    """Name of the Job of a folder: the same on all machines, since it is made of the folder's name alone."""
    own = job.name if NAME.fullmatch(job.name) else digest(job.name)
    return f"med-assets-{own}"


def manifest(
    name: str, command: Sequence[str], env: Mapping[str, str], cluster: Cluster, asked: Configuration
) -> dict[str, Any]:
    """The Job: one pod that is started once, as a user who is not root, with nothing writable but its scratch folders.

    What is started again is for whoever follows the Job to decide, so Kubernetes itself never does (`backoffLimit: 0`). The policy of
    pod failures changes nothing in that: it keeps the cause of an end in the Job, which outlives the pod. Raises ConfigurationError.
    """
    pool = cluster.pool(asked.pool)
    labels = {"app.kubernetes.io/name": "med-assets", "app.kubernetes.io/component": CONTAINER, LABEL: name}
    variables = {
        **without_secrets(env),
        **({"OMP_NUM_THREADS": str(asked.cpus)} if asked.cpus else {}),
        "MED_ASSETS_HOME": SCRATCH,
        "DAGSTER_HOME": f"{SCRATCH}/dagster",
    }
    held = {
        "memory": asked.memory_gb and f"{asked.memory_gb}Gi",
        cluster.gpu_resource: asked.gpus and str(asked.gpus),
    }
    limits = {resource: text for resource, text in held.items() if text}
    requests = {
        **limits,
        **({"cpu": str(asked.cpus)} if asked.cpus else {}),
        "ephemeral-storage": f"{cluster.scratch_gb}Gi",
    }
    container = {
        "name": CONTAINER,
        "image": cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "env": [{"name": variable, "value": text} for variable, text in sorted(variables.items())],
        "envFrom": [
            *({"configMapRef": {"name": source}} for source in cluster.config_maps),
            *({"secretRef": {"name": source}} for source in cluster.secrets),
        ],
        "resources": {"requests": requests, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }  # fmt: skip
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": cluster.stop_s,
        # Of the pod and not of the Job, whose time would run while it waits for a node.
        **({"activeDeadlineSeconds": asked.time_min * 60} if asked.time_min else {}),
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": f"{cluster.scratch_gb}Gi"}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{cluster.shared_memory_gb}Gi"}},
        ],
        **({"serviceAccountName": cluster.service_account} if cluster.service_account else {}),
        **({"imagePullSecrets": [{"name": each} for each in cluster.image_pull_secrets]} if cluster.image_pull_secrets else {}),
        **({"nodeSelector": dict(pool.node_selector)} if pool.node_selector else {}),
        **({"tolerations": [each.manifest() for each in pool.tolerations]} if pool.tolerations else {}),
        **({"priorityClassName": pool.priority_class} if pool.priority_class else {}),
    }  # fmt: skip
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": cluster.namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onPodConditions": [{"type": DISRUPTED, "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]},
                    },
                ]
            },
            "ttlSecondsAfterFinished": round(cluster.keep_h * 3600),
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
