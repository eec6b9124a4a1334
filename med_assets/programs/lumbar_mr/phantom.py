"""Synthetic sagittal T2 MR of the lumbar spine, as a real DICOM MR series with points at the discs.

Vertebrae and discs are stacked upwards from the sacrum along a curve of lordosis; what differs by case is size, curve, disc
height and water, where the field of view ends, coil and noise, so that neither the place in the image nor counting from the
top tells a level. It is for demos and tests: no number measured on it says anything about patients.

Transitional anatomy: "sacralised" has L5 grown to the sacrum, in line with it and with a rudimentary L5/S1 disc;
"lumbarised" has S1 free of it, square and in line with L5, with a disc of its own below. Levels are named by the true count.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.write import write_mr, write_points
from med_assets.programs.phantoms import identity_of_phantom, new_case

SACRUM, LUMBAR, THORACIC = ("S5", "S4", "S3", "S2", "S1"), ("L5", "L4", "L3", "L2", "L1"), ("T12", "T11", "T10", "T9")
VERTEBRAE = (*SACRUM, *LUMBAR, *THORACIC)
"""From feet to head."""

LEVELS = ("L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")
ANATOMIES = ("normal", "sacralised", "lumbarised")

TILT_DEGREES = {
    "S5": 88.0, "S4": 76.0, "S3": 63.0, "S2": 51.0, "S1": 41.0, "L5": 22.0, "L4": 9.0, "L3": 0.0, "L2": -7.0, "L1": -11.0,
    "T12": -13.0, "T11": -14.0, "T10": -13.0, "T9": -11.0,
}  # fmt: skip
"""How far the upward axis of a vertebra leans to the front in a spine of usual lordosis."""

BODY_MM = {
    "S5": (13.0, 13.0, 26.0), "S4": (15.0, 15.0, 32.0), "S3": (18.0, 18.0, 38.0), "S2": (22.0, 22.0, 44.0),
    "S1": (28.0, 31.0, 52.0), "L5": (28.0, 35.0, 50.0), "L4": (28.0, 35.0, 49.0), "L3": (28.0, 34.5, 47.0),
    "L2": (27.5, 33.5, 45.0), "L1": (26.5, 32.5, 43.0), "T12": (25.0, 31.0, 41.0), "T11": (23.5, 30.0, 39.0),
    "T10": (22.5, 29.0, 37.0), "T9": (22.0, 28.0, 35.0),
}  # fmt: skip
"""Height, depth and width of each body."""

DISC_MM = {"L5": 10.5, "L4": 11.0, "L3": 10.0, "L2": 9.0, "L1": 8.0, "T12": 6.5, "T11": 5.5, "T10": 5.0, "T9": 4.5}
"""Height of the disc below each vertebra; below those of the sacrum a line of `FUSED_MM`."""

FUSED_MM = 1.5
CANAL_MM = 8.0
"""Half the depth of the canal."""

INTENSITY = {
    "muscle": 190.0,
    "fat": 640.0,
    "gut": 300.0,
    "marrow": 340.0,
    "rim": 90.0,
    "annulus": 110.0,
    "csf": 930.0,
    "cord": 430.0,
}


@dataclass(frozen=True)
class Piece:
    """A vertebral body or disc: its middle (x, y, z) mm, how far its upward axis leans to the front (radians), its height,
    depth and width in mm, and for a disc its water from 0 to 1."""

    name: str
    centre: np.ndarray
    lean: float
    size_mm: tuple[float, float, float]
    water: float = 0.0

    @property
    def up(self) -> np.ndarray:
        """Unit vector (x, y, z) from feet to head."""
        return np.array([0.0, -np.sin(self.lean), np.cos(self.lean)])

    @property
    def back(self) -> np.ndarray:
        """Unit vector (x, y, z) from front to back."""
        return np.array([0.0, np.cos(self.lean), np.sin(self.lean)])


def write_case(
    folder: Path,
    seed: int,
    *,
    anatomy: str = "normal",
    shape: tuple[int, int, int] = (13, 256, 256),
    spacing_mm: tuple[float, float, float] = (4.5, 1.1, 1.1),
    patient_id: str | None = None,
    points: bool = True,
) -> None:
    """Write MR/ and points.dcm of one synthetic patient into a new `folder`, which appears complete.

    The same arguments give the same bytes. `shape` and `spacing_mm` are those of slices, rows and columns. The points are
    those of LEVELS and "LSTV <anatomy>"; `points` False leaves them out. Raises FileExistsError, and ValueError for another
    anatomy and where the grid does not hold the lumbar discs, for which 230 mm from head to feet and 35 mm across are enough.
    """
    if anatomy not in ANATOMIES:
        raise ValueError(f"expected one of the anatomies {ANATOMIES}, got {anatomy!r}")
    rng = np.random.default_rng([seed, *shape, ANATOMIES.index(anatomy)])
    pieces = spine(anatomy, rng)
    geometry = field_of_view(pieces, shape, spacing_mm, rng)
    marks = {piece.name: piece.centre for piece in pieces if piece.name in LEVELS}
    at = geometry.to_index(np.array(list(marks.values())))
    if (at < 0).any() or (at > np.array(shape) - 1).any():
        raise ValueError("expected a field of view that holds L1/L2 to L5/S1, about 230 mm by 35 mm; use a larger grid")
    identity = identity_of_phantom("spine", seed, f"{anatomy} {shape} {spacing_mm}", patient_id)
    with new_case(folder) as part:
        series = identity.uid("MR series")
        volume = Volume(signal(pieces, geometry, rng), geometry)
        uids = write_mr(
            part / "MR", volume, identity, series,
            description="Sagittal T2 phantom", echo_time_ms=100.0, repetition_time_ms=3500.0,
        )  # fmt: skip
        if points:
            positions = geometry.to_points(np.array([[index, 0, 0] for index in range(shape[0])]))
            named = {name: marks[name] for name in LEVELS} | {f"LSTV {anatomy}": marks["L5/S1"]}
            write_points(part / "points.dcm", named, identity, series, list(zip(uids, positions, strict=True)))


def spine(anatomy: str, rng: np.random.Generator) -> list[Piece]:
    """Bodies and discs from feet to head, in LPS mm around the upper endplate of S1."""
    size, lordosis = rng.uniform(0.87, 1.12), rng.uniform(0.7, 1.25)
    slim = rng.uniform(0.92, 1.08)
    tilt = {name: lean * lordosis + rng.normal(0, 1.5) for name, lean in TILT_DEGREES.items()}
    bodies = {
        name: (h * size * rng.uniform(0.96, 1.04), d * size * slim, w * size) for name, (h, d, w) in BODY_MM.items()
    }
    age = rng.uniform(0, 1)  # of the discs: lower and darker
    discs, water, depth = {}, {}, {}
    for name in VERTEBRAE[1:]:
        worn = float(np.clip(rng.normal(0.75 * age, 0.25), 0, 1)) if name in DISC_MM else 1.0
        discs[name] = DISC_MM[name] * size * (1.08 - 0.5 * worn) if name in DISC_MM else FUSED_MM
        water[name] = 1 - worn
        depth[name] = 0.97 if name in DISC_MM else 0.8
    if anatomy == "sacralised":
        discs["L5"], water["L5"], depth["L5"] = rng.uniform(2.0, 4.0), rng.uniform(0, 0.25), rng.uniform(0.55, 0.75)
        tilt["L5"] = tilt["S1"] - rng.uniform(4, 9)
        tilt["L4"] += rng.uniform(2, 7)
        h, d, w = bodies["L5"]
        bodies["L5"] = (h * rng.uniform(0.93, 1.0), d * rng.uniform(0.9, 0.97), w * rng.uniform(1.0, 1.08))
    if anatomy == "lumbarised":
        discs["S1"], water["S1"], depth["S1"] = size * rng.uniform(6.0, 9.0), rng.uniform(0.2, 0.9), 0.95
        tilt["S1"] = tilt["L5"] + rng.uniform(4, 10)
        h, d, w = bodies["S1"]
        bodies["S1"] = (h, bodies["L5"][1] * rng.uniform(0.92, 1.0), w * rng.uniform(0.9, 0.97))
    bend, phase = rng.uniform(0, 4), rng.uniform(0, 2 * np.pi)
    pieces: list[Piece] = []
    at = np.zeros(3)
    for name in VERTEBRAE:
        lean = float(np.radians(tilt[name]))
        if pieces:
            below = pieces[-1]
            middle = (below.lean + lean) / 2
            disc = Piece(
                f"{name}/{below.name}", at, middle,
                (discs[name], depth[name] * min(below.size_mm[1], bodies[name][1]), 0.95 * bodies[name][2]),
                water[name],
            )  # fmt: skip
            disc = Piece(disc.name, at + disc.up * discs[name] / 2, middle, disc.size_mm, disc.water)
            pieces.append(disc)
            at = at + disc.up * discs[name]
        body = Piece(name, at, lean, bodies[name])
        pieces.append(Piece(name, at + body.up * bodies[name][0] / 2, lean, bodies[name]))
        at = at + body.up * bodies[name][0]
    base = next(piece for piece in pieces if piece.name == "S1")
    origin = base.centre + base.up * base.size_mm[0] / 2
    moved = []
    for piece in pieces:
        centre = piece.centre - origin
        sideways = bend * (np.sin(2 * np.pi * centre[2] / 260 + phase) - np.sin(phase))
        moved.append(Piece(piece.name, centre + np.array([sideways, 0.0, 0.0]), piece.lean, piece.size_mm, piece.water))
    return moved


def field_of_view(
    pieces: list[Piece], shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> Geometry:
    """A sagittal grid somewhere around the lumbar spine: what is seen above and below differs by case, L1 to S1 are in it."""
    places = np.array([piece.centre for piece in pieces if piece.name in LEVELS])
    span = (np.array(shape) - 1) * np.asarray(spacing_mm)
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    # A body and more above L1/L2, and the edge of the sacrum below L5/S1, are always shown.
    slack = np.maximum((span[1] - (places[:, 2].max() - places[:, 2].min())) / 2 - 22.0, 0.0)
    shift = np.array([rng.uniform(-3, 3), rng.uniform(-5, 40), rng.uniform(-1, 1) * min(slack, 45.0)])
    x, y, z = middle + shift + np.array([-span[0], -span[2], span[1]]) / 2
    return Geometry(
        shape, spacing_mm, (round(float(x), 6), round(float(y), 6), round(float(z), 6)),
        ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    )  # fmt: skip


def signal(pieces: list[Piece], geometry: Geometry, rng: np.random.Generator) -> np.ndarray:
    """T2-weighted intensities, float32 (s, y, x) of 0 and above: tissues by their share of a voxel, coil and noise."""
    from scipy.ndimage import gaussian_filter

    x0, y0, z0 = geometry.origin_mm
    ds, dy, dx = geometry.spacing_mm
    x = (x0 + ds * np.arange(geometry.shape[0]))[:, None, None]
    z = (z0 - dy * np.arange(geometry.shape[1]))[None, :, None]
    y = (y0 + dx * np.arange(geometry.shape[2]))[None, None, :]
    step = float(np.sqrt(dy * dx))
    bodies = [piece for piece in pieces if "/" not in piece.name]
    discs = [piece for piece in pieces if "/" in piece.name]

    def local(piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distance in mm to the back, to the head and to the left of a piece's middle."""
        cx, cy, cz = piece.centre
        back = (y - cy) * piece.back[1] + (z - cz) * piece.back[2]
        up = (y - cy) * piece.up[1] + (z - cz) * piece.up[2]
        return back, up, x - cx

    def block(piece: Piece, shrink_mm: float = 0.0, power: float = 5.0) -> np.ndarray:
        """Share (0-1) of each voxel in the rounded block of a piece."""
        h, d, w = (max(side / 2 - shrink_mm, 0.3) for side in piece.size_mm)
        back, up, left = local(piece)
        reach = (abs(back / d) ** power + abs(up / h) ** power + abs(left / w) ** power) ** (1 / power)
        return np.asarray(np.clip((1 - reach) * min(h, d) / step + 0.5, 0, 1))

    # From the level of each piece, what runs along the spine: the canal behind it, and the skin of the back.
    height = {piece.name: float(piece.centre[2]) for piece in bodies}
    order = sorted(pieces, key=lambda piece: piece.centre[2])
    heights = np.array([piece.centre[2] for piece in order])
    wall = np.array([piece.centre[1] + piece.size_mm[1] / 2 / max(np.cos(piece.lean), 0.35) for piece in order])
    middle_x = np.interp(z, heights, [piece.centre[0] for piece in order])
    wall_y = gaussian_filter(np.interp(z[0, :, 0], heights, wall), 4 / dy)[None, :, None]
    skin = wall_y.max() + rng.uniform(55, 85)
    fat_mm = rng.uniform(10, 28)

    def fade(distance_mm: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(distance_mm / step + 0.5, 0, 1))

    def lay(image: np.ndarray, share: np.ndarray, value: float | np.ndarray) -> np.ndarray:
        return np.asarray(image + share * (value - image))

    texture = gaussian_filter(rng.normal(0, 1, geometry.shape), (0.6, 5 / dy, 5 / dx))
    texture /= texture.std()
    image = np.full(geometry.shape, INTENSITY["muscle"]) * (1 + 0.10 * texture)
    front = wall_y - 45 * bodies[0].size_mm[1] / 13
    image = lay(image, fade(front - y), INTENSITY["gut"] * (1 + 0.45 * texture))
    image = lay(image, fade(y - (skin - fat_mm)), INTENSITY["fat"])
    vessel = front + rng.uniform(2, 8)
    image = lay(image, fade(8 - np.hypot(y - vessel, x - middle_x - 9)) * fade(z - height["L4"]), 30.0)
    half = CANAL_MM * rng.uniform(0.85, 1.15)
    canal_y = wall_y + half + 2
    epidural = fade(half + 3 - np.hypot(y - canal_y - 2, x - middle_x)) * fade(z - height["S3"])
    image = lay(image, epidural, INTENSITY["fat"])
    end, conus = height["S2"] + rng.uniform(-8, 8), height["L1"] + rng.uniform(-22, 12)
    across = np.hypot(y - canal_y, x - middle_x)
    image = lay(image, fade(half - across) * fade(z - end), INTENSITY["csf"])
    roots = fade(1.5 - abs(y - canal_y - 0.55 * half)) * fade(0.7 * half - abs(x - middle_x)) * fade(z - end - 15)
    image = lay(image, 0.45 * roots, INTENSITY["cord"])
    image = lay(image, fade(0.55 * half * np.clip((z - conus) / 18, 0, 1) - across), INTENSITY["cord"])
    marrow = INTENSITY["marrow"] * rng.uniform(0.7, 1.25)
    for body in bodies:
        back, up, left = local(body)
        h, d, _ = body.size_mm
        spinous = np.sqrt(((back - d / 2 - 2 * half - 20) / 15) ** 2 + ((up + 0.45 * h) / (0.36 * h)) ** 2)
        if body.name not in SACRUM:
            image = lay(image, fade((1 - spinous) * 0.36 * h) * fade(5 - abs(left)), 0.9 * marrow)
    for body in bodies:
        image = lay(image, block(body), INTENSITY["rim"])
        image = lay(image, block(body, 1.1), marrow * (1 + 0.07 * texture) * rng.uniform(0.93, 1.07))
    for disc in discs:
        image = lay(image, block(disc, power=3.0), INTENSITY["annulus"])
        core = Piece(
            disc.name, disc.centre, disc.lean, (0.75 * disc.size_mm[0], 0.7 * disc.size_mm[1], 0.7 * disc.size_mm[2])
        )
        image = lay(image, block(core, power=2.5), INTENSITY["annulus"] + 480 * disc.water**1.3)
    image = lay(image, fade(y - skin), 8.0)
    coil = np.exp(-np.maximum(skin - y, 0) / rng.uniform(90, 220)) * np.exp(
        -(((z - z.mean()) / rng.uniform(150, 260)) ** 2)
    )
    image = gaussian_filter(image, (0, 0.5 / dy, 0.5 / dx)) * (0.25 + coil)
    sigma = rng.uniform(6, 26)
    noisy = np.hypot(image + rng.normal(0, sigma, geometry.shape), rng.normal(0, sigma, geometry.shape))
    return np.clip(noisy * rng.uniform(0.6, 2.0), 0, 4000).astype(np.float32)
