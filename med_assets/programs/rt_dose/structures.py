"""The structures of a site on the CT's grid: which ROI is which, what of it can be drawn, and what is left out and why."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from med_assets.dicom.label_rows import LabelRow
from med_assets.errors import CaseRejected
from med_assets.programs.rt_dose.site import BODY, DOSE_MASK, Site

if TYPE_CHECKING:
    from med_assets.dicom.geometry import Geometry
    from med_assets.dicom.rtstruct import Drawing, StructureSet

MAX_OUTSIDE = 0.01
"""Share of the area of a target or organ that may lie beyond the CT and is cut; more would change its dose statistics."""

MAX_OUTLINE_OUTSIDE = 0.5
"""The same of the outline of the body, which often reaches beyond the field of view."""

MAX_WITHOUT_DOSE = 0.01
"""Share of a structure's voxels that may lie beyond the dose grid; more would change its dose statistics."""

MIN_COMPARED_ML = 1.0
"""Smallest volume of contours that is compared with the volume of voxels: below, voxels are too coarse."""

VOLUME_TOLERANCE = 0.1
"""How far the volume of a structure's voxels may differ from that of its contours, beside what whole slices make of it."""

END_SLICES = 2.0
"""Slices by which the ends of a structure may differ from its contours: one at each end, drawn or not."""


@dataclass
class Structures:
    """The structures of a case on the CT's grid (z, y, x), and what drawing them showed."""

    masks: dict[str, np.ndarray]
    body: np.ndarray | None = None
    """Region that may get dose, or the outline of the patient, if one was drawn."""
    unmatched: int = 0
    """ROIs that match no structure of the site."""
    excluded: dict[str, str] = field(default_factory=dict)
    """Structures that were drawn and can't be used, with the reason."""
    passed_over: tuple[str, ...] = ()
    """ROIs that fit a structure beside the one that was preferred."""
    unusable: tuple[str, ...] = ()
    """ROIs whose contours can't be assigned, by number, with the reason."""
    left_out: int = 0
    """Contour items that enclose nothing."""
    overlaps: int = 0
    """Contours that overlap others without nesting."""
    outside: float = 0.0
    """Largest share of an ROI's area beyond the image, which is cut."""
    volume_ratios: dict[str, float] = field(default_factory=dict)
    """Volume of voxels / volume of contours by structure."""
    volumes_off: tuple[str, ...] = ()
    """Structures whose volumes differ by more than voxels and slices explain."""
    rois: tuple[LabelRow, ...] = ()
    """All ROIs of the structure set by their numbers, and the structure that each was drawn as."""


def draw_structures(structure_set: "StructureSet", site: Site, geometry: "Geometry", frame: str) -> Structures:
    """Rasterise the structures of the site; an ROI that can't be rasterised whole is left out, and refused where the site requires it.

    ROIs that name another frame of reference than `frame` are of another image. Raises CaseRejected: ambiguous_roi, no_ptv,
    contour_not_axial, contour_outside_image, empty_target.
    """
    from med_assets.dicom.rtstruct import draw, outside_image

    special = (BODY, DOSE_MASK)
    rois = structure_set.rois
    problems = [(one.name, one.problem) for one in structure_set.unusable if one.name]
    usable = []
    for roi in rois:
        if not roi.contours:
            problems.append((roi.name, "no usable contour"))
        elif roi.frame and frame and roi.frame != frame:
            problems.append((roi.name, "in another frame of reference than the CT"))
        else:
            usable.append(roi)
    match = site.match([roi.name for roi in usable])
    excluded = {}
    for name, indices in match.ambiguous.items():
        numbers = " and ".join(str(usable[index].number) for index in indices)
        if name in site.required:
            raise CaseRejected(
                "ambiguous_roi",
                f"expected one ROI for {name}, got ROIs {numbers}, which all have a name of it; rename or remove those that do not "
                f"count, or set an order of preference in conf/rt_dose/sites/{site.name}.yaml",
            )
        excluded[name] = f"ROIs {numbers} fit it"
    undrawn = site.match([name for name, _ in problems])
    for name, indices in {**undrawn.ambiguous, **{one: (index,) for one, index in undrawn.found.items()}}.items():
        if name not in match.found:
            excluded.setdefault(name, problems[indices[0]][1])
    _require_targets(site, match.found, len(usable), excluded)
    drawings: dict[str, Drawing] = {}
    for name, index in match.found.items():
        try:
            drawing = draw(usable[index], geometry)
            allowed = MAX_OUTLINE_OUTSIDE if name in special else MAX_OUTSIDE
            if drawing.outside > allowed:
                excluded[name] = f"{drawing.outside:.0%} beyond the CT, by up to {drawing.outside_mm:.0f} mm"
                raise outside_image(name, drawing, allowed)
            drawings[name] = drawing
        except CaseRejected as rejected:
            if name in site.required:
                raise
            excluded.setdefault(name, rejected.code)
    voxel_ml = float(np.prod(geometry.spacing_mm)) / 1000
    drawn = {usable[index].number: name for name, index in match.found.items() if name in drawings}
    counts = {number: int(np.count_nonzero(drawings[name].mask)) for number, name in drawn.items()}
    listed = tuple(
        LabelRow(roi.number, roi.name, counts[roi.number], counts[roi.number] * voxel_ml, drawn[roi.number])
        if roi.number in drawn
        else LabelRow(roi.number, roi.name, None, None)
        for roi in rois
    )
    masks = {name: drawing.mask for name, drawing in drawings.items()}
    dose_mask, outline = masks.pop(DOSE_MASK, None), masks.pop(BODY, None)
    empty = sorted(name for name in site.required if not masks[name].any())
    if empty:
        raise CaseRejected(
            "empty_target", f"expected at least one voxel in {empty}, got none; check the contours against the CT"
        )
    ratios, off = _volume_ratios(drawings, voxel_ml)
    return Structures(
        masks=masks,
        body=outline if dose_mask is None else dose_mask,
        unmatched=len(match.unmatched),
        excluded=excluded,
        passed_over=tuple(
            f"{name}: ROI {usable[index].number}" for name, indices in match.passed_over.items() for index in indices
        ),
        unusable=tuple(str(one) for one in structure_set.unusable),
        left_out=sum(roi.left_out for roi in rois),
        overlaps=sum(drawing.overlaps for drawing in drawings.values()),
        outside=max((drawing.outside for drawing in drawings.values()), default=0.0),
        volume_ratios=ratios,
        volumes_off=off,
        rois=listed,
    )


def _require_targets(site: Site, found: Mapping[str, int], usable: int, excluded: Mapping[str, str]) -> None:
    missing = sorted(set(site.required) - found.keys())
    if not missing:
        return
    there = "; ".join(f"{name} is there and can't be used ({excluded[name]})" for name in missing if name in excluded)
    raise CaseRejected(
        "no_ptv",
        f"expected ROIs for {missing} (site {site.name}), got {sorted(found) or 'none'} from {usable} usable ROIs"
        f"{f'; {there}' if there else ''}; draw them, or add a synonym in conf/rt_dose/sites/{site.name}.yaml, "
        "`med-assets explain` proposes some",
    )


def missing_structures(site: Site, present: Collection[str], excluded: Mapping[str, str]) -> list[str]:
    """Return the structures that the site expects of every case and that are not present.

    Raises CaseRejected "missing_structure" where that costs the case.
    """
    missing = [name for name in site.expected if name not in present]
    if missing and site.expected_missing == "refuse":
        why = "".join(f"; {name}: {excluded[name]}" for name in missing if name in excluded)
        raise CaseRejected(
            "missing_structure",
            f"expected {', '.join(missing)} beside {', '.join(sorted(present))} (site {site.name}), got no usable ROI{why}; draw "
            "what is missing, or add the names that your clinic uses to the site",
        )
    return missing


def _volume_ratios(drawings: Mapping[str, "Drawing"], voxel_ml: float) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the volume of voxels / that of contours by structure, and which differ by more than voxels and slices explain."""
    ratios, off = {}, []
    for name, drawing in sorted(drawings.items()):
        if drawing.area_ml <= MIN_COMPARED_ML:
            continue
        ratios[name] = float(np.count_nonzero(drawing.mask) * voxel_ml / drawing.area_ml)
        if abs(ratios[name] - 1) > VOLUME_TOLERANCE + END_SLICES / drawing.extent_slices:
            off.append(name)
    return ratios, tuple(off)


def leave_out_uncovered(structures: Structures, covered: np.ndarray, site: Site) -> None:
    """Leave out structures that reach beyond the dose grid, where no dose was calculated.

    Raises CaseRejected "dose_grid_too_small" where the site requires one of them.
    """
    for name in sorted(structures.masks):
        mask = structures.masks[name]
        kept, voxels = mask & covered, np.count_nonzero(mask)
        share = float((voxels - np.count_nonzero(kept)) / voxels) if voxels else 0.0
        if share <= MAX_WITHOUT_DOSE:
            structures.masks[name] = kept
            continue
        if name in site.required:
            raise CaseRejected(
                "dose_grid_too_small",
                f"expected a dose grid (RTDOSE) that covers {name}, got {share:.0%} of it outside, where no dose was calculated; "
                "calculate the dose on a larger grid",
            )
        structures.excluded[name] = f"{share:.0%} beyond the dose grid"
        del structures.masks[name]
