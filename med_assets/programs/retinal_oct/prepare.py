"""One OPT volume from de-identified DICOM to what the network sees, and its facts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from med_assets.errors import CaseRejected
from med_assets.preparation.prepared import TRUTH
from med_assets.programs.retinal_oct.transforms import network_input
from med_assets.programs.retinal_oct.vocabulary import CLASSES, TEXTS
from med_assets.storage.files import write_json

if TYPE_CHECKING:
    from pydicom import Dataset

SHOWN = (1.0, 99.5)
"""Percentiles that the pictured B-scan lies between."""


def read_labels(ds: "Dataset") -> dict[str, str]:
    """Return study_group, site and protocol that an import put into a volume; all empty where there is no group: to be predicted.

    Raises CaseRejected("no_study_group") where only a part of these is known.
    """
    from med_assets.deidentification.profile import known_value
    from med_assets.dicom.elements import text

    elements = {
        "study_group": "AdmittingDiagnosesDescription",
        "site": "ClinicalTrialSiteName",
        "protocol": "ClinicalTrialSeriesID",
    }
    found = {name: known_value(keyword, text(ds, keyword), TEXTS) for name, keyword in elements.items()}
    if not found["study_group"] and not (text(ds, elements["study_group"]) and found["protocol"]):
        return found  # the diagnoses that a clinic states are no study groups
    if found["study_group"] not in CLASSES or not found["protocol"] or not found["site"]:
        raise CaseRejected(
            "no_study_group",
            f"expected study group ({', '.join(CLASSES)}), site and protocol in the volume, as `med-assets import ai-readi` "
            f"writes them; got none of a known kind in {sorted(n for n, v in found.items() if not v or n == 'study_group')}; import it",
        )
    return found


def read_age(ds: "Dataset") -> int | None:
    """Return the age of the participant, years, 90 for 90 and older; None where the object states none that may stay."""
    from med_assets.deidentification.profile import known_value
    from med_assets.dicom.elements import text

    age = known_value("PatientAge", text(ds, "PatientAge"), TEXTS)
    return int(age.removesuffix("Y")) if age else None


def read_sex(ds: "Dataset") -> str | None:
    """Return the sex of the participant, M, F or O; None where the object states none that may stay."""
    from med_assets.dicom.elements import text

    return text(ds, "PatientSex") or None


def prepare_case(case_id: str, raw: Path, out: Path, size: Sequence[int]) -> dict[str, Any]:
    """Write the prepared arrays of the case under `raw` to `out` and return its facts.

    Raises CaseRejected with the codes of `read_opt` and `read_labels`, and no_contrast.
    """
    from med_assets.dicom.objects import is_synthetic, stored
    from med_assets.dicom.opt import read_opt

    (ds,) = stored(raw)["OPT"]
    labels, scan = read_labels(ds), read_opt(ds)
    try:
        seen = network_input(scan.array, size)
    except ValueError as error:
        raise CaseRejected("no_contrast", f"{error}; send a volume that shows a retina") from error
    middle = scan.array[scan.array.shape[0] // 2]
    low, high = np.percentile(middle, SHOWN)
    np.save(out / "image.npy", seen.image)
    np.save(out / "bscan.npy", (np.clip((middle - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8))
    age_years = read_age(ds)
    place = {"case_id": case_id, "laterality": scan.laterality, "spacing_mm": list(scan.spacing_mm)}
    beside = {"protocol": labels["protocol"], "age_years": age_years, "clinical_site": labels["site"]}
    beside |= {"sex": sex} if (sex := read_sex(ds)) else {}
    write_json(out / "case.json", {**place, **beside, "synthetic": is_synthetic(ds)})
    if labels["study_group"]:
        write_json(out / TRUTH, {"study_group": labels["study_group"], "site": labels["site"]})
    ends = percentiles(scan.array, (0.1, 50, 99.9))
    return {
        "frames": scan.array.shape[0],
        "rows": scan.array.shape[1],
        "columns": scan.array.shape[2],
        "frame_mm": scan.spacing_mm[0],
        "depth_mm": scan.spacing_mm[1],
        "lateral_mm": scan.spacing_mm[2],
        "frames_from": scan.frames_from,
        "raster": scan.raster,
        "laterality": scan.laterality,
        "device": str(ds.get("ManufacturerModelName") or ""),
        "protocol": labels["protocol"],
        "site": labels["site"] or None,
        "age_years": age_years,
        "study_group": labels["study_group"] or None,
        "intensity_low": ends[0],
        "intensity_median": ends[1],
        "intensity_high": ends[2],
        "resized_std": seen.resized_std,
        "network_mean": seen.mean,
        "network_std": seen.std,
    }


def percentiles(volume: np.ndarray, percents: Sequence[float]) -> list[float]:
    """Return `numpy.percentile` of a volume of whole numbers, by counting them: what scanners store has at most 65,536 values.

    Other volumes are sorted.
    """
    low, high = float(volume.min()), float(volume.max())
    if high - low > np.iinfo(np.uint16).max or not all((frame == np.rint(frame)).all() for frame in volume):
        return [float(value) for value in np.percentile(volume, percents)]
    counts = np.zeros(int(high - low) + 1, np.int64)
    for frame in volume:
        counts += np.bincount((frame - low).astype(np.int64).ravel(), minlength=len(counts))
    upto, found = np.cumsum(counts), []
    for percent in percents:
        at = (volume.size - 1) * (percent / 100)
        rank = math.floor(at)
        below, above = (
            low + float(np.searchsorted(upto, min(place, volume.size - 1), side="right")) for place in (rank, rank + 1)
        )
        share = at - rank
        # As numpy interpolates: from the nearer of the two.
        found.append(below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share))
    return found
