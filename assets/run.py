"""`python -m assets.run PROGRAM`: a whole graph without the UI, each step a Dagster run in the instance of the home.

What has settled in the landing zone becomes a batch; then every step runs, in order, and reuses what is up to date. Meant
for a first import of many cases, for a cluster node and for the demo; day by day, `make ui` with its sensors does the same.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

import resources
from assets import build_program, jobs, keys
from assets.pools import make_pools
from assets.recorded import report_checkpoints
from med_assets import program
from med_assets.capabilities import Screens
from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.evaluation import analysis
from med_assets.landing import batches
from med_assets.launch.training import in_order, usable
from med_assets.records import Checkpoint
from med_assets.settings import Workspace
from med_assets.storage import names
from med_assets.storage.files import keep_private
from resources import sqlite


def instance_of(ws: Workspace) -> dg.DagsterInstance:
    """The Dagster instance of DAGSTER_HOME (the home's folder `dagster` by default), with the project's settings."""
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(ws.home / "dagster")))
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        shutil.copyfile(Path(resources.__file__).parent / "dagster.yaml", settings)
    sqlite.keep_engines()
    instance = dg.DagsterInstance.get()
    make_pools(instance)
    return instance


def definitions_of(program_name: str) -> dg.Definitions:
    """The graph of one program and its jobs, for runs in this process."""
    graph = build_program(program_name)
    return dg.Definitions(
        assets=graph,
        jobs=jobs.of_program(program_name, graph),
        resources=resources.build(),
        executor=dg.in_process_executor,
    )


def _step(
    instance: dg.DagsterInstance,
    defs: dg.Definitions,
    program_name: str,
    job: str,
    title: str,
    chosen: Sequence[dg.AssetKey],
    batch: str | None = None,
    ops: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    started = time.monotonic()
    result = jobs.execute(
        defs.resolve_job_def(keys.job(program_name, job)),
        instance,
        chosen,
        partition=batch,
        tags=tags,
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}, "ops": ops or {}},
    )
    print(f"{time.monotonic() - started:6.1f} s  {title}", flush=True)
    for check in result.get_asset_check_evaluations():
        if not check.passed:
            print(f"          check not passed: {check.asset_key.to_user_string()}: {check.check_name}")
            print(f"            {check.description}", flush=True)
    failed = [event.step_key for event in result.get_step_failure_events()]
    if failed:
        raise MedAssetsError(f"these steps failed: {', '.join(map(str, failed))}; `make ui` shows why")


def materialize(
    ws: Workspace,
    program_name: str,
    chosen: Sequence[str] = (),
    overrides: Sequence[str] = (),
    training: bool = True,
) -> None:
    """Take what settled, then materialize the program's graph, with all experiments or the chosen ones
    and those that they need.

    `overrides` (`key=value`) go to the trainings of all chosen experiments. Without `training` the checkpoints are those
    of the home, and experiments without one are left out. Raises MedAssetsError that names the steps that failed; what was
    computed before stays, and the same command goes on from there.
    """
    known = tuple(usable(ws, program_name))
    unknown = sorted(set(map(names.EXPERIMENT.check, chosen)) - set(known))
    if unknown:
        raise ConfigurationError(f"expected experiments of {program_name} among {known}, got {unknown}")
    catalog, screened = Catalog(ws, program_name), isinstance(program.get(program_name), Screens)
    entries = batches.settled(ws, program_name, time.time())
    defs = definitions_of(program_name)
    with instance_of(ws) as instance:
        if entries:
            batches.take(ws, program_name, entries, time.time())
        taken = batches.known(ws, program_name)
        instance.add_dynamic_partitions(keys.batches_of(program_name).name or "", taken)

        def step(job: str, title: str, *stages: str, batch: str | None = None) -> None:
            _step(instance, defs, program_name, job, title, [keys.key(program_name, stage) for stage in stages], batch)

        for batch in taken:
            step(keys.INTAKE, f"cases of batch {batch}", "raw_cases", "prepared_cases", batch=batch)
        step(keys.INTAKE, "dataset and splits", "dataset", "splits")
        if not training:
            for name in report_checkpoints(instance, ws, program_name):
                print(f"  reported  checkpoint of {name}", flush=True)
        there = [name for name in known if catalog.has(Checkpoint, name)]
        for name in in_order(ws, program_name, chosen or known) if training else there:
            made = ("checkpoint", "evaluation") if training else ("evaluation",)
            pair = [keys.experiment_key(program_name, name, stage) for stage in made]
            ops = {"__".join(pair[0].path): {"config": {"overrides": list(overrides)}}} if overrides else None
            title = f"{'train and ' if training else ''}evaluate {name}"
            _step(instance, defs, program_name, keys.RETRAIN if training else keys.UPDATE, title, pair, ops=ops)
        step(keys.UPDATE, "leaderboard and champion", "leaderboard", "champion")
        if taken:
            every = instance.get_dynamic_partitions(keys.batches_of(program_name).name or "")
            title, tags = f"monitoring and predictions of {len(every)} batches", keys.one_run(every, every)
            pair = [keys.key(program_name, stage) for stage in ("monitoring", "predictions")]
            _step(instance, defs, program_name, keys.EVALUATION_BACKFILL, title, pair, tags=tags)
        if cheap := [one.name for one in analysis.of(program_name).values() if not one.expensive]:
            step(keys.UPDATE, "analyses", *cheap)
        step(keys.UPDATE, "figures and notebooks of the experiments, and their index", keys.EXPERIMENTS)
        step(keys.UPDATE, "report", *([keys.SCREENING] if screened else []), "report")
    print("\nReports:")
    for path in sorted(ws.reports.rglob("*.html")):
        print(f"  {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m assets.run", description="Materialize a program's whole graph.")
    parser.add_argument("program", choices=program.registered())
    parser.add_argument(
        "words", nargs="*", metavar="EXPERIMENT | key=value", help="experiments (all by default), overrides"
    )
    parser.add_argument(
        "--no-training",
        action="store_true",
        help="train nothing: show in Dagster what the home holds, such as after DAGSTER_HOME was lost",
    )
    words = parser.parse_args(arguments)
    keep_private()
    overrides = [word for word in words.words if "=" in word]
    chosen = [word for word in words.words if "=" not in word]
    try:
        materialize(Workspace.from_env(), words.program, chosen, overrides, training=not words.no_training)
    except MedAssetsError as error:
        sys.exit(f"run: {error}")


if __name__ == "__main__":
    main()
