"""The services of the Compose file as processes: their commands and variables, and the checks of their health, work with each other.

The hosts are this machine, PostgreSQL is Debian's, and the bucket is that of the tests; all else is as the file says.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser

from med_assets.review.access import write_login
from med_assets.settings import Workspace
from med_assets.storage.s3 import bucket, local
from tests import postgres
from tests.conftest import REPOSITORY
from tests.deploy.test_compose import FOLDER, OPERATOR, content, interpolated
from tests.peers import free_port

PATIENCE_S = 180.0
PORTS = ("3000", "3001", "4000", "11112")


@dataclass
class Machine:
    """The services on this machine, with its ports, folders and hosts in place of theirs."""

    folder: Path
    services: Mapping[str, Mapping[str, Any]]
    replaced: Mapping[str, str]
    variables: Mapping[str, str]
    going: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """A word or a value of the file as it is here."""
        for there, here in self.replaced.items():
            text = re.sub(rf"(?<![\w.]){re.escape(there)}(?!\w)", here, text)
        return text

    def environment(self, name: str) -> dict[str, str]:
        """Variables of a service: those of the file and of the image, and of this process what finds the interpreter."""
        named = {key: self.here(text) for key, text in self.services[name].get("environment", {}).items()}
        own = {key: text for key, text in self.variables.items() if key in named}
        image = {
            "MED_ASSETS_HOME": str(self.folder / "data"),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "PYTHONPATH": str(REPOSITORY),
            "MED_ASSETS_CACHE": os.environ["MED_ASSETS_CACHE"],
        }
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return (
            {"PATH": path, "HOME": str(self.folder), "TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"}
            | image
            | named
            | own
        )

    def words(self, name: str) -> list[str]:
        """Command of a service, or that of the image."""
        return [self.here(word) for word in self.services[name].get("command") or instruction("CMD")]

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.going[name] = subprocess.Popen(
                self.words(name), env=self.environment(name), cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait_healthy(self, name: str) -> None:
        """Wait until the check of a service's health passes."""
        check = self.services[name].get("healthcheck", {}).get("test", ["CMD", *instruction("HEALTHCHECK")])[1:]
        until = time.monotonic() + PATIENCE_S
        while True:
            done = subprocess.run(
                [self.here(word) for word in check], env=self.environment(name), cwd=REPOSITORY, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return
            assert self.going[name].poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
            assert time.monotonic() < until, f"{name}: {done.stdout}{done.stderr}"
            time.sleep(0.5)


def instruction(name: str) -> list[str]:
    """The words of CMD of the Dockerfile, or those that HEALTHCHECK runs."""
    with (REPOSITORY / "deploy" / "images" / "Dockerfile").open("rb") as stream:
        (value,) = [each["value"] for each in DockerfileParser(fileobj=stream).structure if each["instruction"] == name]
    words: list[str] = json.loads(value[value.index("[") :])
    return words


@pytest.fixture
def machine(tmp_path: Path, workspace: Workspace) -> Iterator[Machine]:
    (tmp_path / "dagster" / "storage").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    for path in postgres.DEPLOYED.iterdir():
        shutil.copy(path, tmp_path / "dagster")
    ports = {port: str(free_port()) for port in PORTS}
    network = (FOLDER / "network.yaml").read_text().replace("11112", ports["11112"]).replace("0.0.0.0", "127.0.0.1")
    (tmp_path / "network.yaml").write_text(network)
    with postgres.running() as server, local.endpoint() as s3:
        database = server.database()
        replaced = ports | {
            "/opt/dagster": str(tmp_path / "dagster"), "/opt/med_assets": str(REPOSITORY), "/etc/med_assets/network.yaml": str(tmp_path / "network.yaml"),
            "0.0.0.0": "127.0.0.1", "http://s3:9000": s3["S3_ENDPOINT_URL"], "code": "127.0.0.1",
        }  # fmt: skip
        services = interpolated(content(), OPERATOR | {"PGPASSWORD": postgres.PASSWORD} | local.PUBLIC)["services"]
        made = Machine(tmp_path, services, replaced, database)
        try:
            yield made
        finally:
            for process in made.going.values():  # a code server that is asked to stop takes half a minute
                with suppress(ProcessLookupError):  # it ended by itself
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.drill
def test_all_services_become_healthy(machine: Machine) -> None:
    for _ in range(2):  # a bucket that is there is left as it is
        machine.start("bucket")
        assert machine.going.pop("bucket").wait(120) == 0, (machine.folder / "bucket.log").read_text()
    client = bucket.client(machine.environment("bucket"))
    assert "med-assets" in [
        each["Name"] for each in client.list_buckets()["Buckets"]
    ]  # servers of a process share theirs
    data = {"MED_ASSETS_HOME": str(machine.folder / "data"), **machine.environment("review")}
    write_login(Workspace.from_env(data), "reader-of-the-tests", "password-of-the-tests", data)
    for name in ("code", "review", "receiver"):
        machine.start(name)
    for name in ("code", "review", "receiver"):
        machine.wait_healthy(name)
    for name in ("webserver", "daemon"):
        machine.start(name)
    for name in ("webserver", "daemon"):
        machine.wait_healthy(name)
    assert not os.listdir(machine.folder / "dagster" / "storage"), "nothing but what a run writes"
