"""Synthetic macular OCT in the layout of AI-READI: participants.tsv, manifest.tsv and OPT objects by device.

A retina is a stack of layers around a foveal pit, with vessels and their shadows, under speckle. What differs by class is
the thickness of the inner layers, and from the third class on bright foci and cysts; what differs by device is grid, contrast,
blur and noise, and by site the gain. It is for demos and tests: no number measured on it says anything about patients, and
every row is invented.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.opt import write_opt

GROUPS = (
    "healthy",
    "pre_diabetes_lifestyle_controlled",
    "oral_medication_and_or_non_insulin_injectable_medication_controlled",
    "insulin_dependent",
)
"""study_group of participants.tsv, classes 0 to 3."""

SITES = {"UW": (1001, 0.85), "UCSD": (4001, 1.0), "UAB": (7001, 1.2)}
"""First participant id and gain of each site."""

SPLITS = ("train", "train", "val", "test")
"""recommended_split of the participants of one site and class, over and over: half is for training."""

FIELD_MM = (6.0, 1.1, 6.0)
"""Field of view: across the B-scans, into the depth, along a B-scan."""


@dataclass(frozen=True)
class Scanner:
    """One device and protocol: its folder, names, grid (frame, depth, lateral), and how its images look."""

    folder: str
    manufacturer: str
    model: str
    protocol: str
    shape: tuple[int, int, int]
    contrast: float
    blur_px: float
    looks: float
    """Speckle is the mean of so many draws: the fewer, the noisier."""
    floor: float


SCANNERS = (
    Scanner(
        "heidelberg_spectralis",
        "Heidelberg",
        "Spectralis",
        "spectralis_ppol_mac_hr_oct",
        (18, 96, 72),
        1.0,
        0.4,
        12.0,
        0.06,
    ),
    Scanner("topcon_maestro2", "Topcon", "Maestro2", "maestro2_macula_6x6", (24, 88, 64), 0.75, 0.8, 4.0, 0.12),
    Scanner("topcon_triton", "Topcon", "Triton", "triton_macula_6x6", (16, 100, 80), 1.2, 0.6, 6.0, 0.09),
)

LAYERS = (  # name, thickness far from the fovea in mm, brightness
    ("nerve fibres", 0.040, 0.85),
    ("ganglion cells and inner plexiform", 0.075, 0.50),
    ("inner nuclear", 0.040, 0.22),
    ("outer plexiform", 0.028, 0.50),
    ("outer nuclear", 0.085, 0.15),
    ("ellipsoid", 0.030, 0.80),
    ("photoreceptor tips", 0.020, 0.35),
    ("pigment epithelium", 0.030, 1.00),
    ("choroid", 0.260, 0.40),
)
INNER = 4
"""Layers that the fovea lacks: the first so many."""

THINNING = (0.00, 0.22, 0.44, 0.66)
"""Loss of the nerve fibres, and half of it of the ganglion cells, by class, fraction."""

FOCI, CYSTS = (0, 4, 10, 18), (0, 0, 3, 8)
"""Mean numbers of bright foci and of cysts, by class."""


@dataclass(frozen=True)
class Participant:
    """One invented participant."""

    participant_id: str
    site: str
    group: int
    split: str
    seed: int


def people(n: int, seed: int) -> list[Participant]:
    """Return `n` participants from number `seed` on: number k is always the same, so that one more is one more.

    Any 48 in a row hold each class at each site four times: twice in train, once in val and once in test.
    """
    found = []
    for number in range(seed, seed + n):
        group, site = number % len(GROUPS), list(SITES)[number // len(GROUPS) % len(SITES)]
        split = SPLITS[number // (len(GROUPS) * len(SITES)) % len(SPLITS)]
        found.append(Participant(str(SITES[site][0] + number), site, group, split, number))
    return found


def write_dataset(folder: Path, chosen: Sequence[Participant], scanners: Sequence[Scanner] = SCANNERS) -> None:
    """Write the data set of these participants: the two tables and an OPT object for each device, of the right eye or the left.

    The same arguments give the same bytes. Raises FileExistsError.
    """
    if folder.exists():
        raise FileExistsError("expected a new folder for the phantoms, and it exists already; choose another name")
    rows, files = [], []
    for one in chosen:
        rng = np.random.default_rng([one.seed, 2002])
        eye = "L" if rng.uniform() < 0.2 else "R"
        retina = Retina(one.group, rng)
        identity = Identity(
            patient_id=one.participant_id,
            study_uid=derived_uid("retina phantom study", one.participant_id, str(one.seed)),
            frame_of_reference_uid=derived_uid("retina phantom frame of reference", one.participant_id, str(one.seed)),
            patient_name="Phantom^Retina",
            study_date=f"20{22 + one.seed % 2}{1 + one.seed % 12:02d}{1 + one.seed % 28:02d}",
            synthetic=True,
        )
        for scanner in scanners:
            spacing = tuple(size / n for size, n in zip(FIELD_MM, scanner.shape, strict=True))
            name = f"{one.participant_id}_{scanner.protocol}_{eye.lower()}_{one.seed:04d}.dcm"
            path = Path("retinal_oct", "structural_oct", scanner.folder, one.participant_id, name)
            uid = write_opt(
                folder / path, retina.scan(scanner, SITES[one.site][1], rng), (spacing[0], spacing[1], spacing[2]), identity,
                role=scanner.protocol, laterality=eye,
                extra={"Manufacturer": scanner.manufacturer, "ManufacturerModelName": scanner.model},
            )  # fmt: skip
            files.append(_manifest_row(one, scanner, eye, f"/{path.as_posix()}", spacing, uid))
        rows.append(_participant_row(one, rng))
    pd.DataFrame(rows).to_csv(folder / "participants.tsv", sep="\t", index=False)
    pd.DataFrame(files).to_csv(folder / "manifest.tsv", sep="\t", index=False)


class Retina:
    """The anatomy of one eye; `scan` draws it as a device sees it."""

    def __init__(self, group: int, rng: np.random.Generator) -> None:
        self.tilt = rng.uniform(-0.03, 0.03, 2)
        self.curve = rng.uniform(0.006, 0.012)
        self.top_mm = rng.uniform(0.16, 0.24)
        self.fovea = rng.uniform(-0.4, 0.4, 2)
        self.pit_mm = rng.uniform(0.55, 0.85)
        loss = THINNING[group] + rng.normal(0, 0.03)
        size = rng.uniform(0.97, 1.03)
        self.thickness = [mm * size for _, mm, _ in LAYERS]
        self.thickness[0] *= 1 - loss
        self.thickness[1] *= 1 - loss / 2
        self.vessels = [(rng.uniform(-2.8, 2.8), rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.13)) for _ in range(5)]
        self.foci = rng.uniform(-2.4, 2.4, (rng.poisson(FOCI[group]), 2))
        self.cysts = rng.uniform(-1.8, 1.8, (rng.poisson(CYSTS[group]) if CYSTS[group] else 0, 2))
        self.cyst_mm = rng.uniform(0.18, 0.4, len(self.cysts))

    def scan(self, scanner: Scanner, gain: float, rng: np.random.Generator) -> np.ndarray:
        """Return intensities (frame, depth, lateral) of 0 to 65535 on the device's grid."""
        from scipy.ndimage import gaussian_filter

        n_y, n_z, n_x = scanner.shape
        y, z, x = ((np.arange(n) + 0.5) / n * mm - mm / 2 for n, mm in zip(scanner.shape, FIELD_MM, strict=True))
        z = z + FIELD_MM[1] / 2
        across, along = np.meshgrid(y, x, indexing="ij")
        pit = 1 - 0.95 * np.exp(-((along - self.fovea[0]) ** 2 + (across - self.fovea[1]) ** 2) / (2 * self.pit_mm**2))
        surface = self.top_mm + self.tilt[0] * along + self.tilt[1] * across + self.curve * (along**2 + across**2)
        surface = surface + sum(self.thickness[:INNER]) * (1 - pit)
        image = np.full((n_y, n_z, n_x), 0.0)
        depth = z[None, :, None]
        soft = FIELD_MM[1] / n_z
        tops = []
        for index, (_, _, bright) in enumerate(LAYERS):
            tops.append(surface)
            bottom = surface + self.thickness[index] * (pit if index < INNER else 1.0)
            share = np.clip((depth - surface[:, None]) / soft + 0.5, 0, 1) * np.clip(
                (bottom[:, None] - depth) / soft + 0.5, 0, 1
            )
            image += share * bright * (np.exp(-(depth - surface[:, None]) / 0.15) if index == len(LAYERS) - 1 else 1.0)
            surface = bottom
        for at_x, at_y in self.foci:
            image += 0.9 * self._blob(depth, tops[2] + 0.02, along - at_x, across - at_y, 0.09)
        for (at_x, at_y), size in zip(self.cysts, self.cyst_mm, strict=True):
            image *= 1 - 0.9 * self._blob(depth, tops[2] + 0.5 * self.thickness[2], along - at_x, across - at_y, size)
        for at_x, slope, width in self.vessels:
            near = np.exp(-(((along - at_x - slope * across) / width) ** 2))[:, None]
            image *= 1 - 0.6 * near * (depth > tops[1][:, None])
            image += 0.25 * near * np.exp(-(((depth - tops[0][:, None] - 0.03) / 0.03) ** 2))
        image = gaussian_filter(image, (0, scanner.blur_px, scanner.blur_px)) ** scanner.contrast
        image = (image + scanner.floor) * rng.gamma(scanner.looks, 1 / scanner.looks, image.shape)
        return np.clip(image * gain * 20000, 0, 65535)

    @staticmethod
    def _blob(depth: np.ndarray, at: np.ndarray, dx: np.ndarray, dy: np.ndarray, size_mm: float) -> np.ndarray:
        flat = np.exp(-(dx**2 + dy**2) / (2 * size_mm**2))[:, None]
        found: np.ndarray = flat * np.exp(-(((depth - at[:, None]) / (0.5 * size_mm)) ** 2))
        return found


def _manifest_row(
    one: Participant, scanner: Scanner, eye: str, path: str, spacing: Sequence[float], uid: str
) -> dict[str, object]:
    frames, rows, columns = scanner.shape
    return {
        "participant_id": one.participant_id,
        "filepath": path,
        "manufacturer": scanner.manufacturer,
        "manufacturers_model_name": scanner.model,
        "anatomic_region": "Macula",
        "imaging": "OCT",
        "laterality": eye,
        "height": rows,
        "width": columns,
        "number_of_frames": frames,
        "pixel_spacing": f"[{spacing[1]:.6f}, {spacing[2]:.6f}]",
        "slice_thickness": f"{spacing[0]:.6f}",
        "sop_instance_uid": uid,
        "reference_retinal_photography_image_instance_uid": "",
        "protocol": scanner.protocol,
        "content_time": f"{9 + one.seed % 8:02d}0000",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.77.1.5.4",
    }


def _participant_row(one: Participant, rng: np.random.Generator) -> dict[str, object]:
    there = ("cardiac_ecg", "clinical_data", "environment", "retinal_flio", "retinal_oct", "retinal_octa",
             "retinal_photography", "wearable_activity_monitor", "wearable_blood_glucose")  # fmt: skip
    return {
        "participant_id": one.participant_id,
        "clinical_site": one.site,
        "study_group": GROUPS[one.group],
        "age": int(rng.integers(40, 86)),
        "study_visit_date": "",
        "recommended_split": one.split,
        **{name: str(name in ("clinical_data", "retinal_oct")).upper() for name in there},
    }
