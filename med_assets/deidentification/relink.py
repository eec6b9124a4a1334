"""Objects made from de-identified cases, given back to the patient and study that they are about.

Pseudonyms are keyed, so whoever holds the key and the original files finds again which original stands behind each of them;
nothing has to be stored for that.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pydicom
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.errors import InvalidDicomError

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.elements import quietly, text
from med_assets.errors import CaseRejected

OF_PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip
"""Elements that a new object of a study shares with the others of it. DICOM PS3.3, Patient and General Study modules."""


@dataclass(frozen=True)
class Header:
    """What an original file says of itself: its study, all its UIDs, texts of patient and study by keyword, and names of ROIs."""

    study: str
    uids: tuple[str, ...]
    texts: Mapping[str, str]
    roi_names: tuple[str, ...] = ()


def read_header(path: Path) -> Header | None:
    """Read the header of a file; None of one that is no DICOM."""
    try:
        with quietly(), path.open("rb") as stream:
            ds = pydicom.dcmread(stream, stop_before_pixels=True)
            ds.decode()
            uids = tuple(uid for element in _uids(ds) for uid in _values(element))
            texts = {keyword: str(ds[keyword].value or "") for keyword in OF_PATIENT_AND_STUDY if keyword in ds}
            rois = tuple(text(item, "ROIName") for item in ds.get("StructureSetROISequence") or ())
            return Header(str(ds.get("StudyInstanceUID", "")), uids, texts, rois)
    # A file that is no DICOM object, or can't be read as one, is no original of the case; the caller names what it lacks.
    except (InvalidDicomError, OSError, ValueError, NotImplementedError, RecursionError, EOFError):
        return None


@dataclass
class Origin:
    """The UIDs of original files by their pseudonyms, and what they say of patient and study, by pseudonymous study UID."""

    uids: dict[str, str] = field(default_factory=dict)
    studies: dict[str, Dataset] = field(default_factory=dict)

    @classmethod
    def of(cls, headers: Iterable[Header], key: bytes) -> Self:
        """Return what the headers of original files say, the first of a study before others."""
        found, pseudonyms = cls(), Deidentifier(key)
        for header in headers:
            found.uids |= {pseudonyms.uid(uid): uid for uid in header.uids}
            kept = found.studies.setdefault(pseudonyms.uid(header.study), Dataset())
            for keyword, original in header.texts.items():
                if keyword not in kept:
                    kept.add(DataElement(keyword, dictionary_VR(keyword), original))  # in UTF-8
        return found

    def relink(self, path: Path) -> None:
        """Rewrite an object that was made from these files. Raises CaseRejected("not_relinked") when its study is not among them."""
        ds = pydicom.dcmread(path)
        study = self.studies.get(str(ds.StudyInstanceUID))
        if study is None:
            raise CaseRejected(
                "not_relinked",
                "expected the original files of the case outside of archives, got none of its study; unpack them and predict again",
            )
        for element in _uids(ds):
            known = [self.uids.get(uid, uid) for uid in _values(element)]
            element.value = known if element.VM > 1 else known[0]
        for keyword in OF_PATIENT_AND_STUDY:
            if keyword in study:
                ds[keyword] = study[keyword]
        ds.PatientIdentityRemoved = "NO"
        for keyword in ("DeidentificationMethod", "DeidentificationMethodCodeSequence"):
            if keyword in ds:
                del ds[keyword]
        ds.save_as(path, enforce_file_format=True)


def _uids(ds: Dataset) -> Iterator[DataElement]:
    """All elements with UIDs at any depth, but for those that name a class or a transfer syntax."""
    for element in ds.iterall():
        if element.VR == "UI" and element.value and "Class" not in element.keyword:
            yield element


def _values(element: DataElement) -> list[str]:
    return [str(one) for one in (element.value if element.VM > 1 else [element.value])]
