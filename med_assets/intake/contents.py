"""The stored files of a case: what they are by hash, and how they are written once no identity is found in them."""

import hashlib
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.dicom.sop_classes import MODALITIES
from med_assets.errors import CaseRejected
from med_assets.storage.files import digest

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.deidentification.profiles import Profile

IMAGES = frozenset(name for name, kind in MODALITIES.items() if not kind.derived)
"""Modalities of the images of cases; the other objects of a case are labels, plans and doses."""


@dataclass(frozen=True)
class Content:
    """What the stored files of a case are: hashes, key of the artifact, and what their headers say of the whole case."""

    version: str = ""
    content_hash: str = ""
    images_hash: str = ""
    artifact: str = ""
    given_split: str | None = None
    synthetic: bool = False
    parent: str | None = None


def content_hash(datasets: list["Dataset"]) -> str:
    """Hash of pixels, positions and contours alone: equal for the same images under another name or other UIDs.

    Of an object with frames, each frame's position counts, and in a segmentation the number of its segment.
    """
    return digest(sorted(filter(None, map(object_hash, datasets))))


def object_hash(ds: "Dataset") -> str | None:
    """What an object adds to the content hash; None where it has neither pixels nor contours."""
    content = _content(ds)
    return None if content is None else digest(*content)


def _content(ds: "Dataset") -> list[Any] | None:
    """The values of an object that its hash is made of. An element that is not decoded yet stays so."""
    from med_assets.dicom.undecoded import plain, tag_of_keyword

    contours = [
        [_numbers(contour, "ContourData") for contour in getattr(roi, "ContourSequence", [])]
        for roi in getattr(ds, "ROIContourSequence", [])
    ]
    position = _numbers(ds, "ImagePositionPatient")
    frames = [
        _frame_place(one)
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for one in ds.get(keyword) or ()
    ]
    if "PixelData" not in ds and not contours:
        return None
    modality = plain(ds.get_item(tag_of_keyword("Modality"))) or ds.get("Modality", "")
    content = [modality, bytes(ds.get("PixelData", b"")), position, contours]
    return [*content, frames] if frames else content


def _frame_place(groups: "Dataset") -> list[list[float]]:
    """Where a frame lies (or all of them, in the shared groups), and which segment it shows."""
    names = (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
        ("SegmentIdentificationSequence", "ReferencedSegmentNumber"),
    )
    return [
        [number for one in groups.get(sequence) or () for number in _numbers(one, keyword)]
        for sequence, keyword in names
    ]


def _numbers(ds: "Dataset", keyword: str) -> list[float]:
    """The numbers of an element, none where it is absent or empty. Raises CaseRejected("malformed_element") for other text."""
    from med_assets.dicom.element_values import decimals

    if keyword in ds and (text := decimals(ds.get_item(keyword))) is not None:
        return [float(number) for number in text.split(b"\\")]
    value = ds.get(keyword)
    if value is None or value == "":
        return []
    try:
        return [float(number) for number in ([value] if isinstance(value, int | float | str) else value)]
    except (TypeError, ValueError):
        raise CaseRejected(
            "malformed_element", f"expected numbers in {keyword}, got text that is none; export the object again"
        ) from None


def store_objects(
    datasets: list["Dataset"],
    known: set[str],
    folder: Path,
    vocabulary: Collection[str],
    profile: "Profile",
) -> tuple[Content, dict[str, str]]:
    """Write de-identified objects to `folder` once no identity is found in them; what they are, and SHA-256 of each by name.

    Another thread hashes while this one looks for identity.
    """
    from med_assets.deidentification.residual import residual_phi
    from med_assets.dicom.elements import text
    from med_assets.dicom.encoded import to_parts
    from med_assets.dicom.write import is_synthetic

    datasets.sort(key=lambda ds: text(ds, "SOPInstanceUID"))
    with ThreadPoolExecutor(1, thread_name_prefix="hashes") as beside:
        encoded = list(map(to_parts, datasets))
        of_files = [beside.submit(_sha256, parts) for parts in encoded]
        of_objects = [content and beside.submit(digest, *content) for content in map(_content, datasets)]
        leaks = residual_phi(datasets, known=known, roi_vocabulary=vocabulary, profile=profile)
        if leaks:
            beside.shutdown(cancel_futures=True)
            tags = sorted({str(leak.tag) for leak in leaks})
            raise CaseRejected(
                "residual_phi",
                f"expected no identity after de-identification, got some in {tags}; nothing was stored, report the tags",
            )
        folder.mkdir(parents=True)
        names = [f"{number:04d}.dcm" for number in range(len(datasets))]
        for name, parts in zip(names, encoded, strict=True):
            with (folder / name).open("wb") as stream:
                stream.writelines(parts)
        hashes = {name: of_file.result() for name, of_file in zip(names, of_files, strict=True)}
        parts_of = [of_object and of_object.result() for of_object in of_objects]
    version = digest(list(hashes.values()))
    images = [text(ds, "Modality") in IMAGES for ds in datasets]
    given = {text(ds, "ClinicalTrialSiteID") for ds, image in zip(datasets, images, strict=True) if image}
    written = Content(
        version,
        digest(sorted(filter(None, parts_of))),
        digest(sorted(part for part, image in zip(parts_of, images, strict=True) if part and image)),
        f"raw/{version}",
        next(iter(given - {""}), None) if len(given) == 1 else None,
        any(is_synthetic(ds) for ds in datasets),
    )
    return written, hashes


def _sha256(parts: Iterable[bytes]) -> str:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.hexdigest()
