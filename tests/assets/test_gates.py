"""Gates that can fail: each is made to fail through the graph, and what is downstream does not run."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

import assets
import resources
from assets import keys, versions
from med_assets import program
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import ConfigurationError
from med_assets.intake.reader import Readers
from med_assets.intake.reading import Preparation
from med_assets.preparation.checks import audit
from med_assets.preparation.expectations import Expectation
from med_assets.settings import Workspace
from resources.workspace import WorkspaceResource
from sensors.monitoring import monitoring_schedule
from tests.med_assets.stages.builders import P, drop, files, take
from tests.med_assets.stages.models import TRAIN, VAL, cases, configure, constant, model, score
from tests.sensors.builders import predictions


def spoiled(ws: Workspace, seed: int) -> None:
    """A case without its structure set."""
    (path,) = files(drop(ws, seed), "RTSTRUCT")
    path.unlink()


def materialized(instance: dg.DagsterInstance, batch: str, *names: str) -> dg.ExecuteInProcessResult:
    """A run of these assets of the program over a batch, whether it fails or not."""
    instance.add_dynamic_partitions(f"{P}_batches", [batch])
    return run(instance, *names, batch=batch)


def run(instance: dg.DagsterInstance, *names: str, batch: str | None = None) -> dg.ExecuteInProcessResult:
    defs = dg.Definitions(assets=assets.build_program(P), resources=resources.build(), executor=dg.in_process_executor)
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[keys.key(P, name) for name in names],
        partition_key=batch,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


def made(result: dg.ExecuteInProcessResult) -> set[str]:
    return {
        event.asset_key.path[1] for event in result.get_asset_materialization_events() if event.asset_key is not None
    }


@pytest.mark.slow
def test_a_batch_of_which_too_much_is_quarantined_stays_out_of_the_dataset_until_a_person_accepts_it(
    workspace: Workspace,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(tmp_path, monkeypatch, audit={"max_quarantined_share": 0.5, "min_cases": 3})
    drop(workspace, 6)
    spoiled(workspace, 7)
    spoiled(workspace, 8)
    broken = take(workspace)
    result = materialized(instance, broken, *keys.DATA)
    assert not result.success
    assert made(result) == {"raw_cases", "prepared_cases"}
    (audit,) = [one for one in result.get_asset_check_evaluations() if one.check_name == "audit"]
    assert not audit.passed
    assert audit.severity == dg.AssetCheckSeverity.ERROR
    catalog = Catalog(workspace, P)
    assert catalog.held_back() == {broken}
    (accepted,) = [case.case_id for case in catalog.prepared(broken)]

    # The next batch passes its own gate and does not open that of the one before.
    drop(workspace, 9)
    good = take(workspace)
    result = materialized(instance, good, *keys.DATA)
    assert made(result) == set(keys.DATA)
    assert accepted not in {case.case_id for case in catalog.dataset().cases}
    assert len(catalog.dataset()) == 1
    assert main(["explain", accepted]) == 0
    assert f"accept-batch {P} {broken}" in capsys.readouterr().out

    assert main(["accept-batch", P, broken, "--reason", "two patients without contours are known"]) == 0
    assert accepted in {case.case_id for case in catalog.dataset().cases}
    result = materialized(instance, broken, *keys.DATA)  # and it stays accepted
    assert result.success
    assert made(result) == set(keys.DATA)
    assert len(catalog.dataset()) == 2


def test_a_batch_is_accepted_only_with_a_reason_and_only_where_it_was_audited(workspace: Workspace) -> None:
    with pytest.raises(ConfigurationError, match="expected a reason"):
        stages.accept_batch(workspace, P, "2026-01-01T00-00-00_abcdef", " ")
    with pytest.raises(ConfigurationError, match="that was audited"):
        stages.accept_batch(workspace, P, "2026-01-01T00-00-00_abcdef", "why")
    assert not audit(workspace, P, "2026-01-01T00-00-00_abcdef").passed


def test_a_small_batch_and_one_at_the_limit_pass_and_the_first_is_warned_of(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, audit={"max_quarantined_share": 0.5, "min_cases": 2})
    spoiled(workspace, 7)
    small = take(workspace)
    drop(workspace, 6)
    spoiled(workspace, 8)
    at_the_limit = take(workspace)
    for batch in (small, at_the_limit):
        stages.intake(workspace, P, batch)
        stages.prepare(workspace, P, batch)
    catalog = Catalog(workspace, P)
    assert catalog.held_back() == set()
    first, second = (audit(workspace, P, batch) for batch in (small, at_the_limit))
    assert (first.passed, first.severity) == (False, "warn")
    assert first.metadata["quarantined_share"] == 1.0
    assert second.passed
    assert second.metadata["reasons"] == {"no_rtstruct": 1}


def test_changed_expectations_audit_again_and_prepare_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(workspace, 6)
    batch = take(workspace)
    stages.intake(workspace, P, batch)
    stages.prepare(workspace, P, batch)
    catalog, code = Catalog(workspace, P), versions.of_prepared_cases(P)
    (before,) = catalog.prepared(batch)
    prepared: list[object] = []
    real = Readers.prepare

    def counted(self: Readers, task: Preparation) -> None:
        prepared.append(task)
        real(self, task)

    monkeypatch.setattr(Readers, "prepare", counted)

    chosen = program.get(P)
    limit = Expectation(
        "prescription_gy", "ExpectColumnValuesToBeBetween", {"max_value": 1.0}, "error", "prescribed at most 1 Gy"
    )
    own = chosen.expectations(workspace)
    monkeypatch.setattr(chosen, "expectations", lambda ws: (*own, limit))
    assert versions.of_prepared_cases(P) != code
    stages.prepare(workspace, P, batch)
    (after,) = catalog.prepared(batch)
    assert prepared == []
    assert (after.status, after.reason_code) == ("quarantined", "audit_failed")
    assert "prescribed at most 1 Gy" in (after.reason or "")

    monkeypatch.setattr(chosen, "expectations", lambda ws: own)
    stages.prepare(workspace, P, batch)
    assert prepared == []
    assert catalog.prepared(batch) == [replace(before)]


@pytest.mark.slow
def test_a_champion_that_became_worse_stops_what_follows_it(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    base = model(workspace, "mean_dose", constant(5.0, step=0.02))
    better = model(workspace, "baseline", constant(4.0))
    assert checked(instance, "champion")["champion_regression"]
    chosen = program.get(P)
    monkeypatch.setattr(chosen, "code_versions", {**chosen.code_versions, "evaluate": "worse"})
    for checkpoint, start in ((better, 4.5), (base, 5.0)):
        for name, value in constant(start, step=0.02).items():
            score(workspace, checkpoint, name, value)
    assert checked(instance, "champion", "experiments", "report") == {
        "champion_regression": False,
        "challenger_accepted": True,
    }
    with dg.build_schedule_context(instance, resources={"workspace": WorkspaceResource()}) as of_schedule:
        night = monitoring_schedule(P)(of_schedule)
    with dg.build_sensor_context(instance) as of_sensor:
        tick = predictions(P)(of_sensor)
    assert isinstance(night, dg.SkipReason)
    assert isinstance(tick, dg.SensorResult)
    for skipped in (night, tick.skip_reason):
        assert isinstance(skipped, dg.SkipReason)
        assert "worse than when it was promoted" in (skipped.skip_message or "")


def checked(instance: dg.DagsterInstance, *names: str) -> dict[str, bool]:
    """Materialize assets of the program of which the first is checked and nothing else runs; its checks, and what they found."""
    result = run(instance, *names)
    assert made(result) == {names[0]}
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
