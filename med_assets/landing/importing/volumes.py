"""Pairs of an image and a label volume (NIfTI, NRRD) to one folder of CT slices and a segmentation per case.

Axes are reordered and flipped to DICOM's, nothing is resampled, and HU are rounded to 16-bit integers. A label is written
on the grid that it has, also where that is not the image's: preparation checks it, not the importer. An image that is a
folder of DICOM slices is copied; only identifiers that an anonymiser took out are filled in, and the given split.
"""

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from med_assets.dicom.elements import quietly, text
from med_assets.dicom.geometry import Volume
from med_assets.dicom.label_rows import LabelRow, summed
from med_assets.dicom.objects import Identity, derived_uid, set_trial
from med_assets.dicom.seg import LARGEST_SOURCE_VALUE
from med_assets.dicom.seg_write import LABEL_CHARS, write_seg
from med_assets.dicom.write import CT_INTERCEPT_HU, write_ct
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.importing.folders import CaseFolders, content_of, existing, identifier, may_exist
from med_assets.landing.importing.report import ImportReport
from med_assets.landing.importing.volume_files import VOLUME_SUFFIXES, label_names, read_volume

FOLDS = 5
"""Folds of the split that a decathlon task gets."""

MSD_FOLDER = ("imagesTr",)
"""Where every image of a decathlon task lies; it says nothing of one."""

UNLABELLED = 255
"""Label value of voxels that nobody labelled, as NaN is: they are in no segment."""

DEEP_INTERCEPT_HU = -32768
"""RescaleIntercept where an image goes below the usual -1024 HU: it lets all 16-bit integers be written."""

SPLIT_OF_LIST = {
    "training": "train", "train": "train", "validation": "validation", "val": "validation", "testing": "test", "test": "test",
}  # fmt: skip
"""Split that each list of a datalist gives."""

LAYOUT = "2: segments say their value in the label file"
"""What a case folder holds beyond its source: raised when that changes, so that importing again replaces the folder."""


@dataclass(frozen=True)
class Pair:
    """One case to import: `name` is its folder, `trial` (ClinicalTrialProtocolID, split) where a split is given."""

    name: str
    patient_id: str
    image: Path
    label: Path | None
    trial: tuple[str, str] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    problem: str = ""
    """Why its entry of a list can't be used; empty where it can."""


def msd_pairs(folder: Path, val_fold: int = 0) -> list[Pair]:
    """Pairs that dataset.json of a decathlon task lists for training; fold `val_fold` of five is validation.

    Folds are those of file names sorted, shuffled by `random.Random(0)` and dealt in turn. Raises ConfigurationError
    where dataset.json is missing or not of that layout.
    """
    data = _json(folder / "dataset.json")
    listed = _entries(data, "training")
    task = folder.resolve().name
    names = _names(data.get("labels") or {})
    images = [str(entry.get("image", "")) for entry in listed]
    folds = _folds([Path(image).name for image in images])
    if not 0 <= val_fold < FOLDS:
        raise ConfigurationError(f"expected --val-fold from 0 to {FOLDS - 1}, got {val_fold}")
    pairs = []
    for entry, image in sorted(zip(listed, images, strict=True), key=lambda one: Path(one[1]).name):
        split = "validation" if folds[Path(image).name] == val_fold else "train"
        pairs.append(_listed(folder, entry, f"{task}-", f"MSD-{task}-", (f"MSD {task}", split), names))
    return _named(pairs, folder)


def datalist_pairs(file: Path, val_fold: int = 0) -> list[Pair]:
    """Pairs of a MONAI datalist, paths relative to the file.

    Its lists are `training`, `validation` and `testing`, or their short names. In `training`, `fold` equal to `val_fold` is
    validation, and an entry without a fold is for training. Raises ConfigurationError where the file is not of that layout, also
    for another list of cases, which would otherwise be lost.
    """
    data = _json(file)
    names = _names(data.get("labels") or {})
    unknown = sorted(
        key for key, value in data.items() if key not in SPLIT_OF_LIST and isinstance(value, list) and _cases(value)
    )
    if unknown:
        raise ConfigurationError(
            f"expected lists of cases named {', '.join(SPLIT_OF_LIST)} in {file.name}, got {len(unknown)} of other names; rename or remove them"
        )
    pairs = []
    for part, split in SPLIT_OF_LIST.items():
        for entry in _entries(data, part) if part in data else ():
            fold = _fold(entry)
            given = "validation" if split == "train" and fold == val_fold else split
            stem = f"{file.stem}-"
            pairs.append(_listed(file.parent, entry, stem, stem, ("datalist", given), names))
    if not pairs:
        raise ConfigurationError(f"expected a list 'training' of objects with image and label in {file.name}, got none")
    return _named(pairs, file.parent)


def _listed(
    folder: Path, entry: Mapping[str, Any], prefix: str, patient: str, trial: tuple[str, str], names: Mapping[int, str]
) -> Pair:
    """The pair of one entry of a list; a list of one path is that path, anything else is a problem of this case alone."""
    paths, problem = {}, ""
    for key in ("image", "label"):
        value = entry.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value and not isinstance(value, str):
            problem = f"expected one path as {key}, got {type(value).__name__} of {len(value) if isinstance(value, Sized) else 1}"
        if isinstance(value, str) and not may_exist(value):
            problem, value = f"expected a path as {key}, got text that no file can be named with", None
        paths[key] = folder / value if isinstance(value, str) and value else None
    image = paths["image"]
    if image is None:
        problem = problem or "expected a path as image, got none"
        image = folder
    stem = _stem(image)
    return Pair(identifier(prefix + stem), identifier(patient + stem), image, paths["label"], trial, names, problem)


def pair(image: Path, label: Path, name: str | None = None) -> Pair:
    """One image and its label, called `name`, else after the image and the folder that it is in."""
    called = identifier(name or f"{_stem(image.resolve().parent)}-{_stem(image)}")
    return Pair(called, called, image, label)


def import_pairs(pairs: Sequence[Pair], dest: Path, names: Mapping[int, str] | None = None) -> ImportReport:
    """Write dest/<name>/ with CT/ and SEG.dcm for each pair; `names` of label values win over the pair's own, and these over
    those that the label file states.

    A folder appears only when complete, one of the same content is left alone, one whose source was corrected is replaced,
    and a pair that can't be used is reported as skipped. The same input gives the same bytes.
    """
    cases = CaseFolders(dest)
    rows: list[LabelRow] = []
    written: dict[str, list[LabelRow]] = {}
    for one in pairs:

        def write(part: Path, one: Pair = one) -> None:
            written[one.name] = write_pair(part, one, _called(one, names or {}))

        def made_of(one: Pair = one) -> str:
            files = [] if one.problem else [path for path in (one.image, one.label) if path is not None]
            return content_of(files, sorted(_called(one, names or {}).items()), one.trial, LAYOUT)

        if cases.write(one.name, one.image, made_of, write) and one.label is not None:
            # Of a case that was imported before, nothing was written now.
            rows += written.get(one.name) or label_rows(one.label, _called(one, names or {}))
    return replace(cases.report(), labels=tuple(summed(rows)))


def _called(one: Pair, names: Mapping[int, str]) -> dict[int, str]:
    """Names by label value: those given for the import, then the pair's, then those that its label file states and no other has."""
    given = {**one.names, **names}
    stated = label_names(one.label) if one.label is not None else {}
    often = Counter([*given.values(), *(name for value, name in stated.items() if value not in given)])
    return {value: name for value, name in stated.items() if often[name] == 1 and len(name) <= LABEL_CHARS} | given


def label_rows(label: Path, names: Mapping[int, str]) -> list[LabelRow]:
    """Return what a label volume holds, by value. Raises CaseRejected as `read_volume` does, not_integer_labels, no_labels."""
    volume = read_volume(label)
    return _masks(volume.array, names).rows(float(np.prod(volume.geometry.spacing_mm)) / 1000)


def write_pair(folder: Path, one: Pair, names: Mapping[int, str]) -> list[LabelRow]:
    """Write one pair as CT/ and SEG.dcm in `folder`, and return its labels. Each segment says its value in the label file.

    Raises CaseRejected: bad_entry, missing_file, missing_label, unreadable_volume, not_a_volume, missing_geometry,
    contradictory_affine, sheared_affine, not_hounsfield, not_integer_labels, no_labels, bad_label_name, label_shape_mismatch,
    not_dicom, mixed_series.
    """
    if one.problem:
        raise CaseRejected("bad_entry", f"{one.problem}; correct this entry of the list")
    if one.label is None:
        raise CaseRejected(
            "missing_label", "expected an image with its label, got an image alone; there is nothing to learn"
        )
    labels = read_volume(one.label)
    masks = _masks(labels.array, names)
    if one.image.is_dir():
        source = _copy_slices(one, folder / "CT")
    else:
        ct = _hounsfield(read_volume(one.image))
        if ct.array.shape != labels.array.shape:
            raise CaseRejected(
                "label_shape_mismatch",
                f"expected a label of the image's {_by(ct.array.shape)} voxels (z, y, x), got {_by(labels.array.shape)}; export "
                "the label that was drawn on this image: labels are not resampled",
            )
        _write_ct(folder, ct, one.patient_id, one.trial)
        source = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted((folder / "CT").iterdir())]
    try:
        write_seg(folder / "SEG.dcm", masks, labels.geometry, source, values=masks.values_of)
    except CaseRejected:
        raise
    except Exception as error:
        if not one.image.is_dir():
            raise
        # An element of a slice that is first looked at here; each kind of damage raises what it likes.
        raise CaseRejected(
            "not_dicom",
            f"expected slices that a segmentation can refer to, got {type(error).__name__} from one; copy them again",
        ) from error
    return masks.rows(float(np.prod(labels.geometry.spacing_mm)) / 1000)


def write_image(folder: Path, image: Path, patient_id: str) -> None:
    """Write an image without label as CT/ in `folder`. Raises CaseRejected as `read_volume` does, and not_hounsfield."""
    _write_ct(folder, _hounsfield(read_volume(image)), patient_id)


def _write_ct(folder: Path, ct: Volume, patient_id: str, trial: tuple[str, str] | None = None) -> None:
    identity = Identity(
        patient_id=patient_id,
        study_uid=derived_uid("volume study", patient_id),
        frame_of_reference_uid=derived_uid("volume frame of reference", patient_id),
        trial=trial,
    )
    intercept = CT_INTERCEPT_HU if ct.array.min() >= CT_INTERCEPT_HU else DEEP_INTERCEPT_HU
    write_ct(folder / "CT", ct, identity, identity.uid("CT series"), intercept_hu=intercept)


def _hounsfield(volume: Volume) -> Volume:
    """The image with HU rounded to 16-bit integers."""
    values, limits = volume.array, np.iinfo(np.int16)
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values) or not np.isfinite(values).all():
        raise CaseRejected("not_hounsfield", "expected a finite HU in every voxel, got others")
    if values.min() < limits.min or values.max() > limits.max:
        raise CaseRejected(
            "not_hounsfield",
            f"expected HU from {limits.min} to {limits.max}, got {values.min():g} to {values.max():g}",
        )
    return Volume(np.rint(values).astype(np.int16), volume.geometry)


class _Masks(Mapping[str, np.ndarray]):
    """Masks by name, each made when it is asked for: all at once may be larger than memory. `values_of` are theirs in the file."""

    def __init__(self, labels: np.ndarray, values: Mapping[str, int]) -> None:
        self._labels, self.values_of = labels, values

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._labels == self.values_of[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)

    def rows(self, voxel_ml: float) -> list[LabelRow]:
        """What the labels are: value, name, voxels and ml."""
        counts = {name: int(mask.sum()) for name, mask in self.items()}
        return [LabelRow(self.values_of[name], name, count, count * voxel_ml) for name, count in counts.items()]


def _masks(array: np.ndarray, names: Mapping[int, str]) -> _Masks:
    """A mask for each named value, also one that does not occur, and each value that occurs, without 0 and 255."""
    if not np.issubdtype(array.dtype, np.integer):
        array = np.where(np.isnan(array), UNLABELLED, array)
    values = np.unique(array)
    if (
        not np.isfinite(values).all()
        or (values != np.rint(values)).any()
        or not 0 <= values.min() <= values.max() <= LARGEST_SOURCE_VALUE
    ):
        raise CaseRejected(
            "not_integer_labels",
            f"expected labels of whole numbers from 0 to {LARGEST_SOURCE_VALUE} (NaN and 255: not labelled), got others from "
            f"{np.min(values):g} to {np.max(values):g}",
        )
    present = {int(value) for value in values} | set(names)
    found = {names.get(value, f"label_{value}"): value for value in sorted(present - {0, UNLABELLED})}
    if not found:
        raise CaseRejected(
            "no_labels", "expected a label above 0, or the names of labels that were looked for; got none"
        )
    if len(found) != len(present - {0, UNLABELLED}) or any(len(name) > LABEL_CHARS for name in found):
        raise CaseRejected(
            "bad_label_name",
            f"expected a name of its own, of at most {LABEL_CHARS} characters, for each of the labels {sorted(present - {0, UNLABELLED})}, "
            f"got {len(found)} names of up to {max(map(len, found))} characters; rename the labels",
        )
    return _Masks(array, found)


def _copy_slices(one: Pair, folder: Path) -> list[Dataset]:
    """Copy a folder of DICOM slices; a file changes only where identifiers are absent, or to carry the given split."""
    paths = sorted(path for path in one.image.iterdir() if path.is_file() and not path.name.startswith("."))
    source: list[Dataset] = []
    folder.mkdir(parents=True)
    for number, path in enumerate(paths):
        try:
            with quietly():
                ds = pydicom.dcmread(path)
                changed = _complete(ds, one, path.name)
                if changed:
                    ds.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
        except CaseRejected:
            raise
        except Exception as error:  # reading parses what is asked for, writing the rest: each raises what it likes
            raise CaseRejected(
                "not_dicom",
                f"expected DICOM slices alone in the image's folder, got another file as number {number + 1} of {len(paths)}; take it away",
            ) from error
        if not changed:
            shutil.copyfile(path, folder / f"{number:04d}.dcm")
        del ds.PixelData
        source.append(ds)
    series = {text(ds, "SeriesInstanceUID") for ds in source}
    if len(series) != 1:
        raise CaseRejected("mixed_series", f"expected one series in the image's folder, got {len(series)}")
    return source


def _complete(ds: Dataset, one: Pair, file_name: str) -> bool:
    """Fill in identifiers that are empty or absent, and the split; True where something was."""
    meta = ds.file_meta
    if "PixelData" not in ds:
        raise CaseRejected("not_dicom", "expected images alone in the image's folder, got an object without pixels")
    expected = {
        "SOPClassUID": text(meta, "MediaStorageSOPClassUID"),
        "SOPInstanceUID": text(meta, "MediaStorageSOPInstanceUID") or derived_uid("slice", one.patient_id, file_name),
        "StudyInstanceUID": derived_uid("volume study", one.patient_id),
        "SeriesInstanceUID": derived_uid("volume series", one.patient_id),
        "FrameOfReferenceUID": derived_uid("volume frame of reference", one.patient_id),
        "PatientID": one.patient_id,
    }
    absent = {keyword: value for keyword, value in expected.items() if not text(ds, keyword)}
    for keyword, value in absent.items():
        setattr(ds, keyword, value)
    if one.trial is not None:
        set_trial(ds, *one.trial)
    return bool(absent) or one.trial is not None


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(existing(path, path.name).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigurationError(f"expected {path.name} as UTF-8, got another encoding; save it as UTF-8") from None
    except (OSError, ValueError, RecursionError, CaseRejected) as error:
        raise ConfigurationError(
            f"expected a JSON file {path.name} that can be read; {type(error).__name__}"
        ) from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"expected an object with a list 'training' in {path.name}, got {type(data).__name__}")
    return data


def _cases(listed: Sequence[Any]) -> bool:
    return any(isinstance(entry, dict) and "image" in entry for entry in listed)


def _fold(entry: Mapping[str, Any]) -> int | None:
    """The fold of an entry as a number; None where it has none. Raises ConfigurationError."""
    fold = entry.get("fold")
    if fold is None or (isinstance(fold, int) and not isinstance(fold, bool)):
        return fold
    if isinstance(fold, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", fold):
        return int(fold)
    raise ConfigurationError(
        f"expected a whole number as fold of an entry, got {type(fold).__name__}; correct the list"
    )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _entries(data: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """Entries of a list as objects; a bare path is an image alone. macOS's `._` companions of files are left out."""
    listed = data.get(part) or []
    if not isinstance(listed, list) or (part == "training" and not listed):
        raise ConfigurationError(
            f"expected a list '{part}' of objects with image and label, got {type(listed).__name__}"
        )
    if any(isinstance(entry, list) for entry in listed):
        raise ConfigurationError(
            f"expected a list '{part}' of objects with image and label, got lists within it; make it one list"
        )
    entries = [entry if isinstance(entry, dict) else {"image": entry} for entry in listed]
    return [entry for entry in entries if not Path(str(entry.get("image", ""))).name.startswith("._")]


def _names(labels: Mapping[str, Any]) -> dict[int, str]:
    """Names by value, from {"1": "cancer"} or {"cancer": 1}; the background is none. Raises ConfigurationError."""
    turned = {}
    for key, value in labels.items() if isinstance(labels, Mapping) else [("", labels)]:
        if re.fullmatch(r"\s*[0-9]{1,9}\s*", key) and isinstance(value, str):
            turned[int(key)] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            turned[value] = key
        else:
            raise ConfigurationError(
                'expected labels as {"1": "cancer"} or {"cancer": 1}, a name and a whole number each, got '
                f"{type(value).__name__} in their place; correct the list"
            )
    return {value: name for value, name in turned.items() if value != 0}


def _folds(names: Sequence[str]) -> dict[str, int]:
    shuffled = sorted(names)
    random.Random(0).shuffle(shuffled)
    return {name: number % FOLDS for number, name in enumerate(shuffled)}


def _stem(path: Path) -> str:
    name = path.name
    for suffix in VOLUME_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _named(pairs: Sequence[Pair], root: Path) -> list[Pair]:
    """The pairs, each with the folders between `root` and its image in its name: what else a list holds changes no name.

    Raises ConfigurationError where one image is listed twice, or in two formats.
    """
    named: list[Pair] = []
    pathless = 0
    for one in pairs:
        if one.image == root:  # an entry without a path, which is a problem of its own
            pathless += 1
            named.append(replace(one, name=identifier(f"{one.name}-entry-{pathless}")))
            continue
        folders = (one.image.parent.relative_to(root) if one.image.is_relative_to(root) else one.image.parent).parts
        if folders in ((), MSD_FOLDER):
            named.append(one)
            continue
        # A dash within a folder's name would let two paths give one name.
        above = identifier("/".join((*folders, ""))) if any("-" in folder for folder in folders) else "-".join(folders)
        named.append(
            replace(one, name=identifier(f"{above}-{one.name}"), patient_id=identifier(f"{above}-{one.patient_id}"))
        )
    if len({one.name for one in named}) != len(named):
        raise ConfigurationError(
            "expected each image once in the list, got one of them twice, or in two formats; remove one entry"
        )
    return named
