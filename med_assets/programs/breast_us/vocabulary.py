"""What may pass de-identification in ultrasound of the breast."""

from med_assets.dicom.structure_names import Vocabulary
from med_assets.programs.breast_us.prepare import LABELS

_DATASETS = frozenset({"BUSI", "BUSBRA", "BUS-UCLM", "BUID"})

TEXTS = {"ClinicalTrialProtocolID": _DATASETS, "ClinicalTrialSponsorName": _DATASETS}
"""The published data set that an image is of, as the importer writes it."""


def vocabulary() -> Vocabulary:
    """Return the names of segments, and the texts, that mean something here."""
    return Vocabulary(frozenset(LABELS), texts=TEXTS)
