"""What may pass de-identification in ultrasound of the breast."""

from med_assets.dicom.structure_names import Vocabulary

NORMAL = "normal"
LABELS = ("benign", "malignant", NORMAL, "lesion")
"""Labels of a segment: what its lesion is, or that the image was read and holds none. `lesion` says no more than that there is one."""

_DATASETS = frozenset({"BUSI", "BUSBRA", "BUS-UCLM", "BUID"})

TEXTS = {"ClinicalTrialProtocolID": _DATASETS, "ClinicalTrialSponsorName": _DATASETS}
"""The published data set that an image is of, as the importer writes it."""


def vocabulary() -> Vocabulary:
    """Return the names of segments, and the texts, that mean something here."""
    return Vocabulary(frozenset(LABELS), texts=TEXTS)
