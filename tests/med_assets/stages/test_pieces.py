"""A training given in pieces: it stops by itself, the same command goes on, and the graph takes its checkpoint over."""

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest

import resources
from assets import build_program, keys
from med_assets.cli import stages
from med_assets.errors import TrainingStopped
from med_assets.settings import Workspace
from med_assets.training.job import run
from med_assets.training.speed import PROFILE, WARM_UP
from tests.med_assets.programs.rt_dose.builders import TINY, write_case
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import cases

EXPERIMENT = "baseline"
PROFILED = 2
SHORT = (*TINY, f"patches.per_epoch={2 * (WARM_UP + PROFILED)}", "schedule.epochs=1")


def test_a_training_in_pieces_is_taken_over_by_the_graph_with_the_profile_of_its_steps(
    workspace: Workspace, tmp_path: Path
) -> None:
    cases(workspace, {"train": ["t0", "t1"], "val": ["v0"]})
    for seed, row in enumerate(workspace.lake.rows("dataset", P)):
        with workspace.store.create(row["artifact"]) as folder:
            shutil.copytree(write_case(tmp_path / "made" / row["case_id"], seed), folder, dirs_exist_ok=True)

    with pytest.raises(TrainingStopped):
        stages.train(workspace, P, EXPERIMENT, [*SHORT, "runtime.piece_s=0.01"], run)
    assert workspace.store.keys("checkpoint") == []

    # Neither the seconds of a piece nor a profile is a part of the checkpoint's key: the same job goes on.
    done = stages.train(workspace, P, EXPERIMENT, [*SHORT, f"runtime.profile_steps={PROFILED}"], run)
    assert done.counts["new"] == 1
    (job,) = [folder for folder in workspace.jobs.iterdir() if folder.is_dir()]
    begun = [line for line in (job / "events.jsonl").read_text().splitlines() if json.loads(line)["event"] == "start"]
    assert len(begun) == 2
    stored = workspace.store.fetch(str(done.summary["checkpoint"]))
    assert f"{PROFILED} training steps on cpu" in (stored / PROFILE).read_text()

    asset = keys.experiment_key(P, EXPERIMENT, "checkpoint")
    with dg.DagsterInstance.ephemeral() as instance:
        taken = dg.materialize(
            build_program(P),
            selection=[asset],
            instance=instance,
            resources=resources.build(),
            run_config={"ops": {"__".join(asset.path): {"config": {"overrides": list(SHORT)}}}},
        )
    (materialized,) = taken.asset_materializations_for_node("__".join(asset.path))
    assert materialized.metadata["count/reused"].value == 1
    assert materialized.metadata["checkpoint"].value == done.summary["checkpoint"]
