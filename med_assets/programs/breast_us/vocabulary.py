"""What may pass de-identification in ultrasound of the breast."""

from med_assets.dicom.structure_names import Vocabulary

NORMAL = "normal"
LABELS = ("benign", "malignant", NORMAL, "lesion")
"""Labels of a segment: what its lesion is, or that the image was read and holds none. `lesion` says no more than that there is one."""

ORGANS = "organs"
"""Label of an image whose segments are named organs, as a data set of conf/ declares them, and no lesions."""

DATASETS = frozenset({"BUSI", "BUSBRA", "BUS-UCLM", "BUID"})
"""The published data sets that an image may be of, as the importer writes them."""


def vocabulary() -> Vocabulary:
    """Return the names of segments, and the texts, that mean something here: names of data sets, those of conf/ among them."""
    from med_assets.programs.breast_us.datasets import dataset_names, organ_names

    names = DATASETS | dataset_names()
    return Vocabulary(
        frozenset(LABELS) | organ_names(), texts={"ClinicalTrialProtocolID": names, "ClinicalTrialSponsorName": names}
    )
