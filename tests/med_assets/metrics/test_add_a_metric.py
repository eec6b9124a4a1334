"""The page `docs/add-a-metric.md`, done in a copy of the source: scores of an evaluated home have the metric, and nothing is inferred."""

import json
from pathlib import Path

import numpy as np
import pytest

from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.records import CaseScore
from med_assets.settings import Workspace
from tests.docs_tree import Tree
from tests.med_assets.stages.builders import P, drop, ingest

EVALUATE = """
import json
from med_assets import program
from med_assets.cli import stages
from med_assets.settings import Workspace

loads, chosen = [], program.get("rt_dose")
original = type(chosen).predictor
type(chosen).predictor = lambda self, ws, checkpoint: loads.append(checkpoint) or original(self, ws, checkpoint)
counts = stages.evaluate(Workspace.from_env(), "rt_dose", "mean_dose").counts
print(json.dumps([len(loads), counts]))
"""


@pytest.mark.slow
def test_a_metric_of_the_page_scores_what_was_predicted(workspace: Workspace, tmp_path: Path) -> None:
    for seed in (8, 9, 10):  # one each to validate, test and train
        drop(workspace, seed)
    ingest(workspace)
    stages.train(workspace, P, "mean_dose")
    stages.evaluate(workspace, P, "mean_dose")
    before = Catalog(workspace, P).rows(CaseScore, "mean_dose")
    tree = Tree(tmp_path / "source", "add-a-metric.md")
    tree.follow()
    tree.raise_version("med_assets/programs/rt_dose/__init__.py", "score")
    assert tree.changed().keys() == tree.listed()
    loads, counts = json.loads(tree.script(EVALUATE).splitlines()[-1])
    cases = {score.case_id for score in before}
    assert (loads, counts["new"]) == (0, len(cases))

    catalog = Catalog(workspace, P)
    after = catalog.rows(CaseScore, "mean_dose")
    key = [(score.case_id, score.metric, score.subject, score.value) for score in after]
    assert {one[:3] for one in key if one[1] != "homogeneity"} == {(s.case_id, s.metric, s.subject) for s in before}
    new = [score for score in after if score.metric == "homogeneity"]
    assert {score.case_id for score in new} == cases
    prepared = {case.case_id: case.artifact for case in catalog.dataset().cases}
    for score in new:
        case = PreparedCase.open(workspace.store.fetch(prepared[score.case_id]))
        high, middle, low = np.percentile(np.asarray(case.dose)[case.mask(score.subject)].astype(float), (98, 50, 2))
        assert score.truth == pytest.approx((high - low) / middle)
        assert score.value == pytest.approx(score.prediction - score.truth)
