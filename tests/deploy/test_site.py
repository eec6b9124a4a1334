"""A site as `deploy/dagster` starts it, on a real PostgreSQL: a case goes through, and what dies is repeated."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets import keys
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.settings import Workspace
from resources import alive
from sensors import runs
from tests import postgres
from tests.conftest import settings_of
from tests.med_assets.stages.models import configure
from tests.peers import free_port
from tests.site import Site, site

P = "rt_dose"


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with postgres.running() as server:
        variables = {**server.database(), **settings_of(tmp_path / "home")}
        variables |= {"MED_ASSETS_PROGRAMS": P, "MED_ASSETS_SETTLE_S": "1", "MED_ASSETS_TICK_S": "1"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        configure(tmp_path, monkeypatch, retraining={"min_new_cases": 1000})
        with site(tmp_path, postgres.settings(tmp_path / "dagster"), variables) as found:
            yield found


@pytest.fixture
def instance(machines: Site, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """What another machine sees."""
    with dg.DagsterInstance.from_config(str(postgres.settings(tmp_path / "other"))) as found:
        found.get_runs_count()
        yield found


def drop(machines: Site, seed: int) -> None:
    """Let one case arrive."""
    made = machines.folder / "made" / f"case-{seed}"
    write_case(made, seed)
    landing = Workspace.from_env().landing / P
    landing.mkdir(parents=True, exist_ok=True)
    made.rename(landing / made.name)


def intakes(instance: dg.DagsterInstance, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
    return list(instance.get_runs(dg.RunsFilter(job_name=keys.job(P, keys.INTAKE), statuses=statuses)))


def cases() -> int:
    """Cases of the dataset."""
    return int(Workspace.from_env().lake.read("dataset", P)["case_id"].nunique())


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_a_case_goes_through_and_one_whose_machine_dies_goes_through_after_that(
    machines: Site, instance: dg.DagsterInstance
) -> None:
    port = free_port()
    machines.start_code_location()
    machines.start_daemon()
    machines.start_webserver(port)
    drop(machines, 1)
    success, started = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.STARTED
    machines.wait_for("the first intake", lambda: intakes(instance, success), instance)
    assert cases() == 1
    (run,) = intakes(instance, success)
    assert {keys.PROGRAM_TAG: P, keys.JOB_TAG: "rt_dose_intake", keys.KIND_TAG: "intake"}.items() <= run.tags.items()
    assert run.tags["dagster/priority"] == "20"

    def asked() -> list[str]:
        """Runs that a web server shows."""
        query = json.dumps({"query": "{runsOrError {... on Runs {results {runId}}}}"}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql", query, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return [one["runId"] for one in json.load(answer)["data"]["runsOrError"]["results"]]
        except OSError:
            return []

    machines.wait_for("the web server", lambda: run.run_id in asked(), instance)

    drop(machines, 2)

    def at_work() -> bool:
        going = intakes(instance, started)
        return bool(going and alive.signs(instance, [going[0].run_id]))

    machines.wait_for("the second intake to begin", at_work, instance)
    (lost,) = intakes(instance, started)
    machines.kill("code")
    assert runs.end_those_of_dead_workers(instance, lambda: 0.0) == []
    assert [one.run_id for one in intakes(instance, started)] == [lost.run_id], "nobody knows yet"
    ended = runs.end_those_of_dead_workers(instance, lambda: alive.SILENT_S + 1)
    assert {*ended} & {one.run_id for one in intakes(instance)} == {
        lost.run_id
    }  # an update of the first case may have begun too
    machines.start_code_location()
    machines.wait_for("the second case", lambda: len(intakes(instance, success)) == 2, instance)
    assert cases() == 2
    requested = [(one.status.value, one.tags) for one in intakes(instance)]
    assert len(requested) == 3, requested
