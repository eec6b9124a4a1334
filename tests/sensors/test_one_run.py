"""From files in the landing zone to the report in two runs: the real graph, its sensors and conditions, without a daemon."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pydicom
import pytest
from dagster._core.definitions.automation_tick_evaluation_context import build_run_requests

import assets
import resources
from assets import keys
from med_assets.catalog import Catalog
from med_assets.settings import Workspace
from med_assets.storage.conf import conf_folder
from resources import WorkspaceResource
from sensors import automated
from sensors.intake import intake_sensor
from sensors.reconcile import reconcile_schedule
from tests.med_assets.stages.builders import P, drop, edit, files
from tests.med_assets.stages.models import configure

SEEDS = (6, 7, 8)
"""With the tests' key, one patient each for training, test and validation."""


class Clinic:
    """The graph of one program, what starts its runs, and the runs so far as lists of assets."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.graph = [automated(asset) for asset in assets.build_program(P)]
        self.defs = dg.Definitions(assets=self.graph, resources=resources.build(), executor=dg.in_process_executor)
        self.cursor: Any = None
        self.runs: list[list[str]] = []
        self.fails = False

    def run(self, selection: list[dg.AssetKey], batch: str | None = None) -> None:
        done = self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=selection,
            partition_key=batch,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
        assert done.success or self.fails
        self.runs.append(sorted("/".join(key.path[1:]) for key in selection))

    def tick(self) -> bool:
        """One look of the intake sensor and of the automation sensor; whether either started a run."""
        before = len(self.runs)
        with dg.build_sensor_context(instance=self.instance) as context:
            found = intake_sensor(P)(context, workspace=WorkspaceResource())
        assert isinstance(found, dg.SensorResult)
        for addition in found.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(addition.partitions_def_name, list(addition.partition_keys))
        for request in found.run_requests or ():
            self.run(list(request.asset_selection or ()), request.partition_key)
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, asset_selection=dg.AssetSelection.all(), cursor=self.cursor
        )
        self.cursor = result.cursor
        asked = build_run_requests(
            [one.true_subset for one in result.results if not one.true_subset.is_empty],
            self.defs.resolve_asset_graph(),
            run_tags={},
            emit_backfills=False,
        )
        for request in asked:
            self.run(list(request.asset_selection or ()), request.partition_key)
        return len(self.runs) > before

    def settle(self) -> list[list[str]]:
        """Tick until nothing is started any more, twice in a row; the runs of that time."""
        before, idle = len(self.runs), 0
        while idle < 2:
            idle = 0 if self.tick() else idle + 1
            assert len(self.runs) - before < 12
        return self.runs[before:]

    def reconcile(self) -> list[dg.RunRequest]:
        with dg.build_schedule_context(self.instance) as context:
            found = reconcile_schedule(P, self.graph)(context, workspace=WorkspaceResource())
        return found if isinstance(found, list) else []

    def version(self, *path: str) -> str:
        event = self.instance.get_latest_materialization_event(dg.AssetKey([P, *path]))
        assert event is not None
        assert event.asset_materialization is not None
        return (event.asset_materialization.tags or {})["dagster/data_version"]


@pytest.fixture
def clinic(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Clinic:
    configure(tmp_path, monkeypatch)
    for path in conf_folder(P).glob("[a-z]*.yaml"):
        if path.stem not in ("mean_dose", "baseline"):
            path.unlink()
    for seed in SEEDS:
        drop(workspace, seed)
    made = Clinic(instance)
    made.settle()
    made.run([keys.experiment_key(P, "mean_dose", "checkpoint")])
    made.settle()
    return made


def correct_dose(case: Path, factor: float) -> None:
    """Send a case again with another dose."""

    def scaled(ds: pydicom.Dataset) -> None:
        ds.DoseGridScaling = float(ds.DoseGridScaling) * factor

    (path,) = files(case, "RTDOSE")
    edit(path, scaled)


@pytest.mark.slow
def test_a_corrected_case_reaches_the_report_in_two_runs_and_a_failure_on_the_way_is_made_good(
    clinic: Clinic, workspace: Workspace
) -> None:
    assert {"train", "val", "test"} == {case.split for case in Catalog(workspace, P).cases()}
    splits = workspace.lake.rows("splits", P)
    before = {name: clinic.version(*name.split("/")) for name in ("evaluation/mean_dose", "leaderboard", "report")}
    held_out = Catalog(workspace, P).cases("val")[0].case_id

    correct_dose(workspace.landing / P / "export-8", 1.02)
    runs = clinic.settle()
    assert runs[0] == sorted(keys.DATA)
    assert len(runs) == 2
    assert {"evaluation/mean_dose", "leaderboard", "champion", "experiments", "report"} <= set(runs[1])
    after = {name: clinic.version(*name.split("/")) for name in before}
    assert {name for name in before if before[name] == after[name]} == set()
    assert workspace.lake.rows("splits", P) == splits
    assert {held_out} == {
        row["case_id"]
        for row in workspace.lake.rows("raw_cases", P)
        if row["batch"] == max(one["batch"] for one in workspace.lake.rows("raw_cases", P))
    }
    assert clinic.reconcile() == []
    assert clinic.settle() == []

    # What a failed run did not come to is made when its input is there again.
    row = workspace.lake.rows("checkpoints", f"{P}/mean_dose")[0]
    stored = workspace.store.fetch(row["checkpoint"])
    board = clinic.version("leaderboard")
    shutil.move(stored, workspace.home / "aside")
    correct_dose(workspace.landing / P / "export-8", 1.03)
    clinic.fails = True
    assert len(clinic.settle()) == 2
    assert clinic.version("leaderboard") == board
    shutil.move(workspace.home / "aside", stored)
    clinic.fails = False
    (request,) = clinic.reconcile()
    clinic.run(list(request.asset_selection or ()))
    runs = clinic.settle()
    assert len(runs) <= 1
    assert clinic.version("leaderboard") != board
    assert clinic.reconcile() == []
