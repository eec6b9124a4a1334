"""What changes the scores of a case."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from med_assets.errors import ConfigurationError
from med_assets.metrics.gamma_settings import GammaSettings
from med_assets.programs.rt_dose.site import Site

PROFILES = {
    "full": None,
    "small": None,
    "demo": (1000, 5),
}
"""Most points of a region and most steps of the search with which gamma is computed in each profile, where it has such limits."""


class EvaluationSettings(BaseModel):
    """Everything that changes a score besides the case, the prediction and the site; stored with every evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gamma: tuple[GammaSettings, ...] = Field(
        default=(GammaSettings(),), min_length=1, description="choices behind the gamma passing rates"
    )
    ptv_margin_mm: float = Field(
        default=5.0, ge=0, description="the gamma region around the targets reaches this far, mm"
    )

    @classmethod
    def for_profile(cls, profile: str, site: Site) -> Self:
        """Return the site's settings in a profile of `conf/rt_dose/profiles`; small ones sample gamma thinly, to take seconds.

        Raises ConfigurationError for a profile without settings.
        """
        if profile not in PROFILES:
            raise ConfigurationError(f"expected MED_ASSETS_PROFILE among {sorted(PROFILES)}, got {profile!r}")
        return cls(gamma=tuple(_sampled(one, PROFILES[profile]) for one in site.gamma))


def _sampled(gamma: GammaSettings, most: tuple[int, int] | None) -> GammaSettings:
    if most is None:
        return gamma
    points, steps = most
    return gamma.model_copy(
        update={
            "max_points": min(points, gamma.max_points or points),
            "interp_fraction": min(steps, gamma.interp_fraction),
        }
    )
