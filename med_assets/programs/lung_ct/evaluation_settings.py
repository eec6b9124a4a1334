"""What changes the scores of a case."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from med_assets.errors import ConfigurationError

PROFILES = ("full", "small", "demo")


class EvaluationSettings(BaseModel):
    """Everything that changes a score besides the case and the prediction; stored with every evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    surface_tolerance_mm: float = Field(
        default=2.0,
        ge=0,
        description="distance up to which two surfaces agree, mm; Medical Segmentation Decathlon, lung",
    )

    @classmethod
    def for_profile(cls, profile: str) -> Self:
        """Return the settings of a profile, the same in all. Raises ConfigurationError for one that there is not."""
        if profile not in PROFILES:
            raise ConfigurationError(f"expected MED_ASSETS_PROFILE among {list(PROFILES)}, got {profile!r}")
        return cls()
