"""Folders of images and masks as data sets of breast_us, described by a file and by no code."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from med_assets.cli.main import main
from med_assets.dicom.ultrasound import pixel_size_mm
from med_assets.errors import ConfigurationError
from med_assets.program import fact_table
from med_assets.programs.breast_us import datasets
from med_assets.programs.breast_us.importer import import_folder, import_images
from med_assets.programs.breast_us.phantom import write_busi
from med_assets.programs.breast_us.vocabulary import vocabulary
from med_assets.settings import Workspace
from med_assets.storage.conf import CONF_VARIABLE, conf_folder
from tests.invented import ingest
from tests.med_assets.importers.test_breast import SHAPE, facts_of, grey


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the configuration, and the folder in it whose files describe data sets."""
    shutil.copytree(conf_folder("breast_us").parent, tmp_path / "conf")
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path / "conf"))
    return tmp_path / "conf" / "breast_us" / "datasets"


def mask(path: Path, value: int = 255, more: int = 0, shape: tuple[int, int] = SHAPE) -> None:
    array = np.zeros(shape, np.uint8)
    array[10:20, 10:30] = value
    if more:
        array[30:35, 30:35] = more
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def codes(skipped: dict[str, str]) -> dict[str, str]:
    return {name: reason.partition(":")[0] for name, reason in skipped.items()}


def test_a_folder_is_imported_by_a_file_of_three_lines(tmp_path: Path, described: Path) -> None:
    (described / "clinic.yaml").write_text(
        "name: CLINIC\nlicence: internal\nimage: 'images/(?P<key>(?P<patient>[A-Z]+)_\\d+)\\.png'\npixel_mm: 0.2\n"
    )
    src = tmp_path / "src"
    for name, seed in (("AB_1", 0), ("AB_2", 1), ("CD_1", 2)):
        grey(src / "images" / f"{name}.png", seed)
    mask(src / "masks" / "AB_1.png")
    mask(src / "masks" / "AB_2_mask.png", 1)
    mask(src / "masks" / "cd_1_mask.png")
    mask(src / "masks" / "cd_1_mask_1.png", 0, 255)
    report = import_folder("clinic", src, tmp_path / "out")
    assert report.skipped == {}
    assert report.notes == ("licence of CLINIC: internal",)
    found = {name: facts_of(tmp_path / "out" / name) for name in report.imported}
    assert found == {
        "clinic-AB_1": ("CLINIC-AB", "lesion", 200),
        "clinic-AB_2": ("CLINIC-AB", "lesion", 200),
        "clinic-CD_1": ("CLINIC-CD", "lesion", 225),
    }
    ds = pydicom.dcmread(tmp_path / "out" / "clinic-AB_1" / "us.dcm")
    assert (ds.ClinicalTrialProtocolID, pixel_size_mm(ds)) == ("CLINIC", (0.2, 0.2))
    assert import_folder("clinic", src, tmp_path / "out").existing == report.imported


def test_the_names_of_described_data_sets_pass_intake(described: Path) -> None:
    assert "CLINIC" not in vocabulary().texts["ClinicalTrialProtocolID"]
    (described / "clinic.yaml").write_text("name: CLINIC\nlicence: internal\n")
    assert {"CLINIC", "BUSI", "BUID"} <= vocabulary().texts["ClinicalTrialProtocolID"]


def test_what_is_not_clear_is_left_out_with_a_reason(tmp_path: Path, described: Path) -> None:
    (described / "clinic.yaml").write_text("name: CLINIC\nlicence: internal\n")
    src = tmp_path / "src"
    for seed, name in enumerate(("good", "nomask", "grey", "size", "empty", "twice")):
        grey(src / "images" / f"{name}.png", seed)
    grey(src / "images" / "twice.bmp", 9)
    for name in ("good", "twice", "alone"):
        mask(src / "masks" / f"{name}.png")
    mask(src / "masks" / "grey.png", 255, 7)
    mask(src / "masks" / "size.png", shape=(64, 81))
    mask(src / "masks" / "empty.png", 0)
    (src / "read.me").write_text("about")
    report = import_folder("clinic", src, tmp_path / "out")
    assert report.imported == ("clinic-good",)
    assert codes(report.skipped) == {
        "clinic-nomask": "no_mask",
        "clinic-grey": "unclear_mask",
        "clinic-size": "mask_size_mismatch",
        "clinic-empty": "empty_mask",
        "clinic-twice": "two_images",
        "alone": "no_image",
        "other files": "unknown_file",
    }
    assert any("does not say whose 6 of 6 images are" in note for note in report.notes)


def test_values_of_a_mask_are_the_classes_that_the_file_says(tmp_path: Path, described: Path) -> None:
    (described / "clinic.yaml").write_text(
        "name: CLINIC\nlicence: internal\nvalues: {1: benign, 2: malignant}\nempty: normal\n"
    )
    src = tmp_path / "src"
    for seed, (name, value, more) in enumerate((("b", 1, 0), ("m", 2, 0), ("n", 0, 0), ("x", 1, 2), ("y", 3, 0))):
        grey(src / "images" / f"{name}.png", seed)
        mask(src / "masks" / f"{name}.png", value, more)
    report = import_folder("clinic", src, tmp_path / "out")
    found = {name: facts_of(tmp_path / "out" / name)[1:] for name in report.imported}
    assert found == {"clinic-b": ("benign", 200), "clinic-m": ("malignant", 200), "clinic-n": ("normal", 0)}
    assert codes(report.skipped) == {"clinic-x": "two_labels", "clinic-y": "unclear_mask"}


def test_a_table_says_label_and_patient(tmp_path: Path, described: Path) -> None:
    (described / "clinic.yaml").write_text(
        "name: CLINIC\nlicence: internal\nexternal: true\nlabels: {B: benign, M: malignant}\n"
        "table: {file: data.csv, key: ID, label: Kind, patient: Case}\n"
    )
    src = tmp_path / "src"
    for seed, name in enumerate(("a", "b", "c", "d", "e")):
        grey(src / "images" / f"{name}.png", seed)
        mask(src / "masks" / f"{name}.png")
    (src / "data.csv").write_text("ID,Kind,Case\na,B,1\nb,m,1\nc,?,2\nd,B,\n")
    report = import_folder("clinic", src, tmp_path / "out")
    found = {name: facts_of(tmp_path / "out" / name) for name in report.imported}
    assert found == {"clinic-a": ("CLINIC-1", "benign", 200), "clinic-b": ("CLINIC-1", "malignant", 200)}
    expected = {"clinic-c": "unknown_label", "clinic-d": "missing_patient_id", "clinic-e": "no_table_row"}
    assert codes(report.skipped) == expected
    assert pydicom.dcmread(tmp_path / "out" / "clinic-a" / "us.dcm").ClinicalTrialSiteID == "external"


def test_buid_is_described_by_a_file(tmp_path: Path) -> None:
    src = tmp_path / "BUID"
    for seed, (number, kind) in enumerate(((1, "Benign"), (2, "Benign"), (1, "Malignant"))):
        grey(src / kind / f"{number} {kind} Image.bmp", seed)
        grey(src / kind / f"{number} {kind} Lesion.bmp", seed)
        mask(src / kind / f"{number} {kind} Mask.tif")
    report = import_folder("buid", src, tmp_path / "out")
    assert report.skipped == {}
    assert {name: facts_of(tmp_path / "out" / name)[1:] for name in report.imported} == {
        "buid-1-Benign": ("benign", 200), "buid-1-Malignant": ("malignant", 200), "buid-2-Benign": ("benign", 200),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("image: 'images/.+'", "group"),
        ("mask: 'masks/(?P<key>.+)_(?P<patient>x)'", "groups of a mask"),
        ("labels: {a: benign}", "together"),
        ("values: {0: benign}", "1 to 255"),
        ("image: '('", "regular expression"),
        ("table: {file: ../x.csv, key: ID}", "below the folder"),
        ("pixel_mm: 0", "greater than 0"),
        ("unheard: 1", "unheard"),
    ],
)
def test_a_description_that_can_not_be_meant_is_refused(described: Path, line: str, message: str) -> None:
    (described / "clinic.yaml").write_text(f"name: CLINIC\nlicence: internal\n{line}\n")
    with pytest.raises(ConfigurationError, match=f"(?s)clinic.yaml.*{message}"):
        datasets.load("clinic")


def test_a_set_that_no_file_describes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="buid"):
        import_folder("nowhere", tmp_path, tmp_path / "out")


def test_two_sets_in_one_landing_folder_are_one_dataset(workspace: Workspace, tmp_path: Path, described: Path) -> None:
    (described / "clinic.yaml").write_text("name: CLINIC\nlicence: internal\npixel_mm: [0.2, 0.1]\n")
    write_busi(tmp_path / "busi", 2, shape=SHAPE)
    grey(tmp_path / "clinic" / "images" / "a.png", 20)
    mask(tmp_path / "clinic" / "masks" / "a.png")
    landing = workspace.landing / "breast_us"
    import_images("busi", tmp_path / "busi", landing)
    import_folder("clinic", tmp_path / "clinic", landing)
    taken, _ = ingest(workspace, "breast_us")
    assert [row["status"] for row in taken] == ["ok"] * 3
    facts = [(row["dataset"], row["pixel_mm"]) for row in workspace.lake.rows(fact_table("breast_us"))]
    assert sorted(facts, key=str) == [("BUSI", None), ("BUSI", None), ("CLINIC", 0.1)]


def test_the_command_prints_licence_and_that_patients_are_unknown(
    tmp_path: Path, described: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (described / "clinic.yaml").write_text("name: CLINIC\nlicence: internal\n")
    grey(tmp_path / "src" / "images" / "a.png", 0)
    mask(tmp_path / "src" / "masks" / "a.png")
    assert main(["import", "folder", str(tmp_path / "src"), str(tmp_path / "out"), "--name", "clinic"]) == 0
    printed = capsys.readouterr().out
    assert "imported 1 cases" in printed
    assert "licence of CLINIC: internal" in printed
    assert "does not say whose 1 of 1 images are" in printed
    assert main(["import", "folder", str(tmp_path / "src"), str(tmp_path / "out")]) == 1
    assert "--name" in capsys.readouterr().err
