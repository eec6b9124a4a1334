"""The analyses of rt_dose; what each does is imported when it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.evaluation.analysis import Analysis
from med_assets.programs.rt_dose.experiment import DoseExperiment
from med_assets.programs.rt_dose.site import load_site
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    from med_assets.program import ReportTable
    from med_assets.settings import Settings


def _samplings(ws: "Settings") -> dict[str, Any]:
    """What is sampled of every diffusion model, and the regions; the models themselves are what the analysis reads."""
    from med_assets import program
    from med_assets.launch.training import usable

    asked = {}
    for name, one in usable(ws, "rt_dose").items():
        if isinstance(one, DoseExperiment) and one.network.kind == "ddpm":
            asked[name] = one.diffusion.ablation.model_dump()
    return {"ablation": asked, "scores": program.get("rt_dose").evaluation_settings(ws)}


def _site_and_scores(ws: "Settings") -> dict[str, Any]:
    """What decides the classes of voxels, and the key of a prediction."""
    from med_assets import program

    site, chosen = load_site(ws.option("rt_dose", "site", "prostate_sib")), program.get("rt_dose")
    return {"targets": site.targets, "oars": site.oars, "scores": chosen.evaluation_settings(ws)}


@versioned("2")
def gamma_by_region(ws: "Settings", out: Path) -> "Sequence[ReportTable]":
    """Gamma passing rates by region."""
    from med_assets.programs.rt_dose.gamma_by_region import gamma_by_region

    return gamma_by_region(ws, out)


@versioned("1")
def low_dose_variability(ws: "Settings", out: Path) -> "Sequence[ReportTable]":
    """Natural variability; the version is also that of what is measured of each case."""
    from med_assets.programs.rt_dose.low_dose_variability import low_dose_variability

    return low_dose_variability(ws, out)


@versioned("1")
def diffusion_sampling(ws: "Settings", out: Path) -> "Sequence[ReportTable]":
    """Sampling of diffusion models; the version is also that of what is measured of each case."""
    from med_assets.programs.rt_dose.ablation import ablation

    return ablation(ws, out)


ANALYSES = (
    Analysis(
        "gamma_by_region",
        "Gamma by region",
        "Gamma passing rates of all evaluated experiments near targets, in organs at risk and elsewhere, with intervals.",
        ("evaluation",),
        gamma_by_region,
    ),
    Analysis(
        "low_dose_variability",
        "Natural variability",
        "How far planned doses of other patients lie apart at the same geometry, and whether models err by more than that.",
        ("dataset", "splits", "evaluation"),
        low_dose_variability,
        _site_and_scores,
    ),
    Analysis(
        "diffusion_sampling",
        "Sampling of diffusion models",
        "Dose score by steps and ensemble size of the diffusion models, and how much their samples differ in each region.",
        ("splits", "checkpoint"),
        diffusion_sampling,
        _samplings,
        expensive=True,
    ),
)
