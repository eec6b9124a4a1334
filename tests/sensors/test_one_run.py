"""From files in the landing zone to the report in two runs: the real graph, its sensors and conditions, without a daemon."""

import os
import shutil
from pathlib import Path

import dagster as dg
import pydicom
import pytest
from pydicom.uid import generate_uid

import assets
import resources
from assets import jobs, keys
from med_assets.catalog import Catalog
from med_assets.evaluation import analysis
from med_assets.experiments import policies
from med_assets.settings import Workspace
from med_assets.storage.conf import conf_folder
from sensors.update import update_sensor
from tests.med_assets.stages.builders import P, drop, edit, files
from tests.med_assets.stages.models import configure
from tests.peers import CALLED, NEEDED, describe_network, free_port, landed, orthanc_of, receiver_of, wait_for
from tests.sensors.builders import intake

SEEDS = (6, 7, 8)
"""With the tests' key, one patient each for training, test and validation."""


class Clinic:
    """The graph of one program, what starts its runs, and the runs so far as lists of assets."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.reload()
        self.cursor: str | None = None
        self.runs: list[list[str]] = []
        self.fails = False
        self.counted: dict[str, int] = {}

    def reload(self) -> None:
        """Load the definitions, as a new code server does."""
        self.graph = assets.build_program(P)
        self.defs = dg.Definitions(assets=self.graph, resources=resources.build(), executor=dg.in_process_executor)

    def run(self, selection: list[dg.AssetKey], batch: str | None = None, tags: dict[str, str] | None = None) -> None:
        done = self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=selection,
            partition_key=batch,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
            tags=tags,
        )
        assert done.success or self.fails
        self.runs.append(sorted("/".join(key.path[1:]) for key in selection))

    def tick(self) -> bool:
        """One tick of the intake sensor and of the update sensor; whether either started a run."""
        before = len(self.runs)
        with dg.build_sensor_context(instance=self.instance) as context:
            found = intake(P)(context)
        assert isinstance(found, dg.SensorResult)
        for addition in found.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(addition.partitions_def_name, list(addition.partition_keys))
        self._start(found)
        update = update_sensor(self.graph, [P], jobs.of_program(P, self.graph), patience_s=0.0)
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            behind = update(context)
        assert isinstance(behind, dg.SensorResult)
        self.cursor = behind.cursor
        self._start(behind)
        return len(self.runs) > before

    def _start(self, found: dg.SensorResult) -> None:
        for request in found.run_requests or ():
            self.run(list(request.asset_selection or ()), request.partition_key, dict(request.tags))

    def settle(self) -> list[list[str]]:
        """Tick until nothing is started any more, twice in a row; the runs of that time."""
        before, idle = len(self.runs), 0
        while idle < 2:
            idle = 0 if self.tick() else idle + 1
            assert len(self.runs) - before < 12
        return self.runs[before:]

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


def instance_batches(clinic: Clinic) -> list[str]:
    """The batches that Dagster knows."""
    return list(clinic.instance.get_dynamic_partitions(keys.batches_of(P).name or ""))


def batch_code(clinic: Clinic, batch: str) -> str:
    """Code version of the newest materialization of the prepared cases of a batch."""
    wanted = dg.AssetRecordsFilter(keys.key(P, "prepared_cases"), asset_partitions=[batch])
    (record,) = clinic.instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization is not None
    return (record.asset_materialization.tags or {})["dagster/code_version"]


def correct_dose(case: Path, factor: float) -> None:
    """Send a case again with another dose."""

    def scaled(ds: pydicom.Dataset) -> None:
        ds.DoseGridScaling = float(ds.DoseGridScaling) * factor

    (path,) = files(case, "RTDOSE")
    edit(path, scaled)


def kept_predictions(ws: Workspace) -> set[str]:
    """Keys of the predictions in the store."""
    return {path.name for path in (ws.home / "store" / "prediction").glob("*/*")}


def send_corrected(ws: Workspace, case: Path, tmp_path: Path) -> None:
    """Send the structure set of a case alone, corrected, from an Orthanc to a receiver; without Orthanc it is put where one would."""
    (path,) = files(case, "RTSTRUCT")
    ds = pydicom.dcmread(path)
    names = {one.ROINumber: one.ROIName for one in ds.StructureSetROISequence}
    (bladder,) = [roi for roi in ds.ROIContourSequence if "bla" in names[roi.ReferencedROINumber].lower()]
    for contour in bladder.ContourSequence:
        points = [float(value) for value in contour.ContourData]
        contour.ContourData = [value + 16.0 * (number % 3 == 0) for number, value in enumerate(points)]
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    if shutil.which("Orthanc") is None and not os.environ.get(NEEDED):
        folder = ws.landing / P / "corrected"
        folder.mkdir()
        ds.save_as(folder / "rtstruct.dcm", enforce_file_format=True)
        return
    port = free_port()
    with orthanc_of(tmp_path / "orthanc", {"us": (CALLED, port)}) as orthanc:
        describe_network(ws.home, nodes={"pacs": orthanc.node()}, port=port, ae_titles={CALLED: P})
        orthanc.upload([ds])
        with receiver_of(ws.home):
            sent = orthanc.ask("/modalities/us/store", {"Resources": orthanc.ask("/instances"), "Synchronous": True})
            assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (1, 0)
            wait_for(lambda: any(ds.SOPInstanceUID in one.name for one in landed(ws.home, P)))


def send_again(case: Path) -> None:
    """Copy the files of a case over themselves: the same bytes with other times."""
    for path in case.rglob("*"):
        if path.is_file():
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.mark.slow
def test_a_change_reaches_the_report_in_two_runs_at_most_and_what_is_current_is_never_requested(
    clinic: Clinic, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clinic through all that happens to it, since a clinic takes as long as all of this."""
    follow = ["champion", "evaluation/mean_dose", "experiments", "leaderboard", "report"]
    analyses = [one.name for one in analysis.of(P).values() if not one.expensive]

    def after(what: str) -> list[list[str]]:
        """The runs that a change starts, without the analyses, which follow too."""
        found = clinic.settle()
        clinic.counted[what] = len(found)
        return [[name for name in run if name not in analyses] for run in found]

    assert {"train", "val", "test"} == {case.split for case in Catalog(workspace, P).cases()}
    splits = workspace.lake.rows("splits", P)
    before = {name: clinic.version(*name.split("/")) for name in ("evaluation/mean_dose", "leaderboard", "report")}
    held_out = Catalog(workspace, P).cases("val")[0].case_id

    correct_dose(workspace.landing / P / "export-8", 1.02)
    assert after("a corrected dose") == [sorted(keys.DATA), follow]
    now = {name: clinic.version(*name.split("/")) for name in before}
    assert {name for name in before if before[name] == now[name]} == set()
    assert workspace.lake.rows("splits", P) == splits
    assert {held_out} == {
        row["case_id"]
        for row in workspace.lake.rows("raw_cases", P)
        if row["batch"] == max(one["batch"] for one in workspace.lake.rows("raw_cases", P))
    }

    # A corrected structure set, sent by DICOM and alone, is a new version of its case, and that case alone is computed.
    kept = kept_predictions(workspace)
    board = clinic.version("leaderboard")
    send_corrected(workspace, workspace.landing / P / "export-8", tmp_path)
    assert after("a corrected structure set") == [sorted(keys.DATA), follow]
    newest = max(row.batch for row in Catalog(workspace, P).case_versions())
    (corrected,) = Catalog(workspace, P).case_versions(newest)
    assert (corrected.case_id, corrected.status) == (held_out, "ok")
    assert corrected.parent is not None
    assert len(Catalog(workspace, P).prepared(newest)) == 1
    assert len(kept_predictions(workspace) - kept) == 1, "of the one model, for the one case"
    assert clinic.version("leaderboard") != board
    assert workspace.lake.rows("splits", P) == splits

    # What a failed run did not come to is made when its input is there again; what has other inputs does not wait.
    row = workspace.lake.rows("checkpoints", f"{P}/mean_dose")[0]
    stored = workspace.store.fetch(row["checkpoint"])
    board = clinic.version("leaderboard")
    shutil.move(stored, workspace.home / "aside")
    correct_dose(workspace.landing / P / "export-8", 1.03)
    clinic.fails = True
    runs = clinic.settle()
    assert runs[0] == sorted(keys.DATA)
    assert "evaluation/mean_dose" in runs[1]
    assert {"experiments", "report"} <= set(runs[2])
    assert runs[3:] == [["report"]], "it shows the model whose weights are gone"
    assert clinic.version("leaderboard") == board
    shutil.move(workspace.home / "aside", stored)
    clinic.fails = False
    with monkeypatch.context() as at_once:
        at_once.setattr("sensors.runs.BACK_OFF_S", (0.0, 0.0))
        clinic.cursor = None
        (run,) = clinic.settle()
    assert {"evaluation/mean_dose", "leaderboard", "champion", "experiments", "report"} <= set(run)
    assert clinic.version("leaderboard") != board

    drop(workspace, 9)
    assert after("a dropped case") == [sorted(keys.DATA), follow]
    send_again(workspace.landing / P / "export-9")
    assert after("the same files once more") == [sorted(keys.DATA)]
    for name in ("dataset", "evaluation/mean_dose", "report"):
        clinic.run([dg.AssetKey([P, *name.split("/")])])
    assert after("materializations by hand") == []
    edit_policy = {"promotion": {"min_cases": 1 + policies.of(P).promotion.min_cases}}
    configure(tmp_path, monkeypatch, **edit_policy)
    clinic.reload()
    assert after("an edited policy of promotion") == [["champion", "experiments", "report"]]
    with monkeypatch.context() as bumped:
        bumped.setattr("assets.versions.of_report", lambda: "another")
        clinic.reload()
        assert after("another code version of the report") == [["report"]]
    bumped_dataset = "another"
    monkeypatch.setattr("assets.versions.of_report", lambda: "another")
    monkeypatch.setattr("assets.versions.of_dataset", lambda: bumped_dataset)
    clinic.reload()
    (run,) = after("another code version of the dataset")
    assert run == sorted(["dataset", "splits", *follow])
    known = instance_batches(clinic)
    assert len(known) >= 3
    with monkeypatch.context() as bumped:
        bumped.setattr("assets.versions.of_prepared_cases", lambda _: "another")
        clinic.reload()
        assert after("another code version of preparation") == [sorted(keys.DATA[1:])]
        made = {batch: batch_code(clinic, batch) for batch in known}
        assert set(made.values()) == {"another"}, "of all batches, in one run whose content is the same as before"
    assert clinic.counted == {
        "a corrected dose": 2,
        "a corrected structure set": 2,
        "a dropped case": 2,
        "the same files once more": 1,
        "materializations by hand": 0,
        "an edited policy of promotion": 1,
        "another code version of the report": 1,
        "another code version of the dataset": 1,
        "another code version of preparation": 1,
    }
