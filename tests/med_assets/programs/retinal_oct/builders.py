"""Small prepared cases and training jobs of retinal_oct, made by hand in the format that training and scoring read.

The classes differ by the depth of a bright band, so that a small head learns them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from med_assets.programs.retinal_oct.transforms import network_input
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from tests.med_assets.programs.jobs import write_job_of

PROTOCOL = "spectralis_ppol_mac_hr_oct"

TINY = (
    "network.size=[4,16,16]",
    "network.patch=[2,8,8]",
    "network.hidden=16",
    "network.mlp=16",
    "network.layers=1",
    "network.heads=2",
    "pretraining.predictor_hidden=8",
    "learning.unfreeze_at=1",
    "initial=random",
    "schedule.epochs=2",
    "schedule.batch=2",
    "schedule.val_every=1",
)
"""Overrides that make a fine-tuning of a few steps whose encoder is unfrozen in its second epoch."""


def write_prepared(
    folder: Path,
    seed: int = 0,
    *,
    label: int | None = None,
    protocol: str = PROTOCOL,
    size: tuple[int, int, int] = (4, 16, 16),
    changes: Mapping[str, object] | None = None,
) -> Path:
    """Write one prepared case of class `label`, the seed's own unless given; `changes` replace entries of case.json."""
    rng = np.random.default_rng(seed)
    label = seed % len(CLASSES) if label is None else label
    volume = rng.uniform(0, 1, size)
    volume[:, 3 * label : 3 * label + 3] += 2
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", network_input(volume, size)[0])
    np.save(folder / "bscan.npy", (volume[0] * 80).astype(np.uint8))
    facts = {
        "case_id": folder.name, "study_group": CLASSES[label], "protocol": protocol, "site": "UW", "laterality": "R",
        "spacing_mm": [0.1, 0.01, 0.1], "synthetic": True, "age_years": 50 + seed % 40, "clinical_site": "UW",
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(facts | dict(changes or {})))
    (folder / "truth.json").write_text("{}")
    return folder


def write_job(folder: Path, experiment: str = "scratch", overrides: Sequence[str] = (), cases: int = 5) -> Path:
    """Write a job of the demo profile, with small cases of which the last is for validation."""
    return write_job_of("retinal_oct", folder, experiment, overrides, cases, write_prepared)
