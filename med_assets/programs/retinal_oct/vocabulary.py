"""What may pass de-identification in OCT of the retina: texts of AI-READI, as the importer writes them, and the devices."""

from med_assets.deidentification.ages import ages
from med_assets.dicom.structure_names import Vocabulary

CLASSES = ("healthy", "prediabetes", "oral medication", "insulin")
"""Classes 0 to 3, as AdmittingDiagnosesDescription carries them."""

YOUNGEST = 18
"""Least age that is kept, years: participants are adults."""

_DATASETS = frozenset({"AI-READI"})

TEXTS = {
    "ClinicalTrialProtocolID": _DATASETS,
    "ClinicalTrialSponsorName": _DATASETS,
    "ClinicalTrialSiteName": frozenset({"UW", "UCSD", "UAB"}),
    "ClinicalTrialSeriesID": frozenset({
        "spectralis_ppol_mac_hr_oct", "maestro2_3d_wide", "maestro2_macula_6x6", "maestro2_3d_macula", "triton_macula_6x6",
        "triton_macula_12x12", "cirrus_macula",
    }),
    "AdmittingDiagnosesDescription": frozenset(CLASSES),
    "PatientAge": ages(YOUNGEST),
    "Manufacturer": frozenset({"Heidelberg Engineering", "Topcon", "Carl Zeiss Meditec", "Heidelberg", "Zeiss"}),
    "ManufacturerModelName": frozenset({"Spectralis", "Maestro2", "Triton", "Cirrus"}),
}  # fmt: skip
"""Values by keyword: site, protocol, study group and age of a participant, and the device."""

SITES = tuple(sorted(TEXTS["ClinicalTrialSiteName"]))


def vocabulary() -> Vocabulary:
    """Return the texts that mean something here; no names of structures do."""
    return Vocabulary(frozenset(), texts=TEXTS)
