"""A loaded dose model applied to prepared cases: scores, the predicted dose kept for the report, and its plots."""

from pathlib import Path

import numpy as np

from med_assets.metrics.score import Score
from med_assets.program import Scorer
from med_assets.programs.rt_dose.predict import load_predictor
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.score import EvaluationSettings, score_case
from med_assets.programs.rt_dose.site import Site
from med_assets.training.accelerator import inference_device

PREDICTION = "prediction_gy.npy"


class DoseScorer(Scorer):
    """Predicts whole volumes with one checkpoint and scores them for one site."""

    def __init__(self, checkpoint: Path, site: Site, settings: EvaluationSettings) -> None:
        self.predictor = load_predictor(checkpoint, inference_device())
        self.site = site
        self.settings = settings

    def score(self, prepared: Path, out: Path) -> list[Score]:
        case = PreparedCase.open(prepared)
        prediction = self.predictor(case)
        np.save(out / PREDICTION, prediction)
        return score_case(case, prediction, self.site, self.settings)


def draw(prepared: Path, predicted: Path, out: Path, settings: EvaluationSettings) -> list[Path]:
    """Dose colour wash, DVH and gamma map of one case, predicted against planned, as PNG files under `out`."""
    from med_assets.reports.dose_plots import plot_dose, plot_dvh
    from med_assets.reports.gamma_plots import plot_gamma

    case = PreparedCase.open(prepared)
    prediction = np.load(predicted / PREDICTION)
    masks = {name: case.mask(name) for name in case.present}
    out.mkdir(parents=True, exist_ok=True)
    truth = np.asarray(case.dose)
    targets = {name: mask for name, mask in masks.items() if name.startswith("PTV")}
    wash = plot_dose(
        out / f"{case.case_id}_dose.png", np.asarray(case.ct), truth, prediction, case.spacing_mm, case.prescription_gy,
        outlines=targets, title=f"case {case.case_id}",
    )  # fmt: skip
    dvh = plot_dvh(out / f"{case.case_id}_dvh.png", truth, prediction, masks, title=f"case {case.case_id}")
    gamma = plot_gamma(
        out / f"{case.case_id}_gamma.png", np.asarray(case.ct), truth, prediction, case.spacing_mm, np.asarray(case.body),
        settings.gamma[0], prescription_gy=case.prescription_gy, outlines=targets, title=f"case {case.case_id}",
    )  # fmt: skip
    return [wash, dvh, gamma]
