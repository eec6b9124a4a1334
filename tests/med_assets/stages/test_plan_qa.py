"""Plans compared with predictions: a page for each, what the table says, and what can't be compared."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from med_assets.capabilities import ModelOfPage, UsualError
from med_assets.catalog import Catalog
from med_assets.cli import main as cli
from med_assets.cli import stages
from med_assets.errors import ConfigurationError
from med_assets.evaluation.plan_qa import PAGE, TABLE
from med_assets.evaluation.scoring import score_key
from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
from med_assets.programs.rt_dose.kept import PREDICTION
from med_assets.programs.rt_dose.plan_page import write_page
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.score import score_case
from med_assets.programs.rt_dose.site import load_site
from med_assets.settings import Workspace
from med_assets.storage.files import read_json
from tests.cases.test_to_predict import champion, strip
from tests.med_assets.programs.rt_dose.builders import write_case
from tests.med_assets.stages.builders import P, phantom


def pages_of(pdf: Path) -> int:
    """Pages of a PDF as matplotlib writes it."""
    return pdf.read_bytes().count(b"/Type /Page ") + pdf.read_bytes().count(b"/Type /Page\n")


def test_a_plan_of_the_dataset_and_the_same_in_a_folder_get_the_page_and_the_scores_of_the_evaluation(
    ingested: Workspace, tmp_path: Path
) -> None:
    (case,) = Catalog(ingested, P).cases()
    checkpoint = champion(ingested, P, learned=[case.case_id])
    assert cli.main(["plan-qa", P, "--out", str(tmp_path / "all")]) == 0
    page = tmp_path / "all" / case.case_id / PAGE
    assert page.read_bytes().startswith(b"%PDF")
    assert pages_of(page) == 1
    (row,) = pd.read_csv(tmp_path / "all" / TABLE).to_dict("records")
    stored = read_json(ingested.store.fetch(score_key(ingested, P, checkpoint, case.artifact)) / "scores.json")
    by_name = {(score["metric"], score["subject"]): score for score in stored}
    assert row["status"] == "compared"
    assert row["model trained on it"] == "yes"
    assert row["dose score, Gy"] == pytest.approx(by_name["openkbp_dose_score", "body"]["value"])
    missed = [one for one in stored if one["metric"].startswith("limit_") and one["passed_truth"] is False]
    names = row["plan misses"] if isinstance(row["plan misses"], str) else ""
    assert len(missed) == len([name for name in names.split(", ") if name])

    shutil.copytree(phantom(1), tmp_path / "arrived" / "planned")
    strip(Path(shutil.copytree(phantom(2), tmp_path / "arrived" / "to-plan")), P)
    assert cli.main(["plan-qa", P, str(tmp_path / "arrived"), "--out", str(tmp_path / "folder")]) == 0
    found = pd.read_csv(tmp_path / "folder" / TABLE).set_index("status")
    assert found.loc["compared", "dose score, Gy"] == pytest.approx(row["dose score, Gy"])
    assert pages_of(tmp_path / "folder" / str(found.loc["compared", "files"])) == 1
    assert "planned dose" in str(found.loc["refused", "reason"])


def test_what_is_not_there_is_refused(ingested: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no champion yet"):
        stages.plan_qa(ingested, P, None, None, tmp_path)
    with pytest.raises(ConfigurationError, match="compares plans"):
        stages.plan_qa(ingested, "lung_ct", None, None, tmp_path)
    champion(ingested, P)
    with pytest.raises(ConfigurationError, match="got 0 cases"):
        stages.plan_qa(ingested, P, "no-such-case", None, tmp_path)


def test_the_table_names_limits_that_the_plan_misses_and_those_that_the_prediction_keeps(tmp_path: Path) -> None:
    site, folder = load_site("prostate_sib"), write_case(tmp_path / "case0")
    dose = np.load(folder / "dose.npy")
    case = PreparedCase.open(folder)
    dose[case.mask("Rectum")] = 76.0  # above every limit of the rectum
    np.save(folder / "dose.npy", dose)
    case = PreparedCase.open(folder)
    prediction = np.asarray(case.dose).copy()
    prediction[case.mask("Rectum")] = 40.0
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    np.save(predicted / PREDICTION, prediction)
    scores = score_case(case, prediction, site, EvaluationSettings.for_profile("demo", site))
    model = ModelOfPage("baseline", "checkpoint/0", True, {("dvh_Dmean", "Rectum"): UsualError(1.5, 4)})
    found = write_page(folder, predicted, scores, site, model, tmp_path / "page.pdf")
    rectum = "Rectum V70, Rectum V60, Rectum V50, Rectum Dmax"
    assert str(found["plan misses"]).startswith(rectum)
    assert found["plan misses, prediction keeps"] == rectum
    assert found["limits"] == len(site.limits)
