"""One ultrasound image and its mask from de-identified DICOM to arrays on the machine's own pixels, and its facts.

Nothing is resampled here: each network resizes for itself. What lies outside of the region of tissue is cut off.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.dicom.label_rows import LabelRow, Shown, write_rows
from med_assets.dicom.structure_names import normalise
from med_assets.errors import CaseRejected
from med_assets.preparation.prepared import TRUTH
from med_assets.programs.breast_us.similarity import dhash
from med_assets.programs.breast_us.vocabulary import LABELS, NORMAL, ORGANS
from med_assets.storage.files import write_json

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.dicom.segmentation_2d import Segment2D

LEAST_SIDE = 32
"""Fewer rows or columns than this are no diagnostic image."""

UNKNOWN = "unknown"
"""Data set of images that say of none."""


def united(segments: Sequence["Segment2D"], shape: tuple[int, int]) -> tuple[str, np.ndarray]:
    """Return the label of an image and the union of all its masks, bool (rows, columns).

    Raises CaseRejected: mask_size_mismatch, unknown_label, two_labels, empty_mask, lesion_in_normal.
    """
    _demand_sizes(segments, shape)
    known = {normalise(label): label for label in LABELS}
    if unknown := [n for n, one in enumerate(segments, start=1) if normalise(one.label) not in known]:
        raise CaseRejected(
            "unknown_label",
            f"expected segments labelled {', '.join(LABELS)}, got another label in segment {', '.join(map(str, unknown))} of "
            f"{len(segments)}; name the segments so",
        )
    labels = sorted({known[normalise(one.label)] for one in segments})
    if len(labels) > 1:
        raise CaseRejected(
            "two_labels", f"expected one label for an image, got {', '.join(labels)}; send the one that counts"
        )
    mask = np.logical_or.reduce([one.mask for one in segments])
    if labels[0] == NORMAL and mask.any():
        raise CaseRejected(
            "lesion_in_normal",
            f"expected an empty mask of an image read as normal, got {mask.sum()} pixels; which is right?",
        )
    if labels[0] != NORMAL and not mask.any():
        raise CaseRejected(
            "empty_mask",
            f"expected a lesion in the mask of an image labelled {labels[0]}, got none; outline it, or label the segment {NORMAL}",
        )
    return labels[0], mask


def numbered(segments: Sequence["Segment2D"], shape: tuple[int, int]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of an image's organs and the number of each pixel's, from 1, uint8 (rows, columns).

    Raises CaseRejected: mask_size_mismatch, two_labels, unclear_mask, empty_mask.
    """
    _demand_sizes(segments, shape)
    names = tuple(one.label for one in segments)
    if len({normalise(name) for name in names}) < len(names):
        raise CaseRejected("two_labels", "expected one segment for each organ, got two of one; unite them")
    found = np.zeros(shape, np.uint8)
    for number, one in enumerate(segments, start=1):
        if (found[one.mask] > 0).any():
            raise CaseRejected(
                "unclear_mask", "expected organs that do not overlap, got pixels of two; say which counts"
            )
        found[one.mask] = number
    if not found.any():
        raise CaseRejected("empty_mask", "expected an organ in the mask, got none; outline it, or leave the image out")
    return names, found


def _demand_sizes(segments: Sequence["Segment2D"], shape: tuple[int, int]) -> None:
    if sizes := {one.mask.shape for one in segments} - {shape}:
        got = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(sizes))
        raise CaseRejected(
            "mask_size_mismatch",
            f"expected a mask of the image's {shape[0]} x {shape[1]} pixels, got {got}; send the mask that was drawn on this "
            "image: masks are not resized",
        )


def box_of_tissue(ds: "Dataset") -> tuple[slice, slice]:
    """Return rows and columns of what shows tissue: the union of the regions, the whole picture where there are none."""
    from med_assets.dicom.ultrasound import tissue_regions

    boxes = [box for box, _ in tissue_regions(ds)]
    if not boxes:
        return slice(0, int(ds.Rows)), slice(0, int(ds.Columns))
    rows, columns = ([box[axis] for box in boxes] for axis in (0, 1))
    return (
        slice(min(one.start for one in rows), max(one.stop for one in rows)),
        slice(min(one.start for one in columns), max(one.stop for one in columns)),
    )


def prepare_case(case_id: str, raw: Path, out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the prepared arrays of the case under `raw` to `out` and return its facts; those of the mask where it has one.

    Raises CaseRejected with the codes of the DICOM readers and of `united`, no_contrast, too_small, mask_outside_tissue.
    """
    from med_assets.dicom.objects import is_synthetic, stored
    from med_assets.dicom.segmentation_2d import read_segments_2d
    from med_assets.dicom.ultrasound import pixel_size_mm, read_us_image

    files = stored(raw)
    source = files["US"][0]
    picture = read_us_image(source)
    box, pixel = box_of_tissue(source), pixel_size_mm(source)
    image, of_lesion = picture[box], {}
    if "SEG" in files:
        by_file = [read_segments_2d(ds) for ds in files["SEG"]]
        segments = [one for of_file in by_file for one in of_file]
        shape = (picture.shape[0], picture.shape[1])
        organs = {normalise(name) for name in settings.get("organs", ())}
        if segments and all(normalise(one.label) in organs for one in segments):
            names, mask = numbered(segments, shape)
            of_lesion = _organs(names, mask, box, out)
            write_rows(out, _rows(by_file, "", 0, pixel))
        else:
            label, mask = united(segments, shape)
            of_lesion = _truth(label, mask, box, pixel, out)
            write_rows(out, _rows(by_file, label, int(mask.sum()), pixel))
    if min(image.shape) < LEAST_SIDE:
        raise CaseRejected(
            "too_small", f"expected {LEAST_SIDE} x {LEAST_SIDE} pixels of tissue or more, got {image.shape}"
        )
    if image.max() - image.min() < 10:
        raise CaseRejected("no_contrast", "expected a picture, got one grey value; export the image again")
    dataset = str(source.get("ClinicalTrialProtocolID") or "") or UNKNOWN
    np.save(out / "image.npy", np.ascontiguousarray(image))
    write_json(
        out / "case.json",
        {
            "case_id": case_id,
            "dataset": dataset,
            "pixel_mm": pixel,
            "corner": [box[0].start, box[1].start],
            "full_shape": list(picture.shape),
            "synthetic": any(is_synthetic(ds) for group in files.values() for ds in group),
            "settings": dict(settings),
        },
    )
    return {
        "rows": int(image.shape[0]),
        "columns": int(image.shape[1]),
        "pixel_mm": None if pixel is None else float(pixel[1]),
        "dataset": dataset,
        "mean_grey": float(image.mean()),
        "dhash": dhash(image),
        **of_lesion,
    }


def _rows(
    by_file: Sequence[Sequence["Segment2D"]], label: str, united_pixels: int, pixel: tuple[float, float] | None
) -> list[LabelRow]:
    """The segments of each mask file, whose pixels are united where there are several; without a label each is its own organ."""
    n = sum(map(len, by_file))
    counts_as = label if n == 1 or not label else f"{label}: {united_pixels} pixels of {n} masks united"
    rows = []
    for number, of_file in enumerate(by_file, start=1):
        for one in of_file:
            pixels = int(one.mask.sum())
            area = "-" if pixel is None else f"{pixels * pixel[0] * pixel[1]:.2f}"
            measured: dict[str, Shown] = {"mask": f"{number} of {len(by_file)}", "pixels": pixels, "mm2": area}
            rows.append(LabelRow(one.number, one.label, maps_to=counts_as or one.label, measured=measured))
    return rows


def _truth(
    label: str, mask: np.ndarray, box: tuple[slice, slice], pixel: tuple[float, float] | None, out: Path
) -> dict[str, Any]:
    """Write the mask within the region of tissue and its label, and return their facts. Raises CaseRejected."""
    from scipy.ndimage import label as components

    truth = _within(mask, box)
    np.save(out / "truth.npy", truth.astype(np.uint8))
    write_json(out / TRUTH, {"label": label})
    edge = truth.copy()
    edge[1:-1, 1:-1] = False
    return {
        "label": label,
        "lesion_pixels": int(truth.sum()),
        "lesion_share": float(truth.mean()),
        "lesion_mm2": None if pixel is None else float(truth.sum() * pixel[0] * pixel[1]),
        "lesion_components": int(components(truth, np.ones((3, 3)))[1]),
        "lesion_at_edge": bool(edge.any()),
    }


def _within(mask: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """The mask within the region of tissue. Raises CaseRejected("mask_outside_tissue")."""
    truth = mask[box]
    if outside := int(np.count_nonzero(mask) - np.count_nonzero(truth)):
        raise CaseRejected(
            "mask_outside_tissue",
            f"expected the mask within the region of tissue, got {outside} pixels outside of it; check the regions of the image, or the mask",
        )
    return truth


def _organs(names: tuple[str, ...], mask: np.ndarray, box: tuple[slice, slice], out: Path) -> dict[str, Any]:
    """Write the numbers of organs within the region of tissue and their names, and return the facts. Raises CaseRejected."""
    np.save(out / "truth.npy", np.ascontiguousarray(_within(mask, box)))
    write_json(out / TRUTH, {"label": ORGANS, "organs": list(names)})
    return {"label": ORGANS}
