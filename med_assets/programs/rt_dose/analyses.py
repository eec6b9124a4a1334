"""The analyses of rt_dose; what each does is imported when it runs."""

from typing import TYPE_CHECKING, Any

from med_assets.analysis import Analysis, late
from med_assets.programs.rt_dose.experiment import DoseExperiment
from med_assets.programs.rt_dose.site import load_site

if TYPE_CHECKING:
    from med_assets.settings import Workspace


HERE = "med_assets.programs.rt_dose"

VARIABILITY_VERSION = "1"
"""Version of the code of low_dose_variability, and of what it measures of each case."""

SAMPLING_VERSION = "1"
"""Version of the code of ablation, and of what it measures of each case."""


def _samplings(ws: "Workspace") -> dict[str, Any]:
    """What is sampled of every diffusion model, and the regions; the models themselves are what the analysis reads."""
    from med_assets import program
    from med_assets.stages.training import usable

    asked = {}
    for name, one in usable(ws, "rt_dose").items():
        if isinstance(one, DoseExperiment) and one.network.kind == "ddpm":
            asked[name] = one.diffusion.ablation.model_dump()
    return {"ablation": asked, "scores": program.get("rt_dose").evaluation_settings(ws)}


def _site_and_scores(ws: "Workspace") -> dict[str, Any]:
    """What decides the classes of voxels, and the key of a prediction."""
    from med_assets import program

    site, chosen = load_site(ws.option("rt_dose", "site", "prostate_sib")), program.get("rt_dose")
    return {"targets": site.targets, "oars": site.oars, "scores": chosen.evaluation_settings(ws)}


ANALYSES = (
    Analysis(
        "gamma_by_region",
        "Gamma by region",
        "Gamma passing rates of all evaluated experiments near targets, in organs at risk and elsewhere, with intervals.",
        ("evaluation",),
        "1",
        late(f"{HERE}.gamma_by_region:gamma_by_region"),
    ),
    Analysis(
        "low_dose_variability",
        "Natural variability",
        "How far planned doses of other patients lie apart at the same geometry, and whether models err by more than that.",
        ("dataset", "splits", "evaluation"),
        VARIABILITY_VERSION,
        late(f"{HERE}.low_dose_variability:low_dose_variability"),
        _site_and_scores,
    ),
    Analysis(
        "diffusion_sampling",
        "Sampling of diffusion models",
        "Dose score by steps and ensemble size of the diffusion models, and how much their samples differ in each region.",
        ("splits", "checkpoint"),
        SAMPLING_VERSION,
        late(f"{HERE}.ablation:ablation"),
        _samplings,
        expensive=True,
    ),
)
