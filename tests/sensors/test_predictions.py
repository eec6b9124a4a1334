"""Predictions on a real instance: one run when cases without a label arrive, one for a new champion, and none when nothing waits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from assets import keys, results
from med_assets.deidentification import scan
from med_assets.settings import Workspace
from med_assets.storage import artifacts
from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource
from tests.cases.test_to_predict import champion, phantoms, strip
from tests.invented import ingest
from tests.sensors.builders import predictions

P = "breast_us"
PREDICTIONS = keys.key(P, "predictions")


def tick(instance: dg.DagsterInstance) -> dg.RunRequest | str:
    """One tick of the sensor: the run it starts, or why it starts none."""
    with dg.build_sensor_context(instance) as context:
        found = predictions(P)(context)
    assert isinstance(found, dg.SensorResult)
    if found.run_requests:
        (request,) = found.run_requests
        return request
    assert isinstance(found.skip_reason, dg.SkipReason)
    return found.skip_reason.skip_message or ""


def launch(instance: dg.DagsterInstance, request: dg.RunRequest | str) -> dg.ExecuteInProcessResult:
    """Run what the sensor asked for."""
    assert isinstance(request, dg.RunRequest)
    given = {"workspace": WorkspaceResource(), "launcher": LauncherResource()}
    return dg.materialize([results.predictions(P)], instance=instance, tags=dict(request.tags), resources=given)


def arrive(ws: Workspace, instance: dg.DagsterInstance, source: Path, *, labelled: bool) -> str:
    """A batch of one case, taken in and prepared; returns its name."""
    (ws.landing / P).mkdir(parents=True, exist_ok=True)
    if not labelled:
        strip(source, P)
    source.rename(ws.landing / P / source.name)
    batch = str(ingest(ws, P)[0][0]["batch"])
    instance.add_dynamic_partitions(keys.batches_of(P).name or "", [batch])
    instance.report_runless_asset_event(dg.AssetMaterialization(keys.key(P, "prepared_cases"), partition=batch))
    return batch


def test_cases_without_a_label_are_predicted_as_they_arrive_and_by_each_new_champion(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    first, second, third = phantoms(tmp_path / "cases", P, 3, 5)
    batch = arrive(workspace, instance, first, labelled=False)
    assert tick(instance) == "there is no champion yet"
    champion(workspace, P)
    request = tick(instance)
    assert launch(instance, request).success
    assert instance.get_materialized_partitions(PREDICTIONS) == {batch}
    assert tick(instance) == "the champion predicted every case that came without a label"

    arrive(workspace, instance, second, labelled=True)
    assert tick(instance) == "the champion predicted every case that came without a label"
    later = arrive(workspace, instance, third, labelled=False)
    assert launch(instance, tick(instance)).success
    rows = workspace.lake.rows("predictions", P)
    assert {row["batch"]: row["status"] for row in rows} == {batch: "predicted", later: "predicted"}

    key = champion(workspace, P, seed=1)
    assert launch(instance, tick(instance)).success
    assert {row["checkpoint"] for row in workspace.lake.rows("predictions", P)} == {key}
    assert isinstance(tick(instance), str)


def test_a_tick_reads_what_is_new_however_much_there_is(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = phantoms(tmp_path / "cases", P, 5, 5)
    for source in sources[:3]:
        arrive(workspace, instance, source, labelled=False)
    champion(workspace, P)
    assert launch(instance, tick(instance)).success
    tick(instance)

    reads: list[str] = []

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Path, *args: Any, **options: Any) -> Any:
            if args != ("wb",):
                reads.append(str(path))
            return read(path, *args, **options)

        return wrapped

    monkeypatch.setattr("pyarrow.OSFile", counted(pa.OSFile))
    monkeypatch.setattr("pyarrow.memory_map", counted(pa.memory_map))
    monkeypatch.setattr(artifacts, "read_json", counted(artifacts.read_json))
    monkeypatch.setattr(scan, "read_json", counted(scan.read_json))

    def tick_reads() -> int:
        """Files that one tick reads."""
        reads.clear()
        tick(instance)
        return len(reads)

    idle = tick_reads()
    assert not [path for path in reads if "champions" not in path]
    grown = []
    for source in sources[3:]:
        arrive(workspace, instance, source, labelled=False)
        grown.append(tick_reads())
        assert tick_reads() == idle
    assert grown[0] == grown[1] > idle
