"""Small synthetic prepared cases and training jobs, in the formats that the code reads."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from med_assets.programs.rt_dose.site import Site, load_site
from tests.med_assets.programs.jobs import write_job_of

TINY = (
    "patches.size=[16,16,16]",
    "patches.per_epoch=6",
    "inference.window=[32,32,32]",
    "schedule.epochs=3",
    "schedule.val_every=1",
    "schedule.batch=2",
    "optimiser.lr=3e-3",
)
"""Overrides that make a training of nine steps, a second of work."""


def sphere(shape: Sequence[int], centre: Sequence[float] | np.ndarray, radius: float) -> np.ndarray:
    """A bool ball; centre and radius in voxels."""
    grid = np.indices(shape)
    return sum((axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True)) <= radius**2


def write_case(
    folder: Path,
    seed: int = 0,
    *,
    site: str = "prostate_sib",
    shape: tuple[int, int, int] = (32, 32, 32),
    spacing_mm: tuple[float, float, float] = (4.0, 5.0, 5.0),
    absent: Sequence[str] = (),
) -> Path:
    """Write a case whose dose falls off from its main target; the targets are concentric, the organs around them."""
    spec: Site = load_site(site)
    folder.mkdir(parents=True)
    arrays = _arrays(seed, site, shape, spacing_mm, frozenset(absent))
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    present = [name for index, name in enumerate(spec.structures) if (arrays["masks"] >> index & 1).any()]
    facts = {
        "case_id": folder.name,
        "site": site,
        "spacing_mm": spacing_mm,
        "geometry": {},
        "structures": spec.structures,
        "present": present,
        "prescription_gy": 70.0,
        "fractions": 28,
        "constraints": spec.constraints(present, 70.0),
        "synthetic": True,
    }
    (folder / "case.json").write_text(json.dumps(facts))
    (folder / "truth.json").write_text("{}")
    return folder


@lru_cache(64)
def _arrays(
    seed: int,
    site: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    absent: frozenset[str],
) -> dict[str, np.ndarray]:
    """The arrays of a case by the names of their files: most tests write the same few, and distances take most of the time."""
    spec: Site = load_site(site)
    rng = np.random.default_rng(seed)
    middle = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    masks = {}
    for index, name in enumerate(spec.structures):
        turn = 2 * np.pi * index / len(spec.structures)
        offset = np.array([0.0, np.sin(turn), np.cos(turn)]) * 9
        masks[name] = sphere(
            shape, middle if name in spec.targets else middle + offset, 5 if name in spec.targets else 3
        )
    for name in absent:
        masks[name] = np.zeros(shape, bool)
    body = sphere(shape, np.array(shape) / 2, min(shape) / 2 - 1)
    away = ndimage.distance_transform_edt(~masks[spec.main_target], sampling=spacing_mm)
    dose = np.where(body, 70.0 * np.exp(-away / 25.0), 0.0).astype(np.float32)
    sdf = np.stack([_sdf(masks[name], spacing_mm) for name in spec.structures])
    bits = np.sum([masks[name].astype(np.uint16) << index for index, name in enumerate(spec.structures)], axis=0)
    ct = np.where(body, rng.normal(0, 20, shape), -1000)
    return {
        "ct": ct.astype(np.int16),
        "dose": dose,
        "masks": bits.astype(np.uint16),
        "sdf": sdf,
        "body": body,
        "valid": np.ones(shape, bool),
        "beams": np.stack([dose / 100, dose / 70]).astype(np.float16),
    }


def _sdf(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    if not mask.any():
        return np.full(mask.shape, 127, np.int8)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    return np.round(np.clip(outside - inside, -50, 50) * 127 / 50).astype(np.int8)


def write_job(folder: Path, experiment: str = "baseline", overrides: Sequence[str] = (), cases: int = 3) -> Path:
    """Write a job of the demo profile, with small cases of which the last is for validation."""
    return write_job_of("rt_dose", folder, experiment, overrides, cases, write_case)
