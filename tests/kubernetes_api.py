"""A small API server of Kubernetes over real HTTP: Jobs, their pods and logs, events, and the faults of a real one.

It answers as an API server does (names are taken once, preconditions, 401, 404, 409, 422, 429), checks each Job that it gets by the
schema of Kubernetes, and gives Jobs to nobody, until a test sets their status and pods; with `runs` it starts the command of
a Job as a process of this machine instead, with the variables and Secrets that its pod would have.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
import yaml

VERSION = "1.32"
TOKEN = "a-token-that-only-the-tests-know"
NAMESPACE = "imaging"
LABEL = "med-assets/job"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Fault:
    """The next request whose method and path fit is answered with this status; with `after` it is done all the same and its answer lost."""

    method: str
    path: str
    status: int = 503
    after: bool = False
    text: str = ""
    """Body of the answer instead of a status, as of a proxy."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Cluster:
    """What the cluster has."""

    folder: Path
    runs: bool = False
    path: str = ""
    """PATH of the containers."""
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    config_maps: dict[str, dict[str, str]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    """Verbs and resources that the account may not, as `create jobs`."""
    requests: list[str] = field(default_factory=list)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    address: str = ""

    def kubeconfig(self) -> Path:
        """A kubeconfig that names this server."""
        path = self.folder / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": self.address}}],
                    "users": [{"name": "test", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                }
            )
        )
        return path

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Add a Job, and start it where jobs run."""
        name = body["metadata"]["name"]
        metadata = body["metadata"] | {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        job = body | {"metadata": metadata, "status": {}}
        self.jobs[name] = job
        if self.runs:
            threading.Thread(target=self._run, args=(job,), daemon=True).start()
        return job

    def add_pod(self, job: dict[str, Any], **status: Any) -> dict[str, Any]:
        """Add a pod of a Job with a status; an earlier one stays."""
        name = f"{job['metadata']['name']}-{uuid.uuid4().hex[:5]}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "labels": dict(job["spec"]["template"]["metadata"]["labels"]),
                "uid": str(uuid.uuid4()), "creationTimestamp": now(),
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}],
            },
            "spec": {"containers": job["spec"]["template"]["spec"]["containers"], "nodeName": "gpu7"},
            "status": {"phase": "Pending"} | status,
        }  # fmt: skip
        self.pods[name] = pod
        return pod

    def complete(self, job: dict[str, Any]) -> None:
        """Let a Job end well."""
        job["status"] = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}

    def fail(self, job: dict[str, Any], reason: str = "PodFailurePolicy", message: str = "") -> None:
        """Let a Job fail."""
        condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
        job["status"] = {"failed": 1, "conditions": [condition]}

    def delete(self, job: dict[str, Any], propagation: str) -> None:
        """Delete a Job: at once, or in the foreground once its process is gone."""
        name = job["metadata"]["name"]
        process = self.processes.get(job["metadata"]["uid"])
        alive = process is not None and process.poll() is None
        if alive:
            assert process is not None
            os.killpg(process.pid, signal.SIGTERM)
        if propagation == "Foreground" and (alive or any(self._owned(job))):
            job["metadata"]["deletionTimestamp"] = now()
            if not alive and not self.runs:
                self._remove(name)
            return
        self._remove(name)

    def _owned(self, job: dict[str, Any]) -> Iterator[str]:
        uid = job["metadata"]["uid"]
        return (name for name, pod in self.pods.items() if pod["metadata"]["ownerReferences"][0]["uid"] == uid)

    def _remove(self, name: str) -> None:
        job = self.jobs.pop(name)
        for pod in list(self._owned(job)):
            del self.pods[pod]

    def _run(self, job: dict[str, Any]) -> None:
        """Do what scheduler, node and job controller do."""
        spec = job["spec"]["template"]["spec"]
        container = spec["containers"][0]
        with self.lock:
            pod = self.add_pod(job)
        missing = [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source and source["secretRef"]["name"] not in self.secrets]  # fmt: skip
        if missing:
            waiting = {"reason": "CreateContainerConfigError", "message": f'secret "{missing[0]}" not found'}
            pod["status"]["containerStatuses"] = [{"name": container["name"], "state": {"waiting": waiting}}]
            return
        name = pod["metadata"]["name"]
        home = self.folder / name
        (home / "tmp").mkdir(parents=True)
        env = {
            "PATH": self.path,
            "HOME": str(home / "tmp"),
            "TMPDIR": str(home / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for source in container["envFrom"]:
            env |= self.secrets[source["secretRef"]["name"]] if "secretRef" in source else self.config_maps[source["configMapRef"]["name"]]  # fmt: skip
        env |= {each["name"]: each["value"].replace("/data", str(home)) for each in container["env"]}
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                container["command"], env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        with self.lock:
            self.processes[job["metadata"]["uid"]] = process
            pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        code = process.wait()
        code = code if code >= 0 else 128 - code
        with self.lock:
            if pod["metadata"].get("deletionTimestamp"):
                return  # a node that died reports nothing
            self.logs[name] = (self.folder / f"{name}.log").read_text(errors="replace")
            ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}
            pod["status"] = {
                "phase": "Succeeded" if code == 0 else "Failed",
                "containerStatuses": [{"name": container["name"], "state": {"terminated": ended}}],
            }
            if job["metadata"].get("deletionTimestamp"):
                self._remove(job["metadata"]["name"])
            elif code == 0:
                self.complete(job)
            else:
                text = f"Container {container['name']} for pod {NAMESPACE}/{name} failed with exit code {code} matching FailJob rule at index 1"
                self.fail(job, message=text)

    def kill_node(self, job: dict[str, Any]) -> None:
        """Let the node of a job die: its process is gone at once, and the cluster takes the pod away for it."""
        process = self.processes[job["metadata"]["uid"]]
        with self.lock:
            for name in self._owned(job):
                self.pods[name]["status"]["conditions"] = [
                    {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
                ]
                self.pods[name]["metadata"]["deletionTimestamp"] = now()
        os.killpg(process.pid, signal.SIGKILL)


class Handler(BaseHTTPRequestHandler):
    """Answers requests from what the cluster of its server has."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        cluster, length = self.server.cluster, int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        url = urlparse(self.path)
        with cluster.lock:
            cluster.requests.append(f"{self.command} {url.path}")
            fault = next((each for each in cluster.faults if each.method == self.command and re.search(each.path, url.path)), None)  # fmt: skip
            if fault is not None:
                cluster.faults.remove(fault)
                if not fault.after:
                    self._send(fault.status, fault.text or status(fault.status, "a fault of the test"), fault.headers)
                    return
            code, answer = self._do(url.path, {name: texts[0] for name, texts in parse_qs(url.query).items()}, body)
        if fault is not None:
            self.close_connection = True
            return
        self._send(code, answer, {})

    def _do(self, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        cluster = self.server.cluster
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, status(401, "Unauthorized")
        if path == "/version/":
            return 200, {"major": "1", "minor": "32", "gitVersion": "v1.32.4", "buildDate": "", "compiler": "gc", "gitCommit": "", "gitTreeState": "", "goVersion": "", "platform": ""}  # fmt: skip
        if path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            allowed = f"{asked['verb']} {asked['resource']}" not in cluster.denied
            return 201, body | {"metadata": {}, "status": {"allowed": allowed}}
        found = re.fullmatch(r"/apis/batch/v1/namespaces/([^/]+)/jobs(?:/([^/]+))?", path)
        if found:
            return self._jobs(found[1], found[2], query, body)
        found = re.fullmatch(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/log", path)
        if found and found[2] in cluster.logs:
            return 200, "".join(cluster.logs[found[2]].splitlines(keepends=True)[-int(query["tailLines"]) :])
        if path == f"/api/v1/namespaces/{NAMESPACE}/pods":
            name = query["labelSelector"].removeprefix(f"{LABEL}=")
            pods = [pod for pod in cluster.pods.values() if pod["metadata"]["labels"].get(LABEL) == name]
            return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": pods}
        if path == f"/api/v1/namespaces/{NAMESPACE}/events":
            return 200, {"apiVersion": "v1", "kind": "EventList", "metadata": {}, "items": cluster.events}
        return 404, status(404, f"the server could not find the requested resource {path}")

    def _jobs(self, namespace: str, name: str | None, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        cluster = self.server.cluster
        verb = {"POST": "create", "GET": "get", "DELETE": "delete"}[self.command]
        if f"{verb} jobs" in cluster.denied:
            return 403, status(
                403, f'jobs.batch is forbidden: cannot {verb} resource "jobs" in the namespace "{namespace}"'
            )
        if namespace != NAMESPACE:
            return 404, status(404, f'namespaces "{namespace}" not found')
        if self.command == "POST":
            try:
                kubernetes_validate.validate(body, VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                return 422, status(422, str(error))
            if body["metadata"]["name"] in cluster.jobs:
                return 409, status(409, f'jobs.batch "{body["metadata"]["name"]}" already exists')
            return 201, cluster.create(body)
        job = cluster.jobs.get(name or "")
        if job is None:
            return 404, status(404, f'jobs.batch "{name}" not found')
        if self.command == "DELETE":
            wanted = body.get("preconditions", {}).get("uid")
            if wanted not in (None, job["metadata"]["uid"]):
                return 409, status(409, "the UID in the precondition does not match")
            foreground = body.get("propagationPolicy") == "Foreground"
            cluster.delete(job, "Foreground" if foreground else "Background")
            return 200, job if foreground else status(200, "deleted")
        return 200, job

    def _send(self, code: int, answer: Any, headers: Mapping[str, str]) -> None:
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)


def status(code: int, message: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure" if code >= 400 else "Success", "message": message, "code": code}  # fmt: skip


class Server(ThreadingHTTPServer):
    """The server of one cluster."""

    daemon_threads = True
    cluster: Cluster

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


@contextmanager
def api_server(folder: Path, *, runs: bool = False, path: str = "") -> Iterator[Cluster]:
    """Serve an empty cluster until the block ends; its processes are ended with it."""
    cluster = Cluster(folder, runs, path)
    server = Server(("127.0.0.1", 0), Handler)
    server.cluster = cluster
    cluster.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for process in cluster.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    """Wait until a condition holds, and fail when it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
