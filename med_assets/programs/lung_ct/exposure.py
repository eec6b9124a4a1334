"""What the foundation model has seen of a case before: cases that it was trained on can't show how well it generalises.

The lists are those of VISTA3D's public configuration for MSD Task06 (`vista3d/data/jsons/Task06_5_folds.json`, with fold 0 held
out as in its stages): 40 cases gave gradients, 10 chose the model, 13 were its test set. Whether the released weights were made
with exactly this configuration is not known.
"""

import random
from functools import lru_cache
from typing import Literal

Exposure = Literal["unseen", "trained", "selected"]

PATIENT_PREFIX = "MSD-Task06_Lung-"
"""What the importer puts before a case's name to make the PatientID, as in MSD-Task06_Lung-lung_015."""

FOLDS = 5
"""Folds of the seed's split; fold 0 is for validation."""


def _ids(text: str) -> tuple[str, ...]:
    return tuple(f"lung_{number}" for number in text.split())


TRAINED = _ids(
    "001 003 004 005 006 009 010 014 016 020 022 023 025 026 027 029 033 037 038 041 "
    "042 045 046 048 049 051 054 055 057 058 059 061 065 070 071 074 079 083 084 093"
)
SELECTED = _ids("015 031 044 053 073 075 086 092 095 096")
TESTED = _ids("018 028 034 036 043 047 062 064 066 069 078 080 081")


def patient_id(case: str) -> str:
    """Return the PatientID that the importer gives to a case of MSD Task06, such as lung_015."""
    return PATIENT_PREFIX + case


@lru_cache(maxsize=4)
def _exposures(key: bytes) -> dict[str, Exposure]:
    from med_assets.deidentification.deidentify import Deidentifier

    pseudonym = Deidentifier(key).pseudonym
    found: dict[str, Exposure] = {pseudonym(patient_id(case)): "trained" for case in TRAINED}
    return found | {pseudonym(patient_id(case)): "selected" for case in SELECTED}


def exposure(key: bytes, pseudonym: str) -> Exposure:
    """Return what the foundation model has seen of a patient: "trained" on it, "selected" by it, or "unseen".

    `pseudonym` is the stored PatientID, made with the workspace's `key`. Cases that came under another PatientID than
    `patient_id` can't be recognised and are "unseen".
    """
    return _exposures(key).get(pseudonym, "unseen")


def task06_folds() -> dict[str, int]:
    """Return the seed's fold of each case of MSD Task06: names sorted, shuffled with seed 0, dealt out to five folds."""
    cases = sorted((*TRAINED, *SELECTED, *TESTED))
    random.Random(0).shuffle(cases)
    return {case: index % FOLDS for index, case in enumerate(cases)}


@lru_cache(maxsize=4)
def task06_splits(key: bytes) -> dict[str, tuple[str, int]]:
    """Return split ("val" for fold 0, else "train") and fold of the patients of MSD Task06, by pseudonym."""
    from med_assets.deidentification.deidentify import Deidentifier

    pseudonym = Deidentifier(key).pseudonym
    return {
        pseudonym(patient_id(case)): ("train" if fold else "val", fold) for case, fold in sorted(task06_folds().items())
    }
