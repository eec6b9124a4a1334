"""Data sets of images and masks in folders, described by a file of `conf/breast_us/datasets/` and by no code."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from med_assets.dicom.structure_names import normalise
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.importing.folders import existing, identifier
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import read_yaml
from med_assets.storage.names import escaped

FOLDER = "datasets"
"""Folder of conf/breast_us with a file for each data set."""

PICTURE = r"\.(?:png|bmp|tiff?|jpe?g)"
"""Endings of pictures that are looked for unless a pattern says otherwise."""

NOT_ORGANS = ("benign", "malignant", "normal", "lesion", "background", "organs")
"""Names that mean something else here."""

OTHER_FILES = "other files"
"""In place of a name, where files are reported that are neither image nor mask."""

Lesion = Literal["benign", "malignant", "lesion"]
Organ = Annotated[str, Field(pattern=r"^[a-z][a-z0-9 _-]{0,31}$")]
Label = Literal[Lesion, "normal"]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Table(_Frozen):
    """A CSV file with a row for each image."""

    file: str = Field(description="path of the file below the folder of the data set")
    key: str = Field(description="column with the key of the image, as the group `key` of its pattern matches it")
    label: str | None = Field(default=None, description="column with what the image shows, a key of `labels`")
    patient: str | None = Field(default=None, description="column with the patient")

    @field_validator("file")
    @classmethod
    def _lies_within(cls, file: str) -> str:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise ValueError(f"expected a path below the folder of the data set, got {file!r}")
        return file


class FolderDataset(_Frozen):
    """`conf/breast_us/datasets/<name>.yaml`. Patterns are regular expressions of a file's path below the folder, case aside."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="name that each image carries and that experiments choose it by",
    )
    licence: str = Field(min_length=1, description="licence of the data set, or under what it may be used")
    source: str = Field(default="", description="where a person gets it")
    image: str = Field(
        default=rf"images/(?P<key>.+){PICTURE}",
        description="pattern of images; its group `key` tells them apart, `patient` and `label` are optional",
    )
    mask: str = Field(
        default=rf"masks/(?P<key>.+?)(?:_mask(?:_\d+)?)?{PICTURE}",
        description="pattern of masks; the groups that it shares with the pattern of images, `key` among them, are those of its "
        "image; all masks of an image are united",
    )
    ignored: str | None = Field(default=None, description="pattern of files that are neither and are known to be there")
    values: dict[int, Lesion] | None = Field(
        default=None,
        description="what each grey value of a mask above 0 is; without it a mask has one value above 0, whatever that is",
    )
    organs: dict[int, Organ] | None = Field(
        default=None,
        description="names of organs by the grey value of a mask above 0: the set is one of organs, and not of lesions",
    )
    labels: dict[str, Label] | None = Field(
        default=None, description="what each value of the group `label` or of the table's label is"
    )
    lesion: Lesion = Field(
        default="lesion", description="label of an image with a mask where neither `values` nor `labels` say more"
    )
    empty: Literal["normal", "refused"] = Field(
        default="refused",
        description="what an empty mask means: that somebody looked and found nothing, or nothing that can be used",
    )
    pixel_mm: Millimetres | tuple[Millimetres, Millimetres] | None = Field(
        default=None,
        description="size of a pixel of every image, or height and width of one; none where nobody calibrated them, mm",
    )
    table: Table | None = Field(default=None, description="a table of labels or patients")
    external: bool = Field(default=False, description="whether it is an external test set, which is never trained on")

    @field_validator("image", "mask", "ignored")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"expected a regular expression, got {pattern!r} ({error})") from error
        return pattern

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        image, mask = (re.compile(pattern).groupindex for pattern in (self.image, self.mask))
        for where, groups in (("image", image), ("mask", mask)):
            if "key" not in groups:
                raise ValueError(f"expected a group (?P<key>...) in the pattern of the {where}, got none")
        if strangers := sorted({*image, *mask} - {"key", "patient", "label"}):
            raise ValueError(f"expected the groups key, patient and label, got {', '.join(strangers)}")
        if strangers := sorted(set(mask) - set(image)):
            raise ValueError(f"expected groups of a mask that its image has too, got {', '.join(strangers)}")
        for column in ("patient", "label"):
            if column in image and self.table and getattr(self.table, column):
                raise ValueError(f"expected {column} from the pattern or from the table, got both")
        if self.says_label != (self.labels is not None):
            raise ValueError("expected `labels` together with a group or a column `label`, got one without the other")
        if self.values is not None and self.says_label:
            raise ValueError("expected `values` or `labels`, got both: which of the two names the lesion?")
        if self.values is not None and (not self.values or not all(0 < value < 256 for value in self.values)):
            raise ValueError(f"expected values of 1 to 255, got {sorted(self.values)}")
        return self

    @model_validator(mode="after")
    def _is_of_organs_or_of_lesions(self) -> Self:
        if self.organs is None:
            return self
        if self.values is not None or self.says_label or self.lesion != "lesion" or self.empty != "refused":
            raise ValueError("expected `organs` without values, labels, lesion and empty, which are about lesions")
        names = list(self.organs.values())
        if not names or not all(0 < value < 256 for value in self.organs) or len(set(names)) < len(names):
            raise ValueError(f"expected a name of its own for each value of 1 to 255, got {self.organs}")
        if taken := sorted({normalise(name) for name in names} & {normalise(name) for name in NOT_ORGANS}):
            raise ValueError(f"expected names of organs, got {', '.join(taken)}")
        return self

    @property
    def says_label(self) -> bool:
        """Whether a path or the table says what an image shows."""
        return "label" in re.compile(self.image).groupindex or bool(self.table and self.table.label)

    @property
    def says_patient(self) -> bool:
        """Whether a path or the table says whose an image is."""
        return "patient" in re.compile(self.image).groupindex or bool(self.table and self.table.patient)

    @property
    def size_mm(self) -> tuple[float, float] | None:
        """Height and width of a pixel, mm."""
        return (self.pixel_mm, self.pixel_mm) if isinstance(self.pixel_mm, float) else self.pixel_mm


@dataclass(frozen=True)
class FolderImage:
    """One image of a folder: its key, its files, and what path or table say of it. `problem` is why it can't be used."""

    key: str
    image: Path
    masks: tuple[Path, ...]
    label: Label | None = None
    patient: str | None = None
    problem: CaseRejected | None = None


def known() -> tuple[str, ...]:
    """Names of the files in conf/breast_us/datasets, without their ending."""
    return tuple(sorted(path.stem for path in (conf_folder("breast_us") / FOLDER).glob("*.yaml")))


def load(name: str) -> FolderDataset:
    """The data set of a file. Raises ConfigurationError that names the file and the field."""
    if name not in known():
        raise ConfigurationError(
            f"expected a data set of conf/breast_us/{FOLDER} ({', '.join(known()) or 'there is none'}), got {escaped(name)}; "
            "write its file, docs/breast-us.md says how"
        )
    try:
        return FolderDataset.model_validate(read_yaml(conf_folder("breast_us") / FOLDER / f"{name}.yaml"))
    except ValidationError as error:
        raise ConfigurationError(f"conf/breast_us/{FOLDER}/{name}.yaml: {error}") from error


def dataset_names() -> frozenset[str]:
    """The names that images of these data sets carry, which intake keeps."""
    return frozenset(load(name).name for name in known())


def organ_names() -> frozenset[str]:
    """The names of organs that data sets declare, which intake keeps as labels of segments."""
    return frozenset(organ for name in known() for organ in (load(name).organs or {}).values())


def images_of(described: FolderDataset, src: Path) -> tuple[list[FolderImage], dict[str, str]]:
    """Return the images below a folder, by key, and by name why other files are left out.

    Raises ConfigurationError where the table is missing or is none.
    """
    found: dict[tuple[str, ...], list[tuple[Path, re.Match[str]]]] = {}
    masks: dict[tuple[str, ...], list[Path]] = {}
    shared = sorted(re.compile(described.mask).groupindex)
    left_out, n_other = {}, 0
    for path in sorted(file for file in src.rglob("*") if not file.is_dir() and not _hidden(file, src)):
        relative = path.relative_to(src).as_posix()
        if image := re.fullmatch(described.image, relative, re.IGNORECASE):
            found.setdefault(_of(image, shared), []).append((path, image))
        elif mask := re.fullmatch(described.mask, relative, re.IGNORECASE):
            masks.setdefault(_of(mask, shared), []).append(path)
        elif not (described.ignored and re.fullmatch(described.ignored, relative, re.IGNORECASE)):
            n_other += not (described.table and relative == described.table.file)
    rows = _rows(described.table, src)
    images = []
    for group, matches in found.items():
        path, image = matches[0]
        name = "-".join(image[part] or "" for part in shared)
        listed = FolderImage(name, path, tuple(masks.pop(group, ())))
        images.append(_described(described, listed, image, len(matches), rows))
    for group, files in masks.items():
        left_out[identifier("-".join(group))] = (
            f"no_image: expected the image of {len(files)} mask(s), got none; fetch it too"
        )
    if n_other:
        left_out[OTHER_FILES] = (
            f"unknown_file: {n_other} file(s) match the pattern of neither image nor mask; correct `image` or `mask` where "
            "they are, name them in `ignored` where they are not"
        )
    return sorted(images, key=lambda one: _natural(one.key)), left_out


def _hidden(file: Path, src: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(src).parts)


def _of(match: re.Match[str], groups: list[str]) -> tuple[str, ...]:
    """What tells an image apart, in lower case: names of files differ in it between an image and its mask."""
    return tuple((match[group] or "").lower() for group in groups)


def _natural(key: str) -> list[tuple[int, str]]:
    """Order of names with numbers in them: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", key)]


def _rows(table: Table | None, src: Path) -> Mapping[str, Mapping[str, str]]:
    """Rows of a table by key in lower case. Raises ConfigurationError."""
    if table is None:
        return {}
    columns = [one for one in (table.key, table.label, table.patient) if one]
    try:
        with existing(src / table.file, "the table").open(newline="", encoding="utf-8-sig") as stream:
            rows = [{column: row[column].strip() for column in columns} for row in csv.DictReader(stream)]
    except (OSError, ValueError, KeyError, AttributeError, csv.Error, CaseRejected) as error:
        raise ConfigurationError(
            f"expected the table {table.file} with the columns {', '.join(columns)}, reading failed "
            f"({type(error).__name__}); correct `table`, or copy the file again"
        ) from None
    if len({row[table.key].lower() for row in rows}) < len(rows):
        raise ConfigurationError(f"expected each key once in {table.file}, got one of them twice; correct the table")
    return {row[table.key].lower(): row for row in rows}


def _described(
    described: FolderDataset,
    listed: FolderImage,
    match: re.Match[str],
    n_files: int,
    rows: Mapping[str, Mapping[str, str]],
) -> FolderImage:
    """The image with its label and patient, or with the problem that it has."""
    groups, table = match.groupdict(), described.table
    row = rows.get(groups["key"].lower())
    if n_files > 1:
        return replace(
            listed,
            problem=CaseRejected(
                "two_images",
                f"expected one image of this key, got {n_files}; make `key` tell them apart, or remove one",
            ),
        )
    if table is not None and row is None:
        text = f"expected a row of the image in {table.file}, got none; add it, or remove the image"
        return replace(listed, problem=CaseRejected("no_table_row", text))
    stated = {
        what: groups.get(what) or (row or {}).get((table and getattr(table, what)) or "", "")
        for what in ("patient", "label")
    }
    by_name = {name.lower(): label for name, label in (described.labels or {}).items()}
    label = by_name.get(stated["label"].lower())
    problem = None
    if described.says_label and label is None:
        text = "expected a label that `labels` has, got another; add it there, or correct it"
        problem = CaseRejected("unknown_label", text)
    elif described.says_patient and not stated["patient"]:
        text = "expected whose image it is, got nothing; complete the table or the names"
        problem = CaseRejected("missing_patient_id", text)
    return replace(listed, label=label, patient=stated["patient"] or None, problem=problem)
