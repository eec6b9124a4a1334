"""AI-READI (its own layout) to one folder per participant: the scans that conf/retinal_oct/_cohort.yaml chooses.

`participants.tsv` is the source of truth: who has an OCT (`retinal_oct`), the class (`study_group`), the split
(`recommended_split`) and the site. Files are found through `manifest.tsv` alone, never by listing or by the form of an id.
Each chosen OPT object is copied with class, split, site, protocol and age set in it, so that from here on DICOM says all; NIfTI
and NumPy arrays (B-scan, depth, along the B-scan) become OPT objects, the spacing of arrays being that of the manifest.
"""

import ast
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from med_assets.deidentification.ages import AGE_CAP
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.bucket import S3Landing
from med_assets.landing.importing.bounds import require_volume
from med_assets.landing.importing.folders import CaseFolders, content_of, identifier, may_exist
from med_assets.landing.importing.report import ImportReport
from med_assets.programs.retinal_oct.cohort import Cohort, View, cohort
from med_assets.programs.retinal_oct.vocabulary import YOUNGEST
from med_assets.storage.escaping import csv
from med_assets.storage.files import write_text
from med_assets.storage.s3.staging import Wanted

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
"""ClinicalTrialSiteID for each recommended_split; the graph's own split names are in `med_assets.dataset.splits`."""

COLUMNS = {
    "participants.tsv": ("participant_id", "clinical_site", "study_group", "recommended_split", "retinal_oct"),
    "manifest.tsv": (
        "participant_id", "filepath", "laterality", "pixel_spacing", "slice_thickness", "sop_instance_uid", "protocol",
        "content_time",
    ),
}  # fmt: skip
"""Columns that are used of each table."""

MANIFESTS = ("manifest.tsv", "retinal_oct/manifest.tsv")
RECORDS = ".ai_readi"
"""Folder beside the case folders, hidden from intake, with the failures and what was located by site and split."""

LABELLED = "labelled.dcm"
"""File of a participant's folder with the scan that is classified; the others are named by protocol."""

AT_ONCE = 64
"""Participants whose files are fetched together, count."""

Views = Sequence[tuple[View, Mapping[str, str]]]
"""The row of the manifest for each view that a participant has."""

Fetch = Callable[[Sequence[str]], tuple[Mapping[str, Path], Mapping[str, str]]]
"""Takes paths relative to the data set; returns local files by path, and the failure of each that could not be had."""


def from_folder(src: Path) -> Fetch:
    """Fetch from a folder: the files are where they are."""

    def fetch(keys: Sequence[str]) -> tuple[Mapping[str, Path], Mapping[str, str]]:
        paths = {key: src / key for key in keys if may_exist(str(src / key)) and ".." not in Path(key).parts}
        there = {key: path for key, path in paths.items() if path.is_file()}
        return there, {key: "FileNotFoundError: no such file in the data set" for key in keys if key not in there}

    return fetch


@contextmanager
def from_bucket(landing: S3Landing) -> Iterator[Fetch]:
    """Fetch from below a bucket's prefix, through the staging cache; the objects are asked for one by one, never listed."""
    location, staging = landing.location, landing.staging
    with TemporaryDirectory() as folder:
        calls = count()

        def fetch(keys: Sequence[str]) -> tuple[Mapping[str, Path], Mapping[str, str]]:
            wanted = [Wanted("", location.key(key)) for key in keys]
            paths, failures = staging.fetch(wanted, Path(folder) / str(next(calls)))
            errors = {location.name(row.key): row.exception for row in failures}
            return {location.name(key): path for key, path in paths.items()}, errors

        yield fetch


def import_participants(
    src: Path | Fetch,
    dest: Path,
    participants: Collection[str] | None = None,
    limit: int | None = None,
    address: str = "",
) -> ImportReport:
    """Write dest/<participant>/ with the chosen scans of each participant that has an OCT.

    `src` is the data set's folder, or fetches from elsewhere, which is `address`; `participants` and `limit` take a part of it.
    A folder appears only when complete, one of the same content is left alone, one whose files or row in a table were
    corrected in the same data set is replaced, and what can't be used is reported and goes into
    `dest/.ai_readi/data_errors.csv` (participant_id, key, exception), without stopping the others. Raises ConfigurationError
    for tables that are missing or say what they can't, and, after all others are imported, where fewer participants than
    `min_located` of the asked for have their labelled scan.
    """
    rules, fetch = cohort(), from_folder(src) if isinstance(src, Path) else src
    people, manifest = read_tables(fetch, rules)
    ids = (
        list(people["participant_id"])
        if participants is None
        else [p for p in participants if p in set(people["participant_id"])]
    )
    chosen = ids[:limit]
    mine = people[people["participant_id"].isin(chosen)]
    by_person = {str(name): group.to_dict("records") for name, group in manifest.groupby("participant_id")}
    skipped = {
        name: "not in participants.tsv, or without retinal_oct" for name in participants or () if name not in ids
    }
    made, listed = CaseFolders(dest), mine.to_dict("records")
    made.skipped |= skipped
    source = src if isinstance(src, Path) else address
    errors: list[tuple[str, str, str]] = []
    for first in range(0, len(listed), AT_ONCE):
        some = listed[first : first + AT_ONCE]
        picks = {str(one["participant_id"]): pick(by_person.get(str(one["participant_id"]), []), rules) for one in some}
        keys = [_key(row) for views in picks.values() for _, row in views]
        paths, absent = fetch(keys) if keys else ({}, {})
        for person in some:
            name = str(person["participant_id"])
            views = picks[name]

            def write(part: Path, name: str = name, person: Mapping[Any, Any] = person, views: Views = views) -> None:
                if (dest / name / LABELLED).is_file() and any(
                    _key(row) not in paths  # noqa: B023 - called at once
                    for _, row in views
                ):
                    raise CaseRejected(
                        "missing_file",
                        "expected all chosen scans, got fewer; what was imported before stays; fetch the others",
                    )
                failures = write_participant(part, person, views, rules, paths, absent)  # noqa: B023 - called at once
                errors.extend((name, key, reason) for key, reason in failures.items())
                if not (part / LABELLED).is_file():
                    raise CaseRejected(
                        "missing_file", f"expected a labelled scan, got none: {next(iter(failures.values()))}"
                    )

            made_of = partial(
                content_of,
                [paths[key] for _, row in views if (key := _key(row)) in paths],
                sorted((str(column), str(value)) for column, value in person.items()),
                [[view.protocol, sorted(row.items())] for view, row in views],
            )
            made.write(identifier(name), source, made_of, write)
    located = {*made.imported, *made.existing, *made.updated}
    located |= {name for name, why in made.skipped.items() if "imported before stays" in why}
    listed_already = {name for name, *_ in errors}
    errors += [(name, "", reason) for name, reason in made.skipped.items() if name not in listed_already]
    _record(dest, mine, located, errors)
    share = len(located) / max(1, len(mine))
    if share < rules.min_located:
        missing = mine[~mine["participant_id"].isin(located)]["clinical_site"].value_counts().to_dict()
        raise ConfigurationError(
            f"expected the labelled scan of at least {rules.min_located:.0%} of {len(mine)} participants, located {len(located)} "
            f"({share:.1%}); missing by site: {missing}. {RECORDS}/data_errors.csv in the landing folder says why; what was "
            "located is there"
        )
    return made.report()


def read_tables(fetch: Fetch, rules: Cohort) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the participants that have an OCT, sorted by id, and the manifest, all as text. Raises ConfigurationError."""
    people = _table(fetch, "participants.tsv", ("participants.tsv",))
    manifest = _table(fetch, "manifest.tsv", MANIFESTS)
    people = people[people["retinal_oct"].str.upper() == "TRUE"].sort_values("participant_id")
    if people["participant_id"].duplicated().any():
        raise ConfigurationError(
            "expected each participant_id once in participants.tsv, got some twice; correct the table"
        )
    if not people["participant_id"].str.fullmatch(r"[A-Za-z0-9-]+").all():
        raise ConfigurationError("expected letters, digits and - in participant_id, which names a folder; got others")
    for column, known in (
        ("study_group", set(rules.classes.values())),
        ("recommended_split", set(SPLIT_NAMES)),
        ("clinical_site", set(rules.sites)),
    ):
        if other := sorted(set(people[column]) - known):
            raise ConfigurationError(
                f"expected {column} of participants.tsv among {sorted(known)}, got {len(other)} others; see conf/retinal_oct/_cohort.yaml"
            )
    return people, manifest


def _table(fetch: Fetch, name: str, locations: Sequence[str]) -> pd.DataFrame:
    paths, _ = fetch(locations)
    path = next((paths[location] for location in locations if location in paths), None)
    if path is None:
        raise ConfigurationError(f"expected {name} in the data set at {' or '.join(locations)}, found none; fetch it")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"expected {name} as tab-separated text, reading failed ({type(error).__name__})"
        ) from error
    if absent := [column for column in COLUMNS[name] if column not in table]:
        raise ConfigurationError(f"expected {name} with the columns {list(COLUMNS[name])}, got none called {absent}")
    return table


def pick(rows: Sequence[Mapping[Any, Any]], rules: Cohort) -> list[tuple[View, Mapping[str, str]]]:
    """Return the row of the manifest for each view that a participant has."""
    mine = [{str(name): str(value) for name, value in one.items()} for one in rows]
    return [(view, row) for view in rules.views if (row := view.choose(mine)) is not None]


def write_participant(
    folder: Path,
    person: Mapping[Any, Any],
    picked: Sequence[tuple[View, Mapping[str, str]]],
    rules: Cohort,
    paths: Mapping[str, Path],
    absent: Mapping[str, str],
) -> dict[str, str]:
    """Write the chosen scans of a participant from the files `paths`; returns what failed and why, by key.

    Where the manifest has no labelled scan, device and protocol stand for the key.
    """
    failures: dict[str, str] = {}
    if all(view != rules.labelled for view, _ in picked):
        failures[f"{rules.labelled.device}/{rules.labelled.protocol}"] = "no such scan in manifest.tsv"
    folder.mkdir(parents=True)
    labels = {
        "ClinicalTrialProtocolID": "AI-READI",
        "ClinicalTrialSiteID": SPLIT_NAMES[person["recommended_split"]],
        "ClinicalTrialSiteName": person["clinical_site"],
        "AdmittingDiagnosesDescription": next(
            n for n, group in rules.classes.items() if group == person["study_group"]
        ),
    }
    if age := age_text(str(person.get("age", ""))):
        labels["PatientAge"] = age
    for view, row in picked:
        if (key := _key(row)) not in paths:
            failures[key] = absent.get(key, "it was not fetched")
            continue
        target = folder / (LABELLED if view == rules.labelled else f"{view.protocol}.dcm")
        try:
            own = labels | {"ClinicalTrialSeriesID": view.protocol}
            write_scan(target, paths[key], row, str(person["participant_id"]), own)
        except CaseRejected as error:
            failures[key] = f"{error.code}: {error.message}"
    return failures


def age_text(years: str) -> str:
    """An age in years as PatientAge has it, of AGE_CAP for all from there on; empty for what is no age of an adult in whole years."""
    if not (years.isascii() and years.isdigit() and int(years) >= YOUNGEST):
        return ""
    return f"{min(int(years), AGE_CAP):03d}Y"


def _key(row: Mapping[str, str]) -> str:
    """The path of a scan in the data set; the manifest writes it with a slash before."""
    return row["filepath"].lstrip("/")


def write_scan(path: Path, source: Path, row: Mapping[str, str], patient_id: str, labels: Mapping[str, str]) -> None:
    """Write one scan as an OPT object that carries its labels. Raises CaseRejected."""
    if source.name.endswith((".npy", ".nii", ".nii.gz")):
        from med_assets.dicom.objects import Identity, derived_uid
        from med_assets.dicom.opt import write_opt

        array, spacing_mm = _array(source, row)
        study = derived_uid("AI-READI study", patient_id)
        identity = Identity(patient_id, study, derived_uid("AI-READI frame of reference", patient_id))
        write_opt(
            path,
            array,
            spacing_mm,
            identity,
            role=labels["ClinicalTrialSeriesID"],
            laterality=row["laterality"],
            extra=labels,
        )
        return
    from med_assets.dicom.discover import load
    from med_assets.dicom.elements import decoded, quietly
    from med_assets.dicom.objects import set_labels

    ds = load(source)
    own = str(ds.get("PatientID") or "")
    if own not in ("", patient_id):
        raise CaseRejected(
            "other_patient", "expected the participant's own PatientID in the file, got another; fetch it again"
        )
    frames, size = int(ds.get("NumberOfFrames") or 1), (int(ds.get("Rows") or 0), int(ds.get("Columns") or 0))
    decoded(ds, (frames, *size) if frames > 1 else size)  # a file that was cut is a failure here, with its key
    ds.PatientID = patient_id
    set_labels(ds, labels)
    with quietly():
        ds.save_as(path, enforce_file_format=True)


def _array(source: Path, row: Mapping[str, str]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A volume (B-scan, depth, along the B-scan), scaled to 16 bit, and its spacing in mm."""
    try:
        if source.suffix == ".npy":
            array = np.load(source, allow_pickle=False, mmap_mode="r")  # no more than the file holds
            depth, lateral = (float(one) for one in _pair(row["pixel_spacing"]))
            spacing = (float(row["slice_thickness"]), depth, lateral)
        else:
            import nibabel

            image: Any = nibabel.load(source)
            require_volume(
                source, image.shape, image.header.get_data_dtype().itemsize, packed=source.name.endswith(".gz")
            )
            array, (first, second, third) = np.asarray(image.dataobj), image.header.get_zooms()[:3]
            spacing = (float(first), float(second), float(third))
    except CaseRejected:
        raise
    except Exception as error:  # each format's reader raises what it likes
        raise CaseRejected(
            "unreadable_volume",
            f"expected a volume with spacing, got {type(error).__name__} from reading; fetch it again",
        ) from error
    if array.ndim != 3 or min(spacing) <= 0 or not np.isfinite(array).all():
        raise CaseRejected(
            "unreadable_volume", f"expected three axes of finite values and spacing above 0, got shape {array.shape}"
        )
    low, high = float(array.min()), float(array.max())
    whole = np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= np.iinfo(np.uint16).max
    return (array if whole else (array - low) * (np.iinfo(np.uint16).max / max(high - low, 1e-12))), spacing


def _pair(text: str) -> Iterable[Any]:
    found = ast.literal_eval(text) if text.strip().startswith(("[", "(")) else text.replace("\\", ",").split(",")
    if len(found) != 2:
        raise ValueError("expected two numbers")
    return list(found)


def _record(dest: Path, people: pd.DataFrame, located: set[str], errors: Sequence[tuple[str, str, str]]) -> None:
    """The failures, one row each, and how many participants were located by site and split; both stay in the landing zone."""
    frame = pd.DataFrame(errors, columns=["participant_id", "key", "exception"])
    write_text(dest / RECORDS / "data_errors.csv", csv(frame))
    counted = people.assign(located=people["participant_id"].isin(located), expected=True)
    table = counted.groupby(["clinical_site", "recommended_split"])[["expected", "located"]].sum().reset_index()
    write_text(dest / RECORDS / "located.csv", csv(table))
