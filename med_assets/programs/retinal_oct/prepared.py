"""A prepared case on disk: `image.npy`, float32 (frame, depth, lateral) as the network sees it, `bscan.npy`, uint8, the middle
B-scan as it was stored, between its 1st and 99.5th percentile, `case.json`, and `truth.json` where the class is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from med_assets.errors import ArtifactCorrupt
from med_assets.preparation.prepared import known, open_case
from med_assets.programs.retinal_oct.transforms import check_input
from med_assets.programs.retinal_oct.vocabulary import CLASSES


@dataclass(frozen=True)
class PreparedCase:
    """One case ready for training and scoring. `spacing_mm` is that of the volume as it was stored.

    `stated_label` is the class, 0 to 3, None for a case to predict; `protocol` and `clinical_site` are empty, `age_years` and `sex` are None where nobody stated
    it, or it was prepared before these were kept.
    """

    case_id: str
    stated_label: int | None
    protocol: str
    site: str
    laterality: str
    spacing_mm: tuple[float, float, float]
    synthetic: bool
    image: np.ndarray
    bscan: np.ndarray
    age_years: int | None = None
    clinical_site: str = ""
    sex: str | None = None

    @classmethod
    def open(cls, folder: Path, size: Sequence[int] | None = None) -> Self:
        """Open a folder in the prepared format; `size` is what the network expects. Raises ArtifactCorrupt."""
        try:
            facts, arrays = open_case(folder, ("image", "bscan"))
            image, bscan = arrays["image"], arrays["bscan"]
            frame, depth, lateral = (float(step) for step in facts["spacing_mm"])
            case = cls(
                case_id=str(facts["case_id"]),
                stated_label=CLASSES.index(facts["study_group"]) if facts.get("study_group") else None,
                protocol=str(facts["protocol"]),
                site=str(facts.get("site", "")),
                laterality=str(facts["laterality"]),
                spacing_mm=(frame, depth, lateral),
                synthetic=bool(facts["synthetic"]),
                age_years=None if facts.get("age_years") is None else int(facts["age_years"]),
                clinical_site=str(facts.get("clinical_site", "")),
                sex=facts.get("sex"),
                image=image,
                bscan=bscan,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactCorrupt(
                f"prepared case: a file or a field is missing or unreadable ({type(error).__name__}); prepare it again"
            ) from error
        if image.dtype != np.float32 or image.ndim != 3 or (size is not None and image.shape != tuple(size)):
            raise ArtifactCorrupt(
                f"prepared case {case.case_id}: image should be float32 {size and tuple(size)}, found {image.dtype} {image.shape}; "
                "the size is that of MED_ASSETS_PROFILE: use the profile that the cases were prepared with"
            )
        return case

    def volume(self) -> np.ndarray:
        """Return a copy of what a network sees, float32 (frame, depth, lateral). Raises ArtifactCorrupt unless its mean is 0 and its
        standard deviation 1."""
        image = np.array(self.image)
        check_input(image)
        return image

    @property
    def label(self) -> int:
        """The class, 0 to 3. Raises NoTruth for a case to predict."""
        return known(self.stated_label, self.case_id)
