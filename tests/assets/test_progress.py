"""A run logs how far it is, in lines with rate and time left; what is done soon logs none."""

import dagster as dg
import pytest

from med_assets.settings import Workspace
from med_assets.storage import progress
from tests.assets.test_gates import materialized
from tests.med_assets.stages.builders import drop, take


def logged(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """Lines about progress in the log of a run."""
    lines = [entry.user_message for entry in instance.all_logs(run_id)]
    return [line for line in lines if line.startswith(("taking in:", "preparing:"))]


def test_a_run_logs_how_many_cases_are_done(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(workspace, 1)
    batch = take(workspace)
    result = materialized(instance, batch, "raw_cases")
    assert result.success
    assert logged(instance, result.run_id) == []
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    result = materialized(instance, batch, "raw_cases", "prepared_cases")
    lines = logged(instance, result.run_id)
    assert {"taking in: 1 of 1 entries", "preparing: 1 of 1 cases"} <= set(lines)
