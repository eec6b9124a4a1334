"""A home that was moved: the next commands find all that they made before, and so does Dagster."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from assets import keys, run
from med_assets import program
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.settings import Workspace
from tests.conftest import settings_of

P, E = "rt_dose", "mean_dose"


def contents(home: Path) -> set[str]:
    """All stored artifacts of a home."""
    return {path.parent.relative_to(home).as_posix() for path in (home / "store").rglob("manifest.json")}


def plots(home: Path) -> dict[str, int]:
    """Time of change (ns) of each plot of a case."""
    return {path.name: path.stat().st_mtime_ns for path in (home / "reports" / P / "plots").rglob("*.png")}


def versions(instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey]) -> list[str]:
    """Newest data version of each asset."""
    events = [instance.get_latest_materialization_event(key) for key in assets]
    assert all(event is not None and event.asset_materialization is not None for event in events)
    return [
        (event.asset_materialization.tags or {})["dagster/data_version"]
        for event in events
        if event is not None and event.asset_materialization is not None
    ]


def test_a_renamed_home_goes_on_and_computes_nothing_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(workspace.home / "dagster"))
    program.get(P).write_phantoms(workspace.landing / P, 3, 8)  # one each to validate, test and train
    assert main(["ingest", P, "--now"]) == 0
    assert main(["train", f"{P}/{E}"]) == 0
    assert main(["evaluate", f"{P}/{E}"]) == 0
    data = [keys.key(P, stage) for stage in ("dataset", "splits")]
    with run.instance_of(workspace) as instance:
        run._step(instance, run.definitions_of(P), P, keys.INTAKE, "dataset and splits", data)
        before = versions(instance, data)
        (record,) = instance.get_run_records()
    made, rows = contents(workspace.home), workspace.lake.rows("evaluation_cases", f"{P}/{E}")
    plotted = plots(workspace.home)
    assert rows
    assert plotted

    moved = workspace.home.rename(tmp_path / "elsewhere")
    for name, value in settings_of(moved).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(moved / "dagster"))
    ws = Workspace.from_env()
    capsys.readouterr()
    assert main(["ingest", P, "--now"]) == 0
    assert "nothing new" in capsys.readouterr().out
    assert stages.train(ws, P, E).counts == {"new": 0, "reused": 1}
    evaluated = stages.evaluate(ws, P, E).counts
    assert evaluated["new"] == 0
    assert evaluated["reused"] == len({row["case_id"] for row in rows})
    assert contents(moved) == made
    assert plots(moved) == plotted, "a picture of the same prediction is not plotted again"
    next((moved / "reports" / P / "plots").rglob("*_dvh.png")).unlink()
    stages.evaluate(ws, P, E)
    assert plots(moved).keys() == plotted.keys(), "one that is gone is"
    assert ws.lake.rows("evaluation_cases", f"{P}/{E}") == rows
    assert main(["query", "select count(*) as n from evaluation_cases"]) == 0
    assert main(["verify"]) == 0
    with run.instance_of(ws) as instance:
        assert instance.get_run_record_by_id(record.dagster_run.run_id) is not None
        assert instance.all_logs(record.dagster_run.run_id)
        run._step(instance, run.definitions_of(P), P, keys.INTAKE, "dataset and splits", data)
        assert versions(instance, data) == before
    assert not workspace.home.exists()
    assert str(workspace.home) not in "".join(path.read_text() for path in (moved / "dagster").glob("*.yaml"))
