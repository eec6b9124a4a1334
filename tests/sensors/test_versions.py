"""The update sensor against the table of events that Dagster's automation conditions lose, on a graph whose content is set by hand."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets import batch_content, jobs, keys
from assets.recorded import report_checkpoints
from med_assets.review.decisions import decide
from med_assets.settings import Workspace
from sensors import observe, runs
from sensors.update import update_sensor
from tests.conftest import WITHOUT_OUTPUT
from tests.med_assets.stages.models import cases

P, BATCH = "rt_dose", "2026-01-01T00-00-00_000001"
SECOND = "2026-01-02T00-00-00_000002"
STAGES = ("raw_cases", "prepared_cases", "dataset", "splits", "champion", "monitoring", "report")
DEPS = {
    "prepared_cases": ["raw_cases"],
    "dataset": ["prepared_cases"],
    "splits": ["dataset"],
    "monitoring": ["champion", "prepared_cases"],
    "report": ["splits", "champion", "monitoring"],
}
BY_BATCH = ("raw_cases", "prepared_cases", "monitoring")


class Graph:
    """A graph of the design's shape whose content is set by hand."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.ws = instance, Workspace.from_env()
        self.content = dict.fromkeys(STAGES, "1")
        self.code = dict.fromkeys(STAGES, "1")
        self.gate = True
        self.during: dict[str, list[str]] = {}
        """By asset what is made by hand while it is being made."""
        self.fails: set[str] = set()
        self.cursor: str | None = None
        self.first: list[list[str]] = []
        """The runs after the first batch."""

    @property
    def assets(self) -> list[dg.AssetsDefinition]:
        return [self._asset(name) for name in STAGES]

    def _asset(self, name: str) -> dg.AssetsDefinition:
        key = keys.key(P, name)
        spec = dg.AssetCheckSpec("gate", asset=key, blocking=True)
        follows = {keys.FOLLOWS_TAG: keys.FOLLOWS[name]} if name in keys.FOLLOWS else {}

        @dg.asset(
            key=key,
            deps=[keys.key(P, dep) for dep in DEPS.get(name, [])],
            tags={keys.PROGRAM_TAG: P, keys.STAGE_TAG: name, **follows},
            code_version=self.code[name],
            partitions_def=keys.batches_of(P) if name in BY_BATCH else None,
            check_specs=[spec] if name == "dataset" else [],
        )
        def asset() -> dg.MaterializeResult:
            read = {
                tag: version
                for dep in DEPS.get(name, [])
                if dep in batch_content.VERSIONS and name not in BY_BATCH
                for tag, version in batch_content.read(self.ws, P, dep).items()
            }
            for other in self.during.pop(name, []):
                self.make(other)
            if name in self.fails:
                raise RuntimeError("as the test asks")
            checks = [dg.AssetCheckResult(passed=self.gate, check_name="gate")] if name == "dataset" else []
            version = dg.DataVersion(self.content[name])
            return dg.MaterializeResult(data_version=version, check_results=checks, tags=read or None)

        return asset

    def make(self, *names: str, batch: str | None = None, tags: dict[str, str] | None = None) -> None:
        """Materialize some of the assets, as a person does."""
        selection = [keys.key(P, name) for name in names]
        dg.materialize(
            self.assets,
            selection=selection,
            instance=self.instance,
            partition_key=batch,
            raise_on_error=False,
            tags=tags,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )

    def change(self, name: str) -> None:
        """Give an asset other content, and make it by hand."""
        self.content[name] += "'"
        self.make(name)

    def arrive(self, batch: str, *names: str) -> None:
        """Take in a batch of cases with these names."""
        self.instance.add_dynamic_partitions(f"{P}_batches", [batch])
        cases(self.ws, {"train": list(names)}, batch=batch)
        self.make("raw_cases", "prepared_cases", batch=batch)

    def compare(self) -> tuple[list[dg.RunRequest], str]:
        """One tick: what it requests, and what it says otherwise."""
        sensor = update_sensor(self.assets, [P], jobs.of_program(P, self.assets), patience_s=0.0)
        with dg.build_sensor_context(self.instance, cursor=self.cursor) as context:
            found = sensor(context)
        assert isinstance(found, dg.SensorResult)
        self.cursor = found.cursor
        reason = found.skip_reason
        text = reason.skip_message if isinstance(reason, dg.SkipReason) else reason
        return list(found.run_requests or ()), text or ""

    def tick(self) -> list[list[str]]:
        """One tick whose requests are run: the assets of each run."""
        requests, _ = self.compare()
        for request in requests:
            names = [key.path[-1] for key in request.asset_selection or ()]
            self.make(*names, batch=request.partition_key, tags=dict(request.tags))
        return [sorted(key.path[-1] for key in request.asset_selection or ()) for request in requests]

    def settle(self) -> list[list[str]]:
        """All runs until a tick requests nothing, twice in a row."""
        found: list[list[str]] = []
        idle = 0
        while idle < 2:
            started = self.tick()
            found, idle = found + started, 0 if started else idle + 1
            assert len(found) < 10
        return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]], str | None]:
    """A home in which a first batch arrived and all that follows was made, the runs of that, and the cursor of the sensor."""
    home = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as there:
        for name, value in environment(home).items():
            there.setenv(name, value)
        with dg.DagsterInstance.local_temp(str(home), overrides=WITHOUT_OUTPUT) as instance:
            made = Graph(instance)
            made.arrive(BATCH, "a", "b")
            return home, made.settle(), made.cursor


def environment(home: Path) -> dict[str, str]:
    return {"MED_ASSETS_HOME": str(home), "MED_ASSETS_PSEUDONYM_KEY": "a key for tests that is long enough"}


@pytest.fixture
def graph(
    begun: tuple[Path, list[list[str]], str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Graph]:
    home, first, cursor = begun
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=WITHOUT_OUTPUT) as instance:
        made = Graph(instance)
        made.first, made.cursor = list(first), cursor
        yield made


def test_what_was_never_made_is_made_with_all_that_follows_in_one_run(graph: Graph) -> None:
    assert graph.first == [["dataset", "report", "splits"]]


def test_an_input_made_again_with_the_same_content_starts_nothing(graph: Graph) -> None:
    graph.make("dataset")
    graph.make("splits")
    graph.make("raw_cases", "prepared_cases", batch=BATCH)
    assert graph.settle() == []


def test_an_input_with_other_content_starts_one_run(graph: Graph) -> None:
    graph.change("dataset")
    assert graph.settle() == [["report", "splits"]]


def test_nothing_passes_a_closed_gate_and_all_of_it_does_once_the_check_passes_with_the_same_content(
    graph: Graph,
) -> None:
    graph.gate = False
    graph.change("dataset")
    assert graph.settle() == []
    graph.gate = True
    graph.make("dataset")
    assert graph.settle() == [["report", "splits"]]


def test_a_check_that_passes_alone_opens_the_gate(graph: Graph) -> None:
    graph.gate = False
    graph.change("dataset")
    assert graph.settle() == []
    graph.instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(asset_key=keys.key(P, "dataset"), check_name="gate", passed=True, metadata={})
    )
    assert graph.settle() == [["report", "splits"]]


def test_a_changed_code_version_starts_one_run_with_all_that_follows(graph: Graph) -> None:
    graph.code["dataset"] = "2"
    assert graph.settle() == [["dataset", "report", "splits"]]


def test_an_input_that_changes_while_the_asset_is_being_made_makes_it_again(graph: Graph) -> None:
    graph.content["dataset"] = "2"
    graph.during["splits"] = ["dataset"]
    graph.make("splits")
    assert graph.settle() == [["report", "splits"]]


def test_an_input_that_changes_after_the_asset_was_made_within_one_tick_makes_it_again(graph: Graph) -> None:
    graph.make("splits")
    graph.change("dataset")
    assert graph.settle() == [["report", "splits"]]


def test_an_input_that_changes_between_a_request_and_its_run_is_read_by_that_run(graph: Graph) -> None:
    graph.change("dataset")
    (request,), _ = graph.compare()
    graph.change("dataset")
    graph.make("splits", "report", tags=dict(request.tags))
    assert graph.settle() == []


def test_an_input_that_changes_right_after_the_run_began_makes_another(graph: Graph) -> None:
    graph.change("dataset")
    (request,), _ = graph.compare()
    graph.content["dataset"] = "another"
    graph.during["splits"] = ["dataset"]
    graph.make("splits", "report", tags=dict(request.tags))
    assert graph.settle() == [["report", "splits"]]


def test_a_run_that_fails_is_repeated_after_a_while_and_then_named(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph.fails = {"splits"}
    graph.change("dataset")
    assert graph.tick() == [["report", "splits"]]
    requests, message = graph.compare()
    assert requests == []
    assert "rt_dose/splits failed" in message
    assert "tried again in" in message
    monkeypatch.setattr(runs, "BACK_OFF_S", (0.0, 0.0))
    graph.cursor = None
    assert graph.settle() == [["report", "splits"]] * 2
    assert "rt_dose/splits is not current" in graph.compare()[1]
    graph.cursor = None
    assert graph.settle() == [], "nothing but a change or a person starts it again"
    graph.fails = set()
    graph.change("dataset")
    assert graph.settle() == [["report", "splits"]]


def test_what_a_person_cancelled_is_not_started_again(graph: Graph) -> None:
    graph.change("dataset")
    (request,), _ = graph.compare()
    cancelled = dg.DagsterRun(job_name="any", status=dg.DagsterRunStatus.CANCELED, tags=dict(request.tags))
    graph.instance.add_run(cancelled)
    graph.cursor = None
    assert graph.settle() == []


def test_what_a_run_makes_or_reads_waits_for_it_and_the_rest_does_not(graph: Graph) -> None:
    key = keys.key(P, "splits")
    graph.change("dataset")
    going = graph.instance.add_run(
        dg.DagsterRun(job_name="by hand", status=dg.DagsterRunStatus.STARTED, asset_selection=frozenset([key]))
    )
    assert graph.settle() == []
    graph.instance.report_run_failed(going)
    assert graph.settle() == [["report", "splits"]]


def test_a_batch_whose_run_begins_while_a_tick_compares_is_not_requested_once_more(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dg.DagsterRun] = []

    def slowly(*arguments: Any) -> list[str]:
        """Report checkpoints on a busy machine: meanwhile a run takes a batch in, and writes its rows."""
        if not begun:
            graph.instance.add_dynamic_partitions(f"{P}_batches", [SECOND])
            run = dg.DagsterRun(
                job_name=keys.job(P, keys.INTAKE),
                status=dg.DagsterRunStatus.STARTED,
                tags={"dagster/partition": SECOND},
                asset_selection=frozenset(keys.key(P, stage) for stage in keys.DATA),
            )
            begun.append(graph.instance.add_run(run))
            cases(graph.ws, {"train": ["c"]}, batch=SECOND)
        return report_checkpoints(*arguments)

    monkeypatch.setattr("sensors.update.report_checkpoints", slowly)
    graph.cursor = None
    assert graph.compare()[0] == []
    assert len(begun) == 1
    graph.instance.report_run_failed(begun[0])
    (request,), _ = graph.compare()
    assert request.partition_key == SECOND, "its run died before it recorded what it made"


def test_a_new_batch_starts_one_run_and_the_same_cases_once_more_start_none(graph: Graph) -> None:
    graph.arrive("2026-01-02T00-00-00_000002", "c")
    assert graph.settle() == [["dataset", "report", "splits"]]
    graph.arrive("2026-01-03T00-00-00_000003", "c")
    assert graph.settle() == []


def test_an_exclusion_by_a_reader_starts_one_run_and_so_does_its_end_and_a_comment_none(graph: Graph) -> None:
    decide(graph.ws, P, "a", "comment", "a clip", "Ana")
    decide(graph.ws, P, "b", "accept", "", "Ana")
    assert graph.settle() == []
    decide(graph.ws, P, "a", "exclude", "motion", "Ana")
    (after,) = graph.settle()
    assert {"dataset", "splits"} <= set(after) <= {"dataset", "splits", "report"}, "no batch, champion or monitoring"
    decide(graph.ws, P, "a", "exclude", "motion", "Ben")
    assert graph.settle() == []
    decide(graph.ws, P, "a", "accept", "", "Ben")
    assert graph.settle() == [after]


def test_a_batch_under_other_code_is_prepared_again(graph: Graph) -> None:
    graph.code["prepared_cases"] = "2"
    assert graph.settle() == [["dataset", "prepared_cases", "splits"]]


def test_a_champion_that_the_command_line_restored_is_shown_again(graph: Graph) -> None:
    from med_assets.promotion.champions import version

    def crown(checkpoint: str) -> None:
        row = {"program": P, "experiment": "baseline", "checkpoint": checkpoint}
        graph.ws.lake.write("champions", P, [*graph.ws.lake.rows("champions", P), row])
        graph.content["champion"] = version(graph.ws, P)

    crown("checkpoint/1111111111111111")
    graph.make("champion")
    assert graph.settle() == [["report"]]
    crown("checkpoint/2222222222222222")
    assert graph.settle() == [["champion", "report"]]


def test_a_tick_with_nothing_new_asks_one_question_and_reads_no_table(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "SAME_TIME_S", 0.0)  # however fast this machine is
    graph.settle()
    asked: list[str] = []
    storage = type(graph.instance.event_log_storage)
    for name in ("get_asset_records", "get_asset_check_execution_history", "fetch_materializations"):
        monkeypatch.setattr(storage, name, lambda *_, name=name, **__: asked.append(name))
    for name in ("OSFile", "memory_map", "parquet.ParquetFile"):
        monkeypatch.setattr(f"pyarrow.{name}", lambda path, *_: asked.append(str(path)))
    assert graph.compare() == ([], "everything is current")
    assert asked == []
