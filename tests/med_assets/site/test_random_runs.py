"""The same as in test_random_work, with every stage a run of Dagster on one PostgreSQL; a file of its own, so that both run side by side."""

import os
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest

from tests import postgres
from tests.med_assets.site.compared import FAULTS, SEED, Opened, compare
from tests.med_assets.site.plan import plan

RUNS_PHASES = int(os.environ.get("RUNS_PHASES", "2"))
"""Phases of work."""


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
    assert not found, "\n".join(found)
    assert site.counts["killed"] >= RUNS_PHASES
    assert by_status["SUCCESS"] > by_status["FAILURE"]
    assert not {"STARTED", "QUEUED", "CANCELING"} & by_status.keys()
