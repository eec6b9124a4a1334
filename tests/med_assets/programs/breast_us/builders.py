"""Small prepared images, training jobs and DICOM cases of breast_us."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from med_assets.programs.breast_us.phantom import phantom, write_case
from tests.med_assets.programs.jobs import write_job_of

__all__ = ["TINY", "write_case", "write_job", "write_prepared"]

P = "breast_us"

TINY = (
    "input_px=32",
    "network={kind:tinyusfm,dim:8,depth:4,heads:2,patch:4,taps:[0,1,2,3],neck:4,head:8,drop_path:0.1,dropout:0.1}",
    "data.per_epoch=6",
    "schedule.epochs=3",
    "schedule.val_every=1",
    "schedule.batch=2",
)
"""Overrides that make a training of nine steps, a second of work."""


def write_prepared(
    folder: Path,
    seed: int = 0,
    *,
    kind: str = "benign",
    dataset: str = "BUSI",
    pixel_mm: float | None = 0.3,
    **changes: Any,
) -> Path:
    """Write one prepared image; `changes` replace entries of case.json."""
    made = phantom(seed, (64, 80), kind)
    folder.mkdir(parents=True)
    image, truth = made.pixels[made.region], made.mask[made.region]
    np.save(folder / "image.npy", np.ascontiguousarray(image))
    np.save(folder / "truth.npy", truth.astype(np.uint8))
    facts = {
        "case_id": folder.name,
        "label": kind,
        "dataset": dataset,
        "pixel_mm": None if pixel_mm is None else [pixel_mm, pixel_mm],
        "corner": [0, 0],
        "full_shape": list(image.shape),
        "synthetic": True,
        "settings": {},
    }
    (folder / "case.json").write_text(json.dumps(facts | changes))
    (folder / "truth.json").write_text("{}")
    return folder


def write_job(folder: Path, experiment: str = "tinyusfm", overrides: Sequence[str] = (), cases: int = 3) -> Path:
    """Write a job of the demo profile, with small images of which the last is for validation."""
    return write_job_of(P, folder, experiment, overrides, cases, write_prepared)
