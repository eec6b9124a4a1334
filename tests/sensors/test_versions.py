"""Reconcile: comparing recorded versions with what is there."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets import keys
from resources import WorkspaceResource
from sensors.automation import CONDITIONS
from sensors.reconcile import reconcile_schedule

P, STAGES = "rt_dose", ("raw_cases", "prepared_cases", "dataset", "splits", "champion", "monitoring")
DEPS = {
    "prepared_cases": ["raw_cases"],
    "dataset": ["prepared_cases"],
    "splits": ["dataset"],
    "monitoring": ["champion", "prepared_cases"],
}
BY_BATCH = ("raw_cases", "prepared_cases", "monitoring")


class Graph:
    """A graph of the design's shape whose content is set by hand."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.content = dict.fromkeys(STAGES, "1")
        self.gate = True
        self.assets = [self._asset(name) for name in STAGES]

    def _asset(self, name: str) -> dg.AssetsDefinition:
        key = keys.key(P, name)
        spec = dg.AssetCheckSpec("gate", asset=key, blocking=True)

        @dg.asset(
            key=key,
            deps=[keys.key(P, dep) for dep in DEPS.get(name, [])],
            tags={keys.PROGRAM_TAG: P, keys.STAGE_TAG: name},
            code_version="1",
            partitions_def=keys.batches_of(P) if name in BY_BATCH else None,
            check_specs=[spec] if name == "dataset" else [],
            automation_condition=CONDITIONS.get(name),
        )
        def asset() -> dg.MaterializeResult:
            checks = [dg.AssetCheckResult(passed=self.gate, check_name="gate")] if name == "dataset" else []
            return dg.MaterializeResult(data_version=dg.DataVersion(self.content[name]), check_results=checks)

        return asset

    def make(self, *names: str, batch: str | None = None) -> None:
        """Materialize some of the assets."""
        selection = [keys.key(P, name) for name in names]
        dg.materialize(
            self.assets, selection=selection, instance=self.instance, partition_key=batch, raise_on_error=False
        )

    def tick(self, make: Callable[[], dg.ScheduleDefinition]) -> list[str]:
        """What a schedule would start: names of assets, or of the batch."""
        schedule = make()
        with dg.build_schedule_context(self.instance) as context:
            found = schedule(context, workspace=WorkspaceResource())
        if isinstance(found, dg.SkipReason):
            return []
        assert isinstance(found, list)
        return [
            request.partition_key or ",".join(key.path[-1] for key in request.asset_selection or ())
            for request in found
        ]

    def reconcile(self) -> list[str]:
        """One tick of the reconcile schedule."""
        return self.tick(lambda: reconcile_schedule(P, self.assets))


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Graph]:
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path))
    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "a key for tests that is long enough")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.add_dynamic_partitions(f"{P}_batches", ["2026-01-01T00-00-00_000001"])
        made = Graph(instance)
        made.make("raw_cases", "prepared_cases", batch="2026-01-01T00-00-00_000001")
        yield made


def test_nothing_is_started_when_nothing_changed(graph: Graph) -> None:
    graph.make("dataset", "splits")
    assert graph.reconcile() == []


def test_an_asset_that_automation_never_requested_is_found(graph: Graph) -> None:
    assert graph.reconcile() == ["dataset"]


def test_an_asset_made_of_an_older_version_of_its_input_is_found(graph: Graph) -> None:
    graph.make("dataset", "splits")
    graph.content["dataset"] = "2"
    graph.make("dataset")
    assert graph.reconcile() == ["splits"]


def test_an_input_made_again_with_the_same_content_starts_nothing(graph: Graph) -> None:
    graph.make("dataset", "splits")
    graph.make("dataset")
    assert graph.reconcile() == []


def test_nothing_passes_a_closed_gate(graph: Graph) -> None:
    graph.gate = False
    graph.make("dataset")
    assert graph.reconcile() == []
    graph.gate = True
    graph.make("dataset")
    assert graph.reconcile() == ["splits"]


def test_a_batch_prepared_after_the_dataset_was_made_is_found(graph: Graph) -> None:
    graph.make("dataset", "splits")
    graph.instance.add_dynamic_partitions(f"{P}_batches", ["2026-01-02T00-00-00_000002"])
    graph.make("raw_cases", "prepared_cases", batch="2026-01-02T00-00-00_000002")
    assert graph.reconcile() == ["dataset"]


def test_a_champion_that_the_command_line_restored_is_shown_again(graph: Graph) -> None:
    from med_assets.promotion.champions import version
    from med_assets.settings import Workspace

    ws = Workspace.from_env()

    def crown(checkpoint: str) -> None:
        row = {"program": P, "experiment": "baseline", "checkpoint": checkpoint}
        ws.lake.write("champions", P, [*ws.lake.rows("champions", P), row])

    graph.make("dataset", "splits")
    crown("checkpoint/1111111111111111")
    graph.content["champion"] = version(ws, P)
    graph.make("champion")
    assert graph.reconcile() == []
    crown("checkpoint/2222222222222222")
    assert graph.reconcile() == ["champion"]
    graph.content["champion"] = version(ws, P)
    graph.make("champion")
    assert graph.reconcile() == []
