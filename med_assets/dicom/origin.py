"""What stored images of a case say of the machine that made them, and of the patient."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread

from med_assets.dicom.elements import quietly, text
from med_assets.storage.versions import versioned

DERIVED = frozenset({"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "SR"})
"""Modalities of objects that people and planning systems make of images; what made them is not the scanner."""

NOT_KEPT = frozenset({"", "REMOVED"})
"""Values in place of one that de-identification does not let through."""


@dataclass(frozen=True)
class Origin:
    """Manufacturer and model of the device that made the images, sex and age of the patient; None where an image does not state them or they were not kept."""

    manufacturer: str | None = None
    manufacturer_model: str | None = None
    sex: str | None = None
    age_years: int | None = None


_ELEMENTS = ("Modality", "Manufacturer", "ManufacturerModelName", "PatientSex", "PatientAge")

AGE = re.compile(r"([0-9]{3})Y\Z")
"""An age as de-identification leaves it: whole years."""


@versioned("2")
def origin_of(folder: Path) -> Origin:
    """Return the origin that the first image of a stored, de-identified case states (PS3.3 C.7.5.1, C.7.1.1, C.7.2.2)."""
    for path in sorted(folder.glob("*.dcm")):
        with quietly():
            ds = dcmread(path, stop_before_pixels=True, specific_tags=list(_ELEMENTS))
            if text(ds, "Modality") not in DERIVED:
                manufacturer, model, sex, age = (_kept(text(ds, name)) for name in _ELEMENTS[1:])
                years = AGE.match(age or "")
                return Origin(manufacturer, model, sex, int(years[1]) if years else None)
    return Origin()


def _kept(value: str) -> str | None:
    return None if value.strip() in NOT_KEPT else value.strip()
