"""Debian's PostgreSQL for tests: a server of their own with a database for each, and instances of Dagster with the settings of `deploy/`."""

import getpass
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.peers import free_port

NEEDED = "NEEDS_POSTGRES"
"""Set where a missing PostgreSQL is a failure."""

USER, PASSWORD = "dagster", "password-of-the-tests"
DEPLOYED = REPOSITORY / "deploy" / "dagster"


def folder_of_programs() -> Path:
    """Folder with initdb and postgres, the newest of Debian's; the test skips, or fails where NEEDED is set, without."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if os.environ.get(NEEDED):
        pytest.fail(f"expected PostgreSQL, since {NEEDED} is set; on Debian, `apt-get install postgresql` brings it")
    pytest.skip("no PostgreSQL here; on Debian, `apt-get install postgresql` brings it")


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int

    def database(self) -> dict[str, str]:
        """Make an empty database; returns the variables that name it."""
        import psycopg2

        variables = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
        name = f"d{uuid.uuid4().hex[:12]}"
        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        return variables | {"PGDATABASE": name}


@contextmanager
def running(durable: bool = False) -> Iterator[Server]:
    """A server on a free port of this machine that nobody else reaches, with fsync where it is to be `durable`.

    Root can't run it, so that `nobody` does.
    """
    programs, port = folder_of_programs(), free_port()
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if getpass.getuser() == "root" else []
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # folders of pytest belong to root and let nobody through
    if other:
        os.chown(folder, 65534, 65534)
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    data, log = folder / "data", folder / "log"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}

    def run(*words: object) -> None:
        done = subprocess.run(
            [*other, *map(str, words)], capture_output=True, text=True, check=False, cwd="/", env=environment
        )
        output = log.read_text() if log.exists() else ""
        assert done.returncode == 0, f"{words[0]}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{output[-2000:]}"

    try:
        run(programs / "initdb", "-D", data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}", "-N")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}{'' if durable else ' -c fsync=off -c full_page_writes=off'}"
        run(programs / "pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
        try:
            yield Server(port)
        finally:
            run(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


def settings(home: Path, edit: dict[str, str] | None = None) -> Path:
    """A DAGSTER_HOME with the settings of `deploy/`, in whose text some lines may be others; returns its folder."""
    home.mkdir(parents=True, exist_ok=True)
    text = (DEPLOYED / "dagster.yaml").read_text()
    for old, new in (edit or {}).items():
        assert old in text, f"expected {old!r} in the settings"
        text = text.replace(old, new)
    (home / "dagster.yaml").write_text(text)
    return home
