"""One chest CT and its label from de-identified DICOM to arrays, on the scanner's grid and on the network's, and its facts.

A label must lie on the image's grid: float noise is recorded and harmonised, anything more is a rejection with a picture.
Nothing is resampled but what the network sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.errors import CaseRejected
from med_assets.files import write_json
from med_assets.prepared import TRUTH
from med_assets.programs.lung_ct import labels, transforms
from med_assets.programs.lung_ct.alignment import better_place, contrast_hu
from med_assets.programs.lung_ct.exposure import exposure

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.dicom.geometry import CtSeries, TiltPolicy

INT16 = np.iinfo(np.int16)
BACKGROUND = 0

MAX_OUTSIDE = 0.01
"""Share of the area of a label that may lie beyond the CT and is cut."""


@dataclass(frozen=True, eq=False)
class Source:
    """One label as it came: the number of its segment or ROI, its class if its name has one, and its mask (z, y, x)."""

    number: int
    value: int | None
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a case on the CT's grid, how far the label's grid is off, and what of an RTSTRUCT can't be used."""

    kind: str
    sources: list[Source]
    drift_mm: float = 0.0
    left_out: tuple[str, ...] = ()


def read_labels(files: Mapping[str, Sequence["Dataset"]], ct: "CtSeries", target: int) -> Labels:
    """Return the labels of the SEG or RTSTRUCT of a case; a `target` that reaches beyond the CT is refused, other labels are cut.

    Raises CaseRejected with the codes of the readers, "contour_outside_image" and "label_grid_mismatch", which has a picture.
    """
    if "SEG" in files:
        return Labels("SEG", *_from_seg(files["SEG"][0], ct))
    frame = str(files["CT"][0].get("FrameOfReferenceUID") or "")
    return _from_rtstruct(files["RTSTRUCT"][0], ct, frame, target)


def _from_rtstruct(dataset: "Dataset", ct: "CtSeries", frame: str, target: int) -> Labels:
    from med_assets.dicom.rtstruct import Drawing, draw, outside_image, read_structure_set

    structure_set = read_structure_set(dataset)
    found = []
    left_out = [str(one) for one in structure_set.unusable]
    for roi in structure_set.rois:
        if roi.left_out:
            left_out.append(f"ROI {roi.number}: {roi.left_out} contour items that enclose nothing")
        if roi.frame and frame and roi.frame != frame:
            left_out.append(f"ROI {roi.number}: in another frame of reference than the CT")
        elif roi.contours:
            value = labels.class_of(roi.name)
            # What has no class leaves no voxel, and outlines of the body or the couch may reach beyond the CT.
            drawing = Drawing(np.zeros(ct.geometry.shape, bool)) if value is None else draw(roi, ct.geometry)
            if drawing.outside > MAX_OUTSIDE and value == target:
                raise outside_image(roi.name, drawing, MAX_OUTSIDE)
            if drawing.outside > MAX_OUTSIDE:
                left_out.append(
                    f"ROI {roi.number}: {drawing.outside:.0%} beyond the CT, by up to {drawing.outside_mm:.0f} mm"
                )
            found.append(Source(roi.number, value, drawing.mask))
    return Labels("RTSTRUCT", found, left_out=tuple(left_out))


def _from_seg(dataset: "Dataset", ct: "CtSeries") -> tuple[list[Source], float]:
    from med_assets.dicom.seg import place, read_segments
    from med_assets.reports.overlay import label_mismatch

    segments = read_segments(dataset)
    # By number, since `place` unites segments of one label, and labels unknown to intake may share a name.
    numbered = tuple(replace(one, label=str(one.number)) for one in segments.segments)
    try:
        masks, agreement = place(replace(segments, segments=numbered), ct.geometry, ct.slices)
    except CaseRejected as rejected:
        if rejected.code != "grid_mismatch":
            raise
        picture = label_mismatch(ct.array, ct.geometry, segments.union(), segments.planes)
        raise CaseRejected("label_grid_mismatch", rejected.message, picture) from rejected
    found = [Source(one.number, labels.class_of(one.label), masks[str(one.number)]) for one in segments.segments]
    return found, agreement.drift_mm


def merge(sources: Sequence[Source], target: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Return one array of class ids, uint8 (z, y, x), and how many voxels are in labels of different classes.

    Where labels overlap the target wins, then the lower number, and what is declared unlabelled gives way to all. Labels
    without a class are background.
    """
    truth = np.zeros(shape, np.uint8)
    conflict = np.zeros(shape, bool)
    known = [(one.value, one.number, one.mask) for one in sources if one.value is not None]
    for value, _, mask in sorted(known, key=lambda one: (one[0] != target, one[0] == labels.UNLABELLED, one[1])):
        if value != labels.UNLABELLED:
            conflict |= mask & (truth != BACKGROUND) & (truth != value)
        truth[mask & (truth == BACKGROUND)] = value
    return truth, int(conflict.sum())


def orientation(dataset: "Dataset") -> str:
    """Return where the stored columns, rows and slice normal of an image run to, such as LPS for a usual axial CT."""
    from med_assets.dicom.frames import image_axes

    normal, along_column, along_row = image_axes(dataset)[1]
    return "".join(
        ("LR", "PA", "SI")[axis][int(vector[axis] < 0)]
        for vector in (along_row, along_column, normal)
        for axis in (int(np.abs(vector).argmax()),)
    )


def prepare_case(
    case_id: str,
    raw: Path,
    out: Path,
    *,
    key: bytes,
    spacing_mm: Sequence[float],
    target: int,
    settings: Mapping[str, Any],
    tilt: "TiltPolicy | None" = None,
) -> dict[str, Any]:
    """Write the prepared arrays of the case under `raw` to `out` and return its facts; those of the label where it has one.

    `spacing_mm` is the network's, (x, y, z). Raises CaseRejected with the codes of the DICOM readers, no_tissue and
    label_grid_mismatch.
    """
    from med_assets.dicom.discover import describe
    from med_assets.dicom.enhanced import first_frame
    from med_assets.dicom.geometry import read_ct_series
    from med_assets.dicom.objects import is_synthetic, stored

    files = stored(raw)
    label = next((one for kind in ("SEG", "RTSTRUCT") for one in files.get(kind, ())), None)
    ct = read_ct_series(files["CT"], describe(label).referenced_sops if label else (), tilt, label)
    hu = np.clip(np.rint(ct.array), INT16.min, INT16.max).astype(np.int16)
    if not (hu > 0).any():
        raise CaseRejected(
            "no_tissue",
            f"expected a CT in HU with tissue above 0, highest is {hu.max()} HU; check rescale and modality",
        )
    seen = exposure(key, str(files["CT"][0].PatientID))
    arrays, of_label = {"ct": hu}, {}
    if label is not None:
        of_label = _truth(files, ct, hu, target, spacing_mm, arrays, out)
    else:
        arrays["image"] = transforms.forward(hu, ct.geometry, spacing_mm)[0].numpy()
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", np.ascontiguousarray(array))
    write_json(
        out / "case.json",
        {
            "case_id": case_id,
            "geometry": ct.geometry.to_dict(),
            "spacing_mm": list(spacing_mm),
            "target": labels.name_of(target),
            "target_id": target,
            "exposure": seen,
            "synthetic": any(is_synthetic(ds) for group in files.values() for ds in group),
            "settings": dict(settings),
        },
    )
    return {
        "slices": int(hu.shape[0]),
        "spacing_z_mm": float(ct.geometry.spacing_mm[0]),
        "spacing_xy_mm": float(ct.geometry.spacing_mm[2]),
        "gantry_tilt_deg": ct.gantry_tilt_deg,
        "oblique_deg": ct.geometry.oblique_deg(),
        "orientation": orientation(first_frame(files["CT"][0])),
        "hu_min": float(hu.min()),
        "hu_max": float(hu.max()),
        "exposure": seen,
        **of_label,
    }


def _truth(
    files: Mapping[str, Sequence["Dataset"]],
    ct: "CtSeries",
    hu: np.ndarray,
    target: int,
    spacing_mm: Sequence[float],
    arrays: dict[str, np.ndarray],
    out: Path,
) -> dict[str, Any]:
    """Add the labels and the network's image to `arrays`, write `truth.json`, and return the facts of the label."""
    from scipy.ndimage import label as components

    read = read_labels(files, ct, target)
    sources = read.sources
    truth, overlap = merge(sources, target, hu.shape)
    image, label = transforms.forward_pair(hu, truth, ct.geometry, spacing_mm)
    arrays |= {"truth": truth, "image": image[0].numpy(), "label": label[0].numpy()}
    present = [int(value) for value in np.unique(truth) if value not in (BACKGROUND, labels.UNLABELLED)]
    names = {str(value): labels.name_of(value) for value in present}
    write_json(out / TRUTH, {"names": names, "source_values": {str(one.number): one.value for one in sources}})
    wanted = truth == target
    return {
        "label_kind": read.kind,
        "label_drift_mm": read.drift_mm,
        "rois_left_out": "; ".join(read.left_out),
        "labels": len(sources),
        "labels_without_class": sum(one.value is None for one in sources),
        "classes": len(present),
        "overlap_voxels": overlap,
        "target_present": bool(wanted.any()),
        "target_ml": float(wanted.sum() * np.prod(ct.geometry.spacing_mm) / 1000),
        "target_components": int(components(wanted, np.ones((3, 3, 3)))[1]),
        "target_hu_median": float(np.median(hu[wanted])) if wanted.any() else None,
        "target_contrast_hu": contrast_hu(hu, wanted),
        "target_better_at": better_place(hu, wanted),
        "target_network_voxels": int((arrays["label"] == target).sum()),
    }
