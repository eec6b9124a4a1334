"""What a tick waits for, by a clock that the test moves: nothing here sleeps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest

from assets import build_program, jobs, keys
from med_assets.landing import batches
from med_assets.settings import Workspace
from resources.ui import STOPPING, TICK_TIMEOUT, TICK_TIMEOUT_S
from sensors.clock import ENDING_S, SLACK_S, Clock, pause, wait_s
from sensors.intake import MARGIN_S, intake_sensor
from sensors.settings import look_s, tick_s
from sensors.update import update_sensor

P = "rt_dose"
SETTLE_S, WAIT_S = 30.0, 40.0


@dataclass
class Moved:
    """A clock that moves when a tick waits, and during whose pauses something happens."""

    at: float = 0.0
    """Seconds since the epoch."""
    passed: float = 0.0
    pauses: list[float] = field(default_factory=list)
    plan: dict[float, Callable[[], object]] = field(default_factory=dict)
    """What happens, by seconds that passed."""
    goes_on: bool = True
    """Whether Dagster is not being stopped."""

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.at += seconds
        self.passed += seconds
        for moment in sorted(self.plan):
            if moment <= self.passed:
                self.plan.pop(moment)()
        return self.goes_on

    def drop(self, ws: Workspace, ago_s: float = 0.0) -> None:
        """An entry that was changed so long ago. It is the clock that is set, since nobody can set when a file was changed."""
        path = batches.landing_folder(ws, P) / "a" / "1.dcm"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        (entry,) = batches.entries(ws, P)
        self.at = entry.changed_at + ago_s

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.at, lambda: self.passed, self.pause)


@pytest.fixture
def ws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workspace:
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path))
    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "a key for tests that is long enough")
    monkeypatch.setenv("MED_ASSETS_SETTLE_S", f"{SETTLE_S:g}")
    made = Workspace.from_env()
    batches.landing_folder(made, P).mkdir(parents=True)
    return made


def tick(instance: dg.DagsterInstance, moved: Moved, patience_s: float = WAIT_S) -> dg.SensorResult:
    job = dg.define_asset_job(keys.job(P, keys.INTAKE), [keys.key(P, stage) for stage in keys.DATA])
    sensor = intake_sensor([P], [job], patience_s, moved.clock)
    with dg.build_sensor_context(instance=instance) as context:
        found = sensor(context)
    assert isinstance(found, dg.SensorResult)
    return found


def test_an_entry_is_taken_in_the_moment_it_has_settled(ws: Workspace, instance: dg.DagsterInstance) -> None:
    moved = Moved()
    moved.drop(ws, ago_s=17.0)
    (request,) = tick(instance, moved).run_requests or ()
    assert [request.partition_key] == batches.known(ws, P)
    assert moved.passed == pytest.approx(SETTLE_S - 17 + MARGIN_S, abs=1e-3)


def test_an_entry_that_arrives_while_a_tick_waits_is_taken_in_by_that_tick(
    ws: Workspace, instance: dg.DagsterInstance
) -> None:
    moved = Moved()
    moved.plan[2 * look_s()] = lambda: moved.drop(ws)
    assert tick(instance, moved).run_requests
    assert moved.passed == pytest.approx(2 * look_s() + SETTLE_S, abs=2 * MARGIN_S)
    assert max(moved.pauses) <= look_s() + 1e-3


@pytest.mark.parametrize(
    ("dropped_at", "taken"),
    [(WAIT_S - SETTLE_S + 5, True), (WAIT_S - SETTLE_S + SLACK_S + look_s(), False)],
)
def test_an_entry_that_would_settle_between_two_ticks_is_waited_for(
    ws: Workspace, instance: dg.DagsterInstance, dropped_at: float, taken: bool
) -> None:
    moved = Moved()
    moved.plan[dropped_at] = lambda: moved.drop(ws)
    assert bool(tick(instance, moved).run_requests) == taken
    assert moved.passed <= WAIT_S + SLACK_S


def test_a_tick_with_nothing_to_do_ends_in_time_and_asks_dagster_once(
    ws: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get = instance.get_dynamic_partitions

    def recorded(name: str) -> list[str]:
        asked.append(name)
        return list(get(name))

    monkeypatch.setattr(instance, "get_dynamic_partitions", recorded)
    moved = Moved()
    found = tick(instance, moved)
    assert not found.run_requests
    assert WAIT_S - look_s() < moved.passed <= WAIT_S
    assert asked == [keys.batches_of(P).name]


def test_a_tick_ends_when_dagster_is_being_stopped(ws: Workspace, instance: dg.DagsterInstance) -> None:
    moved = Moved(goes_on=False)
    assert not tick(instance, moved).run_requests
    assert len(moved.pauses) == 1


def test_a_pause_ends_when_the_page_is_being_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert pause(0.0)
    (tmp_path / STOPPING).touch()
    assert not pause(3600.0)


def test_a_tick_waits_long_only_where_sensors_have_threads_and_as_long_as_dagster_allows(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TICK_TIMEOUT, raising=False)
    assert wait_s(instance) == tick_s()
    (tmp_path / "threads").mkdir()
    settings = {"sensors": {"use_threads": True, "num_workers": 4}}
    with dg.DagsterInstance.local_temp(str(tmp_path / "threads"), overrides=settings) as other:
        assert wait_s(other) == WAIT_S
        monkeypatch.setenv(TICK_TIMEOUT, str(TICK_TIMEOUT_S))
        assert wait_s(other) == TICK_TIMEOUT_S - SLACK_S - ENDING_S > WAIT_S
        monkeypatch.setenv(TICK_TIMEOUT, "15")
        assert wait_s(other) == tick_s()


def test_a_landing_folder_that_is_not_there_is_said_at_once(ws: Workspace, instance: dg.DagsterInstance) -> None:
    batches.landing_folder(ws, P).rmdir()
    moved = Moved()
    assert "is not there yet" in str(tick(instance, moved).skip_reason)
    assert moved.pauses == []


def test_an_update_goes_on_comparing_and_tells_a_new_message_at_once(
    ws: Workspace, instance: dg.DagsterInstance
) -> None:
    graph = build_program(P)
    moved = Moved()
    sensor = update_sensor(graph, [P], jobs.of_program(P, graph), WAIT_S, moved.clock)

    def update(cursor: str | None) -> dg.SensorResult:
        with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
            found = sensor(context)
        assert isinstance(found, dg.SensorResult)
        return found

    first = update(None)
    assert str(first.skip_reason) != ""
    assert moved.pauses == []
    update(first.cursor)
    assert set(moved.pauses) == {look_s()}
    assert WAIT_S - look_s() <= moved.passed <= WAIT_S
