"""Synthetic breast ultrasound: speckled layers of skin, fat, gland and muscle, shadows, and a lesion or none.

A benign lesion is a smooth ellipse wider than tall, brighter tissue below it; a malignant one is spiculated, taller, and casts a
shadow. Not for training anything clinical. A picture has a border with text burnt in, as machines write it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from med_assets.dicom.loops import write_us_loop
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.segmentation_2d import write_segmentation_2d
from med_assets.dicom.ultrasound import Box, write_us
from med_assets.programs.phantoms import new_case

KINDS = ("benign", "malignant", "benign", "malignant", "normal")
"""Kind of a phantom by its seed, in turn."""

SHAPE = (96, 120)
"""Default size of what shows tissue, rows and columns."""

ORGANS = ("gland", "muscle")
"""Organs of the phantoms of organs, in the order of their values in a mask, from 1: gland, and what lies below it."""

GLAND = 2
"""Layer of the gland, counted from 0 for skin."""

WIDTH_MM = 40.0
"""Width of what shows tissue."""

BORDER = (14, 4, 4, 10)
"""Pixels above, below, left and right of it."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """One picture: uint8 pixels with the border, mask of the lesion, its kind, where tissue is shown, and (dy, dx) in mm."""

    pixels: np.ndarray
    mask: np.ndarray
    kind: str
    region: Box
    pixel_mm: tuple[float, float]


def phantom(seed: int, shape: tuple[int, int] = SHAPE, kind: str | None = None) -> Phantom:
    """Return the picture of a seed; `kind` is benign, malignant or normal, by the seed unless given."""
    kind = kind or KINDS[seed % len(KINDS)]
    rng = np.random.default_rng([seed, 2004])
    echo, depth, _ = _layers(rng, shape)
    mask = np.zeros(shape, bool)
    if kind != "normal":
        mask, below = _lesion(rng, shape, kind)
        echo[below & ~mask] *= 1.5 if kind == "benign" else 0.35
        echo[mask] = echo[mask] * 0.15 + 0.02
        if kind == "malignant":
            echo[_rim(mask)] *= 1.6
    for _ in range(rng.integers(1, 3)):  # shadows of ligaments, with or without a lesion
        column = rng.integers(shape[1])
        band = np.exp(-(((np.arange(shape[1]) - column) / (0.02 * shape[1])) ** 2))
        echo *= 1 - 0.35 * band[None] * (depth > rng.uniform(0.2, 0.6))
    top, bottom, left, right = BORDER
    pixels = np.pad(_speckled(rng, echo, depth), ((top, bottom), (left, right)))
    _burn_in(pixels, f"PHANTOM {seed:04d}")
    dx = WIDTH_MM / shape[1]
    region = slice(top, top + shape[0]), slice(left, left + shape[1])
    return Phantom(pixels, np.pad(mask, ((top, bottom), (left, right))), kind, region, (dx, dx))


def _layers(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean echo of each pixel, its depth 0 to 1, and the number of its layer, from 0 for skin."""
    from scipy.ndimage import gaussian_filter1d

    rows, columns = shape
    depth = np.linspace(0, 1, rows)[:, None] * np.ones(columns)
    echo, layer = np.full(shape, 0.9), np.zeros(shape, int)
    for number, (limit, level) in enumerate(
        ((0.05, 0.35), (0.25, 0.55), (0.7, 0.3), (0.8, 0.6), (0.86, 0.25)), start=1
    ):
        wave = gaussian_filter1d(rng.normal(0, 1, columns), columns / 8, mode="wrap")
        edge = limit + rng.normal(0, 0.02) + 0.03 * wave / (np.abs(wave).max() + 1e-9)
        deeper = depth > edge[None]
        echo[deeper] = level * rng.uniform(0.85, 1.15)
        layer[deeper] = number
    return echo, depth, layer


def _lesion(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Mask of a lesion, and what lies below it."""
    rows, columns = shape
    y, x = np.indices(shape) / rows
    across, wide = columns / rows, rng.uniform(0.12, 0.22)
    high = wide * (rng.uniform(0.55, 0.75) if kind == "benign" else rng.uniform(0.9, 1.2))
    cy, cx = rng.uniform(0.35, 0.6), rng.uniform(0.25, across - 0.25)
    angle = np.arctan2((y - cy) / high, (x - cx) / wide)
    radius = np.hypot((y - cy) / high, (x - cx) / wide)
    outline = 1 + 0.06 * np.sin(2 * angle + rng.uniform(0, 6.3))
    if kind == "malignant":
        spikes, phase = rng.integers(7, 12), rng.uniform(0, 6.3)
        outline = 0.85 + 0.25 * np.abs(np.sin(spikes * angle / 2 + phase)) ** 3 + 0.08 * np.sin(3 * angle + phase)
    mask = radius < outline
    below = np.maximum.accumulate(mask, axis=0) & (np.abs(x - cx) < 0.8 * wide)
    return mask, below


def _rim(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(mask, iterations=2) & ~mask)


def _speckled(rng: np.random.Generator, echo: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Rayleigh speckle, wider than high and coarser with depth, log-compressed to uint8."""
    from scipy.ndimage import gaussian_filter

    field = [gaussian_filter(rng.normal(0, 1, echo.shape), (0.6, 1.2)) for _ in range(2)]
    envelope = gaussian_filter(echo, 0.8) * np.hypot(*field) * np.exp(-0.6 * depth)
    envelope /= envelope.mean()
    compressed = np.log1p(6 * envelope) / np.log1p(6 * 4)
    return np.clip(np.rint(230 * compressed), 0, 255).astype(np.uint8)


def _burn_in(pixels: np.ndarray, text: str) -> None:
    """Write text into the border above the tissue."""
    from PIL import Image, ImageDraw

    border = Image.fromarray(np.zeros((BORDER[0], pixels.shape[1]), np.uint8))
    ImageDraw.Draw(border).text((2, 0), text, fill=255)
    pixels[: BORDER[0]] = np.maximum(pixels[: BORDER[0]], np.asarray(border))


def write_case(folder: Path, seed: int, *, shape: tuple[int, int] = SHAPE, kind: str | None = None) -> Path:
    """Write the image of a seed and the segmentation of its lesion as DICOM into a new `folder`."""
    made = phantom(seed, shape, kind)
    identity = Identity(
        patient_id=f"BREAST-PHANTOM-{seed:04d}",
        patient_name="Phantom^Breast",
        study_uid=derived_uid("breast phantom", str(seed), made.kind),
        frame_of_reference_uid="",
        study_date="20240301",
        synthetic=True,
    )
    with new_case(folder) as part:
        image = write_us(
            part / "us.dcm", made.pixels, identity, pixel_mm=made.pixel_mm, region=made.region, burnt_in=True
        )
        write_segmentation_2d(part / "seg.dcm", made.mask, made.kind, image, synthetic=True)
    return folder


def write_busi(folder: Path, n: int, seed: int = 0, shape: tuple[int, int] = SHAPE) -> Path:
    """Write `n` pictures without border in the layout and with the names of BUSI; a malignant lesion has two mask files."""
    from PIL import Image

    counts = dict.fromkeys(KINDS, 0)
    for number in range(seed, seed + n):
        made = phantom(number, shape)
        counts[made.kind] += 1
        name, mask = f"{made.kind} ({counts[made.kind]})", made.mask[made.region]
        parts = [mask]
        if made.kind == "malignant":
            half = np.arange(mask.shape[0])[:, None] < np.argwhere(mask)[:, 0].mean()
            parts = [mask & half, mask & ~half]
        (folder / made.kind).mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(made.pixels[made.region])
        grey.convert("RGB").save(folder / made.kind / f"{name}.png")
        for index, piece in enumerate(parts):
            suffix = f"_mask_{index}" if index else "_mask"
            Image.fromarray(piece.astype(np.uint8) * 255).save(folder / made.kind / f"{name}{suffix}.png")
    return folder


def organs(seed: int, shape: tuple[int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture without lesion and border, uint8 (rows, columns), and the number of each pixel's organ, see ORGANS."""
    rng = np.random.default_rng([seed, 2005])
    echo, depth, layer = _layers(rng, shape)
    numbers = np.where(layer == GLAND, 1, np.where(layer > GLAND, 2, 0)).astype(np.uint8)
    return _speckled(rng, echo, depth), numbers


def write_organs(folder: Path, n: int, seed: int = 0, shape: tuple[int, int] = SHAPE) -> Path:
    """Write `n` pictures as images/<seed>.png, and their organs as masks/<seed>.png with the values of ORGANS."""
    from PIL import Image

    for number in range(seed, seed + n):
        for kind, pixels in zip(("images", "masks"), organs(number, shape), strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{number:04d}.png")
    return folder


def write_loop(path: Path, seed: int, n: int, *, frame_ms: float = 40.0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Write a loop of `n` frames in which a phantom moves from side to side; return the masks, bool (frames, rows, columns)."""
    made = phantom(seed, shape)
    shifts = [round(3 * np.sin(2 * np.pi * number / n)) for number in range(n)]
    pixels, masks = (np.repeat(array[None], n, axis=0) for array in (made.pixels, made.mask))
    for number, shift in enumerate(shifts):
        for moving, still in ((pixels, made.pixels), (masks, made.mask)):
            moving[number][made.region] = np.roll(still[made.region], shift, axis=1)
    identity = Identity(
        patient_id=f"BREAST-PHANTOM-{seed:04d}", patient_name="Phantom^Breast", study_uid=derived_uid("breast loop", str(seed)),
        frame_of_reference_uid="", study_date="20240301", synthetic=True,
    )  # fmt: skip
    write_us_loop(path, pixels, identity, frame_ms=frame_ms, pixel_mm=made.pixel_mm, region=made.region)
    return masks
