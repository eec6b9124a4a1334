"""What may pass de-identification in radiotherapy plans beside the ROI names, which a site's configuration has."""

_DATASETS = frozenset({"OpenKBP"})

TEXTS = {"ClinicalTrialProtocolID": _DATASETS, "ClinicalTrialSponsorName": _DATASETS}
"""The published data set that a plan is of, as the importer writes it."""
