"""One chest CT and its label from de-identified DICOM to arrays, on the scanner's grid and on the network's, and its facts.

A label must lie on the image's grid: float noise is recorded and harmonised, anything more is a rejection with a picture.
Nothing is resampled but what the network sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.errors import CaseRejected
from med_assets.metrics.boxes import box_of
from med_assets.preparation.prepared import TRUTH
from med_assets.programs.lung_ct import labels, transforms
from med_assets.programs.lung_ct.alignment import better_place, contrast_hu
from med_assets.programs.lung_ct.exposure import exposure
from med_assets.programs.lung_ct.prepared import SourceLabel
from med_assets.storage.files import write_json

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.dicom.geometry import CtSeries
    from med_assets.dicom.tolerances import TiltPolicy

INT16 = np.iinfo(np.int16)
BACKGROUND = 0

MAX_OUTSIDE = 0.01
"""Share of the area of a label that may lie beyond the CT and is cut."""


@dataclass(frozen=True, eq=False)
class Source:
    """One label as it came: its value in the source, its class if its name has one, its mask (z, y, x), name and concept.

    The value is that of the label file that a segment was imported from, else the number of the segment or ROI.
    """

    value: int
    class_id: int | None
    mask: np.ndarray
    name: str = ""
    concept: str = ""

    def label(self, voxel_ml: float) -> SourceLabel:
        """What is kept of it beside its voxels."""
        voxels = int(np.count_nonzero(self.mask))
        return SourceLabel(self.value, self.name, self.concept, self.class_id, voxels, voxels * voxel_ml)


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
    from med_assets.dicom.elements import number
    from med_assets.dicom.rtstruct import draw, outside_image, read_structure_set
    from med_assets.dicom.seg import coded_concept

    structure_set = read_structure_set(dataset)
    concepts = {
        int(number(one, "ReferencedROINumber") or 0): coded_concept(one, "RTROIIdentificationCodeSequence")
        for one in dataset.get("RTROIObservationsSequence") or ()
    }
    found = []
    left_out = [str(one) for one in structure_set.unusable]
    for roi in structure_set.rois:
        if roi.left_out:
            left_out.append(f"ROI {roi.number}: {roi.left_out} contour items that enclose nothing")
        if roi.frame and frame and roi.frame != frame:
            left_out.append(f"ROI {roi.number}: in another frame of reference than the CT")
        elif roi.contours:
            class_id = labels.class_of(roi.name)
            try:
                drawing = draw(roi, ct.geometry)
            except CaseRejected as rejected:
                if class_id is not None:
                    raise
                left_out.append(f"ROI {roi.number}: {rejected.code}")
                continue
            if drawing.outside > MAX_OUTSIDE and class_id == target:
                raise outside_image(roi.name, drawing, MAX_OUTSIDE)
            # Outlines of the body or the couch, which have no class, may reach beyond the CT.
            if drawing.outside > MAX_OUTSIDE and class_id is not None:
                left_out.append(
                    f"ROI {roi.number}: {drawing.outside:.0%} beyond the CT, by up to {drawing.outside_mm:.0f} mm"
                )
            found.append(Source(roi.number, class_id, drawing.mask, roi.name, concepts.get(roi.number, "")))
    return Labels("RTSTRUCT", found, left_out=tuple(left_out))


def _from_seg(dataset: "Dataset", ct: "CtSeries") -> tuple[list[Source], float]:
    from med_assets.dicom.seg import place, read_segments
    from med_assets.reporting.overlay import label_mismatch

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
    found = [
        Source(one.value, labels.class_of(one.label), masks[str(one.number)], one.label, one.concept)
        for one in segments.segments
    ]
    return found, agreement.drift_mm


def overlay(sources: Sequence[Source], shape: tuple[int, ...]) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Return which labels each voxel is in, exactly: positions int16 (z, y, x) in a list of sets of values, the empty one first.

    The list does not depend on the order of the sources. Raises CaseRejected: "too_many_labels".
    """
    indices = np.zeros(shape, np.int16)
    combinations: list[tuple[int, ...]] = [()]
    for one in sorted(sources, key=lambda one: one.value):
        box = box_of(one.mask)
        if box is None:
            continue
        here, mask = indices[box], one.mask[box]
        before, of = np.unique(here[mask], return_inverse=True)
        if len(combinations) + len(before) > INT16.max:
            raise CaseRejected(
                "too_many_labels",
                f"expected labels that overlap in at most {INT16.max} ways, got more among {len(sources)}; send fewer of them",
            )
        after = np.arange(len(combinations), len(combinations) + len(before), dtype=np.int16)
        combinations += [(*combinations[index], one.value) for index in before.tolist()]
        here[mask] = after[of]
    return indices, combinations


def _by_plane(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return `values[indices]` of indices (z, y, x), a plane at a time, which stays in the processor's cache."""
    found = np.empty(indices.shape, values.dtype)
    for into, plane in zip(found, indices, strict=True):
        into[:] = values[plane]
    return found


def classes_of(
    combinations: Sequence[tuple[int, ...]], sources: Sequence[Source], target: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the class id of each combination, uint8 (n,), and whether it has labels of different classes, bool (n,).

    Where labels overlap the target wins, then the lower value, and what is declared unlabelled gives way to all. Labels
    without a class are background.
    """
    known = {one.value: one.class_id for one in sources if one.class_id is not None}
    classes, conflicts = np.zeros(len(combinations), np.uint8), np.zeros(len(combinations), bool)
    for index, values in enumerate(combinations):
        here = [known[value] for value in values if value in known]
        named = [class_id for class_id in here if class_id != labels.UNLABELLED]
        conflicts[index] = len(set(named)) > 1
        classes[index] = next(iter([*([target] if target in named else []), *named, *here]), BACKGROUND)
    return classes, conflicts


def orientation(dataset: "Dataset") -> str:
    """Return where the stored columns, rows and slice normal of an image run to, such as LPS for a usual axial CT."""
    from med_assets.dicom.elements import image_axes

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
    from med_assets.dicom.geometry import read_ct_series, whole_hu
    from med_assets.dicom.objects import is_synthetic, stored

    files = stored(raw)
    label = next((one for kind in ("SEG", "RTSTRUCT") for one in files.get(kind, ())), None)
    ct = read_ct_series(files["CT"], describe(label).referenced_sops if label else (), tilt, label)
    hu = whole_hu(ct.array)
    if hu.max() <= 0:
        raise CaseRejected(
            "no_tissue",
            f"expected a CT in HU with tissue above 0, got at most {hu.max()} HU; check rescale and modality",
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
    sources, voxel_ml = read.sources, float(np.prod(ct.geometry.spacing_mm)) / 1000
    indices, combinations = overlay(sources, hu.shape)
    classes, conflicts = classes_of(combinations, sources, target)
    truth = _by_plane(classes, indices)
    overlap = int(np.count_nonzero(_by_plane(conflicts, indices))) if conflicts.any() else 0
    image, seen = transforms.forward_pair(hu, indices, ct.geometry, spacing_mm)
    at_network = seen[0].numpy()
    arrays |= {"truth": truth, "image": image[0].numpy(), "label": classes[at_network], "sources": at_network}
    usual = (BACKGROUND, labels.UNLABELLED)
    present = [int(value) for value in np.unique(classes) if value not in usual and (truth == value).any()]
    names = {str(value): labels.name_of(value) for value in present}
    kept = [asdict(one.label(voxel_ml)) for one in sorted(sources, key=lambda one: one.value)]
    write_json(out / TRUTH, {"names": names, "labels": kept, "combinations": combinations})
    wanted = truth == target
    box = box_of(wanted) or (slice(0, 0),) * wanted.ndim
    found = wanted[box]
    return {
        "label_kind": read.kind,
        "label_drift_mm": read.drift_mm,
        "rois_left_out": "; ".join(read.left_out),
        "labels": len(sources),
        "labels_without_class": sum(one.class_id is None for one in sources),
        "classes": len(present),
        "overlap_voxels": overlap,
        "target_present": bool(found.any()),
        "target_ml": float(np.count_nonzero(found)) * voxel_ml,
        "target_components": int(components(found, np.ones((3, 3, 3)))[1]) if found.size else 0,
        "target_hu_median": float(np.median(hu[box][found])) if found.size else None,
        "target_contrast_hu": contrast_hu(hu, wanted),
        "target_better_at": better_place(hu, wanted),
        "target_network_voxels": int((arrays["label"] == target).sum()),
    }
