"""Reads NIfTI and NRRD files on a canonical grid, and the names that a segmentation of 3D Slicer gives its label values."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.errors import CaseRejected
from med_assets.landing.importing.bounds import require_inflated, require_volume

SHEAR_TOLERANCE = 1e-4
"""Largest cosine between two axes of a volume that single precision explains."""

SAME_SPACING = 0.01
"""Largest relative difference of a NIfTI file's pixdim from the spacing of its affine."""

LARGEST_VOXEL_BYTES = 8
"""A double, or an integer of 64 bits."""

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
_LPS_PER = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip


def read_volume(path: Path) -> Volume:
    """Read a NIfTI or NRRD file as stored values on a canonical (z, y, x) grid, by transposing and flipping alone.

    Raises CaseRejected: missing_file, unreadable_volume, not_a_volume, missing_geometry, sheared_affine.
    """
    if not path.is_file():
        raise CaseRejected("missing_file", "expected a volume at the place that is named for it, got no file; copy it")
    if not path.name.endswith(VOLUME_SUFFIXES):
        raise CaseRejected(
            "unreadable_volume", f"expected a file that ends in {', '.join(VOLUME_SUFFIXES)}, got another; convert it"
        )
    try:
        array, affine = _nrrd(path) if path.name.endswith(".nrrd") else _nifti(path)
    except CaseRejected:
        raise
    except Exception as error:  # each format's reader raises what it likes
        raise CaseRejected(
            "unreadable_volume", f"expected a whole volume, got {type(error).__name__} from reading; copy it again"
        ) from error
    return _on_dicom_axes(array, affine)


def label_names(path: Path) -> dict[int, str]:
    """Return the names by label value that a NRRD segmentation of 3D Slicer states, empty for any other file.

    Its segments are numbered in the order in which they were drawn; each says its own label value. A file that can't be read
    says nothing: `read_volume` gives the reason. Of several segments with one value in one layer none is named.
    """
    import nrrd

    if not path.name.endswith(".nrrd") or not path.is_file():
        return {}
    try:
        header = nrrd.read_header(str(path))
    except Exception:  # a reader raises what it likes; `read_volume` says why
        return {}
    found: dict[int, set[str]] = {}
    for key, value in header.items():
        segment = re.match(r"(Segment\d+)_LabelValue\Z", str(key))
        name = str(header.get(f"{segment[1]}_Name", "")).strip() if segment else ""
        if name and re.fullmatch(r"\s*[0-9]{1,9}\s*", str(value)):
            found.setdefault(int(value), set()).add(name)
    return {value: names.pop() for value, names in found.items() if len(names) == 1}


def _nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel

    image: Any = nibabel.load(path)
    if image.header.get_xyzt_units()[0] not in ("mm", "unknown"):
        raise CaseRejected(
            "missing_geometry", f"expected millimetres, got {image.header.get_xyzt_units()[0]}; convert it"
        )
    with nibabel.openers.ImageOpener(str(path)) as stream:  # `load` mends the header as it reads
        header = type(image.header).from_fileobj(stream, check=False)
    affine = nifti_affine(header, image.shape)
    require_volume(path, image.shape, image.header.get_data_dtype().itemsize, packed=path.name.endswith(".gz"))
    return np.asanyarray(image.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def nifti_affine(header: Any, shape: Sequence[int]) -> np.ndarray:
    """The affine of a NIfTI header, 4x4 from (i, j, k) to RAS mm: its sform, else its qform, where all that it states agrees.

    nibabel replaces a pixdim of 0 by 1 and takes the size of a negative one, which makes up a spacing; here both are
    refused. Raises CaseRejected: "missing_geometry" (no form, or one with values that are not finite or above 0),
    "contradictory_affine" (sform, qform and pixdim that place the corner voxels apart).
    """
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform <= 0 and qform <= 0:
        raise CaseRejected("missing_geometry", "expected an sform or qform, got neither; no position is made up here")
    sizes = np.asarray(header["pixdim"][1:4], float)
    measured = bool(np.isfinite(sizes).all() and (sizes > 0).all())
    if qform > 0 and not measured and sform <= 0:
        raise CaseRejected(
            "missing_geometry",
            f"expected pixdim of three sizes above 0 mm beside the qform, got {_numbers(sizes)}; no spacing is made up here",
        )
    forms = []
    if sform > 0:
        forms.append(np.asarray(header.get_sform(), float))
    if qform > 0 and measured:
        try:
            forms.append(np.asarray(header.get_qform(), float))
        except ValueError as error:  # quaternions that are no rotation
            raise CaseRejected("missing_geometry", "expected a qform of a rotation, got another; convert it") from error
    affine = forms[0]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or spacing.min() <= 0:
        raise CaseRejected(
            "missing_geometry",
            f"expected an affine of finite numbers and sizes above 0 mm, got sizes {_numbers(spacing)}",
        )
    if measured and (np.abs(sizes / spacing - 1) > SAME_SPACING).any():
        raise CaseRejected(
            "contradictory_affine",
            f"expected pixdim to be the sizes of the affine, {_numbers(spacing)} mm, got {_numbers(sizes)}; which is right? "
            "Write the volume again with one geometry",
        )
    if len(forms) == 2:
        ends = np.asarray(shape[:3], float) - 1
        corners = np.array(np.meshgrid(*[(0.0, end) for end in ends])).reshape(3, -1)
        apart = float(
            np.linalg.norm(np.diff([form[:3, :3] @ corners + form[:3, 3:] for form in forms], axis=0)[0], axis=0).max()
        )
        if apart > spacing.min() / 2:
            raise CaseRejected(
                "contradictory_affine",
                f"expected sform and qform to place voxels alike, got corners {apart:.3g} mm apart; which is right? Write the "
                "volume again with one of them",
            )
    return affine


def _nrrd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nrrd

    with path.open("rb") as stream:
        described = nrrd.read_header(stream)
        if "data file" in described or "datafile" in described:
            raise CaseRejected(
                "unreadable_volume",
                "expected header and voxels in one file, got a header that names another file; save it as one",
            )
        shape, encoding = described.get("sizes", ()), described.get("encoding", "raw")
        require_volume(path, shape, 1, packed=encoding != "raw")
        if encoding in ("gzip", "gz", "bzip2", "bz2"):
            require_inflated(stream, encoding, math.prod(int(size) for size in shape) * LARGEST_VOXEL_BYTES)
    array, header = nrrd.read(str(path))
    signs = _LPS_PER.get(str(header.get("space", "")).lower())
    directions, origin = header.get("space directions"), header.get("space origin")
    if signs is None or directions is None or origin is None or np.shape(directions) != (3, 3):
        raise CaseRejected(
            "missing_geometry",
            "expected a space of left-posterior-superior, right-anterior-superior or left-anterior-superior with three "
            f"directions and an origin, got {'another or no space' if signs is None else 'no three directions' if np.shape(directions) != (3, 3) else 'no origin'}; "
            "no position is made up here",
        )
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.asarray(directions, float).T, np.asarray(origin, float)
    units = {str(unit).strip().lower() for unit in header.get("space units") or ()} - {"mm", "millimeter", ""}
    if units:
        raise CaseRejected("missing_geometry", "expected millimetres as space units, got others; convert it")
    return array, np.diag([*signs, 1.0]) @ affine


def _on_dicom_axes(array: np.ndarray, affine: np.ndarray) -> Volume:
    """From index axes (i, j, k) with an affine to LPS mm to (z, y, x) towards superior, posterior and left."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3 or min(array.shape) < 2:
        raise CaseRejected("not_a_volume", f"expected three axes of two voxels or more, got the shape {array.shape}")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not np.isfinite(affine).all()
        or abs(np.linalg.det(affine[:3, :3] / np.maximum(sizes, 1e-9))) < 0.5
        or sizes.min() <= 0
        or not np.allclose(affine[3], (0, 0, 0, 1))
    ):
        raise CaseRejected(
            "missing_geometry",
            f"expected an affine of finite numbers, three independent axes above 0 mm and a last row of 0 0 0 1, got axes of "
            f"{sizes.round(4).tolist()} mm and the last row {affine[3].tolist()}; export it with its position",
        )
    axes = affine[:3, :3] / sizes
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > SHEAR_TOLERANCE:
        raise CaseRejected(
            "sheared_affine",
            f"expected perpendicular axes, got two with a cosine of {shear:.2g}, which DICOM slices can't hold; resample "
            "image and label to a straight grid",
        )
    order = io_orientation(affine)
    affine = affine @ inv_ornt_aff(order, array.shape)
    turned = np.ascontiguousarray(apply_orientation(array, order).transpose(2, 1, 0))
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = (tuple(float(value) + 0.0 for value in columns[:, axis]) for axis in range(3))
    geometry = Geometry(
        turned.shape,
        (float(spacing[2]), float(spacing[1]), float(spacing[0])),
        (float(affine[0, 3]), float(affine[1, 3]), float(affine[2, 3])),
        (z, y, x),  # type: ignore[arg-type]  # tuples of three
    )
    return Volume(turned, geometry)


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
