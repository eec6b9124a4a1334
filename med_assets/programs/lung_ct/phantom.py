"""Synthetic chest CT with lung tumours, as a real DICOM CT series and a segmentation (SEG) of it.

The anatomy is drawn in millimetres around the isocentre: ribs and spine, lungs with their lobes and vessels, heart,
aorta, liver under the diaphragm, and one to three tumours. It is for demos and tests: no number measured on it says
anything about patients.
"""

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.seg_write import write_seg
from med_assets.dicom.write import write_ct
from med_assets.programs.phantoms import axes, centred_geometry, identity_of_phantom, new_case

TUMOUR = "lung tumor"

LABELS = (
    TUMOUR,
    "left lung upper lobe", "left lung lower lobe",
    "right lung upper lobe", "right lung middle lobe", "right lung lower lobe",
    "heart", "aorta", "trachea", "liver", "spinal cord",
)  # fmt: skip
"""Segments of every case, by their names in VISTA3D's dictionary; the tumour is taken out of the others."""

TISSUE_HU = {
    "air": -1000, "lung": -855, "fat": -100, "muscle": 50, "mediastinum": 10, "blood": 45, "liver": 60, "cord": 35,
    "bone": 350, "couch": -650,
}  # fmt: skip

TUMOUR_ML = 0.5
"""What every tumour has at least."""


@dataclass(frozen=True)
class Tumour:
    """A lump: its mask, the share of it in each voxel (0-1, blurred at its border) and its CT number."""

    mask: np.ndarray
    share: np.ndarray
    hu: float


def write_case(
    folder: Path,
    seed: int,
    *,
    shape: tuple[int, int, int] = (40, 48, 48),
    spacing_mm: tuple[float, float, float] = (6.0, 6.5, 6.5),
    patient_id: str | None = None,
    seg_shift_mm: float = 0.0,
) -> None:
    """Write CT/ and the segmentation of one synthetic patient into a new `folder`, which appears complete.

    The same arguments give the same bytes. `patient_id` is PHANTOM-<seed> unless given, which makes a second case of
    one patient. `seg_shift_mm` moves the segmentation's grid to the patient's left, off that of the CT: a damaged case
    for tests. The anatomy needs a field of view of about 230 x 260 x 310 mm (z, y, x). Raises FileExistsError, and
    ValueError where the grid is too small or too coarse to hold a tumour of 0.5 ml in the lungs.
    """
    rng = np.random.default_rng([seed, *shape])
    geometry = centred_geometry(shape, spacing_mm)
    masks = anatomy(geometry, rng)
    lumps = tumours(geometry, masks, rng)
    identity = identity_of_phantom("chest", seed, f"{shape} {spacing_mm}", patient_id)
    with new_case(folder) as part:
        write_ct(part / "CT", Volume(ct_hu(geometry, masks, lumps, rng), geometry), identity, identity.uid("CT series"))
        source = [pydicom.dcmread(path) for path in sorted((part / "CT").iterdir())]
        x, y, z = geometry.origin_mm
        name = hashlib.sha256(identity.study_uid.encode()).hexdigest()[:8]
        write_seg(
            part / name, labelled(masks, lumps), replace(geometry, origin_mm=(x + seg_shift_mm, y, z)), source,
            synthetic=True,
        )  # fmt: skip


def labelled(masks: dict[str, np.ndarray], lumps: list[Tumour]) -> dict[str, np.ndarray]:
    """Boolean masks of `LABELS`, no two of which share a voxel."""
    tumour = np.logical_or.reduce([lump.mask for lump in lumps])
    return {name: tumour if name == TUMOUR else masks[name] & ~tumour for name in LABELS}


def anatomy(geometry: Geometry, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Boolean masks of `LABELS` without the tumour, and of body, fat, muscle, cavity, lungs, bone and couch."""
    z, y, x = axes(geometry)
    size, wide_size = rng.uniform(0.92, 1.08, 6), rng.uniform(0.9, 1.03)

    def ellipsoid(cz: float, cy: float, cx: float, rz: float, ry: float, rx: float) -> np.ndarray:
        return np.asarray(((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)

    def oval(ry: float | np.ndarray, rx: float | np.ndarray, cy: float | np.ndarray = 0.0) -> np.ndarray:
        return np.asarray(np.sqrt(((y - cy) / ry) ** 2 + (x / rx) ** 2) + 0 * z <= 1)

    wide, tall = 142 * wide_size, 102 * wide_size
    fat_mm = rng.uniform(9, 20)
    body = oval(tall, wide)
    # The chest narrows towards the neck; what is between it and the skin there are the muscles of the shoulders.
    narrow = 1 - 0.42 * np.clip((z - 15) / 105, 0, 1) ** 1.6
    wall_y, wall_x = (tall - fat_mm - 18) * narrow, (wide - fat_mm - 18) * narrow
    cavity = oval(wall_y, wall_x)
    # Ribs run downwards to the front, with muscle between them.
    slope, pitch = 0.45, 27 * size[0]
    rib_phase = (z - slope * y + rng.uniform(0, pitch)) % pitch
    bone = oval(wall_y + 9, wall_x + 9) & ~cavity & (rib_phase < 11)
    spine_y = wall_y * 0.86
    disc = (z + rng.uniform(0, 25)) % 25 < 5
    vertebra = oval(15, 18, spine_y) & ~disc
    canal_y = spine_y + 22
    arch = oval(13, 17, canal_y) | ((y > canal_y) & (y < canal_y + 30) & (abs(x) < 4))
    cord = oval(7.5, 7.5, canal_y)
    sternum = (abs(x) < 15) & (y < 6 - wall_y) & (y > -4 - wall_y) & (z > -55)
    bone |= vertebra | (arch & ((z + rng.uniform(0, 25)) % 25 < 19)) | sternum
    for side in (-1, 1):
        blade = abs(y - 62 - 0.35 * (z - 60)) < 5
        bone |= blade & (abs(x - side * 84) < 30) & (z > 5) & (z < 100) & ~cavity
    bone &= body & ~cord & oval(tall - fat_mm, wide - fat_mm)

    dome_right, dome_left = rng.uniform(48, 66), rng.uniform(34, 52)
    diaphragm = -112 + np.maximum(
        dome_right * np.exp(-(((x + 62) / 58) ** 2) - ((y + 8) / 62) ** 2),
        dome_left * np.exp(-(((x - 62) / 56) ** 2) - ((y + 8) / 62) ** 2),
    )
    heart_z = -112 + 0.5 * (dome_right + dome_left) + 40 * size[1]
    turn = (x - 24) * 0.8 + (y + 26) * 0.6, (y + 26) * 0.8 - (x - 24) * 0.6
    heart = (
        ((z - heart_z) / (46 * size[1])) ** 2 + (turn[0] / (54 * size[2])) ** 2 + (turn[1] / (41 * size[2])) ** 2
    ) <= 1
    heart &= cavity & (z > diaphragm - 3) & (y < spine_y - 24)
    top = heart_z + 34 * size[1]
    descending_y = 0.86 * (tall - fat_mm - 18) - 24
    # Up from the heart, in an arch to the back and the left, and down beside the spine.
    path = [(top, -14.0, -8.0)]
    for angle in np.linspace(0, np.pi, 9):
        back = (1 - np.cos(angle)) / 2
        path.append((top + 16 + 20 * np.sin(angle), -14 + (descending_y + 14) * back, -8 + 28 * back))
    path.append((-130.0, descending_y + 4, 16.0))
    aorta = _tubes(geometry, [(a, b, 13.0 * size[3]) for a, b in pairwise(path)]) >= 0.5
    aorta &= body & ~heart & ~(vertebra & bone)
    carina = top + 8
    trachea = _tubes(geometry, [((140.0, -2.0, 0.0), (carina, 14.0, 0.0), 8.5)]) >= 0.5
    ends = [(carina - 26, 18.0, 34.0 * side) for side in (-1, 1)]
    bronchi = _tubes(geometry, [((carina, 14.0, 0.0), end, 6.0) for end in ends]) >= 0.5
    middle = np.interp(y, [-90, -50, -10, 30, 90], [9, 22, 31, 27, 27]) * size[4]
    gap = ellipsoid(heart_z, -26, 24, 52 * size[1], 46 * size[2], 57 * size[2]) & (y < 5)
    lungs = oval(wall_y - 2, wall_x - 2) & (abs(x) + 0 * z > middle) & (z > diaphragm) & ~heart & ~aorta & ~gap
    lungs &= z < 108 * size[0]
    left, right = lungs & (x > 0), lungs & (x < 0)
    fissure = z < 0.9 * y + rng.uniform(-16, 4)
    lower_right = z < rng.uniform(-20, 0)
    below = cavity & (z < diaphragm - 4) & ~heart & ~aorta & ~(vertebra & bone)
    liver = below & (x < rng.uniform(15, 40)) & (y < 0.55 * tall)
    couch = np.broadcast_to((y > tall + 6) & (y < tall + 20) & (abs(x) < 0.93 * wide), geometry.shape)
    muscle = oval(tall - fat_mm, wide - fat_mm)
    return {
        "left lung upper lobe": left & ~fissure, "left lung lower lobe": left & fissure,
        "right lung upper lobe": right & ~fissure & ~lower_right,
        "right lung middle lobe": right & ~fissure & lower_right, "right lung lower lobe": right & fissure,
        "heart": heart, "aorta": aorta, "trachea": trachea & ~lungs & ~aorta, "liver": liver, "spinal cord": cord,
        "body": body, "fat": body & ~muscle, "cavity": cavity, "lungs": lungs, "bone": bone, "bronchi": bronchi,
        "couch": couch, "gut": below & ~liver,
    }  # fmt: skip


def tumours(geometry: Geometry, masks: dict[str, np.ndarray], rng: np.random.Generator) -> list[Tumour]:
    """One to three tumours of 8-25 mm radius: within a lung, at its pleura or at the mediastinum, solid to ground-glass.

    The first is of 13 mm or more and all have at least `TUMOUR_ML`. Raises ValueError where the grid does not hold such a one.
    """
    from scipy.ndimage import distance_transform_edt

    lungs = masks["lungs"]
    if not lungs.any():
        raise ValueError("expected a field of view with lungs in it, about 230 x 260 x 310 mm; got none")
    depth_mm = distance_transform_edt(lungs, sampling=geometry.spacing_mm)
    inner_mm = distance_transform_edt(masks["cavity"], sampling=geometry.spacing_mm)
    lung_space = (
        masks["cavity"] & ~masks["heart"] & ~masks["aorta"] & ~masks["trachea"] & ~masks["liver"] & ~masks["gut"]
    )
    lung_space &= ~masks["bone"]
    voxel_ml = float(np.prod(geometry.spacing_mm)) / 1000
    lumps: list[Tumour] = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        for _ in range(50):
            radius = float(rng.uniform(8 if lumps else 13, 25))
            place = rng.choice(["lung", "pleura", "mediastinum"], p=[0.5, 0.3, 0.2])
            near = depth_mm <= 0.6 * radius
            allowed = {
                "lung": depth_mm > min(radius, 0.7 * float(depth_mm.max())),
                "pleura": lungs & near & (inner_mm < 0.9 * radius),
                "mediastinum": lungs & near & (inner_mm > 25),
            }[str(place)]
            centres = np.argwhere(allowed)
            if not len(centres):
                continue
            # Anywhere in its voxel, not only at the middle.
            centre = geometry.to_points(rng.choice(centres) + rng.uniform(-0.5, 0.5, 3))[0]
            share = _lump(geometry, centre, radius, rng) * lung_space
            mask = share >= 0.5
            if mask.sum() * voxel_ml >= TUMOUR_ML and not any((mask & other.mask).any() for other in lumps):
                hu = rng.uniform(20, 60) if rng.random() < 0.75 else rng.uniform(-400, -120)
                lumps.append(Tumour(mask, share, float(hu)))
                break
    if not lumps:
        raise ValueError(
            f"expected a grid that holds a tumour of {TUMOUR_ML} ml in the lungs; use a finer or larger one"
        )
    return lumps


def ct_hu(
    geometry: Geometry, masks: dict[str, np.ndarray], lumps: list[Tumour], rng: np.random.Generator
) -> np.ndarray:
    """CT numbers, float32: tissues blurred a little, vessels and tumours by their share of a voxel, and noise."""
    from scipy.ndimage import gaussian_filter

    _, y, _ = axes(geometry)
    hu = np.full(geometry.shape, float(TISSUE_HU["air"]))
    contrast_hu = rng.uniform(0, 130)  # of the injected agent in the blood
    lung_hu = TISSUE_HU["lung"] + rng.uniform(-35, 35)
    for name, tissue in (
        ("body", "muscle"), ("fat", "fat"), ("cavity", "mediastinum"), ("gut", "muscle"), ("liver", "liver"),
        ("bone", "bone"), ("spinal cord", "cord"), ("heart", "blood"), ("aorta", "blood"), ("trachea", "air"),
        ("couch", "couch"),
    ):  # fmt: skip
        hu[masks[name]] = TISSUE_HU[tissue] + (contrast_hu if tissue == "blood" else 0)
    lungs = masks["lungs"]
    hu[lungs] = lung_hu
    hu[masks["bronchi"]] = TISSUE_HU["air"]
    hu = gaussian_filter(hu, 0.45)
    # Lung is denser at the back, where its blood sinks, and patchy.
    patches = gaussian_filter(rng.normal(0, 1, geometry.shape), [14 / step for step in geometry.spacing_mm])
    hu += lungs * (0.5 * y + 28 * patches / patches.std())
    vessels = _tubes(geometry, _vessels(masks, geometry, rng)) * lungs
    hu += vessels * np.maximum(TISSUE_HU["blood"] + contrast_hu - hu, 0)
    for lump in lumps:
        hu += lump.share * np.maximum(lump.hu + 25 * patches / patches.std() - hu, 0)
    hu += rng.normal(0, rng.uniform(12, 32), geometry.shape)
    return np.clip(hu, -1024, 3000).astype(np.float32)


_Segment = tuple[tuple[float, float, float], tuple[float, float, float], float]
"""Both ends, (z, y, x) mm, and the radius in mm of a piece of a tube."""


def _vessels(masks: dict[str, np.ndarray], geometry: Geometry, rng: np.random.Generator) -> list[_Segment]:
    """Trees from both hila, and short thick pieces among their branches, which look like nodules on a slice."""
    pieces: list[_Segment] = []

    def grow(start: np.ndarray, direction: np.ndarray, length: float, radius: float) -> None:
        end = start + length * direction
        pieces.append((_triple(start), _triple(end), radius))
        if radius < 1.6:
            return
        for _ in range(2):
            turned = direction + rng.normal(0, 0.5, 3)
            grow(end, turned / np.linalg.norm(turned), length * rng.uniform(0.65, 0.9), 0.66 * radius)

    height = float(geometry.to_points(np.argwhere(masks["lungs"]).mean(axis=0))[0, 2])
    for side in (-1, 1):
        for _ in range(8):
            way = np.array([rng.normal(0, 0.8), rng.normal(0, 0.7), side * rng.uniform(0.4, 1.2)])
            grow(
                np.array([height, 6.0, side * 26.0]), way / np.linalg.norm(way), rng.uniform(34, 48), rng.uniform(4, 6)
            )
    for _ in range(int(rng.integers(2, 6))):
        _, end, _ = pieces[int(rng.integers(len(pieces)))]
        way = rng.normal(0, 1, 3)
        pieces.append((end, _triple(end + rng.uniform(14, 26) * way / np.linalg.norm(way)), rng.uniform(4.5, 7.5)))
    return pieces


def _lump(geometry: Geometry, centre_mm: np.ndarray, radius_mm: float, rng: np.random.Generator) -> np.ndarray:
    """The share (0-1) of each voxel within an uneven ball around an LPS (x, y, z) centre."""
    x, y, z = (axis - middle for axis, middle in zip(reversed(axes(geometry)), centre_mm, strict=True))
    stretch = rng.uniform(0.8, 1.25, 3)
    distance = np.sqrt((z / stretch[0]) ** 2 + (y / stretch[1]) ** 2 + (x / stretch[2]) ** 2) + 1e-9
    uneven = np.ones(geometry.shape)
    for waves, weight in ((2.0, 0.16), (4.0, 0.10), (7.0, 0.05)):
        a, b, c = rng.normal(0, waves / 1.7, 3)
        uneven += weight * np.sin((a * z + b * y + c * x) / distance + rng.uniform(0, 2 * np.pi))
    step = float(np.mean(geometry.spacing_mm))
    return np.clip((radius_mm * uneven - distance) / step + 0.5, 0, 1)


def _tubes(geometry: Geometry, pieces: list[_Segment]) -> np.ndarray:
    """The share (0-1) of each voxel within the pieces of tube; one thinner than a voxel fills its part of it."""
    share = np.zeros(geometry.shape, np.float32)
    z, y, x = (axis.ravel() for axis in axes(geometry))
    step = float(np.mean(geometry.spacing_mm))
    for start, end, radius in pieces:
        a, b = np.array(start), np.array(end)
        reach = radius + step
        window = tuple(
            slice(*np.searchsorted(axis, (low - reach, high + reach)))
            for axis, low, high in zip((z, y, x), np.minimum(a, b), np.maximum(a, b), strict=True)
        )
        if any(part.start >= part.stop for part in window):
            continue
        points = np.stack(np.meshgrid(z[window[0]], y[window[1]], x[window[2]], indexing="ij"), axis=-1) - a
        along = np.clip(points @ (b - a) / max(float((b - a) @ (b - a)), 1e-9), 0, 1)
        distance = np.linalg.norm(points - along[..., None] * (b - a), axis=-1)
        filled = np.clip((max(radius, step / 2) - distance) / step + 0.5, 0, 1) * min(1.0, (2 * radius / step) ** 2)
        share[window] = np.maximum(share[window], filled)
    return share


def _triple(point: np.ndarray) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in point)
    return (z, y, x)
