"""DICOM segmentations of single images that have no place in the patient, such as ultrasound: one mask on the image's pixels.

A mask without a pixel is written too, as an empty frame whose segment says what was looked for: that a reader found nothing
is a statement, and not the absence of one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from med_assets import __version__
from med_assets.dicom.elements import number, text
from med_assets.dicom.objects import PHANTOM_SOFTWARE, derived_uid, save, set_dates, set_trial
from med_assets.dicom.seg import frame_segment, segment_coding, stored_frames
from med_assets.errors import CaseRejected


@dataclass(frozen=True, eq=False)
class Segment2D:
    """One segment: its number in the file, its label and its mask, bool (rows, columns)."""

    number: int
    label: str
    mask: np.ndarray


def write_segmentation_2d(
    path: Path, mask: np.ndarray, label: str, source: Dataset, *, made_by: str | None = None, synthetic: bool = False
) -> None:
    """Write a mask, bool (rows, columns), on the pixels of one `source` image, labelled `label`; same input, same bytes.

    `made_by` names the model of a predicted mask; without it the segment is declared manual. Raises ValueError for a mask of
    another size than the image.
    """
    write_segments_2d(path, np.asarray(mask, bool), [label], source, made_by=made_by, synthetic=synthetic)


def write_segments_2d(
    path: Path,
    classes: np.ndarray,
    labels: Sequence[str],
    source: Dataset,
    *,
    made_by: str | None = None,
    synthetic: bool = False,
    organs: bool = False,
) -> None:
    """Write a segment and a frame for each label, in their order, as `write_segmentation_2d`.

    `classes` (rows, columns) is the number of each pixel's label from 1, or 0; `organs` says that the labels are organs. Raises ValueError for another size than the image's.
    """
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    from med_assets.dicom.seg_write import plain_source

    if classes.shape != (source.Rows, source.Columns):
        raise ValueError(f"expected a mask of the image's {source.Rows} x {source.Columns} pixels, got {classes.shape}")
    algorithm = None
    if made_by is not None:
        family = codes.DCM.ArtificialIntelligence
        algorithm = highdicom.AlgorithmIdentificationSequence(name=made_by, family=family, version=__version__)
    kind = SegmentAlgorithmTypeValues.MANUAL if algorithm is None else SegmentAlgorithmTypeValues.AUTOMATIC
    coded = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion
    if organs:
        coded = codes.SCT.AnatomicalStructure, codes.SCT.Organ
    descriptions = [
        SegmentDescription(
            number, label, *coded, algorithm_type=kind,
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(labels, start=1)
    ]  # fmt: skip
    series_uid = derived_uid(text(source, "SOPInstanceUID"), "SEG series", made_by or "")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # below that it names the original's UIDs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unlikely to represent the intended person name.*")
        ds = highdicom.seg.Segmentation(
            source_images=[plain_source(source)],
            pixel_array=classes[None].astype(np.uint8),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=series_uid,
            series_number=200 if made_by else 100,
            sop_instance_uid=derived_uid(series_uid, "SEG"),
            instance_number=1,
            manufacturer="med_assets",
            manufacturer_model_name="med_assets",
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            omit_empty_frames=False,
        )
    set_dates(ds, text(source, "StudyDate"))
    ds.PatientOrientation = ""  # an image without a place in the patient need not say
    ds.SeriesDescription = "PREDICTED SEGMENTATION, NOT FOR CLINICAL USE" if made_by else "SEGMENTATION"
    for equipment in ds.get("ContributingEquipmentSequence") or ():
        equipment.pop("ContributionDateTime", None)  # the time of writing
    if synthetic:
        ds.ManufacturerModelName = ds.SoftwareVersions = PHANTOM_SOFTWARE
    if protocol := text(source, "ClinicalTrialProtocolID"):
        set_trial(ds, protocol, text(source, "ClinicalTrialSiteID"))
    organization = derived_uid(series_uid, "dimensions")
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.get("DimensionIndexSequence") or ():
        index.DimensionOrganizationUID = organization
    save(ds, path)


def read_segments_2d(ds: Dataset) -> list[Segment2D]:
    """Return the segments of a SEG of one image, by number; the frames of one segment are united.

    Raises CaseRejected: missing_segments, truncated_file, undecodable_pixels, and the codes of `segment_coding`.
    """
    coding = segment_coding(ds)
    frames = list(ds.get("PerFrameFunctionalGroupsSequence") or ())
    if not frames:
        raise CaseRejected(
            "missing_segments",
            "Expected a frame for each numbered segment; got none. A mask without lesion has an empty frame.",
        )
    size = (int(number(ds, "Rows") or 0), int(number(ds, "Columns") or 0))
    shared = next(iter(ds.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    masks = {key: np.zeros(size, bool) for key in coding.labels}
    for frame, plane in zip(frames, stored_frames(ds, len(frames), size), strict=True):
        number_in_file = None if coding.kind == "LABELMAP" else frame_segment(frame, shared)
        for key, mask in coding.masks(plane, number_in_file):
            masks[key] |= mask
    return [Segment2D(key, coding.labels[key], masks[key]) for key in sorted(coding.labels)]
