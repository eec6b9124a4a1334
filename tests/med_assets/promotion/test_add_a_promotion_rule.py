"""The page `docs/add-a-promotion-rule.md`, done in a copy of the source: the rule refuses what the others would promote."""

import json
from pathlib import Path

import numpy as np

from med_assets.settings import Workspace
from tests.docs_tree import Tree
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, model

DECIDE = """
import json
from med_assets.promotion.gate import decide
import numpy as np

from med_assets.settings import Workspace

(verdict,) = decide(Workspace.from_env(), "rt_dose")
print(json.dumps([verdict.promoted, verdict.reason]))
"""


def test_a_rule_of_the_page_refuses_a_challenger(workspace: Workspace, tmp_path: Path) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL})
    model(workspace, "mean_dose", {name: 5.0 + 0.02 * place for place, name in enumerate(VAL)})
    gain = np.random.default_rng(0).normal(1.2, 1.1, len(VAL))  # Gy; one case is worse by 1.36 Gy
    model(workspace, "baseline", {name: 5.0 + 0.02 * place - gain[place] for place, name in enumerate(VAL)})
    before = Tree(tmp_path / "before", "add-a-promotion-rule.md")
    promoted, reason = json.loads(before.script(DECIDE))
    assert promoted, reason

    tree = Tree(tmp_path / "source", "add-a-promotion-rule.md")
    tree.follow()
    tree.raise_version("med_assets/promotion/stage.py", "champion")
    assert tree.changed().keys() == tree.listed()
    assert [path for path, how in tree.changed().items() if how == "added"] == ["med_assets/promotion/worst_case.py"]
    promoted, reason = json.loads(tree.script(DECIDE))
    assert not promoted
    assert (
        f"worse than mean_dose by 1.36 Gy in openkbp_dose_score of case {VAL[int(gain.argmin())]}; expected at most 1 Gy in any case"
        in reason
    )

    unlimited = (
        (tree.folder / "conf" / P / "_program.yaml").read_text().replace("max_case_loss: 1.0", "max_case_loss: 2.0")
    )
    (tree.folder / "conf" / P / "_program.yaml").write_text(unlimited)
    assert json.loads(tree.script(DECIDE))[0]
