"""The page `docs/add-a-launcher.md`, done in a copy of the source: a module and a line, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from med_assets.settings import Workspace
from tests.conftest import REPOSITORY
from tests.docs_blocks import blocks
from tests.med_assets.programs.rt_dose.builders import TINY, write_case
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import cases

SOURCE = ("med_assets", "assets", "resources", "sensors", "conf", "definitions.py", "pyproject.toml")
REGISTRY = "LAUNCHERS = {\n"
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
def tree(tmp_path: Path) -> Path:
    """A copy of the source with what the page says."""
    folder = tmp_path / "source"
    for name in SOURCE:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, folder / name)
    page = blocks(REPOSITORY / "docs" / "add-a-launcher.md")
    (module,) = [block.text for block in page if block.language == "python"]
    (line,) = [block.text for block in page if block.language == "text"]
    (folder / "med_assets" / "launch" / "copied.py").write_text(module)
    registry = folder / "med_assets" / "launch" / "configuration.py"
    assert registry.read_text().count(REGISTRY) == 1
    registry.write_text(registry.read_text().replace(REGISTRY, REGISTRY + line))
    return folder


def run(tree: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python on the copy of the source."""
    env = {**os.environ, "PYTHONPATH": str(tree), **more}
    return subprocess.run([sys.executable, *words], cwd=tree, env=env, capture_output=True, text=True, check=False)


def test_a_launcher_of_the_page_trains_by_command_and_through_the_graph(
    workspace: Workspace, tmp_path: Path, tree: Path
) -> None:
    cases(workspace, {"train": ["t0", "t1"], "val": ["v0"]})
    for seed, row in enumerate(workspace.lake.rows("dataset", P)):
        with workspace.store.create(row["artifact"]) as folder:
            shutil.copytree(write_case(tmp_path / "made" / row["case_id"], seed), folder, dirs_exist_ok=True)

    asked = ("launch.launcher=copied", "+launch.copies=night")
    command = ("-m", "med_assets.cli", "train", f"{P}/baseline", *TINY, "schedule.epochs=1", *asked)
    done = run(tree, *command)
    assert done.returncode == 0, done.stderr
    assert "training started as shell " in done.stderr
    assert "1 new, 0 reused" in done.stdout
    (copy,) = (workspace.home / "tmp" / "night").iterdir()
    assert (workspace.jobs / copy.name / "weights.pt").read_bytes() == (copy / "weights.pt").read_bytes()
    assert "0 new, 1 reused" in run(tree, *command).stdout

    done = run(tree, "-c", THROUGH_THE_GRAPH, MED_ASSETS_LAUNCHER="copied")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["new"] == 1
    assert seen["training"].startswith("shell ")
    assert len(list((workspace.home / "tmp" / "copies").iterdir())) == 1

    refused = run(tree, *command[:-1], "+launch.copies=../elsewhere")
    assert refused.returncode == 1
    assert "launch.copies" in refused.stderr
