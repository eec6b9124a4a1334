"""A case predicted under edited constraints: the network sees them, files say so, and the home keeps nothing of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from med_assets.catalog import Catalog
from med_assets.cli import main as cli
from med_assets.errors import ConfigurationError
from med_assets.programs.rt_dose.edited import edit_constraints
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import load_site
from med_assets.settings import Workspace
from tests.cases.test_to_predict import champion
from tests.med_assets.programs.rt_dose.builders import write_case
from tests.med_assets.stages.builders import P


def edited(prepared: Path, out: Path, *edits: str) -> PreparedCase:
    out.mkdir()
    edit_constraints(prepared, out, load_site("prostate_sib"), edits)
    return PreparedCase.open(out)


def test_an_edit_changes_its_own_constraint_alone_in_the_unit_of_its_kind(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    before = PreparedCase.open(folder)
    found = edited(folder, tmp_path / "out", "rectum V50=0.4", "Bowel V45=250", "rectum Dmax = 72", "PTV56=58")
    changed = {
        place
        for place, values in enumerate(zip(before.constraints, found.constraints, strict=True))
        if len(set(values)) > 1
    }
    assert changed == {1, 3, 6, 11}
    assert [found.constraints[place] for place in sorted(changed)] == pytest.approx([58 / 70, 0.4, 72 / 70, 250 / 500])
    np.testing.assert_array_equal(found.ct, before.ct)
    assert json.loads((tmp_path / "out" / "constraints.json").read_text())["bowel V45"] == 250


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("liver V50=0.4", "expected one of the constraints PTV70, PTV56"),
        ("rectum V50", "as NAME=VALUE"),
        ("rectum V50=-1", "a number from 0 up"),
        ("rectum V50=nan", "a number from 0 up"),
    ],
)
def test_what_is_no_constraint_is_refused(edit: str, message: str, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    with pytest.raises(ConfigurationError, match=message):
        edited(folder, tmp_path / "out", edit)


def test_the_command_predicts_another_dose_and_keeps_nothing(ingested: Workspace, tmp_path: Path) -> None:
    champion(ingested, P)
    (case,) = Catalog(ingested, P).cases()
    before = ingested.store.keys("prediction")
    for name, value in (("one", "0.5"), ("other", "0.05")):
        assert cli.main(["what-if", P, case.case_id[:6], f"rectum V50={value}", "--out", str(tmp_path / name)]) == 0
    assert json.loads((tmp_path / "other" / "constraints.json").read_text()) == {"rectum V50": 0.05}
    one, other = ((tmp_path / name / "dvh.csv").read_text() for name in ("one", "other"))
    assert one != other
    assert ingested.store.keys("prediction") == before
