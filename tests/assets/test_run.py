"""The whole graph once through Dagster, with a real training, and what a second pass does."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from assets import keys, run
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.settings import Workspace
from med_assets.storage.conf import conf_folder
from tests.med_assets.stages.builders import P, drop
from tests.med_assets.stages.models import configure

EXPERIMENTS = ("baseline",)
SHORT = ("schedule.epochs=1", "patches.per_epoch=2", "patches.size=[16,32,32]", "inference.window=[16,32,32]")
SEEDS = (6, 7, 8)
"""With the tests' key, one patient each for training, test and validation."""


def data_versions(instance: dg.DagsterInstance) -> dict[str, str]:
    """Newest data version of every asset that a pass makes."""
    wanted = [keys.key(P, stage) for stage in keys.PER_PROGRAM]
    wanted += [keys.experiment_key(P, name, stage) for name in EXPERIMENTS for stage in keys.PER_EXPERIMENT]
    found = {}
    for key in wanted:
        event = instance.get_latest_materialization_event(key)
        assert event is not None, key
        assert event.asset_materialization is not None
        found[key.to_user_string()] = (event.asset_materialization.tags or {})["dagster/data_version"]
    return found


def counts(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str, object]:
    """Counts that the newest materialization shows."""
    event = instance.get_latest_materialization_event(key)
    assert event is not None
    assert event.asset_materialization is not None
    shown = event.asset_materialization.metadata
    return {name.removeprefix("count/"): value.value for name, value in shown.items() if name.startswith("count/")}


@pytest.mark.slow
def test_everything_is_made_once_and_the_evaluation_is_of_the_recorded_checkpoint(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(workspace.home / "dagster"))
    configure(tmp_path, monkeypatch)
    for path in conf_folder(P).glob("[a-z]*.yaml"):
        if path.stem not in ("mean_dose", *EXPERIMENTS):
            path.unlink()
    for seed in SEEDS:
        drop(workspace, seed)
    run.materialize(workspace, P, EXPERIMENTS, SHORT)
    assert {"train", "val", "test"} == {case.split for case in Catalog(workspace, P).cases()}
    with run.instance_of(workspace) as instance:
        first = data_versions(instance)
        assert counts(instance, keys.experiment_key(P, "baseline", "checkpoint")) == {"new": 1, "reused": 0}
        runs = instance.get_runs()
        assert {run.job_name for run in runs} == {
            keys.job(P, name) for name in (keys.INTAKE, keys.UPDATE, keys.RETRAIN, keys.EVALUATION_BACKFILL)
        }
        # Dagster's timeline shows runs of a code location only, under the names that workspace.yaml gives it.
        origins = {run.remote_job_origin.repository_origin.get_label() for run in runs if run.remote_job_origin}
        assert origins == {"__repository__@definitions"}
    page = (workspace.reports / P / "report.html").read_text()
    assert "Leaderboard" in page
    assert "Clinical limits" in page
    assert "data:image/png" in page
    assert "cases are synthetic" in page
    assert "experiments.html" in page
    listed = {row["experiment"]: row for row in workspace.lake.rows("experiments", P)}
    assert listed["mean_dose"]["status"] == "not trained"
    assert listed["baseline"]["status"] == "refused by the gate", (
        "without a baseline; not stale: the same command gives the same"
    )
    assert "med-assets train rt_dose/baseline schedule.epochs=1" in listed["baseline"]["command"]
    drawn = {path.name for path in (workspace.home / listed["baseline"]["notebook"]).with_name("figures").iterdir()}
    assert {f"median_{what}.{kind}" for what in ("dose", "dvh", "gamma") for kind in ("png", "pdf")} <= drawn

    run.materialize(workspace, P, EXPERIMENTS, SHORT)
    with run.instance_of(workspace) as instance:
        assert data_versions(instance) == first
        assert counts(instance, keys.experiment_key(P, "baseline", "checkpoint")) == {"new": 0, "reused": 1}
        assert counts(instance, keys.experiment_key(P, "baseline", "evaluation"))["new"] == 0

    shutil.rmtree(workspace.home / "dagster")
    run.materialize(workspace, P, training=False)
    with run.instance_of(workspace) as instance:
        assert data_versions(instance) == first, "a lost DAGSTER_HOME is made anew from the home"
        (event,) = instance.fetch_materializations(keys.experiment_key(P, "baseline", "checkpoint"), limit=9).records
        assert event.run_id == "", "reported without a run"

    written = stages.predict(workspace, P, Catalog(workspace, P).cases()[0].case_id, "baseline", tmp_path / "export")
    assert next(path.name for path in written) == "predicted_dose.dcm"

    # Law 7: a newer checkpoint beside it changes nothing, and one whose bytes changed is refused.
    recorded = workspace.lake.rows("checkpoints", f"{P}/baseline")[0]["checkpoint"]
    with workspace.store.create("checkpoint/ffffffffffffffff") as folder:
        (folder / "weights.pt").write_bytes(b"newer, and not asked for")
    assert {row["checkpoint"] for row in workspace.lake.rows("evaluation_cases", f"{P}/baseline")} == {recorded}
    assert stages.evaluate(workspace, P, "baseline").summary["checkpoint"] == recorded
    weights: Path = workspace.store.fetch(recorded) / "weights.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ArtifactCorrupt, match=r"weights\.pt"):
        stages.evaluate(workspace, P, "baseline")


def test_an_experiment_that_is_none_is_named(workspace: Workspace) -> None:
    with pytest.raises(ConfigurationError, match="basline"):
        run.materialize(workspace, P, ["basline"])
