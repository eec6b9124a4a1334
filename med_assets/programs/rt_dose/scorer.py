"""A loaded dose model applied to prepared cases: the predicted dose that is kept, its scores, and its plots."""

from pathlib import Path

import numpy as np

from med_assets.metrics.score import Score
from med_assets.metrics.spread import Space
from med_assets.program import CasePredictor
from med_assets.programs.rt_dose.evaluation_settings import EvaluationSettings
from med_assets.programs.rt_dose.kept import PREDICTION
from med_assets.programs.rt_dose.predict import load_predictor
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.score import score_case
from med_assets.programs.rt_dose.site import Site, load_site
from med_assets.training.accelerator import inference_device
from med_assets.training.ensemble import AS_IT_IS, Output


class DosePredictor(CasePredictor):
    """Predicts whole volumes with one checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.predictor = load_predictor(checkpoint, inference_device())

    def predict(self, prepared: Path, out: Path) -> None:
        self.keep(prepared, self.infer(prepared), out)

    def infer(self, prepared: Path, augmentation: str = AS_IT_IS, like: Output | None = None) -> Output:
        """The dose of a case in Gy, or of its mirror image mirrored back."""
        dose = self.predictor(PreparedCase.open(prepared), mirrored=augmentation != AS_IT_IS)
        return Output(Space.DOSE_GY, dose)

    def keep(self, prepared: Path, output: Output, out: Path) -> None:
        """Keep a dose."""
        assert output.values is not None
        np.save(out / PREDICTION, output.values)


def facts(prepared: Path, predicted: Path) -> dict[str, float | str | None]:
    """The highest dose, and the mean dose of each structure that the case has, Gy."""
    case, dose = PreparedCase.open(prepared), np.load(predicted / PREDICTION)
    means = {f"mean of {name}, Gy": float(dose[case.mask(name)].mean()) for name in case.present}
    return {"prescription, Gy": case.prescription_gy, "highest dose, Gy": float(dose.max()), **means}


def confidence(prepared: Path, predicted: Path) -> float | None:
    """How near the mean predicted dose of the site's main target is to the prescription, 1 at most; None without that target."""
    case = PreparedCase.open(prepared)
    target = load_site(case.site).main_target
    if target not in case.present:
        return None
    dose = np.load(predicted / PREDICTION)[case.mask(target)]
    return 1 - abs(float(dose.mean(dtype=np.float64)) / case.prescription_gy - 1)


def score(prepared: Path, predicted: Path, site: Site, settings: EvaluationSettings) -> list[Score]:
    """Score what `DosePredictor.predict` kept for one site. Raises NoTruth for a case to predict."""
    return score_case(PreparedCase.open(prepared), np.load(predicted / PREDICTION), site, settings)


def plot(prepared: Path, predicted: Path, out: Path, settings: EvaluationSettings) -> list[Path]:
    """Dose colour wash, DVH and gamma map of one case, predicted against planned, as PNG files under `out`.

    Of a case to predict the colour wash and the DVH of the prediction alone.
    """
    from med_assets.reporting.dose_plots import plot_dose, plot_dvh
    from med_assets.reporting.gamma_plots import plot_gamma

    case = PreparedCase.open(prepared)
    prediction = np.load(predicted / PREDICTION)
    calculated = None if case.planned_dose is None else np.asarray(case.valid)
    masks = {name: case.mask(name) for name in case.present}
    out.mkdir(parents=True, exist_ok=True)
    truth = None if case.planned_dose is None else np.asarray(case.dose)
    targets = {name: mask for name, mask in masks.items() if name.startswith("PTV")}
    wash = plot_dose(
        out / f"{case.case_id}_dose.png", np.asarray(case.ct), truth, prediction, case.spacing_mm, case.prescription_gy,
        outlines=targets, calculated=calculated, title=f"case {case.case_id}",
    )  # fmt: skip
    known = masks if calculated is None else {name: mask & calculated for name, mask in masks.items()}
    dvh = plot_dvh(out / f"{case.case_id}_dvh.png", truth, prediction, known, title=f"case {case.case_id}")
    if truth is None or calculated is None:
        return [wash, dvh]
    gamma = plot_gamma(
        out / f"{case.case_id}_gamma.png", np.asarray(case.ct), truth, prediction, case.spacing_mm, np.asarray(case.body) & calculated,
        settings.gamma[0], prescription_gy=case.prescription_gy, outlines=targets, title=f"case {case.case_id}",
    )  # fmt: skip
    return [wash, dvh, gamma]
