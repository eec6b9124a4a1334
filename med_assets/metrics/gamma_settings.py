"""The choices behind a gamma passing rate, apart from the code that computes it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class GammaSettings(BaseModel):
    """The choices behind a gamma passing rate; two rates compare only when all of them are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dose_percent_threshold: float = Field(default=3.0, gt=0, description="dose criterion, % of the normalisation dose")
    distance_mm_threshold: float = Field(default=3.0, gt=0, description="distance to agreement, mm")
    lower_cutoff_percent: float = Field(
        default=10.0, ge=0, le=100, description="reference voxels below this % of the normalisation dose are left out"
    )
    normalisation: Literal["max_reference", "prescription"] = Field(
        default="max_reference", description="dose of 100 % in the global criterion and the cut-off"
    )
    interp_fraction: int = Field(
        default=10,
        ge=1,
        description="the predicted dose is searched in steps of distance_mm_threshold / interp_fraction",
    )
    max_points: int | None = Field(
        default=5000, ge=1, description="reference voxels sampled per region with the seed; null evaluates every voxel"
    )
    seed: int = Field(default=0, ge=0, description="seed of the sample of reference voxels")

    @property
    def name(self) -> str:
        """Name of the rate as a metric."""
        return f"gamma_{self.dose_percent_threshold:g}pct_{self.distance_mm_threshold:g}mm"

    def convention(self) -> str:
        """Return the settings as one sentence that is stored with the number."""
        sample = (
            "all reference voxels"
            if self.max_points is None
            else f"at most {self.max_points} random reference voxels per region (seed {self.seed})"
        )
        base = "the maximum planned dose" if self.normalisation == "max_reference" else "the prescription"
        return (
            f"global gamma {self.dose_percent_threshold:g}%/{self.distance_mm_threshold:g} mm, % of {base}; reference "
            f"is the planned dose, from {self.lower_cutoff_percent:g}% up, inside the body; 3-D search in steps of "
            f"{self.distance_mm_threshold / self.interp_fraction:g} mm; {sample}; pymedphys"
        )
