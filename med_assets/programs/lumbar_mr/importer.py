"""Lumbar T2 volumes with labelled vertebral bodies to one folder per case: a sagittal MR series and the points of its levels.

The source is one NumPy archive per case, `<case>.npz` or `<case>.npz.xz`, with `image` (uint8) and `label` (1 to 5 for the bodies
of L1 to L5), 1 mm isotropic. Axis 0 runs from head to feet and axis 1 from front to back, which the images show. Axis 2 is
left-right: it is taken to run from left to right, as the other two run in the order of their names; a spine is too symmetric
to show it. Positions are not given, so the middle of the grid is (0, 0, 0) mm. Nothing is resampled.

Points are derived from the labels, not marked by a person:

- L1/L2 to L4/L5 are midway between the facing endplates of two bodies, on the line that joins the middles of both. Endplates are
  met by a bundle of lines parallel to that one (5 x 5, 4 mm apart), of which the median counts; so is the height of the disc.
- L5/S1, below which nothing is labelled, is on the axis of L5, which is the mean of the normals of its two endplates (planes
  fitted to the middle of its upper and lower surfaces): from the lower endplate, met in the same way from the middle of
  L5, half the mean disc height of the case further down.

Whether there is a transitional vertebra is not known of any case, so no anatomy is stated.
"""

import io
from collections.abc import Collection
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.write import Identity, derived_uid, write_mr, write_points
from med_assets.errors import CaseRejected
from med_assets.landing.importing.bounds import MAX_VOXELS, require_members, unpacked_xz
from med_assets.landing.importing.folders import CaseFolders, content_of, existing, identifier
from med_assets.landing.importing.report import ImportReport
from med_assets.landing.importing.volume_files import read_volume
from med_assets.programs.lumbar_mr.levels import corner

SUFFIXES = (".npz.xz", ".npz")
BODIES = {1: "L1", 2: "L2", 3: "L3", 4: "L4", 5: "L5"}
LEVEL_NAMES = ("L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")
LINES_MM = np.arange(-2, 3) * 4.0
"""Offsets to the front and back, and to both sides, of the lines that meet endplates."""

STEP_MM = 0.25
REACH_MM = 60.0
"""How far down from its middle the lower endplate of L5 is looked for."""

LEAST_VOXELS = 1000
"""Fewer voxels than this, 1 ml, are no vertebral body."""


def import_cases(
    src: Path, dest: Path, cases: Collection[str] | None = None, limit: int | None = None, *, endplates: bool = False
) -> ImportReport:
    """Write dest/<case>/ with MR/ and points.dcm for each archive in `src`; `cases` and `limit` say which, in order of names.

    With `endplates` the ends of the endplates of L1 to L5 are points too.

    A folder appears only when complete, one of the same content is left alone, and a case that can't be used is reported
    as skipped. The same input gives the same bytes.
    """
    found = {path.name.removesuffix(suffix): path for suffix in SUFFIXES for path in src.glob(f"*{suffix}")}
    chosen = [name for name in sorted(found) if cases is None or name in cases][:limit]
    skipped = dict.fromkeys(sorted(set(cases or ()) - set(found)), "no such case in the source folder")
    made = CaseFolders(dest)
    made.skipped |= skipped
    for name in chosen:

        def write(part: Path, name: str = name) -> None:
            write_case(part, *read_case(found[name]), name, endplates=endplates)

        made.write(
            identifier(name),
            found[name],
            partial(content_of, [found[name]], *(["endplates"] if endplates else [])),
            write,
        )
    return made.report()


def read_case(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read image and label, both (head-feet, front-back, left-right).

    Raises CaseRejected: unreadable_volume, not_a_volume, not_integer_labels.
    """
    try:
        content = existing(path, "the case's archive").read_bytes()
        content = unpacked_xz(content, 2 * MAX_VOXELS) if path.suffix == ".xz" else content
        require_members(content, 2 * MAX_VOXELS)
        with np.load(io.BytesIO(content)) as archive:
            image, label = archive["image"], archive["label"]
    except CaseRejected:
        raise
    except Exception as error:  # each format's reader raises what it likes
        raise CaseRejected(
            "unreadable_volume",
            f"expected a NumPy archive with image and label, got {type(error).__name__} from reading; copy it again",
        ) from error
    if image.ndim != 3 or image.shape != label.shape or min(image.shape) < 2:
        raise CaseRejected(
            "not_a_volume", f"expected image and label of one shape of three axes, got {image.shape} and {label.shape}"
        )
    if not np.issubdtype(label.dtype, np.integer) or not np.isin(np.unique(label), [0, *BODIES]).all():
        raise CaseRejected("not_integer_labels", "expected labels 0 to 5, for background and L1 to L5, got others")
    return image, label


def write_case(folder: Path, image: np.ndarray, label: np.ndarray, name: str, *, endplates: bool = False) -> None:
    """Write one case as MR/ and points.dcm in a new `folder`.

    Raises CaseRejected: missing_body, no_endplate, values_out_of_range.
    """
    geometry = sagittal_geometry(image.shape)
    placed = level_points(label) | (endplate_points(label) if endplates else {})
    named = dict(zip(placed, geometry.to_points(np.array([(s, y, x) for y, x, s in placed.values()])), strict=True))
    identity = Identity(
        patient_id=identifier(f"LumbarT2-{name}"),
        study_uid=derived_uid("lumbar T2 study", name),
        frame_of_reference_uid=derived_uid("lumbar T2 frame of reference", name),
    )
    try:
        series = identity.uid("MR series")
        volume = Volume(image.transpose(2, 0, 1), geometry)
        uids = write_mr(folder / "MR", volume, identity, series, description="Sagittal T2")
        places = geometry.to_points(np.array([[index, 0, 0] for index in range(geometry.shape[0])]))
        write_points(folder / "points.dcm", named, identity, series, list(zip(uids, places, strict=True)))
    except ValueError as error:
        raise CaseRejected("values_out_of_range", f"{error}") from error


def write_image(folder: Path, image: Path, patient_id: str) -> None:
    """Write a volume without points as MR/ in `folder`, a sagittal series: its sender says that it is T2-weighted.

    Voxels are reordered and flipped alone. Raises CaseRejected as `read_volume` does, and values_out_of_range.
    """
    volume = sagittal(read_volume(image))
    identity = Identity(
        patient_id=patient_id,
        study_uid=derived_uid("lumbar T2 study", patient_id),
        frame_of_reference_uid=derived_uid("lumbar T2 frame of reference", patient_id),
    )
    try:
        write_mr(folder / "MR", volume, identity, identity.uid("MR series"), description="Sagittal T2")
    except ValueError as error:
        raise CaseRejected("values_out_of_range", f"{error}") from error


def sagittal(volume: Volume) -> Volume:
    """The same voxels with slices from left to right, rows from head to feet and columns from front to back.

    `volume` is on DICOM's axes as `read_volume` gives them, (z, y, x) towards superior, posterior and left.
    """
    grid = volume.geometry
    (dz, dy, dx), (z, y, x) = grid.spacing_mm, np.array(grid.direction)
    nz, ny, nx = grid.shape
    corner = grid.to_points(np.array([[nz - 1, 0, nx - 1]]))[0]
    turned = Geometry(
        (nx, nz, ny),
        (dx, dz, dy),
        tuple(corner.tolist()),
        (tuple((-x).tolist()), tuple((-z).tolist()), tuple(y.tolist())),
    )
    return Volume(np.ascontiguousarray(volume.array[::-1, :, ::-1].transpose(2, 0, 1)), turned)


def sagittal_geometry(shape: tuple[int, ...]) -> Geometry:
    """The grid of slices from left to right, rows from head to feet and columns from front to back, centred on (0, 0, 0) mm."""
    rows, columns, slices = shape
    return Geometry(
        (slices, rows, columns), (1.0, 1.0, 1.0), ((slices - 1) / 2, -(columns - 1) / 2, (rows - 1) / 2),
        ((-1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    )  # fmt: skip


def level_points(label: np.ndarray) -> dict[str, np.ndarray]:
    """Return the points of the five levels, (head-feet, front-back, left-right) in voxels of 1 mm, as the module says.

    Raises CaseRejected: missing_body, no_endplate.
    """
    voxels = {body: np.argwhere(label == body) for body in BODIES}
    few = [BODIES[body] for body, found in voxels.items() if len(found) < LEAST_VOXELS]
    if few:
        raise CaseRejected(
            "missing_body",
            f"expected {LEAST_VOXELS} voxels or more for each of L1 to L5, got fewer for {', '.join(few)}",
        )
    middles = {body: found.mean(axis=0) for body, found in voxels.items()}
    points, discs = {}, []
    for (upper, lower), name in zip(pairwise(BODIES), LEVEL_NAMES, strict=False):
        length = float(np.linalg.norm(middles[lower] - middles[upper]))
        axis = (middles[lower] - middles[upper]) / length
        ends = []
        for values in _bundle(label, middles[upper], axis, length):
            above, below = np.flatnonzero(values == upper), np.flatnonzero(values == lower)
            if len(above) and len(below) and above[-1] < below[0]:
                ends.append(((above[-1] + 0.5) * STEP_MM, (below[0] - 0.5) * STEP_MM))
        if not ends:
            raise CaseRejected("no_endplate", f"expected facing endplates at {name}, got none between the two middles")
        first, last = np.median(ends, axis=0)
        points[name] = middles[upper] + axis * (first + last) / 2
        discs.append(last - first)
    axis = body_axis(label == 5)
    lowest = [
        (found[-1] + 0.5) * STEP_MM
        for values in _bundle(label, middles[5], axis, REACH_MM)
        if len(found := np.flatnonzero(values == 5))
    ]
    points["L5/S1"] = middles[5] + axis * (float(np.median(lowest)) + float(np.mean(discs)) / 2)
    return points


def endplate_points(label: np.ndarray) -> dict[str, np.ndarray]:
    """Return the ends of the endplates of L1 to L5, (head-feet, front-back, left-right) in voxels of 1 mm.

    In the slice of 1 mm through the middle of a body, each is the voxel of the body that lies furthest towards that corner, along
    its axis and across it, as shares of the body's extent.
    """
    found = {}
    for body, name in BODIES.items():
        mask = label == body
        axis = body_axis(mask)
        middle = np.argwhere(mask).mean(axis=0)
        slice_index = int(np.rint(middle[2]))
        voxels = np.argwhere(mask[:, :, slice_index])
        down = axis[:2] / np.linalg.norm(axis[:2])
        back = np.array([-down[1], down[0]])
        along, across = ((voxels - middle[:2]) @ direction for direction in (down, back))
        for plate, downwards in (("upper", -1), ("lower", 1)):
            for end, backwards in (("front", -1), ("back", 1)):
                far = downwards * along / np.ptp(along) + backwards * across / np.ptp(across)
                found[corner(name, plate, end)] = np.array([*voxels[far.argmax()], slice_index], float)
    return found


def body_axis(mask: np.ndarray) -> np.ndarray:
    """Return the unit vector down the axis of a body: the mean of the normals of planes through its two endplates.

    The planes fit the first and the last voxels of the columns of `mask` along axis 0, of the middle 60 % of its extent
    along both other axes.
    """
    y, x = np.nonzero(mask.any(axis=0))
    keep = np.ones(len(y), bool)
    for values in (y, x):
        low, high = values.min(), values.max()
        keep &= abs(values - (low + high) / 2) <= 0.3 * (high - low)
    y, x = y[keep], x[keep]
    columns = mask[:, y, x]
    surfaces = (columns.argmax(axis=0), len(columns) - 1 - columns[::-1].argmax(axis=0))
    normals = []
    for height in surfaces:
        (_, along_y, along_x), *_ = np.linalg.lstsq(np.column_stack([np.ones(len(y)), y, x]), height, rcond=None)
        normal = np.array([1.0, -along_y, -along_x])
        normals.append(normal / np.linalg.norm(normal))
    axis = np.mean(normals, axis=0)
    return np.asarray(axis / np.linalg.norm(axis))


def _bundle(label: np.ndarray, start: np.ndarray, axis: np.ndarray, length_mm: float) -> list[np.ndarray]:
    """Labels along lines of `length_mm` parallel to `axis` around the one from `start`, a value each STEP_MM."""
    front = np.cross(axis, (0.0, 0.0, 1.0))
    front /= np.linalg.norm(front)
    side = np.cross(axis, front)
    along = start + np.arange(0.0, length_mm, STEP_MM)[:, None] * axis
    lines = []
    for forward in LINES_MM:
        for sideways in LINES_MM:
            at = np.rint(along + forward * front + sideways * side).astype(int)
            inside = ((at >= 0) & (at < label.shape)).all(axis=1)
            values = np.zeros(len(at), label.dtype)
            values[inside] = label[tuple(at[inside].T)]
            lines.append(values)
    return lines
