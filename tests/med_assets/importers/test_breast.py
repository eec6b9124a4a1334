"""Public sets of breast ultrasound as DICOM: names, masks, labels and patients."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from med_assets.dicom.segmentation_2d import read_segments_2d
from med_assets.dicom.ultrasound import read_us_image
from med_assets.errors import ConfigurationError
from med_assets.programs.breast_us.importer import import_images
from med_assets.programs.breast_us.phantom import phantom, write_busi
from med_assets.storage.files import folder_hashes

SHAPE = (64, 80)


def grey(path: Path, seed: int) -> None:
    made = phantom(seed, SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(made.pixels[made.region]).save(path)


def mask(path: Path, colour: tuple[int, int, int] | None = (255, 255, 255), shape: tuple[int, int] = SHAPE) -> None:
    array = np.zeros((*shape, 3), np.uint8)
    if colour is not None:
        array[10:20, 10:30] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def facts_of(folder: Path) -> tuple[str, str, int]:
    """Patient, label and lesion pixels of an imported image."""
    ds = pydicom.dcmread(folder / "us.dcm")
    (segment,) = read_segments_2d(pydicom.dcmread(folder / "seg.dcm"))
    return str(ds.PatientID), segment.label, int(segment.mask.sum())


def test_busi_images_come_with_all_their_masks_united_and_a_patient_each(tmp_path: Path) -> None:
    write_busi(tmp_path / "src", 5, shape=SHAPE)
    report = import_images("busi", tmp_path / "src", tmp_path / "out")
    assert len(report.imported) == 5
    found = {name: facts_of(tmp_path / "out" / name) for name in report.imported}
    made = phantom(1, SHAPE)
    assert found["busi-malignant-0001"] == ("BUSI-malignant-0001", "malignant", made.mask.sum())
    assert found["busi-normal-0001"][1:] == ("normal", 0)
    assert len({patient for patient, *_ in found.values()}) == 5
    ds = pydicom.dcmread(tmp_path / "out" / "busi-malignant-0001" / "us.dcm")
    assert np.array_equal(read_us_image(ds), made.pixels[made.region])
    assert (ds.ClinicalTrialProtocolID, ds.get("ClinicalTrialSiteID")) == ("BUSI", "")
    before = folder_hashes(tmp_path / "out")
    assert import_images("busi", tmp_path / "src", tmp_path / "out").existing == report.imported
    import_images("busi", tmp_path / "src", tmp_path / "again")
    assert folder_hashes(tmp_path / "again") == before


def test_the_same_picture_under_two_names_is_one_patient(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name, seed in (("benign (1)", 0), ("benign (2)", 2), ("benign (9)", 0)):
        grey(src / "benign" / f"{name}.png", seed)
        mask(src / "benign" / f"{name}_mask.png")
    import_images("busi", src, tmp_path / "out")
    patients = {folder.name: facts_of(folder)[0] for folder in (tmp_path / "out").glob("[!.]*")}
    assert patients["busi-benign-0001"] == patients["busi-benign-0009"] == "BUSI-benign-0001"
    assert patients["busi-benign-0002"] == "BUSI-benign-0002"


def test_busbra_tells_the_patient_and_the_pathology(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name, seed in (("0001-l", 0), ("0001-r", 1), ("0002-l", 2)):
        grey(src / "Images" / f"bus_{name}.png", seed)
        mask(src / "Masks" / f"mask_{name}.png")
    (src / "bus_data.csv").write_text("ID,Case,Pathology\nbus_0001-l,1,benign\nbus_0001-r,1,malignant\n")
    import_images("busbra", src, tmp_path / "out", external=True)
    found = {folder.name: facts_of(folder) for folder in sorted((tmp_path / "out").glob("[!.]*"))}
    assert [one[:2] for one in found.values()] == [
        ("BUSBRA-0001", "benign"), ("BUSBRA-0001", "malignant"), ("BUSBRA-0002", "lesion"),
    ]  # fmt: skip
    ds = pydicom.dcmread(tmp_path / "out" / "busbra-bus_0001-l" / "us.dcm")
    assert ds.ClinicalTrialSiteID == "external"
    (src / "bus_data.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"bus_data\.csv"):
        import_images("busbra", src, tmp_path / "other")


def test_bus_uclm_tells_the_lesion_by_the_colour_of_its_mask(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name, seed, colour in (("AB_000", 0, (0, 255, 0)), ("AB_001", 1, (255, 0, 0)), ("CD_000", 4, None)):
        grey(src / "images" / f"{name}.png", seed)
        mask(src / "masks" / f"{name}.png", colour)
    import_images("bus-uclm", src, tmp_path / "out")
    found = [facts_of(folder) for folder in sorted((tmp_path / "out").glob("[!.]*"))]
    assert found == [("BUS-UCLM-AB", "benign", 200), ("BUS-UCLM-AB", "malignant", 200), ("BUS-UCLM-CD", "normal", 0)]


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("busi", {"benign/Benign (1).PNG": None, "benign/benign (1)_MASK.Png": 1, "benign/Benign (1)_Mask_1.png": 1}),
        ("busbra", {"Images/BUS_0001-l.PNG": None, "Masks/Mask_0001-L.png": 1}),
        ("bus-uclm", {"images/AB_000.PNG": None, "masks/ab_000.png": 1}),
    ],
)
def test_capitals_in_names_of_files_hide_no_image_and_no_mask(
    tmp_path: Path, name: str, pictures: dict[str, int | None]
) -> None:
    src = tmp_path / "src"
    for path, lesion in pictures.items():
        mask(src / path, (0, 255, 0)) if lesion else grey(src / path, 0)
    (src / "bus_data.csv").write_text("ID,Case,Pathology\nBUS_0001-l,1,benign\n")
    report = import_images(name, src, tmp_path / "out")
    assert report.skipped == {}
    (case,) = report.imported
    assert facts_of(tmp_path / "out" / case)[1:] == ("benign", 200)


def test_a_wrong_size_a_missing_mask_and_a_broken_file_are_skipped_with_a_reason(tmp_path: Path) -> None:
    src = tmp_path / "src" / "benign"
    for name, seed in (("benign (1)", 0), ("benign (2)", 2), ("benign (3)", 5), ("benign (4)", 7)):
        grey(src / f"{name}.png", seed)
    mask(src / "benign (1)_mask.png", shape=(64, 81))
    mask(src / "benign (3)_mask.png")
    mask(src / "benign (4)_mask.png")
    (src / "benign (3).png").write_bytes(b"no picture")
    report = import_images("busi", tmp_path / "src", tmp_path / "out")
    assert report.imported == ("busi-benign-0004",)
    codes = {name: reason.partition(":")[0] for name, reason in report.skipped.items()}
    assert codes == {
        f"busi-benign-000{n}": code for n, code in enumerate(("mask_size_mismatch", "no_mask", "unreadable_image"), 1)
    }


@pytest.mark.real_data
def test_real_busi_images_are_read_and_near_duplicates_are_one_patient(real_data: Path, tmp_path: Path) -> None:
    report = import_images("busi", real_data / "busi", tmp_path, limit=45)
    assert not report.skipped
    patients = {name: facts_of(tmp_path / name)[0] for name in report.imported}
    together = {patients[f"busi-malignant-000{number}"] for number in (6, 7, 8, 9)}
    assert len(together) == 1
    assert patients["busi-malignant-0004"] == patients["busi-malignant-0005"] not in together
