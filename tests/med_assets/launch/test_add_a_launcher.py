"""The page `docs/add-a-launcher.md`, done in a copy of the source: a module and a line, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from med_assets.settings import Workspace
from tests.docs_tree import Tree
from tests.med_assets.programs.rt_dose.builders import TINY, write_case
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import cases

THROUGH_THE_GRAPH = """
import json
import dagster as dg
import resources
from assets import build_program, keys

key = keys.experiment_key("rt_dose", "mean_dose", "checkpoint")
with dg.DagsterInstance.ephemeral() as instance:
    done = dg.materialize(build_program("rt_dose"), selection=[key], instance=instance, resources=resources.build())
    (event,) = done.get_asset_materialization_events()
    tags = instance.get_run_by_id(done.run_id).tags
print(json.dumps({"new": event.materialization.metadata["count/new"].value, "training": tags["med_assets/training"]}))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A copy of the source with what the page says."""
    made = Tree(tmp_path / "source", "add-a-launcher.md")
    made.follow()
    assert made.changed() == {
        "med_assets/launch/names.py": "edited",
        "med_assets/launch/copied.py": "added",
    }
    return made


def test_a_launcher_of_the_page_trains_by_command_and_through_the_graph(
    workspace: Workspace, tmp_path: Path, tree: Tree
) -> None:
    cases(workspace, {"train": ["t0", "t1"], "val": ["v0"]})
    for seed, row in enumerate(workspace.lake.rows("dataset", P)):
        with workspace.store.create(row["artifact"]) as folder:
            shutil.copytree(write_case(tmp_path / "made" / row["case_id"], seed), folder, dirs_exist_ok=True)

    asked = " ".join((f"med-assets train {P}/baseline", *TINY, "schedule.epochs=1", "launch.launcher=copied"))
    train, refused = f"{asked} +launch.copies=night", f"{asked} +launch.copies=../elsewhere"
    done = tree.try_med_assets(train, train, refused)
    counts = [line for line in done.stdout.splitlines() if "reused" in line]
    assert ["1 new, 0 reused" in counts[0], "0 new, 1 reused" in counts[1], len(counts)] == [True, True, 2], done.stderr
    assert "training started as shell " in done.stderr
    assert done.returncode == 1
    assert "launch.copies" in done.stderr
    (copy,) = (workspace.home / "tmp" / "night").iterdir()
    assert (workspace.jobs / copy.name / "weights.pt").read_bytes() == (copy / "weights.pt").read_bytes()

    done = tree.python(THROUGH_THE_GRAPH, MED_ASSETS_LAUNCHER="copied")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["new"] == 1
    assert seen["training"].startswith("shell ")
    assert len(list((workspace.home / "tmp" / "copies").iterdir())) == 1
