"""What changes the scores of a case."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from med_assets.errors import ConfigurationError

PROFILES = ("full", "small", "demo")


class EvaluationSettings(BaseModel):
    """Everything that changes a score besides the case and the prediction; stored with every evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    within_mm: tuple[float, ...] = Field(
        default=(5.0, 10.0), description="distances within which a level counts as located, mm"
    )

    @classmethod
    def for_profile(cls, profile: str) -> Self:
        """Return the settings of a profile, the same in all. Raises ConfigurationError for one that there is not."""
        if profile not in PROFILES:
            raise ConfigurationError(f"expected MED_ASSETS_PROFILE among {list(PROFILES)}, got {profile!r}")
        return cls()
