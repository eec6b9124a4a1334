"""DICOM segmentations of single images that have no place in the patient, such as ultrasound: one mask on the image's pixels.

A mask without a pixel is written too, as an empty frame whose segment says what was looked for: that a reader found nothing
is a statement, and not the absence of one.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from med_assets import __version__
from med_assets.dicom.frames import decoding, number, text
from med_assets.dicom.objects import PHANTOM_SOFTWARE, derived_uid, save
from med_assets.errors import CaseRejected


@dataclass(frozen=True, eq=False)
class FlatSegment:
    """One segment: its label and its mask, bool (rows, columns)."""

    label: str
    mask: np.ndarray


def write_flat_seg(
    path: Path, mask: np.ndarray, label: str, source: Dataset, *, made_by: str | None = None, synthetic: bool = False
) -> None:
    """Write a mask, bool (rows, columns), on the pixels of one `source` image, labelled `label`; same input, same bytes.

    `made_by` names the model of a predicted mask; without it the segment is declared manual. Raises ValueError for a mask of
    another size than the image.
    """
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    from med_assets.dicom.seg import plain_source

    mask = np.asarray(mask, bool)
    if mask.shape != (source.Rows, source.Columns):
        raise ValueError(f"expected a mask of the image's {source.Rows} x {source.Columns} pixels, got {mask.shape}")
    algorithm = None
    if made_by is not None:
        family = codes.DCM.ArtificialIntelligence
        algorithm = highdicom.AlgorithmIdentificationSequence(name=made_by, family=family, version=__version__)
    kind = SegmentAlgorithmTypeValues.MANUAL if algorithm is None else SegmentAlgorithmTypeValues.AUTOMATIC
    description = SegmentDescription(
        1, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, algorithm_type=kind,
        algorithm_identification=algorithm,
    )  # fmt: skip
    series_uid = derived_uid(text(source, "SOPInstanceUID"), "SEG series", made_by or "")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # below that it names the original's UIDs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unlikely to represent the intended person name.*")
        ds = highdicom.seg.Segmentation(
            source_images=[plain_source(source)],
            pixel_array=mask[None].astype(np.uint8),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[description],
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
    date = text(source, "StudyDate")
    for keyword in ("InstanceCreation", "Content", "Series"):
        setattr(ds, f"{keyword}Date", date)
        setattr(ds, f"{keyword}Time", "000000" if date else "")
    ds.SeriesDescription = "PREDICTED SEGMENTATION, NOT FOR CLINICAL USE" if made_by else "SEGMENTATION"
    for equipment in ds.get("ContributingEquipmentSequence") or ():
        equipment.pop("ContributionDateTime", None)  # the time of writing
    if synthetic:
        ds.ManufacturerModelName = ds.SoftwareVersions = PHANTOM_SOFTWARE
    for keyword in ("ClinicalTrialProtocolID", "ClinicalTrialSiteID"):
        if text(source, keyword):
            setattr(ds, keyword, text(source, keyword))
    organization = derived_uid(series_uid, "dimensions")
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.get("DimensionIndexSequence") or ():
        index.DimensionOrganizationUID = organization
    save(ds, path)


def read_flat_segments(ds: Dataset) -> list[FlatSegment]:
    """Return the segments of a binary SEG of one image, by number; the frames of one segment are united.

    Raises CaseRejected: wrong_modality, fractional_segmentation, missing_segments, truncated_file, undecodable_pixels.
    """
    if text(ds, "Modality") != "SEG":
        raise CaseRejected("wrong_modality", "Expected a SEG; got another modality. Send the segmentation.")
    if text(ds, "SegmentationType") != "BINARY":
        raise CaseRejected(
            "fractional_segmentation", "Expected a segmentation of type BINARY; got another. Export it as binary."
        )
    labels = {
        int(number(one, "SegmentNumber") or 0): text(one, "SegmentLabel") for one in ds.get("SegmentSequence") or ()
    }
    frames = list(ds.get("PerFrameFunctionalGroupsSequence") or ())
    if not labels or not frames:
        raise CaseRejected(
            "missing_segments",
            "Expected a numbered segment and its frame; got none. A mask without lesion has an empty frame.",
        )
    with decoding():
        pixels = np.asarray(ds.pixel_array).reshape(len(frames), int(ds.Rows), int(ds.Columns))
    shared = next(iter(ds.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    masks = {key: np.zeros(pixels.shape[1:], bool) for key in labels}
    for frame, plane in zip(frames, pixels, strict=True):
        groups = (
            frame.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence") or [Dataset()]
        )
        key = int(number(groups[0], "ReferencedSegmentNumber") or 0)
        if key not in masks:
            raise CaseRejected(
                "missing_segments", "Expected frames of listed segments; one belongs to none. Export again."
            )
        masks[key] |= plane != 0
    return [FlatSegment(labels[key], masks[key]) for key in sorted(labels)]
