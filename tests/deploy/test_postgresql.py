"""Dagster on a real PostgreSQL with the settings of `deploy/dagster`: what a site relies on when several machines share one database."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
import yaml
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.test_utils import create_run_for_test
from dagster._core.workspace.load import load_workspace_process_context_from_yaml_paths
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from assets import build_program, jobs, keys
from assets.pools import make_pools
from med_assets.landing import batches
from med_assets.settings import Workspace
from resources import alive, retention
from resources.workspace import WorkspaceResource
from sensors import observe, runs
from sensors.intake import intake_sensor
from sensors.update import update_sensor
from tests import fresh, postgres
from tests.conftest import REPOSITORY

STEP_S = 1.5


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.running() as found:
        yield found


@pytest.fixture
def database(server: postgres.Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty database that the environment names."""
    variables = server.database()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def instance(database: Mapping[str, str], tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(postgres.settings(tmp_path / "dagster"))) as found:
        yield found


def test_the_settings_of_a_site_open_an_instance_whose_record_is_the_database(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    assert type(instance.run_storage).__name__ == "PostgresRunStorage"
    assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
    assert type(instance.schedule_storage).__name__ == "PostgresScheduleStorage"
    assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
    assert not instance.telemetry_enabled
    assert not instance.nux_enabled
    assert instance.get_sensor_settings()["use_threads"]
    assert instance.get_settings("schedules")["use_threads"]
    assert instance.run_monitoring_enabled
    assert not instance.run_retries_enabled
    with dg.DagsterInstance.from_config(str(postgres.settings(tmp_path / "other"))) as other:
        run = create_run_for_test(instance)
        assert [one.run_id for one in other.get_runs()] == [run.run_id]


def test_the_password_is_in_no_setting_and_in_nothing_that_dagster_hands_on(instance: dg.DagsterInstance) -> None:
    assert postgres.PASSWORD not in instance.info_str()
    assert postgres.PASSWORD not in str(instance.get_ref())
    assert postgres.PASSWORD not in repr(instance.run_storage)


def _queued(instance: dg.DagsterInstance, program: str, kind: str, n: int) -> list[str]:
    """Queue runs of one of a program's jobs; returns their ids."""
    (job,) = [one for one in JOBS[program] if one.name == keys.job(program, kind)]
    return [
        create_run_for_test(
            instance,
            job_name=job.name,
            tags=job.tags,
            status=dg.DagsterRunStatus.QUEUED,
            remote_job_origin=jobs._origin(job.name),
        ).run_id
        for _ in range(n)
    ]


PROGRAMS = ("rt_dose", "lung_ct", "breast_us")
JOBS = {name: jobs.of_program(name, build_program(name)) for name in PROGRAMS}


def _dequeued(instance: dg.DagsterInstance) -> list[str]:
    """Which runs the daemon would start now."""
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
    return [
        run.run_id
        for run in daemon._get_runs_to_dequeue(instance, instance.get_concurrency_config(), fixed_iteration_time=None)
    ]


def _start(instance: dg.DagsterInstance, ids: Sequence[str]) -> None:
    for one in ids:
        run = instance.get_run_by_id(one)
        assert run is not None
        event = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name)
        instance.report_dagster_event(event, run_id=one)


def test_a_third_intake_of_a_program_waits_and_another_program_goes(instance: dg.DagsterInstance) -> None:
    rt_dose = _queued(instance, "rt_dose", keys.INTAKE, 3)
    lung_ct = _queued(instance, "lung_ct", keys.INTAKE, 1)
    assert _dequeued(instance) == [*rt_dose[:2], *lung_ct]
    _start(instance, [*rt_dose[:2], *lung_ct])
    assert _dequeued(instance) == []
    run = instance.get_run_by_id(rt_dose[0])
    assert run is not None
    instance.report_run_failed(run)
    assert _dequeued(instance) == rt_dose[2:]


def test_intakes_of_all_programs_together_are_limited(instance: dg.DagsterInstance) -> None:
    queued = [one for program in PROGRAMS for one in _queued(instance, program, keys.INTAKE, 2)]
    assert _dequeued(instance) == queued[:4]


def test_trainings_and_backfills_of_days_keep_no_intake_and_no_update_waiting(instance: dg.DagsterInstance) -> None:
    long = [one for kind in (keys.RETRAIN, keys.EVALUATION_BACKFILL) for one in _queued(instance, "rt_dose", kind, 3)]
    _start(instance, [*long[:2], *long[3:5]])
    update, intake = (_queued(instance, "rt_dose", kind, 2) for kind in (keys.UPDATE, keys.INTAKE))
    assert _dequeued(instance) == intake, "six runs of the program at once, cases first"
    _start(instance, intake[:1])
    assert _dequeued(instance) == intake[1:]
    assert not {*update, long[2], long[5]} & {*_dequeued(instance)}


MACHINE = f"""
import sys, time
from pathlib import Path
import dagster as dg
from assets import keys
from assets.pools import make_pools

@dg.asset(pool=keys.POOL)
def checkpoint() -> None:
    with Path(sys.argv[1]).open("a") as stream:
        started = time.time()
        time.sleep({STEP_S})
        stream.write(f"{{started}} {{time.time()}}\\n")

with dg.DagsterInstance.get() as instance:
    make_pools(instance)
    assert dg.materialize([checkpoint], instance=instance).success
"""
"""What a machine does: one step in the pool of trainings."""


def test_a_pool_holds_across_machines(
    database: Mapping[str, str], instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    make_pools(instance)
    log = tmp_path / "log"
    homes = [{"DAGSTER_HOME": str(postgres.settings(tmp_path / name))} for name in ("one", "other")]
    machines = [fresh.start(REPOSITORY, MACHINE, str(log), environment={**database, **home}) for home in homes]
    for machine in machines:
        assert machine.wait(120) == 0
    first, second = sorted([float(word) for word in line.split()] for line in log.read_text().splitlines())
    assert first[1] <= second[0]
    assert instance.event_log_storage.get_concurrency_info(keys.POOL).active_slot_count == 0


def test_each_pool_gets_a_limit_once_and_keeps_that_of_a_person(instance: dg.DagsterInstance) -> None:
    log = instance.event_log_storage
    for gpu, intake in ((1, 4), (1, 4), (8, 2)):
        if gpu != 1:
            log.set_concurrency_slots(keys.POOL, gpu)
            log.set_concurrency_slots(keys.INTAKE_POOL, intake)
        make_pools(instance)
        found = {pool.name: (pool.limit, pool.from_default) for pool in log.get_pool_limits()}
        assert found == {keys.POOL: (gpu, False), keys.INTAKE_POOL: (intake, False)}


def _run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> dg.DagsterRun:
    return create_run_for_test(instance, status=status, tags={runs.STATE_TAG: "one"})


def test_a_run_of_another_machine_that_gives_signs_of_life_is_left_alone_and_a_silent_one_is_ended(
    instance: dg.DagsterInstance,
) -> None:
    lives, dies, never_spoke = _run(instance), _run(instance), _run(instance)
    with alive.beating(instance, lives.run_id, every_s=0.02):
        instance.run_storage.set_cursor_values({f"med_assets/alive/{dies.run_id}": "7"})

        def ended_at(second: float) -> set[str]:
            time.sleep(0.2)  # in which the living one gives signs
            return set(runs.end_those_of_dead_workers(instance, lambda: second))

        assert ended_at(0) == set()
        assert ended_at(alive.SILENT_S) == set()
        instance.run_storage.set_cursor_values({f"med_assets/alive/{dies.run_id}": "8"})
        assert ended_at(alive.SILENT_S + 1) == {never_spoke.run_id}
        assert ended_at(2 * alive.SILENT_S) == set()
        assert ended_at(2 * alive.SILENT_S + 2) == {dies.run_id}
        assert set(alive.signs(instance, [lives.run_id, dies.run_id])) == {lives.run_id}
    assert alive.signs(instance, [lives.run_id]) == {}, "nothing is left of a run that ended"
    assert [run.status for run in instance.get_runs(dg.RunsFilter(run_ids=[lives.run_id]))] == [
        dg.DagsterRunStatus.STARTED
    ]
    assert not runs.tried(instance, "another")


def test_a_run_gives_signs_of_life_where_the_record_is_shared_and_writes_none_where_it_is_of_one_machine(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    seen: list[int] = []

    @dg.asset
    def speaks(context: dg.AssetExecutionContext, workspace: WorkspaceResource) -> None:
        end = time.monotonic() + (10 if alive.shared(context.instance) else 0.3)
        while not (signs := alive.signs(context.instance, [context.run.run_id])) and time.monotonic() < end:
            time.sleep(0.02)
        seen.append(len(signs))

    home = tmp_path / "sqlite"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as of_one_machine:
        for one in (instance, of_one_machine):
            assert dg.materialize([speaks], instance=one, resources={"workspace": WorkspaceResource()}).success
    assert seen == [1, 0]


SHORT_S = 0.3
"""Stands for `sensors.observe.SAME_TIME_S`."""


@contextmanager
def statements() -> Iterator[list[str]]:
    """The SQL that is sent within it, by whatever connection."""
    found: list[str] = []

    def add(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        found.append(statement)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", add)
    try:
        yield found
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", add)


def test_an_idle_tick_asks_the_database_as_little_with_many_runs_as_with_none(
    instance: dg.DagsterInstance, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "SAME_TIME_S", SHORT_S)
    graph = build_program("rt_dose")
    named = jobs.of_program("rt_dose", graph)
    batches.landing_folder(workspace, "rt_dose").mkdir(parents=True)
    ticks = {
        "update": update_sensor(graph, ["rt_dose"], named, patience_s=0.0),
        "intake": intake_sensor(["rt_dose"], named, patience_s=0.0),
    }
    asked = {}
    for n in (0, 20):
        for _ in range(n):
            run = create_run_for_test(instance, status=dg.DagsterRunStatus.SUCCESS)
            instance.report_dagster_event(
                dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name), run_id=run.run_id
            )
        for name, sensor in ticks.items():
            cursor: str | None = None
            for settled in (False, True, True):
                time.sleep(SHORT_S if settled and name == "update" else 0)
                with dg.build_sensor_context(instance, cursor=cursor) as context, statements() as found:
                    result = sensor(context)
                assert isinstance(result, dg.SensorResult)
                assert not result.run_requests
                cursor = result.cursor
            asked[name, n] = len(found)
    assert asked == {(name, n): questions for name, questions in {"update": 1, "intake": 3}.items() for n in (0, 20)}


def test_a_record_that_becomes_visible_after_a_later_one_is_noticed(
    instance: dg.DagsterInstance, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "SAME_TIME_S", SHORT_S)
    run = create_run_for_test(instance)
    instance.report_dagster_event(dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name), run_id=run.run_id)
    first = observe.fingerprint(instance, workspace, ["rt_dose"])
    assert observe.fingerprint(instance, workspace, ["rt_dose"]) != first, "another may have a lower number"
    time.sleep(SHORT_S)
    settled = observe.fingerprint(instance, workspace, ["rt_dose"])
    assert settled != first
    assert observe.fingerprint(instance, workspace, ["rt_dose"]) == settled


def test_old_ticks_go_and_those_that_did_something_stay_longer(instance: dg.DagsterInstance) -> None:
    kept = instance.get_tick_retention_settings(InstigatorType.SENSOR)
    assert kept == {
        TickStatus.SKIPPED: 1,
        TickStatus.STARTED: 7,
        TickStatus.SUCCESS: 30,
        TickStatus.FAILURE: 30,
    }
    for kind in (InstigatorType.SENSOR, InstigatorType.SCHEDULE):
        assert all(days > 0 for days in instance.get_tick_retention_settings(kind).values()), "-1 keeps them for ever"


def test_the_code_location_is_a_server_that_variables_name(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = yaml.safe_load((postgres.DEPLOYED / "workspace.yaml").read_text())
    assert text["load_from"][0]["grpc_server"]["location_name"] == jobs.LOCATION
    monkeypatch.setenv("DAGSTER_CODE_HOST", "127.0.0.1")
    monkeypatch.setenv("DAGSTER_CODE_PORT", "1")
    with (
        pytest.warns(UserWarning, match="Could not reach user code server"),
        load_workspace_process_context_from_yaml_paths(instance, [str(postgres.DEPLOYED / "workspace.yaml")]) as found,
    ):
        entry = found.create_request_context().get_location_entry(jobs.LOCATION)
    assert entry is not None
    assert entry.load_error is not None, "nobody listens there"


def test_logs_of_old_runs_go_and_what_sensors_decide_by_stays(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dg.asset(check_specs=[dg.AssetCheckSpec("whole", asset="dataset", blocking=True)])
    def dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        context.log.info("a line of the log")
        return dg.MaterializeResult(data_version=dg.DataVersion("v1"), check_results=[dg.AssetCheckResult(passed=True)])

    done = dg.materialize([dataset], instance=instance, tags={runs.STATE_TAG: "one"})
    going = _run(instance)
    instance.report_engine_event("at work", going)
    output = Path(instance.storage_directory(), done.run_id, "compute_logs")
    output.mkdir(parents=True, exist_ok=True)
    (output / "dataset.out").write_text("text")

    gate = dg.AssetCheckKey(dg.AssetKey("dataset"), "whole")
    tomorrow = time.time() + 86_400

    def decided_by() -> list[object]:
        event = instance.get_latest_materialization_event(dg.AssetKey("dataset"))
        tags = event.asset_materialization.tags if event and event.asset_materialization else None
        return [
            tags,
            runs.evaluation(instance, gate),
            runs.tries(instance, "one", runs.STATE_TAG),
            runs.unfinished(instance),
        ]

    before, n_events = decided_by(), len(instance.all_logs(done.run_id))
    assert retention.find(instance, 30) == retention.Old(0, ())
    found = retention.remove(instance, 0.5, now=tomorrow)
    assert found.folders == (output,)
    assert not output.exists()
    left = [one.dagster_event_type for one in instance.all_logs(done.run_id)]
    assert len(left) == n_events - found.n_events
    assert dg.DagsterEventType.STEP_START not in left
    assert {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.RUN_SUCCESS} <= {*left}
    assert decided_by() == before
    assert len(instance.all_logs(going.run_id)) == 1, "its run goes on"

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    retention.main(["--days", "30"])
    assert "would remove, with --delete: 0 events" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="expected at least 1 day, got 0"):
        retention.main(["--days", "0"])
