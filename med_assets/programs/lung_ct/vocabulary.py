"""What may pass de-identification in chest CT beside the names of anatomy, which `labels.py` has."""

MSD_TASKS = (
    "Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus", "Task05_Prostate", "Task06_Lung",
    "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon",
)  # fmt: skip
"""Folder names of the Medical Segmentation Decathlon."""

_DATASETS = frozenset({"datalist", *(f"MSD {task}" for task in MSD_TASKS)})

TEXTS = {"ClinicalTrialProtocolID": _DATASETS, "ClinicalTrialSponsorName": _DATASETS}
"""The data set that a case is of, as the importers of label volumes write it."""
