"""Versions of a dataset for people: which there were and what was trained on them, and the cases of one."""

import datetime
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.catalog import Catalog
from med_assets.errors import ConfigurationError
from med_assets.records import Checkpoint
from med_assets.settings import Settings
from med_assets.storage.names import escaped

if TYPE_CHECKING:
    import pandas as pd


def listed(ws: Settings, program_name: str) -> "pd.DataFrame":
    """A row per version, the newest first; `models` are the experiments whose present checkpoint was trained on it."""
    import pandas as pd

    catalog = Catalog(ws, program_name)
    now = catalog.dataset().version
    trained: dict[str, list[str]] = {}
    for row in catalog.rows(Checkpoint):
        trained.setdefault(row.dataset_version, []).append(row.experiment)
    return pd.DataFrame(
        {
            "version": one.version,
            "kept": datetime.datetime.fromtimestamp(one.kept_at, datetime.UTC).isoformat(timespec="seconds"),
            "cases": one.n_cases,
            "patients": one.n_patients,
            "of them": ", ".join(f"{n} {split}" for split, n in one.patients_per_split.items()) or "-",
            "present": "yes" if one.version == now else "no",
            "models": ", ".join(sorted(trained.get(one.version, []))) or "-",
        }
        for one in catalog.dataset_versions()
    )


def shown(ws: Settings, program_name: str, version: str) -> "pd.DataFrame":
    """A row per case of a version, with split and fold of its patient. Raises ConfigurationError for one that is not kept."""
    import pandas as pd

    found = Catalog(ws, program_name).dataset_at(version_of(ws, program_name, version)).described()
    return pd.DataFrame(
        {"case": one.case_id, "patient": one.patient_id, "version": one.version, "split": one.split or "-"}
        | {"fold": "-" if one.fold is None else str(one.fold), "prepared": one.artifact}
        for one in found
    )


def exported(ws: Settings, program_name: str, version: str, folder: Path) -> list[Path]:
    """Write the tables of a version into a folder: dataset, splits and facts, one Parquet file each."""
    catalog = Catalog(ws, program_name).dataset_at(version_of(ws, program_name, version))
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(path, folder / f"{name}.parquet")) for name, path in catalog.version_files().items()]


def version_of(ws: Settings, program_name: str, begin: str) -> str:
    """The version that has these first characters. Raises ConfigurationError unless it is one."""
    found = [one.version for one in Catalog(ws, program_name).dataset_versions() if one.version.startswith(begin)]
    if len(found) != 1:
        raise ConfigurationError(
            f"expected a version of the dataset of {program_name}, or its first characters, got {escaped(begin)}, which {len(found)} have; "
            f"`med-assets dataset-versions {program_name}` lists them"
        )
    return found[0]
