"""Small prepared cases and training jobs of lung_ct, made by hand in the formats that training and scoring read.

Made by hand: a body, two lungs, a heart and a spine, and tumours in the lungs, all blobs with an intensity of their own.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import Geometry
from med_assets.programs.lung_ct.transforms import forward_pair
from tests.med_assets.programs.jobs import write_job_of

TINY = (
    "patches.size=[16,16,16]",
    "patches.per_epoch=6",
    "inference.window=[32,32,32]",
    "schedule.epochs=3",
    "schedule.val_every=1",
    "schedule.batch=2",
    "labels={mode:auto,mapping:[]}",
)
"""Overrides that make a training of nine steps, a few seconds of work."""

NAMES = {28: "left lung upper lobe", 30: "right lung upper lobe", 115: "heart", 42: "vertebrae T7", 23: "lung tumor"}
"""Class id to name, in the order of the segments of the source."""

VALUES = {2: 28, 4: 30, 7: 115, 9: 42, 12: 23, 255: 255}
"""Value in the source to class id, with gaps: the order of the segments is none of them."""

HU = {28: -820, 30: -820, 115: 60, 42: 400, 23: 30}


def ball(shape: Sequence[int], centre: Sequence[float] | np.ndarray, radii: Sequence[float] | np.ndarray) -> np.ndarray:
    """A bool ellipsoid (z, y, x); centre and radii are fractions of the shape."""
    grid = np.indices(shape)
    return sum(
        ((axis / side - middle) / radius) ** 2
        for axis, side, middle, radius in zip(grid, shape, centre, radii, strict=True)
    ) <= 1  # fmt: skip


def write_prepared(
    folder: Path,
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = (20, 24, 24),
    spacing_mm: tuple[float, float, float] = (10.0, 12.0, 12.0),
    training_mm: tuple[float, float, float] = (8.0, 8.0, 8.0),
    tumours: int = 2,
    unlabelled: bool = False,
    changes: Mapping[str, object] | None = None,
) -> Path:
    """Write one prepared case; `unlabelled` sets a corner to 255, `changes` replace entries of case.json."""
    rng = np.random.default_rng(seed)
    ct = np.full(shape, -1000.0)
    truth = np.zeros(shape, np.uint8)
    ct[ball(shape, (0.5, 0.5, 0.5), (0.9, 0.38, 0.46))] = 20
    shift = rng.uniform(-0.03, 0.03, 3)
    parts = {
        28: ball(shape, np.array([0.5, 0.48, 0.72]) + shift, (0.4, 0.27, 0.17)),
        30: ball(shape, np.array([0.5, 0.48, 0.28]) + shift, (0.4, 0.27, 0.17)),
        115: ball(shape, np.array([0.4, 0.42, 0.54]) + shift, (0.2, 0.14, 0.14)),
        42: ball(shape, np.array([0.5, 0.78, 0.5]) + shift, (0.5, 0.07, 0.06)),
    }
    lungs = parts[28] | parts[30]
    for number, mask in parts.items():
        ct[mask], truth[mask] = HU[number], number
    for _ in range(tumours):
        middle = rng.choice(np.argwhere(lungs)) / shape
        mask = ball(shape, middle, rng.uniform(0.06, 0.12, 3)) & lungs
        ct[mask], truth[mask] = HU[23] + rng.uniform(-40, 40), 23
    ct += rng.normal(0, 15, shape)
    if unlabelled:
        truth[:4, :4, :4] = 255
    geometry = Geometry(shape, spacing_mm, (0.0, 0.0, 0.0))
    indices = np.zeros(shape, np.int16)
    for index, class_id in enumerate(VALUES.values(), 1):
        indices[truth == class_id] = index
    image, sources = forward_pair(ct.astype(np.int16), indices, geometry, training_mm)
    label = np.array([0, *VALUES.values()], np.uint8)[sources[0].numpy()]
    folder.mkdir(parents=True)
    arrays = {
        "ct": ct.astype(np.int16),
        "truth": truth,
        "image": image[0].numpy(),
        "label": label,
        "sources": sources[0].numpy(),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))
    facts = {
        "case_id": folder.name,
        "geometry": geometry.to_dict(),
        "spacing_mm": training_mm,
        "target": "lung tumor",
        "target_id": 23,
        "names": {number: name for number, name in NAMES.items() if (truth == number).any()},
        "labels": [
            {
                "value": value,
                "name": NAMES.get(class_id, "ignore"),
                "concept": "SCT:80891009" if class_id == 115 else "",
                "class_id": class_id,
                "voxels": int((truth == class_id).sum()),
                "ml": float((truth == class_id).sum() * np.prod(spacing_mm) / 1000),
            }
            for value, class_id in VALUES.items()
        ],
        "combinations": [[], *([value] for value in VALUES)],
        "exposure": "unseen",
        "synthetic": True,
        "settings": {},
    }
    (folder / "case.json").write_text(json.dumps(facts | dict(changes or {})))
    (folder / "truth.json").write_text("{}")
    return folder


def write_job(folder: Path, experiment: str = "foundation", overrides: Sequence[str] = (), cases: int = 3) -> Path:
    """Write a job of the demo profile, with small cases of which the last is for validation."""
    return write_job_of("lung_ct", folder, experiment, overrides, cases, write_prepared)
