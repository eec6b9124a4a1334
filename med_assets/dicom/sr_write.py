"""Writes measurements as DICOM structured reports: TID 1500, as Comprehensive 3D SR.

DICOM PS3.16, TID 1500 "Measurement Report", with groups of TID 1410 (a region of one image, or a point), TID 1411 (a volume) and TID 1501
(measurements of a structure whose outline another object holds).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from med_assets import __version__
from med_assets.dicom.elements import number, text
from med_assets.dicom.objects import PHANTOM_SOFTWARE, derived_uid, save, set_dates, set_trial
from med_assets.dicom.seg_write import plain_source

MILLILITRE, MILLIMETRE, SQUARE_MILLIMETRE, GRAY = (
    Code("ml", "UCUM", "ml"),
    Code("mm", "UCUM", "mm"),
    Code("mm2", "UCUM", "mm2"),
    Code("Gy", "UCUM", "Gy"),
)
"""Units, DICOM PS3.16 CID 7181 and CID 7460 to 7462."""

SERIES_NUMBER = 300
"""How far the number of the series of a report is from that of its first source."""

LABEL_CHARS = 64
"""Longest description of a series or of a content, since their VR is LO."""


@dataclass(frozen=True)
class Quantity:
    """A measured value with its coded name and unit; `method` is how it was measured, where there is a code for it."""

    name: Code
    value: float
    unit: Code
    method: Code | None = None


@dataclass(frozen=True)
class OfSegment:
    """A segment of a SEG that a group is about: the SEG and the segment's number. `frame` is that of a SEG of one image."""

    segmentation: Dataset
    number: int
    frame: int | None = None


@dataclass(frozen=True)
class OfPoint:
    """A point that a group is about, LPS mm in a frame of reference."""

    place_mm: tuple[float, float, float]
    frame_of_reference_uid: str


@dataclass(frozen=True)
class OfImages:
    """Objects that a group is measured on, such as an RTDOSE."""

    images: tuple[Dataset, ...]


@dataclass(frozen=True)
class Finding:
    """One group of measurements: what people call it, its coded type, where in the body, what it is about, and its quantities."""

    label: str
    type: Code
    about: OfSegment | OfPoint | OfImages
    quantities: tuple[Quantity, ...]
    site: Code | None = None


def write_report(
    path: Path,
    findings: Sequence[Finding],
    procedure: Code,
    evidence: Sequence[Dataset],
    *,
    made_by: str,
    synthetic: bool = False,
) -> None:
    """Write findings of one patient and study as a report; the same input gives the same bytes.

    `evidence` are the objects that it was measured on, the source images first, of which patient and study are; it is
    complete and not verified. `made_by` names the model. Raises ValueError for no finding or no evidence.
    """
    import highdicom
    from highdicom import sr
    from pydicom.sr.codedict import codes

    if not findings or not evidence:
        raise ValueError(f"expected findings and evidence, got {len(findings)} and {len(evidence)}")
    first = evidence[0]
    series_uid = derived_uid(text(first, "SeriesInstanceUID"), "SR series", made_by)
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("med_assets", __version__, made_by),
        name="med_assets",
        manufacturer_name="med_assets",
        model_name=made_by[:LABEL_CHARS],
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, observer_identifying_attributes=device)
        ),
        procedure_reported=procedure,
        imaging_measurements=[_group(one, series_uid, made_by) for one in findings],
        title=codes.DCM.ImagingMeasurementReport,
    )
    with warnings.catch_warnings():
        # A pseudonym has one component.
        warnings.filterwarnings("ignore", message=".*unlikely to represent the intended person name.*")
        ds: Any = sr.Comprehensive3DSR(
            evidence=[plain_source(one) for one in evidence],
            content=report,
            series_instance_uid=series_uid,
            series_number=int(number(first, "SeriesNumber") or 0) + SERIES_NUMBER,
            sop_instance_uid=derived_uid(series_uid, "SR"),
            instance_number=1,
            manufacturer="med_assets",
            is_complete=True,
        )
    set_dates(ds, text(first, "ContentDate") or text(first, "SeriesDate") or text(first, "StudyDate"))
    ds.SeriesDescription = "PREDICTED MEASUREMENTS, NOT FOR CLINICAL USE"
    ds.ManufacturerModelName, ds.SoftwareVersions, ds.DeviceSerialNumber = "med_assets", __version__, "0"
    for equipment in ds.get("ContributingEquipmentSequence") or ():
        equipment.pop("ContributionDateTime", None)  # the time of writing
    if synthetic:
        ds.ManufacturerModelName = ds.SoftwareVersions = PHANTOM_SOFTWARE
    if protocol := text(first, "ClinicalTrialProtocolID"):
        set_trial(ds, protocol, text(first, "ClinicalTrialSiteID"))
    content = hashlib.sha256(repr([(one.label, one.type, one.site, one.quantities) for one in findings]).encode())
    ds.SOPInstanceUID = derived_uid(series_uid, "SR", content.hexdigest())
    assert isinstance(ds, highdicom.base.SOPClass)
    save(ds, path)


def code_of(ds: Dataset, keyword: str) -> Code:
    """The first code of a sequence, such as the type of a segment."""
    item = ds[keyword].value[0]
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))


def _group(finding: Finding, series_uid: str, made_by: str) -> Any:
    """The group of one finding, of the template that fits what it is about."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    given: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(
            uid=derived_uid(series_uid, "tracking", finding.label), identifier=finding.label
        ),
        "finding_type": finding.type,
        "finding_sites": [sr.FindingSite(finding.site)] if finding.site is not None else None,
        "measurements": [
            sr.Measurement(name=one.name, value=float(one.value), unit=one.unit, method=one.method)
            for one in finding.quantities
        ],
    }
    algorithm = sr.AlgorithmIdentification(name=made_by, version=__version__, family=codes.DCM.ArtificialIntelligence)
    match finding.about:
        case OfSegment(segmentation=seg, number=segment, frame=None):
            source = sr.SourceSeriesForSegmentation(str(seg.ReferencedSeriesSequence[0].SeriesInstanceUID))
            region = sr.ReferencedSegment(
                str(seg.SOPClassUID), str(seg.SOPInstanceUID), segment_number=segment, source_series=source
            )
            return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_segment=region, algorithm_id=algorithm, **given
            )
        case OfSegment(segmentation=seg, number=segment, frame=int(frame)):
            image = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
            place = sr.ReferencedSegmentationFrame(
                str(seg.SOPClassUID),
                str(seg.SOPInstanceUID),
                frame_number=frame,
                segment_number=segment,
                source_image=sr.SourceImageForSegmentation(
                    str(image.ReferencedSOPClassUID), str(image.ReferencedSOPInstanceUID)
                ),
            )
            return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                referenced_segment=place, algorithm_id=algorithm, **given
            )
        case OfPoint(place_mm=place_mm, frame_of_reference_uid=frame_of_reference_uid):
            point = sr.ImageRegion3D(
                graphic_type=sr.GraphicTypeValues3D.POINT,
                graphic_data=np.array([place_mm], float),
                frame_of_reference_uid=frame_of_reference_uid,
            )
            return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                referenced_region=point, algorithm_id=algorithm, **given
            )
        case OfImages(images=images):
            return sr.MeasurementsAndQualitativeEvaluations(
                source_images=[
                    sr.SourceImageForMeasurementGroup(str(one.SOPClassUID), str(one.SOPInstanceUID)) for one in images
                ],
                **given,
            )
