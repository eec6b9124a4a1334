"""`make demo`: synthetic prostate cases through the whole rt_dose graph, on the CPU, in minutes.

The runs are kept in the Dagster instance of the home, so that `make ui` shows them. Settings come from the Makefile;
they are written to `demo.env` beside the data, so that only a home made by the demo is ever opened with its public key.
"""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

import resources
from assets import build_program, keys
from med_assets import batches, experiments, program
from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.files import write_text
from med_assets.settings import Workspace
from resources.launcher import LocalLauncher
from resources.workspace import WorkspaceResource

PROGRAM = "rt_dose"
FIRST_SEED, CASES = 9, 11
"""Synthetic patients. With the demo's key, the draw puts six in training, two in validation and three in test."""
ENV_FILE = "demo.env"


def _only_a_demo(ws: Workspace) -> None:
    """Refuse a home that holds anything but the demo: real patients never meet the demo's public key."""
    if ws.purpose != "demo":
        raise ConfigurationError("expected MED_ASSETS_PURPOSE=demo; run the demo with `make demo`")
    if ws.home.exists() and any(ws.home.iterdir()) and not (ws.home / ENV_FILE).is_file():
        raise ConfigurationError(
            f"expected an empty home or one made by the demo, got {ws.home}; set MED_ASSETS_HOME to a new folder"
        )
    names = ("MED_ASSETS_PSEUDONYM_KEY", "MED_ASSETS_PURPOSE", "MED_ASSETS_PROFILE", "MED_ASSETS_SETTLE_S")
    values = {name: os.environ[name] for name in names} | {"MED_ASSETS_HOME": str(ws.home)}
    write_text(ws.home / ENV_FILE, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items()))


def _instance(ws: Workspace) -> dg.DagsterInstance:
    home = ws.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        shutil.copyfile(Path(resources.__file__).parent / "dagster.yaml", settings)
    os.environ["DAGSTER_HOME"] = str(home)
    return dg.DagsterInstance.get()


def _materialize(
    instance: dg.DagsterInstance, title: str, chosen: Sequence[dg.AssetKey], batch: str | None = None
) -> None:
    started = time.monotonic()
    result = dg.materialize(
        build_program(PROGRAM),
        selection=list(chosen),
        partition_key=batch,
        instance=instance,
        resources={"workspace": WorkspaceResource(), "launcher": LocalLauncher()},
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        raise_on_error=False,
    )
    failed = [event.step_key for event in result.get_step_failure_events()]
    blocked = [
        f"{one.asset_key.to_user_string()}: {one.check_name}"
        for one in result.get_asset_check_evaluations()
        if not one.passed
    ]
    print(f"{time.monotonic() - started:6.1f} s  {title}", flush=True)
    for check in blocked:
        print(f"          check not passed: {check}")
    if failed:
        raise MedAssetsError(f"these steps failed: {', '.join(map(str, failed))}; `make ui` shows why")


def run() -> None:
    """Cases, batch, graph; each step with the seconds it took."""
    ws = Workspace.from_env()
    _only_a_demo(ws)
    landing = batches.landing_folder(ws, PROGRAM)
    if not landing.is_dir():
        program.get(PROGRAM).write_phantoms(landing, CASES, FIRST_SEED)
        print(f"wrote {CASES} synthetic cases to {landing}")
    entries = batches.untaken(ws, PROGRAM)
    with _instance(ws) as instance:
        if entries:
            batches.take(ws, PROGRAM, entries, time.time())
        known = batches.known(ws, PROGRAM)
        instance.add_dynamic_partitions(keys.batches_of(PROGRAM).name or "", known)
        for batch in known:
            _materialize(
                instance,
                f"cases of batch {batch}",
                [keys.key(PROGRAM, name) for name in ("raw_cases", "prepared_cases")],
                batch,
            )
        _materialize(instance, "dataset and splits", [keys.key(PROGRAM, name) for name in ("dataset", "splits")])
        for name in experiments.names(PROGRAM):
            _materialize(
                instance,
                f"train and evaluate {name}",
                [keys.experiment_key(PROGRAM, name, stage) for stage in keys.PER_EXPERIMENT],
            )
        _materialize(
            instance, "leaderboard and champion", [keys.key(PROGRAM, name) for name in ("leaderboard", "champion")]
        )
        for batch in known:
            _materialize(instance, f"monitoring of batch {batch}", [keys.key(PROGRAM, "monitoring")], batch)
        _materialize(instance, "report", [keys.key(PROGRAM, "report")])
    _say_where(ws)


def _say_where(ws: Workspace) -> None:
    print("\nReports:")
    for path in sorted(ws.reports.rglob("*.html")):
        print(f"  {path}")
    home, landing = os.path.relpath(ws.home), os.path.relpath(batches.landing_folder(ws, PROGRAM))
    seed = FIRST_SEED + CASES
    print(f"""
Next:
  make ui
      the graph, its checks, plots and tables in Dagster
  source {home}/demo.env && .venv/bin/med-assets cases {PROGRAM}
      every case, its split, and why some can't be used
  .venv/bin/med-assets phantoms {PROGRAM} {landing} --seed {seed}
      one more case: with `make ui` running, watch the graph follow""")


if __name__ == "__main__":
    try:
        run()
    except MedAssetsError as error:
        sys.exit(f"demo: {error}")
