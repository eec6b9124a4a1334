"""Masks as people save them: grey, coloured and palette pictures, NIfTI and NRRD label maps, and DICOM segmentations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from med_assets.errors import CaseRejected

if TYPE_CHECKING:
    from med_assets.dicom.geometry import Geometry
    from med_assets.dicom.seg import Segments

PICTURES, VOLUMES, SEGMENTATIONS = (".png", ".bmp", ".tif", ".tiff"), (".nii.gz", ".nii", ".nrrd"), (".dcm",)
SUFFIXES = (*PICTURES, *VOLUMES, *SEGMENTATIONS)

MOST_CLASSES = 32
"""Values other than the background above which a file of integers holds grey levels and no classes."""

Coding = Literal["label", "value", "colour"]
"""What names a class: the label of a segment, the number in the file, or the colour."""

_NO_MASK = (OSError, EOFError, ValueError, TypeError)


@dataclass(frozen=True, eq=False)
class MaskFile:
    """One file. `codes` has the classes by coding: an array of numbers, 0 background, and the name of each number.

    `shares` are the values as shares of the largest that the kind of file can have, None where they can't be such; `floating`
    says that they are fractions by their type. `spacing_mm` is (dz, dy, dx) of a volume, `segments` those of a SEG, which has no
    arrays until it is placed on a grid.
    """

    codes: Mapping[Coding, tuple[np.ndarray, Mapping[int, str]]]
    shares: np.ndarray | None = None
    floating: bool = False
    largest: int = 0
    geometry: "Geometry | None" = None
    segments: "Segments | None" = None

    def classes(self, coding: Coding) -> set[str]:
        """Names of the classes that are there."""
        if self.segments is not None:
            return {_segment_name(one, coding) for one in self.segments.segments if _shown(one)}
        array, names = self.codes[coding]
        return {names[code] for code in np.unique(array).tolist() if code}

    def masks(self, coding: Coding, grid: "Geometry | None" = None) -> dict[str, np.ndarray]:
        """Bool mask by class. A SEG is laid on `grid`; raises CaseRejected where it does not lie on it."""
        if self.segments is not None:
            return _placed(self.segments, coding, grid)
        array, names = self.codes[coding]
        return {names[code]: array == code for code in np.unique(array).tolist() if code}

    @property
    def codings(self) -> tuple[Coding, ...]:
        """How its classes can be named."""
        if self.segments is None:
            return tuple(self.codes)
        # De-identification numbers names that it does not know in the order of each file: they name no class.
        counted = any(one.label.startswith("UNRECOGNISED_") for one in self.segments.segments)
        return ("value",) if counted else ("label", "value")


def read_mask(path: Path) -> MaskFile:
    """Read a mask. Raises CaseRejected or ValueError that say why it can't be used."""
    name = path.name.lower()
    if name.endswith(VOLUMES):
        return _volume(path)
    return _segmentation(path) if name.endswith(SEGMENTATIONS) else _picture(path)


def stem(path: Path) -> str:
    """Name of a file without the ending of its kind."""
    ending = next((one for one in SUFFIXES if path.name.lower().endswith(one)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def _volume(path: Path) -> MaskFile:
    from med_assets.landing.importing.volume_files import read_volume

    found = read_volume(path)
    array = np.asarray(found.array)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError("it has values that are no numbers; save 0 where nothing is marked")
        whole = bool((array == np.rint(array)).all())
        if not whole or array.max(initial=0) <= 1:
            if array.min(initial=0) < 0 or array.max(initial=0) > 1:
                raise ValueError(
                    f"expected fractions from 0 to 1, got {array.min():.3g} to {array.max():.3g}; save probabilities, or labels as integers"
                )
            codes: dict[Coding, tuple[np.ndarray, Mapping[int, str]]] = {}
            if whole:
                codes["value"] = (array.astype(np.int64), {1: "1"})
            return MaskFile(codes, array, True, 1, found.geometry)
    codes = {"value": _numbered(array.astype(np.int64))}
    return MaskFile(codes, None, False, int(np.iinfo(np.int64).max), found.geometry)


def _segmentation(path: Path) -> MaskFile:
    import pydicom
    from pydicom.errors import InvalidDicomError

    from med_assets.dicom.seg import read_segments

    try:
        dataset = pydicom.dcmread(path)
    except (InvalidDicomError, *_NO_MASK) as error:
        raise ValueError(f"a file can't be read as DICOM ({type(error).__name__})") from error
    return MaskFile({}, segments=read_segments(dataset))


def _shown(segment: Any) -> bool:
    return any(bool(mask.any()) for mask in segment.frames.values())


def _segment_name(segment: Any, coding: Coding) -> str:
    return str(segment.label) if coding == "label" else str(segment.value)


def _placed(segments: "Segments", coding: Coding, grid: "Geometry | None") -> dict[str, np.ndarray]:

    from med_assets.dicom.seg import place

    if grid is None:
        raise ValueError("expected a grid to lay a segmentation on, got none")
    named = replace(
        segments,
        segments=tuple(replace(one, label=_segment_name(one, coding)) for one in segments.segments if _shown(one)),
    )
    return place(named, grid)[0]


def grid_of(files: Sequence[MaskFile]) -> "Geometry | None":
    """The grid of a pair: that of a volume, else one that holds the planes of all segmentations; None of pictures.

    Raises ValueError where segmentations have no common grid.
    """
    from med_assets.dicom.geometry import Geometry

    for file in files:
        if file.geometry is not None:
            return file.geometry
    planes = [file.segments.planes for file in files if file.segments is not None]
    if not planes:
        return None
    first = planes[0]
    if any(one.size != first.size or not np.allclose(one.direction, first.direction, atol=1e-4) for one in planes[1:]):
        raise ValueError("its segmentations have frames of different sizes or directions; masks are not resized")
    origins = np.concatenate([one.origins_mm for one in planes])
    heights = origins @ first.direction[0]
    apart = np.diff(np.unique(np.round(heights, 3)))
    step = min([float(gap) for gap in apart] + [one.declared_mm for one in planes if one.declared_mm], default=1.0)
    lowest = origins[int(heights.argmin())]
    count = round(float(np.ptp(heights)) / step) + 1
    z, y, x = (tuple(float(value) for value in row) for row in first.direction)
    return Geometry(
        (count, *first.size),
        (step, *first.spacing_mm),
        (float(lowest[0]), float(lowest[1]), float(lowest[2])),
        (z, y, x),  # type: ignore[arg-type]  # rows of a (3, 3) array
    )


def _numbered(array: np.ndarray) -> tuple[np.ndarray, Mapping[int, str]]:
    return array, {int(code): str(int(code)) for code in np.unique(array).tolist()}


def _coloured(colours: np.ndarray) -> tuple[np.ndarray, Mapping[int, str]]:
    packed = colours.astype(np.int64) @ np.array([65536, 256, 1])
    return packed, {int(code): f"#{int(code):06x}" for code in np.unique(packed).tolist()}


def _grey(array: np.ndarray, largest: int) -> MaskFile:
    codes: dict[Coding, tuple[np.ndarray, Mapping[int, str]]] = {"value": _numbered(array.astype(np.int64))}
    if largest == 255:
        codes["colour"] = _coloured(np.repeat(array[..., None], 3, axis=-1))
    return MaskFile(codes, array / largest, largest=largest)


def _picture(path: Path) -> MaskFile:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return _of_mode(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a file can't be read ({type(error).__name__})") from error


def _of_mode(image: Any) -> MaskFile:
    """Classes of a picture of any kind: its numbers, its colours, the entries of its palette, or its transparency alone."""
    mode, array = image.mode, np.asarray(image)
    if mode == "1":
        return _grey(array.astype(np.uint8), 1)
    if mode == "L" or mode.startswith("I;16"):
        return _grey(array, 255 if mode == "L" else 65535)
    if mode == "F":
        if not np.isfinite(array).all() or array.min(initial=0) < 0 or array.max(initial=0) > 1:
            raise ValueError(
                "expected fractions from 0 to 1 in a picture of floating-point numbers; save probabilities"
            )
        return MaskFile({}, array.astype(np.float64), True, 1)
    if mode == "P":
        colours = np.asarray(image.convert("RGB"))
        if (colours.max(axis=-1) == colours.min(axis=-1)).all():
            return _grey(colours[..., 0], 255)
        return MaskFile({"value": _numbered(array.astype(np.int64)), "colour": _coloured(colours)})
    if mode in ("LA", "RGBA"):
        colours, alpha = array[..., :-1], array[..., -1]
        if alpha.min() != alpha.max():
            if colours.min() != colours.max():
                raise ValueError(
                    "both colours and transparency vary, so what is lesion is not stated; save a grey mask"
                )
            return _grey(alpha, 255)
        array, mode = (colours[..., 0], "L") if mode == "LA" else (colours, "RGB")
        if mode == "L":
            return _grey(array, 255)
    if mode == "RGB":
        if (array.max(axis=-1) == array.min(axis=-1)).all():
            return _grey(array[..., 0], 255)
        return MaskFile({"colour": _coloured(array)}, array.max(axis=-1) / 255, largest=255)
    raise ValueError(
        f"expected a grey, colour or palette picture of 1, 8 or 16 bits or of fractions, got Pillow's mode {mode}; save it as one"
    )


def refused(error: CaseRejected | ValueError) -> str:
    """Why a file can't be used, for people."""
    return error.message if isinstance(error, CaseRejected) else str(error)
