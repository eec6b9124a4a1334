"""The page `docs/add-a-leaderboard-column.md`, done in a copy of the source: the leaderboard has the column."""

from pathlib import Path

from med_assets.settings import Workspace
from tests.docs_tree import Tree
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, constant, model


def test_a_column_of_the_page_is_in_the_leaderboard(workspace: Workspace, tmp_path: Path) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    model(workspace, "mean_dose", constant(5.0))
    model(workspace, "baseline", constant(4.0), train=TRAIN[:2])
    tree = Tree(tmp_path / "source", "add-a-leaderboard-column.md")
    tree.follow()
    tree.raise_version("med_assets/reporting/stage.py", "report")
    assert tree.changed().keys() == tree.listed()
    assert "trained on, cases" in tree.med_assets(f"med-assets leaderboard {P}")
    header, _, *lines = (workspace.reports / P / "leaderboard.md").read_text().splitlines()
    place = header.split("|").index(" trained on, cases ")
    found = {line.split("|")[1].strip(): line.split("|")[place].strip() for line in lines[:2]}
    assert found == {"baseline": "2", "mean_dose": "3"}
