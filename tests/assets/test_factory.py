"""What assets have in common: data versions, checks, metadata and errors that are safe to show, on the real assets."""

from pathlib import Path

import dagster as dg
import pytest

import resources
from assets import checks, data, keys
from assets.factory import attributes, batches, materialized
from med_assets.review.address import REVIEW_URL
from med_assets.storage.result import CheckOutcome, StageResult
from resources.phi_safe_errors import phi_safe

KEY = keys.key("rt_dose", "dataset")
COMMON = attributes(KEY, "test", "1-abc", {"parquet"})


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path))
    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "a key for tests that is long enough")


def test_the_data_version_is_the_hash_that_the_stage_returns_and_provenance_is_shown() -> None:
    @dg.asset(**COMMON)
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return materialized(context, StageResult("hash-of-content", {"new": 1}))

    (event,) = dg.materialize([asset]).get_asset_materialization_events()
    made = event.materialization
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == "hash-of-content"
    assert made.tags["dagster/code_version"] == "1-abc"
    assert made.metadata["count/new"].value == 1
    assert {"provenance/git_commit", "provenance/code_version", "provenance/data_version"} <= made.metadata.keys()
    assert made.metadata["provenance/code_version"].value == "1-abc"


@pytest.mark.parametrize(("setting", "address"), [(None, "http://127.0.0.1:3001/rt_dose/"), ("", None)])
def test_an_asset_links_to_the_review_of_its_program(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, address: str | None
) -> None:
    monkeypatch.delenv(REVIEW_URL, raising=False)
    if setting is not None:
        monkeypatch.setenv(REVIEW_URL, setting)

    @dg.asset(**COMMON)
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return materialized(context, StageResult("v"))

    (event,) = dg.materialize([asset]).get_asset_materialization_events()
    shown = event.materialization.metadata.get("review")
    assert (None if shown is None else shown.value) == address


@pytest.mark.parametrize(
    ("passed", "severity", "goes_on"), [(True, "error", True), (False, "error", False), (False, "warn", True)]
)
def test_only_a_failed_check_of_severity_error_stops_what_comes_after(
    passed: bool, severity: str, goes_on: bool
) -> None:
    @dg.asset(**COMMON, check_specs=[checks.blocking("sound", KEY, "guards")])
    def first(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        outcome = CheckOutcome(passed, "because", severity, {"n": 3})  # type: ignore[arg-type]  # a parameter of the test
        return materialized(context, StageResult("v"), sound=outcome)

    @dg.asset(deps=[KEY])
    def after() -> None:
        """Whatever reads the dataset."""

    done = dg.materialize([first, after], raise_on_error=False)
    reached = {event.asset_key for event in done.get_asset_materialization_events()}
    assert (after.key in reached) == goes_on
    (check,) = done.get_asset_check_evaluations()
    assert (check.passed, check.description, check.metadata["n"].value) == (passed, "because", 3)


def test_an_unexpected_error_over_raw_files_keeps_names_out_of_the_event_log() -> None:
    def fail() -> dg.MaterializeResult:
        raise FileNotFoundError(2, "no such file", "/landing/SMITH^JOHN/1.dcm")

    @dg.asset(**COMMON)
    def asset() -> dg.MaterializeResult:
        return phi_safe(fail)

    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize([asset], instance=instance, raise_on_error=False)
        assert not done.success
        text = str(instance.all_logs(done.run_id))
    assert "FileNotFoundError at" in text
    assert "SMITH" not in text


def test_an_asset_by_batch_gets_its_partition() -> None:
    seen: list[str] = []

    @dg.asset(**COMMON, partitions_def=keys.batches_of("rt_dose"))
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        seen.extend(batches(context))
        return materialized(context, StageResult("v"))

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("rt_dose_batches", ["2026-01-31T09-30-00_0a1b2c"])
        assert dg.materialize([asset], instance=instance, partition_key="2026-01-31T09-30-00_0a1b2c").success
    assert seen == ["2026-01-31T09-30-00_0a1b2c"]


def test_an_asset_of_a_program_runs_its_stage_and_its_checks() -> None:
    done = dg.materialize([data.dataset("rt_dose")], resources=resources.build())
    assert {check.check_name: check.passed for check in done.get_asset_check_evaluations()} == {"synthetic_data": True}
