"""What changes the scores of a case."""

import itertools
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from med_assets.errors import ConfigurationError
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import read_yaml

PROFILES = ("full", "small", "demo")

LESIONS = "_lesions.yaml"
"""File with the sizes of lesions that results are shown by."""


class EvaluationSettings(BaseModel):
    """Everything that changes a score besides the case and the prediction; stored with every evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    surface_tolerance_mm: float = Field(
        default=2.0,
        ge=0,
        description="distance up to which two surfaces agree, mm; Medical Segmentation Decathlon, lung",
    )
    band_ends_mm: tuple[float, ...] = Field(
        min_length=1,
        description="ends of the bands of lesion size, rising, mm: diameter of the sphere with the lesion's volume",
    )

    @field_validator("band_ends_mm")
    @classmethod
    def _ends_rise(cls, ends: tuple[float, ...]) -> tuple[float, ...]:
        if ends[0] <= 0 or any(high <= low for low, high in itertools.pairwise(ends)):
            raise ValueError(f"expected rising ends above 0 mm, got {list(ends)}")
        return ends

    @classmethod
    def for_profile(cls, profile: str) -> Self:
        """Return the settings of a profile, the same in all, with those of `_lesions.yaml`.

        Raises ConfigurationError for a profile that there is not, and for a file that can't be used.
        """
        if profile not in PROFILES:
            raise ConfigurationError(f"expected MED_ASSETS_PROFILE among {list(PROFILES)}, got {profile!r}")
        try:
            return cls.model_validate(read_yaml(conf_folder("lung_ct") / LESIONS))
        except ValidationError as error:
            raise ConfigurationError(f"conf/lung_ct/{LESIONS}: {error}") from error
