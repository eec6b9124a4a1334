"""Public sets of breast ultrasound images to one folder per image: the image and its united mask as DICOM.

- BUSI: `{benign,malignant,normal}/benign (1).png` with `benign (1)_mask.png` and sometimes `_mask_1.png`. It has no patient ids.
- BUSBRA: `Images/bus_0001-l.png`, `Masks/mask_0001-l.png`, and in `bus_data.csv` the columns ID and Pathology.
- BUS-UCLM: `images/NAME.png` and `masks/NAME.png` in colours, red malignant and green benign, black where there is no lesion. The
  patient is what stands before the last underscore of a name.
- Any other set of images and masks, BUID among them, by its file in `conf/breast_us/datasets/`, see `datasets`.

Pixels are those of the files: nothing is resampled, and they are calibrated only where a data set's file says so. Where there are no patient ids, images that are
nearly the same picture are one patient, so that no split can part them; all others are a patient each.
"""

import csv
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.segmentation_2d import write_segmentation_2d, write_segments_2d
from med_assets.dicom.ultrasound import write_us
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.importing.bounds import MAX_PICTURE_PIXELS
from med_assets.landing.importing.folders import CaseFolders, content_of, existing, identifier
from med_assets.landing.importing.report import ImportReport
from med_assets.programs.breast_us import dataset_masks, datasets

LESIONS = ("benign", "malignant")
NORMAL = "normal"

BRIGHT = 128
"""Value from which a channel of a mask counts as set, of 255."""


@dataclass(frozen=True)
class Source:
    """One image of a set: its name there, its file and its masks, what its lesion is (None: derived from the mask), its patient if known."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    label: str | None
    patient: str | None
    read: "Callable[[Source], tuple[np.ndarray, np.ndarray, str | tuple[str, ...]]] | None" = None
    """Gives grey pixels, mask and label, or the number of each pixel's organ and their names, or raises CaseRejected; `read_pair` unless given."""


def busi(src: Path) -> Iterator[Source]:
    """Images of BUSI."""
    for label in (*LESIONS, NORMAL):
        for image in sorted(_pictures(src / label), key=_number):
            if "_mask" not in image.stem.lower():
                pattern = re.compile(re.escape(image.stem) + r"_mask(_\d+)?\Z", re.IGNORECASE)
                masks = tuple(path for path in _pictures(src / label) if pattern.match(path.stem))
                number = _number(image)[0]
                yield Source(f"{label}-{number:04d}" if number else image.stem, image, masks, label, None)


def _pictures(folder: Path) -> list[Path]:
    """PNG files of a folder, however the ending is written, sorted."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".png")


def _number(image: Path) -> tuple[int, str]:
    """The number in the name of an image, as in `benign (12).png`, and its name: `(2)` comes before `(10)`."""
    return int(re.sub(r"\D", "", image.stem) or 0), image.stem


def busbra(src: Path) -> Iterator[Source]:
    """Images of BUSBRA. Raises ConfigurationError when its table of pathology is missing."""
    table = src / "bus_data.csv"
    if not table.is_file():
        raise ConfigurationError(
            f"expected bus_data.csv beside Images and Masks in {src}, got none; copy the set whole"
        )
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            pathology = {row["ID"].strip(): row["Pathology"].strip().lower() for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        raise ConfigurationError(
            f"expected bus_data.csv with the columns ID and Pathology, reading failed ({type(error).__name__}); copy it again"
        ) from None
    masks = {path.stem.lower(): path for path in _pictures(src / "Masks")}
    for image in _pictures(src / "Images"):
        if not image.stem.lower().startswith("bus_"):
            continue
        tail = image.stem[len("bus_") :]
        mask = masks.get(f"mask_{tail}".lower())
        label = pathology.get(image.stem, "lesion")
        yield Source(
            image.stem,
            image,
            (mask,) if mask else (),
            label if label in LESIONS else "lesion",
            tail.partition("-")[0],
        )


def bus_uclm(src: Path) -> Iterator[Source]:
    """Images of BUS-UCLM, whose masks tell what a lesion is by its colour."""
    masks = {path.stem.lower(): path for path in _pictures(src / "masks")}
    for image in _pictures(src / "images"):
        mask = masks.get(image.stem.lower())
        yield Source(image.stem, image, (mask,) if mask else (), None, image.stem.rpartition("_")[0] or image.stem)


SETS: dict[str, tuple[str, Callable[[Path], Iterator[Source]]]] = {
    "busi": ("BUSI", busi),
    "busbra": ("BUSBRA", busbra),
    "bus-uclm": ("BUS-UCLM", bus_uclm),
}
"""By the name of the command: the data set's own name, and what lists its images."""


def import_images(kind: str, src: Path, dest: Path, limit: int | None = None, external: bool = False) -> ImportReport:
    """Write dest/<set>-<name>/ with us.dcm and seg.dcm for each image of a set; `external` makes it an external test set.

    A folder appears only when complete, one of the same content is left alone, and an image that can't be used is reported as
    skipped. The same input gives the same bytes.
    """
    dataset, listed = SETS[kind]
    sources = list(listed(src))[:limit]
    if not sources:
        raise ConfigurationError(
            f"expected images of {dataset} in {src}, found none; give the folder as its authors publish it"
        )
    return _import(kind, dataset, sources, dest, external)


def import_folder(name: str, src: Path, dest: Path, limit: int | None = None, external: bool = False) -> ImportReport:
    """Write dest/<name>-<key>/ for each image of a folder that `conf/breast_us/datasets/<name>.yaml` describes, as `import_images`.

    Masks without an image, and files that are neither, are reported as skipped too.
    """
    described = datasets.load(name)
    listed, left_out = datasets.images_of(described, src)
    if not listed:
        raise ConfigurationError(
            f"expected images of {described.name} in {src}, found none; their paths below it match {described.image!r}, case aside"
        )
    sources = [
        Source(one.key, one.image, one.masks, one.label, one.patient, partial(_read_described, described, one))
        for one in listed[:limit]
    ]
    organs = () if described.organs is None else (tuple(described.organs.items()),)
    asked = (described.values, described.lesion, described.empty, described.pixel_mm, *organs)
    report = _import(name, described.name, sources, dest, external or described.external, described.size_mm, asked)
    notes = (f"licence of {described.name}: {described.licence}", *report.notes)
    return replace(report, notes=notes, skipped=report.skipped | left_out)


def _import(
    prefix: str,
    dataset: str,
    sources: list[Source],
    dest: Path,
    external: bool,
    pixel_mm: tuple[float, float] | None = None,
    asked: tuple[object, ...] = (),
) -> ImportReport:
    """Write a folder for each source; `asked` is what else decides what is written."""
    patients = _patients(sources)
    made = CaseFolders(dest)
    for source in sources:

        def write(part: Path, source: Source = source) -> None:
            _write(part, source, dataset, patients[source.name], external, pixel_mm)

        decides = (source.label, patients[source.name], external, *asked)
        made_of = partial(content_of, [source.image, *source.masks], *decides)
        made.write(identifier(f"{prefix}-{source.name}"), source.image, made_of, write)
    unknown = [source for source in sources if source.patient is None]
    note = (
        f"{dataset} does not say whose {len(unknown)} of {len(sources)} images are: images that are nearly the same picture count as "
        "one patient, every other image as a patient of its own",
    )
    return replace(made.report(), notes=note if unknown else ())


def _read_described(
    described: datasets.FolderDataset, listed: datasets.FolderImage, source: Source
) -> tuple[np.ndarray, np.ndarray, str | tuple[str, ...]]:
    """Return what `read_pair` does, or organs, by the rules of a data set's file. Raises CaseRejected, with the problem of the image too."""
    if listed.problem is not None:
        raise listed.problem
    pixels = _picture(source.image, "L")
    _demand_masks(source)
    greys = (_same_size(_picture(path, "L"), pixels.shape) for path in source.masks)
    if described.organs is not None:
        return pixels, dataset_masks.organs_of(described, greys), tuple(described.organs.values())
    return pixels, *dataset_masks.mask_and_label(described, listed, greys)


def read_pair(source: Source) -> tuple[np.ndarray, np.ndarray, str]:
    """Return grey pixels uint8, the union of all masks, bool, both (rows, columns), and the label.

    Raises CaseRejected: unreadable_image, no_mask, mask_size_mismatch, two_labels.
    """
    pixels = _picture(source.image, "L")
    _demand_masks(source)
    mask, labels = np.zeros(pixels.shape, bool), set()
    for path in source.masks:
        colours = _same_size(_picture(path, "RGB"), pixels.shape) >= BRIGHT
        mask |= colours.any(axis=-1)
        if source.label is None:
            red, green = colours[..., 0] & ~colours[..., 1], colours[..., 1] & ~colours[..., 0]
            labels |= {name for name, shown in (("malignant", red), ("benign", green)) if shown.any()}
    if len(labels) > 1:
        raise CaseRejected("two_labels", "expected lesions of one kind in an image, got benign and malignant")
    derived = labels.pop() if labels else ("lesion" if mask.any() else NORMAL)
    return pixels, mask, source.label or derived


def _demand_masks(source: Source) -> None:
    if not source.masks:
        raise CaseRejected("no_mask", "expected a mask for the image, got none; a normal image has an empty one")


def _same_size(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mask, where it has the rows and columns of its image. Raises CaseRejected("mask_size_mismatch")."""
    if mask.shape[:2] != shape:
        raise CaseRejected(
            "mask_size_mismatch",
            f"expected a mask of the image's {shape[0]} x {shape[1]} pixels, got {mask.shape[0]} x {mask.shape[1]}; masks are "
            "not resized",
        )
    return mask


def _patients(sources: list[Source]) -> dict[str, str]:
    """Patient of each image by its name: the set's own, else the first of the images that are nearly the same picture."""
    from med_assets.programs.breast_us.similarity import groups

    unknown, pictures = [], []
    for source in sources:
        if source.patient is None:
            try:
                pictures.append(_picture(source.image, "L"))
                unknown.append(source.name)
            except CaseRejected:  # reported when it is imported
                pass
    first = {name: unknown[index] for name, index in zip(unknown, groups(pictures), strict=True)}
    return {source.name: source.patient or first.get(source.name, source.name) for source in sources}


def _write(
    folder: Path, source: Source, dataset: str, patient: str, external: bool, pixel_mm: tuple[float, float] | None
) -> None:
    pixels, mask, label = (source.read or read_pair)(source)
    identity = Identity(
        patient_id=identifier(f"{dataset}-{patient}"),
        study_uid=derived_uid("breast ultrasound", dataset, source.name),
        frame_of_reference_uid="",
        trial=(dataset, "external" if external else ""),
    )
    image = write_us(folder / "us.dcm", pixels, identity, pixel_mm=pixel_mm)
    if isinstance(label, str):
        write_segmentation_2d(folder / "seg.dcm", mask, label, image)
    else:
        write_segments_2d(folder / "seg.dcm", mask, label, image, organs=True)


def write_image(folder: Path, image: Path, patient_id: str) -> None:
    """Write a picture without mask as us.dcm in `folder`; nobody calibrated it. Raises CaseRejected("unreadable_image")."""
    identity = Identity(patient_id, derived_uid("breast ultrasound", patient_id), frame_of_reference_uid="")
    write_us(folder / "us.dcm", _picture(image, "L"), identity)


def _picture(path: Path, mode: str) -> np.ndarray:
    """Pixels of a picture, in a mode of Pillow's: "L" is grey, "RGB" is colour. Raises CaseRejected.

    16 bits are scaled to 8 by their full range, 65535 to 255.
    """
    from PIL import Image

    try:
        quiet = warnings.catch_warnings(
            action="ignore", category=Image.DecompressionBombWarning
        )  # the limit here is lower
        with quiet, Image.open(existing(path, "a picture")) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS:
                raise CaseRejected(
                    "unreadable_image",
                    f"expected a picture of at most {MAX_PICTURE_PIXELS} pixels, got {image.width} x {image.height}",
                )
            if image.mode in ("I", "F") or (
                image.mode in ("RGBA", "LA") and np.asarray(image.getchannel("A")).min() < 255
            ):
                raise CaseRejected(
                    "unreadable_image",
                    f"expected a grey, colour or palette picture of 8 or 16 bits, got Pillow's mode {image.mode}, which holds "
                    "other values or transparency; save it as one of these",
                )
            if image.mode.startswith("I;16"):
                grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
                return grey if mode == "L" else np.repeat(grey[..., None], 3, axis=-1)
            return np.asarray(image.convert(mode))
    except CaseRejected:
        raise
    except Exception as error:  # each format's reader raises what it likes
        raise CaseRejected(
            "unreadable_image", f"expected a picture, got {type(error).__name__} from reading; copy it again"
        ) from error
