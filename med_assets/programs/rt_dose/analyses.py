"""The analyses of rt_dose; what each does is imported when it runs."""

from typing import TYPE_CHECKING, Any

from med_assets.analysis import Analysis, late
from med_assets.programs.rt_dose.site import load_site

if TYPE_CHECKING:
    from med_assets.settings import Workspace


HERE = "med_assets.programs.rt_dose"

VARIABILITY_VERSION = "1"
"""Version of the code of low_dose_variability, and of what it measures of each case."""


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
)
