"""Small prepared cases and training jobs of lumbar_mr, made by hand in the formats that training and scoring read.

A spine of bright bodies on a curve, seen in the slices around its middle alone; the levels lie between the bodies.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from med_assets.dicom.geometry import Geometry
from med_assets.programs.lumbar_mr.levels import LEVELS
from tests.med_assets.programs.jobs import write_job_of

TINY = (
    "network.widths=[4,4,8,8,8]",
    "network.decoder=[8,8,8,4,4]",
    "per_case=2",
    "slices.combine=3",
    "inference.views=2",
    "schedule.epochs=2",
    "schedule.batch=2",
    "schedule.val_every=1",
)
"""Overrides that make a training of four steps, a few seconds of work."""

DIRECTION = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
"""Slices to the patient's left, rows to the feet and columns to the back, as LPS."""


def write_prepared(
    folder: Path,
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = (9, 120, 96),
    slice_mm: float = 4.0,
    pixel_mm: tuple[float, float] = (2.0, 1.5),
    middle: int | None = None,
    marked: Sequence[str] = LEVELS,
    lstv: str = "normal",
    changes: Mapping[str, object] | None = None,
) -> Path:
    """Write one prepared case whose spine lies around slice `middle`; `changes` replace entries of case.json."""
    rng = np.random.default_rng(seed)
    slices, rows, columns = shape
    centre = slices // 2 if middle is None else middle
    y, x = np.indices((rows, columns))
    top, bow, back = rows * rng.uniform(0.14, 0.2), columns * rng.uniform(0.04, 0.1), columns * rng.uniform(0.45, 0.55)
    step = rows * rng.uniform(0.125, 0.14)
    volume = rng.uniform(20, 40, shape)
    ends = [top + step * (number + 0.5) for number in range(6)]
    for number in range(6):
        body_y = top + step * number
        body_x = back - bow * np.sin(np.pi * number / 5)
        inside = (np.abs(y - body_y) < 0.36 * step) & (np.abs(x - body_x) < columns * (0.1 + 0.012 * number))
        for index in range(slices):
            if abs(index - centre) <= 2:
                volume[index][inside] += 150
    points = {
        level: [float(centre), ends[number], float(back - bow * np.sin(np.pi * (number + 0.5) / 5))]
        for number, level in enumerate(LEVELS)
    }
    volume = np.clip(volume, 0, 255).astype(np.uint8)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(volume[:, None].astype(np.float32)), (160, 160), mode="bilinear", align_corners=False
    )
    folder.mkdir(parents=True)
    np.save(folder / "volume.npy", volume)
    np.save(folder / "input.npy", resized[:, 0].round().to(torch.uint8).numpy())
    facts = {
        "case_id": folder.name,
        "geometry": Geometry(shape, (slice_mm, *pixel_mm), (0.0, 0.0, 0.0), DIRECTION).to_dict(),
        "pixel_mm": list(pixel_mm),
        "slice_mm": slice_mm,
        "shape": list(shape),
        "levels": {level: points[level] if level in marked else None for level in LEVELS},
        "middle": centre if marked else slices // 2,
        "lstv": lstv,
        "synthetic": True,
        "settings": {},
    }
    (folder / "case.json").write_text(json.dumps(facts | dict(changes or {})))
    (folder / "truth.json").write_text("{}")
    return folder


def write_job(folder: Path, experiment: str = "point_net", overrides: Sequence[str] = (), cases: int = 3) -> Path:
    """Write a job of the demo profile, with small cases of which the last is for validation."""
    return write_job_of("lumbar_mr", folder, experiment, overrides, cases, write_prepared)
