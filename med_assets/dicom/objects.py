"""What the DICOM objects of one case share: whose they are, their UIDs, and how they are put together and saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import PYDICOM_ROOT_UID, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from med_assets.dicom.geometry import Geometry

PHANTOM_SOFTWARE = "med_assets phantom"
"""SoftwareVersions of every synthetic object; a standard tag, since private ones do not survive de-identification."""

UNDATED = "20000101"
"""ContentDate of multi-frame objects made from images without a date: the standard requires one."""

SYNTHETIC_IMAGE_TYPE = "SYNTHETIC"
"""Third value of ImageType of every synthetic CT."""


@dataclass(frozen=True)
class Identity:
    """Whose objects these are: what CT, RTSTRUCT, RTPLAN and RTDOSE of one case have in common.

    `study_date` is YYYYMMDD or empty. `trial` is (ClinicalTrialProtocolID, ClinicalTrialSiteID) of a research set.
    """

    patient_id: str
    study_uid: str
    frame_of_reference_uid: str
    patient_name: str = ""
    study_date: str = ""
    synthetic: bool = False
    trial: tuple[str, str] | None = None

    def uid(self, *role: str) -> str:
        """A UID that depends on the study and `role` only."""
        return derived_uid(self.study_uid, *role)


def derived_uid(*parts: str) -> str:
    """A UID that is a hash of `parts`: the same parts always give the same one. They may be file names of any bytes."""
    source = "|".join(parts)
    if not source.isascii():
        try:
            source.encode()
        except UnicodeEncodeError:  # bytes of a file name that are no UTF-8 are lone surrogates in Python
            source = ascii(source)
    return str(generate_uid(prefix=PYDICOM_ROOT_UID, entropy_srcs=[source]))


def is_synthetic(dataset: Dataset) -> bool:
    """True for objects that a phantom wrote, before and after de-identification."""
    software = dataset.get("SoftwareVersions") or ""
    versions = [software] if isinstance(software, str) else list(software)
    image_type = list(dataset.get("ImageType") or [])
    return PHANTOM_SOFTWARE in versions or image_type[2:3] == [SYNTHETIC_IMAGE_TYPE]


def stored(folder: Path) -> dict[str, list[Dataset]]:
    """Datasets of a stored case by modality."""
    found: dict[str, list[Dataset]] = {}
    for path in sorted(folder.glob("*.dcm")):
        ds = dcmread(path)
        found.setdefault(str(ds.Modality), []).append(ds)
    return found


def identity_of(ds: Dataset, *, synthetic: bool) -> Identity:
    """Whose a de-identified image is, for objects that are made from it."""
    return Identity(
        patient_id=str(ds.PatientID),
        patient_name=str(ds.PatientName),
        study_uid=str(ds.StudyInstanceUID),
        frame_of_reference_uid=str(ds.FrameOfReferenceUID),
        study_date=str(ds.get("StudyDate", "") or ""),
        synthetic=synthetic,
    )


def new_object(identity: Identity, sop_class: str, modality: str, series_uid: str, sop_uid: str) -> Dataset:
    """The elements that every object of a case carries; the caller adds its module's own."""
    ds = item(
        SpecificCharacterSet="ISO_IR 192",
        SOPClassUID=sop_class,
        SOPInstanceUID=sop_uid,
        Modality=modality,
        StudyInstanceUID=identity.study_uid,
        SeriesInstanceUID=series_uid,
        FrameOfReferenceUID=identity.frame_of_reference_uid,
        PositionReferenceIndicator="",
        PatientID=identity.patient_id,
        PatientName=identity.patient_name,
        PatientBirthDate="",
        PatientSex="",
        StudyID="1",
        StudyDate=identity.study_date,
        StudyTime="",
        SeriesDate=identity.study_date,
        AccessionNumber="",
        ReferringPhysicianName="",
        OperatorsName="",
        Manufacturer="med_assets",
    )
    if identity.synthetic:
        ds.ManufacturerModelName = PHANTOM_SOFTWARE
        ds.SoftwareVersions = PHANTOM_SOFTWARE
    if identity.trial is not None:
        set_trial(ds, *identity.trial)
    return ds


def set_dates(ds: Dataset, date: str) -> None:
    """Give an object made from others their date, YYYYMMDD or empty, at midnight: the time of writing would vary."""
    ds.InstanceCreationDate = ds.SeriesDate = date
    ds.InstanceCreationTime = ds.SeriesTime = "000000" if date else ""
    ds.ContentDate, ds.ContentTime = date or UNDATED, "000000"


def set_trial(ds: Dataset, protocol: str, site_id: str, **others: str) -> None:
    """Say of which research set an object is, with all that the modules of clinical trials require. `others` are by keyword.

    DICOM PS3.3 C.7.1.3 and C.7.3.2: a sponsor is required, and these sets have none but themselves.
    """
    ds.ClinicalTrialSponsorName = ds.ClinicalTrialProtocolID = protocol
    ds.ClinicalTrialSiteID, ds.ClinicalTrialSubjectID = site_id, ds.PatientID
    for keyword, value in others.items():
        setattr(ds, keyword, value)
    if "ClinicalTrialSeriesID" in ds:
        ds.ClinicalTrialCoordinatingCenterName = ""
    for keyword in ("ClinicalTrialProtocolName", "ClinicalTrialSiteName"):
        if keyword not in ds:
            setattr(ds, keyword, "")


def set_labels(ds: Dataset, values: Mapping[str, str]) -> None:
    """Set elements by keyword; those of clinical trials with all that their modules require."""
    trial = {keyword: value for keyword, value in values.items() if keyword.startswith("ClinicalTrial")}
    for keyword, value in values.items():
        if keyword not in trial:
            setattr(ds, keyword, value)
    if trial:
        protocol, site_id = (trial.pop(f"ClinicalTrial{name}", "") for name in ("ProtocolID", "SiteID"))
        set_trial(ds, protocol, site_id, **trial)


def item(**values: object) -> Dataset:
    """A sequence item of these keywords and values."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def code_item(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def reference(sop_class: str, sop_uid: str) -> Dataset:
    """A reference to one SOP instance."""
    return item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=sop_uid)


def image_reference(ds: Dataset) -> Dataset:
    """A reference to an object, of a frame of a multi-frame one with its number."""
    from med_assets.dicom.enhanced import Frame

    if not isinstance(ds, Frame):
        return reference(str(ds.SOPClassUID), str(ds.SOPInstanceUID))
    found = reference(str(ds.source.SOPClassUID), str(ds.source.SOPInstanceUID))
    found.ReferencedFrameNumber = ds.index + 1
    return found


def set_plane(ds: Dataset, geometry: Geometry, position: np.ndarray) -> None:
    """Place a (z, y, x) grid's first slice at `position`, LPS (x, y, z, ...) mm of its first voxel centre."""
    set_position(ds, position)
    ds.ImageOrientationPatient = [format_number_as_ds(float(v)) for axis in (2, 1) for v in geometry.direction[axis]]
    ds.PixelSpacing = [format_number_as_ds(float(v)) for v in geometry.spacing_mm[1:]]


def set_position(ds: Dataset, position: np.ndarray) -> None:
    """Place an image at `position`, LPS (x, y, z, ...) mm of its first voxel centre."""
    ds.ImagePositionPatient = [format_number_as_ds(round(float(v), 9)) for v in position[:3]]


def set_pixels(ds: Dataset, pixels: np.ndarray) -> None:
    """Store an unsigned array of 2 (one slice) or 3 (frames) axes as uncompressed little-endian pixels."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.BitsAllocated = ds.BitsStored = pixels.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelData = pixels.tobytes()


def save(ds: Dataset, path: Path) -> None:
    """Write the object as an explicit little-endian file, without a preamble time or any other varying byte."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
