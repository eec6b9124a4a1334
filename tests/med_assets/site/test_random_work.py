"""Two machines on one bucket, killed at random and with faults in between, come to what one undisturbed machine comes to."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest

from med_assets.settings import Workspace
from tests import postgres
from tests.med_assets.site.harness import Site, configuration, served
from tests.med_assets.site.plan import Plan, plan
from tests.med_assets.site.state import differences

SEED = int(os.environ.get("SEED", "0"))
PHASES = int(os.environ.get("PHASES", "3"))
"""Phases of the long form; `make chaos N=100` for more."""

RUNS_PHASES = int(os.environ.get("RUNS_PHASES", "2"))
"""The same of the form in which Dagster runs the stages."""

MACHINES = tuple("abcdefgh"[: int(os.environ.get("MACHINES", "2"))])

FAULTS = {"failing": 0.1, "truncated": 0.05, "lost": 0.01, "closing": 0.01, "lag_s": 1.0, "rate_per_s": 100.0}
FEW_FAULTS = {"failing": 0.03, "truncated": 0.03, "closing": 0.01, "lag_s": 0.3}
"""Those of the short form."""


Opened = Callable[[Site, str], Workspace]


@pytest.fixture
def opened(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The workspace of one of the machines, or of another that sees no faults."""

    def open_home(site: Site, name: str) -> Workspace:
        environ = dict(site.environ(name))
        if site.server:
            environ["S3_ENDPOINT_URL"] = site.server.good
        for variable, value in environ.items():
            monkeypatch.setenv(variable, value)
        return Workspace.from_env()

    return open_home


def compare(
    opened: Opened,
    folder: Path,
    chosen: Plan,
    kills: int,
    faults: Mapping[str, float],
    timeout_s: float,
    database: Mapping[str, str] | None = None,
    back_off_s: float = 1.0,
) -> tuple[Site, list[str]]:
    """Let one machine do the plan undisturbed, and a site with kills and faults beside it; returns the site, and what differs.

    With a `database` the site's stages are runs of Dagster, whose record is there.
    """
    conf = configuration(folder)
    one = Site(folder / "one", chosen, SEED, conf, names=("a",))
    settle_s = 2.0 + 2 * faults["lag_s"]  # an entry is taken when its listing no longer lags
    with ThreadPoolExecutor(1) as beside, served(SEED, **faults) as server:
        undisturbed = beside.submit(one.work, timeout_s=2 * timeout_s)
        site = Site(
            folder / "site", chosen, SEED, conf, names=MACHINES, settle_s=settle_s, server=server, database=database,
            back_off_s=back_off_s,
        )  # fmt: skip
        site.work(kills, timeout_s=2 * timeout_s)
        site.counts.update(server.counts())
        undisturbed.result()
        return site, list(differences(opened(one, "a"), opened(site, "another")))


@pytest.mark.slow
def test_two_machines_that_are_killed_take_in_and_decide_what_one_does(opened: Opened, tmp_path: Path) -> None:
    chosen = plan(SEED, 2, cases=1, models=False)
    site, found = compare(opened, tmp_path, chosen, kills=2, faults=FEW_FAULTS, timeout_s=200, back_off_s=0.05)
    assert found == []
    assert site.counts["killed"] >= 1
    assert site.counts["failing"] > 0


@pytest.mark.drill
@pytest.mark.timeout(0)
def test_machines_that_are_killed_come_to_the_models_and_champions_of_one(
    opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, found = compare(opened, tmp_path, plan(SEED, PHASES), kills=3 * PHASES, faults=FAULTS, timeout_s=400 * PHASES)
    with capsys.disabled():
        print(f"\n{PHASES} phases, seed {SEED}: {site.summary()}")
    assert found == []
    assert site.counts["killed"] >= PHASES


@pytest.mark.drill
@pytest.mark.timeout(0)
def test_machines_with_one_record_of_dagster_come_to_the_same(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with postgres.running() as server:
        database = server.database()
        for name, value in database.items():
            monkeypatch.setenv(name, value)
        kills, timeout_s = 2 * RUNS_PHASES, 600 * RUNS_PHASES
        site, found = compare(opened, tmp_path, plan(SEED + 1, RUNS_PHASES), kills, FAULTS, timeout_s, database)
        with dg.DagsterInstance.from_config(site.environ("a")["DAGSTER_HOME"]) as instance:
            by_status = Counter(run.status.value for run in instance.get_runs())
    with capsys.disabled():
        print(f"\n{RUNS_PHASES} phases by Dagster, seed {SEED + 1}: {site.summary()}, runs {dict(by_status)}")
    assert found == []
    assert site.counts["killed"] >= RUNS_PHASES
    assert by_status["SUCCESS"] > by_status["FAILURE"]
    assert not {"STARTED", "QUEUED", "CANCELING"} & by_status.keys()
