"""The page `docs/add-a-program.md`, done in a copy of the source: a folder, a line of the registry and `conf/`, and nothing else."""

import json

import pytest

from med_assets.catalog import Catalog
from med_assets.records import CaseScore, CaseVersion, PreparedCase, SplitAssignment
from med_assets.settings import Workspace
from tests.docs_tree import Tree

P = "prostate_mr"
GRAPH = """
import json
import definitions

mine = [spec for asset in definitions.graph for spec in asset.specs if spec.key.path[0] == "prostate_mr"]
print(json.dumps({"/".join(spec.key.path[1:]): spec.group_name for spec in mine}))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    made = Tree(tmp_path_factory.mktemp("source") / "source", "add-a-program.md")
    made.follow()
    return made


def test_nothing_but_the_folder_the_line_and_the_configuration_is_touched(tree: Tree) -> None:
    changed = tree.changed()
    assert [path for path, how in changed.items() if how == "edited"] == ["med_assets/program.py"]
    added = {path for path, how in changed.items() if how == "added"}
    assert changed.keys() == {"med_assets/program.py"} | added
    assert all(path.startswith(("med_assets/programs/prostate_mr/", "conf/prostate_mr/")) for path in added)


@pytest.mark.slow
def test_the_graph_has_every_asset_of_the_program(tree: Tree) -> None:
    found = json.loads(tree.script(GRAPH).splitlines()[-1])
    assert {"raw_cases", "prepared_cases", "dataset", "splits", "leaderboard", "champion", "report"} <= found.keys()
    assert {"checkpoint/unet", "evaluation/unet"} <= found.keys()


@pytest.mark.slow
def test_its_cases_are_taken_in_prepared_split_trained_on_and_scored(tree: Tree, workspace: Workspace) -> None:
    (commands,) = tree.commands()
    tree.med_assets(*commands.splitlines())
    catalog = Catalog(workspace, P)
    assert [one.status for one in catalog.rows(CaseVersion)] == ["ok"] * 16
    assert [one.status for one in catalog.rows(PreparedCase)] == ["ok"] * 16
    splits = {one.patient_id: one.split for one in catalog.rows(SplitAssignment)}
    assert {*splits.values()} == {"train", "val", "test"}
    scores = [one for one in catalog.rows(CaseScore, "unet") if one.metric == "dice"]
    held_out = [split for split in splits.values() if split != "train"]
    assert sorted(one.split for one in scores) == sorted(held_out)
    assert all(one.value is not None and one.value > 0.75 for one in scores), [one.value for one in scores]
    champion = catalog.champion()
    assert champion is not None
    assert champion.experiment == "unet"
    report = (workspace.reports / P / "report.html").read_text()
    assert "Prostate segmentation" in report
    assert "surface_dice" in report
