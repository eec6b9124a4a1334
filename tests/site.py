"""A site for tests and benches: code location, daemon and web server as processes of their own, as `deploy/dagster` starts them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from tests.conftest import REPOSITORY
from tests.peers import free_port
from tests.postgres import DEPLOYED

PATIENCE_S = 240.0


@dataclass
class Site:
    """The processes of a site, and what they see of their environment. Each is the leader of a group, as a machine is."""

    folder: Path
    environment: dict[str, str]
    going: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str, **variables: str) -> None:
        """Start a process under a name that its log has too."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.going[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=REPOSITORY,
                env=self.environment | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_code_location(self, name: str = "code") -> None:
        """The server of the definitions, which runs are started by."""
        host, port = (self.environment[f"DAGSTER_CODE_{part}"] for part in ("HOST", "PORT"))
        self.start(name, "dagster", "code-server", "start", "-m", "definitions", "-h", host, "-p", port)

    def start_daemon(self, name: str = "daemon") -> None:
        """The daemon, which evaluates sensors and empties the queue."""
        self.start(name, "dagster._daemon", "run", "-w", str(DEPLOYED / "workspace.yaml"))

    def start_webserver(self, port: int, name: str = "webserver") -> None:
        """A web server on a port."""
        self.start(
            name, "dagster_webserver", "-w", str(DEPLOYED / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)
        )

    def kill(self, name: str) -> None:
        """End a process and all that it started, as when its machine loses power."""
        process = self.going.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End all. A code server that is asked to stop waits until what it started has missed its heartbeat for half a minute."""
        for name in list(self.going):
            self.kill(name)

    def logs(self) -> str:
        """The end of each log."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def wait_for(self, what: str, met: Callable[[], object], instance: dg.DagsterInstance) -> None:
        """Wait until something is so; fails with the runs and the logs after PATIENCE_S."""
        end = time.monotonic() + PATIENCE_S
        while not met():
            runs = [(run.status.value, run.job_name) for run in instance.get_runs()]
            assert time.monotonic() < end, f"waited {PATIENCE_S:.0f} s for {what}; runs: {runs}\n{self.logs()}"
            time.sleep(0.2)


@contextmanager
def site(folder: Path, dagster_home: Path, environment: Mapping[str, str]) -> Iterator[Site]:
    """A site of which nothing runs yet; what was started is stopped in the end."""
    code = {"DAGSTER_CODE_HOST": "127.0.0.1", "DAGSTER_CODE_PORT": str(free_port())}
    own = {"DAGSTER_HOME": str(dagster_home), "OMP_NUM_THREADS": "1", "DAGSTER_DISABLE_TELEMETRY": "yes"}
    made = Site(folder, {**os.environ, **own, **code, **environment})
    try:
        yield made
    finally:
        made.stop()
