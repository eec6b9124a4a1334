"""The files of deploy/kubernetes: valid by the schemas of Kubernetes, and values that Dagster's Helm chart knows.

No cluster and no Helm is here. What the chart takes is written below as facts, read from its published schema (chart 1.13, directory
helm/dagster/schema of dagster-io/dagster); pods are put together from the values as its templates do, and checked.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster._cli.api import grpc_command
from dagster._config import validate_config
from dagster._config.field import resolve_to_config_type
from dagster_k8s.launcher import K8sRunLauncher

from med_assets.launch import kubernetes
from med_assets.launch.kubernetes_jobs import USER, Configuration, load_cluster, manifest
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "kubernetes"
MANIFESTS = ("namespace.yaml", "launcher.yaml", "review.yaml", "job.yaml")
VERSIONS = ("1.30", "1.32", "1.34")
"""Versions of Kubernetes whose schemas the manifests are held to."""

ANY: Mapping[str, Any] = {}
POD = {
    "podSecurityContext": ANY,
    "securityContext": ANY,
    "resources": ANY,
    "nodeSelector": ANY,
    "affinity": ANY,
    "tolerations": ANY,
}
IMAGE = {"repository": None, "tag": None, "pullPolicy": None}
ENV = {
    "env": ANY,
    "envConfigMaps": ANY,
    "envSecrets": ANY,
    "volumes": ANY,
    "volumeMounts": ANY,
    "labels": ANY,
    "annotations": ANY,
}
LIMITS = {"key": None, "limit": None, "value": ANY}
CHART: Mapping[str, Any] = {
    "global": {"postgresqlSecretName": None, "dagsterHome": None, "serviceAccountName": None, "celeryConfigSecretName": None},
    "generatePostgresqlPasswordSecret": None,
    "generateCeleryConfigSecret": None,
    "imagePullSecrets": ANY,
    "rbacEnabled": None,
    "serviceAccount": {"create": None, "name": None, "annotations": ANY},
    "postgresql": {
        "enabled": None, "image": IMAGE, "postgresqlScheme": None, "postgresqlHost": None, "postgresqlUsername": None,
        "postgresqlPassword": None, "postgresqlDatabase": None, "postgresqlParams": ANY, "service": {"port": None},
    },
    "rabbitmq": {"enabled": None},
    "redis": {"enabled": None},
    "flower": {"enabled": None},
    "telemetry": {"enabled": None},
    "migrate": {"enabled": None},
    "dagsterWebserver": {
        **POD, **ENV, "replicaCount": None, "image": IMAGE, "service": {"type": None, "port": None, "annotations": ANY},
        "readinessProbe": ANY, "livenessProbe": ANY, "startupProbe": ANY, "enableReadOnly": None, "pathPrefix": None,
    },
    "dagster-user-deployments": {
        "enabled": None,
        "enableSubchart": None,
        "imagePullSecrets": ANY,
        "deployments": {
            **POD, **ENV, "name": None, "image": IMAGE, "port": None, "dagsterApiGrpcArgs": ANY, "codeServerArgs": ANY,
            "includeConfigInLaunchedRuns": {"enabled": None}, "readinessProbe": ANY, "livenessProbe": ANY, "startupProbe": ANY,
        },
    },
    "runLauncher": {
        "type": ("K8sRunLauncher", "CeleryK8sRunLauncher", "CustomRunLauncher"),
        "config": {
            "k8sRunLauncher": {
                "image": IMAGE, "imagePullPolicy": None, "jobNamespace": None, "loadInclusterConfig": None, "kubeconfigFile": None,
                "envConfigMaps": ANY, "envSecrets": ANY, "envVars": ANY, "volumeMounts": ANY, "volumes": ANY, "labels": ANY, "failPodOnRunFailure": None,
            }
        },
    },
    "dagsterDaemon": {
        **POD, **ENV, "enabled": None, "image": IMAGE, "heartbeatTolerance": None,
        "runCoordinator": {
            "enabled": None,
            "type": ("QueuedRunCoordinator", "CustomRunCoordinator"),
            "config": {
                "queuedRunCoordinator": {
                    "maxConcurrentRuns": None, "tagConcurrencyLimits": LIMITS, "dequeueIntervalSeconds": None, "dequeueNumWorkers": None, "dequeueUseThreads": None,
                }
            },
        },
        "runMonitoring": {"enabled": None, "startTimeoutSeconds": None, "maxResumeRunAttempts": None, "pollIntervalSeconds": None},
        "runRetries": {"enabled": None, "maxRetries": None},
        "sensors": {"useThreads": None, "numWorkers": None, "numSubmitWorkers": None},
        "schedules": {"useThreads": None, "numWorkers": None, "numSubmitWorkers": None},
    },
    "concurrency": {
        "enabled": None,
        "pools": {"defaultLimit": None, "granularity": None, "opGranularityRunBuffer": None},
        "runs": {"maxConcurrentRuns": None, "tagConcurrencyLimits": LIMITS},
    },
    "computeLogManager": {
        "type": ("NoOpComputeLogManager", "AzureBlobComputeLogManager", "GCSComputeLogManager", "S3ComputeLogManager", "CustomComputeLogManager"),
        "config": ANY,
    },
    "retention": {
        "enabled": None,
        "sensor": {"purgeAfterDays": {"skipped": None, "started": None, "success": None, "failure": None}},
        "schedule": {"purgeAfterDays": {"skipped": None, "started": None, "success": None, "failure": None}},
    },
}  # fmt: skip
"""Keys that the chart knows, where these values have some; {} takes any, a tuple is of the values that it takes."""


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    (only,) = documents("values.yaml")
    return only


def unknown(given: Any, known: Any, path: str) -> list[str]:
    """Keys and values that the chart does not know."""
    if isinstance(given, list):
        return [found for each in given for found in unknown(each, known, f"{path}[]")]
    if isinstance(known, tuple):
        return [] if given in known else [f"{path}: {given}"]
    if not isinstance(given, dict) or not known:
        return [] if known is None or known == {} else [f"{path}: {given}"]
    found = [f"{path}.{key}" for key in given if key not in known]
    return found + [each for key in given if key in known for each in unknown(given[key], known[key], f"{path}.{key}")]


def test_the_chart_knows_every_value(values: dict[str, Any]) -> None:
    assert unknown(values, CHART, "") == []
    assert unknown({"dagsterWebserver": {"images": {}}, "runLauncher": {"type": "Slurm"}}, CHART, "") == [
        ".dagsterWebserver.images", ".runLauncher.type: Slurm",
    ]  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid(name: str, version: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_of_the_chart_are_valid_with_these_values(values: dict[str, Any], version: str) -> None:
    code = values["dagster-user-deployments"]["deployments"][0]
    for part in (values["dagsterWebserver"], values["dagsterDaemon"], code):
        container = {
            "name": "dagster", "image": f"{part['image']['repository']}:{part['image']['tag']}", "imagePullPolicy": part["image"]["pullPolicy"],
            "securityContext": part["securityContext"], "resources": part["resources"],
            "env": [{"name": name, "value": text} for name, text in part.get("env", {}).items()],
            "envFrom": [*({"configMapRef": each} for each in part.get("envConfigMaps", [])), *({"secretRef": each} for each in part.get("envSecrets", []))],
            "volumeMounts": part.get("volumeMounts", []), **({"readinessProbe": part["readinessProbe"]} if "readinessProbe" in part else {}),
        }  # fmt: skip
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
            "spec": {
                "containers": [container], "securityContext": part["podSecurityContext"], "volumes": part.get("volumes", []),
                "imagePullSecrets": values["imagePullSecrets"],
            },
        }  # fmt: skip
        kubernetes_validate.validate(pod, version, strict=True)
        assert (part["podSecurityContext"]["runAsNonRoot"], part["podSecurityContext"]["runAsUser"]) == (True, USER)
        mounted = {each["name"] for each in part.get("volumeMounts", [])}
        assert mounted == {each["name"] for each in part.get("volumes", [])}
    probe = values["dagsterWebserver"]["readinessProbe"]["httpGet"]
    assert probe["port"] == values["dagsterWebserver"]["service"]["port"] > 1024, "no root, no low port"


def test_the_code_location_and_the_run_launcher_take_what_they_are_given(values: dict[str, Any]) -> None:
    code = values["dagster-user-deployments"]["deployments"][0]
    arguments = ["-h", "0.0.0.0", "-p", str(code["port"]), *code["dagsterApiGrpcArgs"]]
    taken = grpc_command.make_context("grpc", arguments).params
    assert (taken["module_name"], taken["working_directory"]) == ("definitions", "/opt/med_assets")
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    rendered = {
        "load_incluster_config": launcher["loadInclusterConfig"], "image_pull_policy": launcher["imagePullPolicy"],
        "fail_pod_on_run_failure": launcher["failPodOnRunFailure"], "job_namespace": "med-assets", "image_pull_secrets": values["imagePullSecrets"],
        "service_account_name": "dagster", "dagster_home": {"env": "DAGSTER_HOME"}, "instance_config_map": {"env": "DAGSTER_K8S_INSTANCE_CONFIG_MAP"},
        "postgres_password_secret": {"env": "DAGSTER_K8S_PG_PASSWORD_SECRET"},
    }  # fmt: skip
    assert validate_config(resolve_to_config_type(K8sRunLauncher.config_type()), rendered).success


def snake(value: Any) -> Any:
    """Keys as Dagster's own settings write them."""
    if isinstance(value, dict):
        known = {"applyLimitPerUniqueValue"}
        return {key if key in known else re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", key): snake(each) for key, each in value.items()}  # fmt: skip
    return [snake(each) for each in value] if isinstance(value, list) else value


def test_limits_and_retention_are_those_of_a_site_without_a_cluster(values: dict[str, Any]) -> None:
    site = yaml.safe_load((REPOSITORY / "deploy" / "dagster" / "dagster.yaml").read_text())
    assert snake(values["concurrency"]["runs"]) == site["concurrency"]["runs"]
    assert snake(values["concurrency"]["pools"]).items() <= site["concurrency"]["pools"].items()
    assert snake(values["retention"]["sensor"]) == site["retention"]["sensor"]
    assert snake(values["retention"]["schedule"]) == site["retention"]["schedule"]
    coordinator = snake(values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"])
    assert coordinator.items() <= site["run_coordinator"]["config"].items()
    assert values["postgresql"]["postgresqlScheme"] == site["storage"]["custom"]["config"]["postgres_db"]["scheme"]
    for part in ("sensors", "schedules"):
        assert snake(values["dagsterDaemon"][part]) == site[part]


def test_no_secret_is_in_the_files_and_all_are_named_alike(values: dict[str, Any]) -> None:
    texts = " ".join(path.read_text() for path in FOLDER.iterdir())
    assert not re.search(r"kind: Secret\b|stringData|postgresqlPassword:", texts)
    cluster = load_cluster(FOLDER / "kubernetes.yaml")
    code = values["dagster-user-deployments"]["deployments"][0]
    assert [each["name"] for each in code["envSecrets"]] == list(cluster.secrets)
    assert [each["name"] for each in code["envConfigMaps"]] == list(cluster.config_maps)
    assert [each["name"] for each in values["imagePullSecrets"]] == list(cluster.image_pull_secrets)
    made = {(each["kind"], each["metadata"]["name"]) for name in MANIFESTS for each in documents(name)}
    assert {("ConfigMap", cluster.config_maps[0]), ("ServiceAccount", cluster.service_account), ("Namespace", cluster.namespace)} <= made  # fmt: skip


def test_the_job_is_what_the_launcher_makes() -> None:
    (job,) = documents("job.yaml")
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    asked = Configuration(cpus=1, memory_gb=16, time_min=10)
    assert job == manifest("med-assets-doctor", command, {}, load_cluster(FOLDER / "kubernetes.yaml"), asked)


def test_the_role_is_what_the_launcher_asks_for() -> None:
    role = next(each for each in documents("launcher.yaml") if each["kind"] == "Role")
    given = {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    source = Path(kubernetes.__file__).read_text()
    asked = {
        call: (verb, resource)
        for call, verb, resource in (
            ("create_namespaced_job", "create", "jobs"), ("read_namespaced_job", "get", "jobs"), ("delete_namespaced_job", "delete", "jobs"),
            ("list_namespaced_pod", "list", "pods"), ("list_namespaced_event", "list", "events"), ("read_namespaced_pod_log", "get", "pods/log"),
        )
    }  # fmt: skip
    assert set(re.findall(r"\.(\w+_namespaced_\w+)", source)) == set(asked)
    assert given == set(asked.values())
