"""`make demo`: synthetic cases of every program through its whole graph, on the CPU, in minutes.

As many programs as there are cores go side by side, each as `python -m assets.run PROGRAM`. The runs are kept in the Dagster
instance of the home, so that `make ui` shows them. Settings come from the Makefile; they are written to `demo.env` beside the
data, so that only a home made by the demo is ever opened with its public key.
"""

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from assets import keys
from assets.run import instance_of
from med_assets import program
from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.experiments import policies
from med_assets.experiments.policies import Cohort
from med_assets.landing import batches
from med_assets.landing.bucket import S3Landing
from med_assets.launch.jobs import PRELOADED
from med_assets.settings import Workspace, without_secrets
from med_assets.storage.files import keep_private, write_text
from med_assets.storage.preloaded import parents
from med_assets.storage.s3.bucket import Location, client
from med_assets.storage.s3.local import endpoint, upload

ENV_FILE = "demo.env"

BUCKET = Location("demo", "landing")
"""Landing zone of programs whose cases arrive in a bucket; it is gone with the demo, what was taken from it stays."""

_printing = threading.Lock()

_arriving = threading.Lock()
"""Held while cases are written: two threads that import pydicom for the first time at once can find it half imported."""


def cohort(name: str) -> Cohort:
    """The demo's patients of a program; raises ConfigurationError where `_program.yaml` has none."""
    found = policies.of(name).demo
    if found is None:
        raise ConfigurationError(
            f"expected a section demo in conf/{name}/_program.yaml with first_seed and cases, got none"
        )
    return found


def _only_a_demo(ws: Workspace) -> None:
    """Refuse a home that holds anything but the demo: real patients never meet the demo's public key."""
    if ws.purpose != "demo":
        raise ConfigurationError("expected MED_ASSETS_PURPOSE=demo; run the demo with `make demo`")
    # `make ui` before the demo leaves Dagster's own folder, which holds no case.
    used = ws.home.exists() and any(path.name != "dagster" for path in ws.home.iterdir())
    if used and not (ws.home / ENV_FILE).is_file():
        raise ConfigurationError(
            f"expected an empty home or one made by the demo, got {ws.home}; set MED_ASSETS_HOME to a new folder"
        )
    names = ("MED_ASSETS_PSEUDONYM_KEY", "MED_ASSETS_PURPOSE", "MED_ASSETS_PROFILE", "MED_ASSETS_SETTLE_S")
    values = {name: os.environ[name] for name in names} | {"MED_ASSETS_HOME": str(ws.home)}
    write_text(ws.home / ENV_FILE, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items()))


def _say(name: str, text: str) -> None:
    with _printing:
        print(f"{name:>12}  {text}", flush=True)


def arrive(ws: Workspace, name: str, cases: int, first_seed: int) -> None:
    """Write synthetic cases to where cases of the program arrive, a folder or a bucket."""
    landing = ws.landing_zone(name)
    if not isinstance(landing, S3Landing):
        program.get(name).write_phantoms(batches.landing_folder(ws, name), cases, first_seed)
        return
    with TemporaryDirectory() as folder:
        program.get(name).write_phantoms(Path(folder) / name, cases, first_seed)
        upload(Path(folder), landing.location, landing.client)
    landing.refresh()


def _materialize(ws: Workspace, name: str) -> int:
    """The cases of a program unless they are there, and its graph, with the experiments of the demo, in a process of its own."""
    patients = cohort(name)
    if not ws.landing_zone(name).exists(name):
        with _arriving:
            arrive(ws, name, patients.cases, patients.first_seed)
        _say(name, f"wrote {patients.cases} synthetic cases to {ws.landing_zone(name).title(name)}")
        time.sleep(ws.settle_s)
    command = [sys.executable, "-m", "assets.run", name, *patients.experiments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            _say(name, line.rstrip("\n"))
    return process.returncode


@contextmanager
def _buckets(names: Sequence[str]) -> Iterator[None]:
    """Serve S3 on this machine while the demo runs, as the landing zone of the programs whose cohort arrives in a bucket."""
    wanted = [name for name in names if cohort(name).bucket]
    if not wanted:
        yield
        return
    with endpoint() as variables:
        locations = {f"MED_ASSETS_{name}_LANDING".upper(): str(BUCKET) for name in wanted}
        os.environ.update(variables | locations)
        client().create_bucket(Bucket=BUCKET.bucket)
        yield


def run(chosen: list[str]) -> None:
    """Cases, batch, graph of the chosen programs, or of all; each step with the seconds it took."""
    names = sorted(chosen or program.registered(), key=lambda name: -cohort(name).minutes)
    with parents(PRELOADED, without_secrets()) as found, _buckets(names):
        os.environ.update(found)
        _run(Workspace.from_env(), names)


def _run(ws: Workspace, names: Sequence[str]) -> None:
    side_by_side = os.cpu_count() or 1
    _only_a_demo(ws)
    with instance_of(ws) as instance:
        # No GPU is used and all cases are small, so two programs need not wait for each other.
        for name in (keys.POOL, keys.INTAKE_POOL):
            instance.event_log_storage.set_concurrency_slots(name, side_by_side)
    with ThreadPoolExecutor(side_by_side) as pool:
        failed = [
            name for name, status in zip(names, pool.map(partial(_materialize, ws), names), strict=True) if status
        ]
    if failed:
        raise MedAssetsError(f"these programs did not get through: {', '.join(failed)}; see their lines above")
    _say_where(ws, names[-1])


def _say_where(ws: Workspace, name: str) -> None:
    home, landing = os.path.relpath(ws.home), os.path.relpath(batches.landing_folder(ws, name))
    seed = cohort(name).first_seed + cohort(name).cases
    print(f"""
Next:
  make ui
      the graph, its checks, plots and tables in Dagster
  source {home}/demo.env && .venv/bin/med-assets cases {name}
      every case, its split, and why some can't be used
  .venv/bin/med-assets phantoms {name} {landing} --seed {seed}
      one more case: with `make ui` running, watch the graph follow""")


if __name__ == "__main__":
    keep_private()
    try:
        run(sys.argv[1:])
    except MedAssetsError as error:
        sys.exit(f"demo: {error}")
