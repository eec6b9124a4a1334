"""One radiotherapy case from de-identified DICOM to arrays on the CT's own grid, and its measured facts.

Masks are rasterised on the CT grid and never resampled; the dose is interpolated onto it. Nothing is made up: a structure
that is absent stays absent, and what would need a guess is a rejection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.dicom.label_rows import write_rows
from med_assets.errors import CaseRejected
from med_assets.metrics.boxes import box_of
from med_assets.preparation.prepared import TRUTH
from med_assets.programs.rt_dose.beams import plan
from med_assets.programs.rt_dose.prepared import SDF_CLIP_MM, SDF_SCALE
from med_assets.programs.rt_dose.site import Site
from med_assets.programs.rt_dose.structures import draw_structures, leave_out_uncovered, missing_structures
from med_assets.storage.files import write_json

if TYPE_CHECKING:
    from med_assets.dicom.rtbeams import Beam
    from med_assets.dicom.tolerances import TiltPolicy

CONTROL_POINTS = "control_points.npy"
"""File of a case whose plan has beams: the rows of `dicom.rtbeams.control_point_table`. No network reads it."""

BODY_THRESHOLD_HU = -300.0
"""Where no ROI outlines the patient, the body is the largest region above this with its holes filled."""


def signed_distance(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """int8 signed distance (z, y, x), negative inside: 127 is 50 mm or more outside; all 127 for an empty mask.

    Distances are from voxel centre to the nearest centre of the other side: a boundary voxel has the distance to its
    neighbour, so signs agree with the mask everywhere.
    """
    from scipy.ndimage import distance_transform_edt

    whole, box = np.full(mask.shape, SDF_SCALE, dtype=np.int8), box_of(mask)
    if box is None:
        return whole
    # Beyond this margin every distance is clipped, so that the transform is needed near the structure alone.
    near = _grown(box, [ceil(SDF_CLIP_MM / step) for step in spacing_mm])
    outside = distance_transform_edt(~mask[near], sampling=spacing_mm)
    # The voxel outside that is nearest to one inside touches the box of the structure.
    close = _grown(box, (1, 1, 1))
    inside = distance_transform_edt(mask[close], sampling=spacing_mm)
    within = tuple(slice(c.start - n.start, c.stop - n.start) for c, n in zip(close, near, strict=True))
    outside[within] -= inside
    scaled = np.rint(np.clip(outside, -SDF_CLIP_MM, SDF_CLIP_MM) * (SDF_SCALE / SDF_CLIP_MM))
    whole[near] = scaled.astype(np.int8)
    return whole


def _grown(box: Sequence[slice], margin: Sequence[int]) -> tuple[slice, ...]:
    """A box with a margin of voxels around it; what reaches beyond the end of the grid is cut as slices are."""
    return tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, margin, strict=True))


def body_from_ct(ct_hu: np.ndarray) -> np.ndarray:
    """Largest connected region above -300 HU, holes filled slice by slice; bool (z, y, x)."""
    from scipy.ndimage import binary_fill_holes, label

    regions, n = label(ct_hu > BODY_THRESHOLD_HU)
    if n == 0:
        raise CaseRejected(
            "no_body",
            f"expected tissue above {BODY_THRESHOLD_HU:g} HU in the CT, got at most {ct_hu.max():g} HU; check RescaleIntercept",
        )
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    largest = regions == sizes.argmax()
    return np.stack([binary_fill_holes(plane) for plane in largest])


def _crop(masks: dict[str, np.ndarray], spacing_mm: Sequence[float], site: Site) -> tuple[slice, slice, slice]:
    """Part of the grid that is kept: the structures' extent along z with the site's margin, and its in-plane square."""
    boxes = [box for mask in masks.values() if (box := box_of(mask)) is not None]
    shape, kept = next(iter(masks.values())).shape, []
    for axis in range(3):
        low, high = min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)
        if axis == 0:
            margin = int(np.ceil(site.crop_margin_mm / spacing_mm[0]))
            low, high = max(0, low - margin), min(shape[0], high + margin)
        elif site.crop_inplane_mm is None:
            low, high = 0, shape[axis]
        else:
            side = min(shape[axis], max(high - low, round(site.crop_inplane_mm / spacing_mm[axis])))
            low = int(np.clip((low + high - side) // 2, 0, shape[axis] - side))
            high = low + side
        kept.append(slice(low, high))
    return kept[0], kept[1], kept[2]


def _levels(masks: dict[str, np.ndarray], site: Site) -> np.ndarray:
    """Prescribed level of each voxel / prescription, 0 outside the targets; where they overlap the higher one holds."""
    shape = next(iter(masks.values())).shape
    level = np.zeros(shape, dtype=np.float32)
    for name, gy in site.targets.items():
        if name in masks:
            np.maximum(level, gy / site.targets[site.main_target], out=level, where=masks[name])
    return level


def _organs(masks: dict[str, np.ndarray], site: Site) -> np.ndarray:
    """True in organs at risk outside the targets."""
    shape = next(iter(masks.values())).shape
    organs = np.logical_or.reduce([masks[name] for name in site.oars if name in masks] or [np.zeros(shape, bool)])
    targets = np.logical_or.reduce([masks[name] for name in site.targets if name in masks])
    return np.asarray(organs & ~targets)


def prepare_case(case_id: str, raw: Path, out: Path, site: Site, tilt: "TiltPolicy | None" = None) -> dict[str, Any]:
    """Write the prepared arrays of the case under `raw` to `out` and return its facts; those of the dose where it has one.

    Raises CaseRejected with the codes of the DICOM readers and no_ptv, ambiguous_roi, empty_target,
    contour_outside_image, missing_structure, dose_grid_too_small, no_prescription, no_body.
    """
    from med_assets.dicom.discover import describe
    from med_assets.dicom.geometry import read_ct_series, whole_hu
    from med_assets.dicom.objects import is_synthetic, stored
    from med_assets.dicom.plan_dose import read_plan_dose
    from med_assets.dicom.rtbeams import control_point_table, read_beams
    from med_assets.dicom.rtdose import resample
    from med_assets.dicom.rtplan import read_plan
    from med_assets.dicom.rtstruct import read_structure_set

    files = stored(raw)
    ct = read_ct_series(files["CT"], describe(files["RTSTRUCT"][0]).referenced_sops, tilt, files["RTSTRUCT"][0])
    spacing = ct.geometry.spacing_mm
    frame = str(files["CT"][0].get("FrameOfReferenceUID") or "")
    drawn = draw_structures(read_structure_set(files["RTSTRUCT"][0]), site, ct.geometry, frame)
    body = drawn.body
    planned = read_plan(files["RTPLAN"][0]) if "RTPLAN" in files else None
    beams_planned = read_beams(files["RTPLAN"][0]) if "RTPLAN" in files else ()
    prescription = (planned and planned.prescription_gy) or site.default_prescription_gy
    if prescription is None:
        raise CaseRejected(
            "no_prescription",
            "expected a target prescription dose in the RTPLAN, got none; add it or set the site's default",
        )
    dose, covered = None, np.ones(ct.array.shape, bool)
    if "RTDOSE" in files:
        of_plan = read_plan_dose(files["RTDOSE"], files["RTPLAN"][0] if "RTPLAN" in files else None)
        dose = np.asarray(resample(of_plan, ct.geometry, outside=np.nan), dtype=np.float32)
        covered = np.isfinite(dose)
        dose[~covered] = 0.0
    leave_out_uncovered(drawn, covered, site)
    masks = drawn.masks
    if body is None:
        body = body_from_ct(ct.array)
    whole = np.count_nonzero(body)
    body = body & covered
    coverage = float(np.count_nonzero(body) / (whole or 1))
    kept = _crop(masks, spacing, site)
    masks = {name: mask[kept] for name, mask in masks.items()}
    hu, body, valid = ct.array[kept], body[kept], covered[kept]
    bits = np.zeros(hu.shape, dtype=np.uint16)
    sdf = np.full((len(site.structures), *hu.shape), SDF_SCALE, dtype=np.int8)
    for index, name in enumerate(site.structures):
        if name in masks:
            bits[masks[name]] |= np.uint16(1 << index)
            sdf[index] = signed_distance(masks[name], spacing)
    present = [name for name in site.structures if name in masks and masks[name].any()]
    missing = missing_structures(site, present, drawn.excluded)
    numbers = {int(row.value): row.maps_to for row in drawn.rois if row.maps_to in present}
    stated = site.stated_by(planned, numbers, prescription) if planned else {}
    beams = plan(hu, body, _levels(masks, site), _organs(masks, site), spacing, site.beam_plan)
    for name, array in {
        "ct": whole_hu(hu),
        "masks": bits,
        "sdf": sdf,
        "body": body,
        "beams": beams.astype(np.float16),
    }.items():
        np.save(out / f"{name}.npy", np.ascontiguousarray(array))
    if beams_planned:
        np.save(out / CONTROL_POINTS, control_point_table(beams_planned))
    geometry = ct.geometry.to_dict() | {
        "shape": list(hu.shape),
        "origin_mm": [float(value) for value in ct.geometry.to_points(np.array([[axis.start for axis in kept]]))[0]],
    }
    write_json(
        out / "case.json",
        {
            "case_id": case_id,
            "site": site.name,
            "spacing_mm": list(spacing),
            "geometry": geometry,
            "structures": list(site.structures),
            "present": present,
            "prescription_gy": prescription,
            "fractions": planned and planned.fractions,
            "constraints": site.constraints(present, prescription, stated),
            "constraints_stated": stated,
            "synthetic": any(is_synthetic(ds) for group in files.values() for ds in group),
        },
    )
    write_rows(out, sorted(drawn.rois, key=lambda row: row.value))
    of_dose = {}
    if dose is not None:
        of_dose = {"dose_coverage": coverage, **_truth(dose[kept], valid, masks, body, site, prescription, out)}
    voxel_ml = float(np.prod(spacing)) / 1000
    main = masks[site.main_target]
    agreement = [
        float(np.count_nonzero((sdf[site.structures.index(name)] < 0) == masks[name]) / hu.size) for name in present
    ]
    return {
        "slices": int(ct.geometry.shape[0]),
        "spacing_z_mm": float(spacing[0]),
        "spacing_xy_mm": float(spacing[2]),
        "gantry_tilt_deg": ct.gantry_tilt_deg,
        "oblique_deg": ct.geometry.oblique_deg(),
        "hu_min": float(hu.min()),
        "hu_max": float(hu.max()),
        "body_ml": float(np.count_nonzero(body) * voxel_ml),
        "target_ml": float(np.count_nonzero(main) * voxel_ml),
        "structures_present": len(present),
        "rois_unmatched": drawn.unmatched,
        "structures_missing": ", ".join(name for name in site.structures if name not in present),
        "structures_expected_missing": ", ".join(missing),
        "rois_passed_over": "; ".join(drawn.passed_over),
        "structures_excluded": ", ".join(f"{name} ({why})" for name, why in sorted(drawn.excluded.items())),
        "contours_left_out": drawn.left_out,
        "contour_overlaps": drawn.overlaps,
        "contour_outside_share": drawn.outside,
        "contour_volume_ratios": ", ".join(f"{name} {ratio:.2f}" for name, ratio in drawn.volume_ratios.items()),
        "contour_volumes_off": ", ".join(drawn.volumes_off),
        "rois_unusable": "; ".join(drawn.unusable),
        "prescription_gy": float(prescription),
        "prescription_in_plan": planned is not None and planned.prescription_gy is not None,
        "fractions": planned and planned.fractions,
        "constraints_stated": len(stated),
        **_beam_facts(beams_planned, prescription, planned.fractions if planned else None),
        "sdf_sign_agreement": min(agreement),
        **of_dose,
    }


def _beam_facts(beams: "Sequence[Beam]", prescription_gy: float, fractions: int | None) -> dict[str, Any]:
    """The facts of a plan's beams; none of a plan without."""
    from med_assets.dicom.rtbeams import BeamFacts

    found = BeamFacts.of(beams)
    if found is None:
        return {}
    given = found.meterset_mu
    per_gy = None if given is None or not fractions else given / (prescription_gy / fractions)
    return {**asdict(found), "mu_per_gy": per_gy}


def _truth(
    dose: np.ndarray,
    valid: np.ndarray,
    masks: Mapping[str, np.ndarray],
    body: np.ndarray,
    site: Site,
    prescription: float,
    out: Path,
) -> dict[str, Any]:
    """Write the planned dose and where there is one, and return its facts.

    All arrays are (z, y, x) on the grid that is kept, the dose in Gy.
    """
    for name, array in (("dose", dose), ("valid", valid)):
        np.save(out / f"{name}.npy", np.ascontiguousarray(array))
    write_json(out / TRUTH, {})
    main = dose[masks[site.main_target]]
    targets = np.logical_or.reduce([masks[name] for name in site.targets if name in masks])
    d95_gy = float(np.percentile(main, 5, method="lower"))
    return {
        "dose_max_gy": float(dose.max()),
        "dose_max_ratio": float(dose.max() / prescription),
        "target_mean_ratio": float(main.mean() / prescription),
        "target_d95_gy": d95_gy,
        "target_d95_ratio": d95_gy / prescription,
        "dose_outside_ratio": float(dose[body & ~targets].mean() / main.mean()) if main.mean() > 0 else None,
    }
