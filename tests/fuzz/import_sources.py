"""A small valid source of every importer: two cases, of which one is damaged, and the tables that both share."""

import io
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from PIL import Image

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.write import Identity, derived_uid, write_ct, write_mr
from med_assets.programs.breast_us.phantom import phantom, write_busi
from med_assets.programs.lumbar_mr.importer_rsna import CONDITION, LEVELS
from med_assets.programs.retinal_oct.phantom import SCANNERS, people, write_dataset
from med_assets.programs.rt_dose.importer import GRID


@dataclass(frozen=True)
class Form:
    """A form of source: its importer, what to give it (paths below the source), what writes it, and which files both cases share."""

    kind: str
    write: Callable[[Path], None]
    arguments: tuple[str, ...] = (".",)
    shared: tuple[str, ...] = ()
    victim: str = ""
    """Text that the paths of one case's files hold, and no others."""
    options: tuple[str, ...] = ()


def _volume(path: Path, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    hu = numbers.integers(-1000, 1500, (6, 5, 4)).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    labels[1:4, 2:4, 1:3] = 1
    for name, array in (("imagesTr", hu), ("labelsTr", labels)):
        (path.parent / name).mkdir(parents=True, exist_ok=True)
        nibabel.Nifti1Image(array, np.diag([0.8, 0.9, 2.5, 1])).to_filename(path.parent / name / path.name)


def _task(src: Path) -> None:
    for number in (1, 2):
        _volume(src / f"case{number}.nii.gz", number)
    entries = [{"image": f"./imagesTr/case{n}.nii.gz", "label": f"./labelsTr/case{n}.nii.gz"} for n in (1, 2)]
    (src / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "cancer"}, "training": entries}))


def _datalist(src: Path) -> None:
    """One pair of NIfTI, one of NRRD."""
    import nrrd

    _volume(src / "case1.nii.gz", 1)
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([0.8, 0.9, 2.5]),
        "space origin": np.zeros(3),
    }
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1:4, 2:4, 1:3] = 1
    nrrd.write(str(src / "case2.nrrd"), np.full((6, 5, 4), 40, np.int16), header)
    nrrd.write(str(src / "case2.seg.nrrd"), labels, header | {"Segment0_LabelValue": "1", "Segment0_Name": "tumor"})
    entries = [
        {"image": "imagesTr/case1.nii.gz", "label": "labelsTr/case1.nii.gz", "fold": 0},
        {"image": "case2.nrrd", "label": "case2.seg.nrrd", "fold": 1},
    ]
    (src / "list.json").write_text(json.dumps({"training": entries}))


def _slices(src: Path) -> None:
    """An image of DICOM slices with a label volume."""
    geometry = Geometry((4, 5, 6), (2.5, 0.9, 0.8), (0.0, 0.0, 0.0))
    identity = Identity("X", derived_uid("a"), derived_uid("b"))
    write_ct(src / "case2", Volume(np.full((4, 5, 6), 40.0, np.float32), geometry), identity, derived_uid("c"))
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1:4, 2:4, 1:3] = 1
    nibabel.Nifti1Image(labels, np.diag([-0.8, -0.9, 2.5, 1])).to_filename(src / "case2-label.nii.gz")


def _openkbp(src: Path) -> None:
    for name in ("pt_1", "pt_2"):
        patient = src / "train-pats" / name
        patient.mkdir(parents=True)
        for file, value in (("ct", 1060.0), ("dose", 63.217), ("possible_dose_mask", None), ("PTV63", None)):
            index = np.arange(1_000_000, 1_000_200)
            pd.Series(value, index=index, name="data").to_csv(patient / f"{file}.csv")
        (patient / "voxel_dimensions.csv").write_text("3.906\n3.907\n2.5\n")
    assert GRID[0] == 128


def _lumbar(src: Path) -> None:
    label = np.zeros((90, 28, 28), np.uint8)
    for body in range(5):
        label[4 + body * 16 : 15 + body * 16, 6:22, 6:22] = body + 1
    packed = io.BytesIO()
    np.savez_compressed(packed, image=label * 20, label=label)
    src.mkdir(parents=True)
    (src / "case1.npz").write_bytes(packed.getvalue())
    (src / "case2.npz").write_bytes(packed.getvalue())


def _lumbar_xz(src: Path) -> None:
    _lumbar(src)
    (src / "case2.npz.xz").write_bytes(lzma.compress((src / "case2.npz").read_bytes(), preset=0))
    (src / "case2.npz").unlink()


def _rsna(src: Path) -> None:
    described, points = [], []
    for study in (11, 22):
        series = study * 10
        identity = Identity(str(study), derived_uid("s", str(study)), derived_uid("f", str(study)))
        grid = Geometry((3, 16, 16), (4.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((-1, 0, 0), (0, 0, -1), (0, 1, 0)))
        volume = Volume(np.full((3, 16, 16), 100.0), grid)
        write_mr(src / "train_images" / str(study) / str(series), volume, identity, derived_uid("m", str(study)))
        described.append((study, series, "Sagittal T2/STIR"))
        points += [(study, series, 2, CONDITION, level, 8.0, 2.0 + row) for row, level in enumerate(LEVELS)]
    columns = ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    pd.DataFrame(described, columns=["study_id", "series_id", "series_description"]).to_csv(
        src / "train_series_descriptions.csv", index=False
    )
    pd.DataFrame(points, columns=columns).to_csv(src / "train_label_coordinates.csv", index=False)
    pd.DataFrame({"study_id": [11, 22]}).to_csv(src / "train.csv", index=False)


def _ai_readi(src: Path) -> None:
    """The scan of the second participant is a NumPy array, where DICOM is not what is tried."""
    write_dataset(src, people(2, 0), SCANNERS[:1])


def _ai_readi_array(src: Path) -> None:
    _ai_readi(src)
    table = pd.read_csv(src / "manifest.tsv", sep="\t", dtype=str)
    old = src / table.loc[1, "filepath"].lstrip("/")
    np.save(old.with_suffix(".npy"), np.arange(6 * 8 * 7, dtype=np.uint16).reshape(6, 8, 7))
    old.unlink()
    table.loc[1, "filepath"] = table.loc[1, "filepath"].replace(".dcm", ".npy")
    table.to_csv(src / "manifest.tsv", sep="\t", index=False)


def _busi(src: Path) -> None:
    write_busi(src, 2, shape=(48, 60))


def _breast(folders: tuple[str, str], names: tuple[str, str]) -> Callable[[Path], None]:
    def write(src: Path) -> None:
        for number, one in ((0, "0001-l"), (1, "0002-l")):
            made = phantom(number, (48, 60))
            colours = np.zeros((48, 60, 3), np.uint8)
            colours[10:20, 10:30, 0] = 255
            for folder, name, array in zip(folders, names, (made.pixels[made.region], colours), strict=True):
                (src / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(src / folder / f"{name}{one}.png")
        if names[0] == "bus_":
            (src / "bus_data.csv").write_text("ID,Pathology\nbus_0001-l,benign\nbus_0002-l,malignant\n")

    return write


def _buid(src: Path) -> None:
    for number in (1, 2):
        made = phantom(2 * number, (48, 60), "benign")
        (src / "Benign").mkdir(parents=True, exist_ok=True)
        arrays = made.pixels[made.region], made.mask[made.region].astype(np.uint8) * 255
        for end, array in zip(("Image.bmp", "Mask.tif"), arrays, strict=True):
            Image.fromarray(array).save(src / "Benign" / f"{number} Benign {end}")


FORMS = {
    "msd": Form("msd", _task, (".",), ("dataset.json",), "case2"),
    "datalist": Form("datalist", _datalist, ("list.json",), ("list.json",), "case2"),
    "pair": Form("pair", _slices, ("case2", "case2-label.nii.gz"), (), "case2"),
    "openkbp": Form("openkbp", _openkbp, (".",), (), "pt_2/"),
    "lumbar-t2": Form("lumbar-t2", _lumbar, (".",), (), "case2"),
    "lumbar-t2-xz": Form("lumbar-t2", _lumbar_xz, (".",), (), "case2"),
    "rsna-lumbar": Form(
        "rsna-lumbar", _rsna, (".",),
        ("train_series_descriptions.csv", "train_label_coordinates.csv", "train.csv"), "/22/",
    ),
    "ai-readi": Form("ai-readi", _ai_readi, (".",), ("participants.tsv", "manifest.tsv"), "_0001."),
    "ai-readi-array": Form("ai-readi", _ai_readi_array, (".",), ("participants.tsv", "manifest.tsv"), "_0001."),
    "busi": Form("busi", _busi, (".",), (), "malignant"),
    "busbra": Form("busbra", _breast(("Images", "Masks"), ("bus_", "mask_")), (".",), ("bus_data.csv",), "0002-l"),
    "bus-uclm": Form("bus-uclm", _breast(("images", "masks"), ("", "")), (".",), (), "0002-l"),
    "folder": Form("folder", _buid, (".",), (), "2 Benign", ("--name", "buid")),
}  # fmt: skip
