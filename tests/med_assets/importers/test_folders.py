"""A case folder is named without loss, and replaced only by its own source."""

import gzip
import json
import logging
import os
import shutil
import struct
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from med_assets.cli.main import main
from med_assets.dicom.objects import derived_uid
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.importing.folders import RECORDS, CaseFolders, content_of, existing, identifier
from med_assets.landing.importing.volumes import datalist_pairs, import_pairs, pair, write_pair
from med_assets.programs.breast_us.importer import import_images
from med_assets.settings import Workspace
from tests.invented import ingest

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def volumes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """HU and label (i, j, k)."""
    hu = np.random.default_rng(seed).integers(-1000, 300, (12, 11, 10)).astype(np.int16)
    label = np.zeros(hu.shape, np.uint8)
    label[4:7, 4:7, 4:6] = 1
    return hu, label


def save(path: Path, array: np.ndarray, sform: int = 1, qform: int = 1, **header: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, sform)
    image.set_qform(header.pop("qaffine", AFFINE), qform)
    image.to_filename(path)
    if header:  # nibabel would mend them as it writes
        content = bytearray(gzip.decompress(path.read_bytes()))
        for key, values in header.items():
            struct.pack_into(f"<{len(values)}f", content, {"pixdim": 76, "srow_z": 312}[key], *values)
        path.write_bytes(gzip.compress(bytes(content)))
    return path


def listing(folder: Path, data: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "list.json").write_text(json.dumps(data))
    return folder / "list.json"


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=20, unique=True))
def test_different_names_of_any_script_give_different_plain_identifiers(names: list[str]) -> None:
    made = [identifier(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(name.isascii() and 0 < len(name) <= 64 and "/" not in name and not name.startswith(".") for name in made)


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=40))
def test_file_names_of_any_bytes_give_identifiers_and_uids_of_their_own(a: bytes, b: bytes) -> None:
    first, second = os.fsdecode(a), os.fsdecode(b)
    assert (derived_uid("image", first) == derived_uid("image", second)) is (a == b)
    assert (identifier(first) == identifier(second)) is (a == b)
    assert UID(derived_uid("image", first)).is_valid


def test_what_a_library_warns_of_while_a_case_is_read_is_not_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        warnings.warn("a value of the file", stacklevel=1)
        logging.getLogger("pydicom").warning("another value of the file")

    folders = CaseFolders(tmp_path)
    assert folders.write("a", tmp_path, lambda: "content", write)
    assert "value of the file" not in "".join(capfd.readouterr())


def test_a_name_that_no_file_can_have_costs_its_case_alone(tmp_path: Path) -> None:
    folders, far = CaseFolders(tmp_path / "out"), tmp_path / ("9" * 5000)
    assert not folders.write("a", tmp_path, lambda: content_of([far]), lambda folder: list(far.iterdir()) and None)
    assert folders.report().skipped["a"].startswith("missing_file: ")
    with pytest.raises(CaseRejected, match="expected an image as a plain file"):
        existing(far, "an image")


def test_a_plain_name_stays_and_normal_forms_case_and_blanks_are_told_apart() -> None:
    assert identifier("MSD-Task06_Lung-lung_001") == "MSD-Task06_Lung-lung_001"
    alike = ["Müller", unicodedata.normalize("NFD", "Müller"), "Muller", "muller", "Mu ller", "Mu_ller", "Mu  ller"]
    assert len({identifier(name) for name in alike}) == len(alike)


def test_four_patients_whose_file_names_differ_in_chinese_characters_alone_stay_four(
    workspace: Workspace, tmp_path: Path
) -> None:
    names = ("患者甲", "患者乙", "患者丙", "患者丁")
    for number, name in enumerate(names):
        hu, label = volumes(number)
        save(tmp_path / "src" / f"{name}.nii.gz", hu)
        save(tmp_path / "src" / f"{name}_seg.nii.gz", label)
    cases = [{"image": f"{n}.nii.gz", "label": f"{n}_seg.nii.gz", "fold": str(i % 2)} for i, n in enumerate(names)]
    file = listing(tmp_path / "src", {"labels": {"1": "lung tumor"}, "training": cases})
    report = import_pairs(datalist_pairs(file), workspace.landing / "lung_ct")
    assert len(report.imported) == 4
    raw, _ = ingest(workspace, "lung_ct")
    assert len({row["case_id"] for row in raw}) == len({row["patient_id"] for row in raw}) == 4
    assert sorted(row["given_split"] for row in raw) == ["train", "train", "validation", "validation"]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"sform": 0, "pixdim": [1, 2, 2, 0, 0, 0, 0, 0]}, "missing_geometry"),
        ({"sform": 0, "pixdim": [1, 2, -2, 3, 0, 0, 0, 0]}, "missing_geometry"),
        ({"sform": 0, "pixdim": [1, 2, np.nan, 3, 0, 0, 0, 0]}, "missing_geometry"),
        ({"qform": 0, "pixdim": [1, 2, 2, 5, 0, 0, 0, 0]}, "contradictory_affine"),
        ({"qaffine": AFFINE + np.array([[0, 0, 0, 4.0], *[[0] * 4] * 3])}, "contradictory_affine"),
        ({"qform": 0, "srow_z": [0, 0, 0, 0]}, "missing_geometry"),
        ({"qform": 0, "srow_z": [0, 0, np.nan, 0]}, "missing_geometry"),
        ({"qform": 0, "srow_z": [0, -2, 0, 0]}, "missing_geometry"),
        ({"sform": 0, "qform": 0}, "missing_geometry"),
    ],
)
def test_geometry_that_a_file_does_not_define_is_refused(tmp_path: Path, header: dict, code: str) -> None:
    hu, label = volumes()
    one = pair(save(tmp_path / "image.nii.gz", hu, **header), save(tmp_path / "label.nii.gz", label))
    (reason,) = import_pairs([one], tmp_path / "out", {1: "lung tumor"}).skipped.values()
    assert reason.split(":")[0] == code


def test_a_label_of_another_shape_is_refused_at_import(tmp_path: Path) -> None:
    hu, label = volumes()
    one = pair(save(tmp_path / "image.nii.gz", hu), save(tmp_path / "label.nii.gz", label[:, :, :-1]))
    (reason,) = import_pairs([one], tmp_path / "out").skipped.values()
    assert reason.startswith(
        "label_shape_mismatch: expected a label of the image's 10 x 11 x 12 voxels (z, y, x), got 9 x 11 x 12"
    )


def test_a_corrected_label_replaces_its_case_and_another_source_of_the_same_name_does_not(tmp_path: Path) -> None:
    hu, label = volumes()
    one = pair(save(tmp_path / "P1" / "ct" / "image.nii.gz", hu), save(tmp_path / "P1" / "label.nii.gz", label))
    out = tmp_path / "out"
    assert import_pairs([one], out).imported == ("ct-image",)
    assert import_pairs([one], out).existing == ("ct-image",)
    shutil.rmtree(out / RECORDS)  # as an earlier version left it
    assert import_pairs([one], out).existing == ("ct-image",)
    label[7, 4, 4] = 1
    save(one.label, label)
    assert import_pairs([one], out).updated == ("ct-image",)
    before = (out / "ct-image" / "SEG.dcm").read_bytes()
    write_pair(tmp_path / "expected", one, {})
    assert before == (tmp_path / "expected" / "SEG.dcm").read_bytes()

    other, more = volumes(5)
    two = [str(save(tmp_path / "P2" / "ct" / "image.nii.gz", other)), str(save(tmp_path / "P2" / "label.nii.gz", more))]
    assert main(["import", "pair", *two, str(out)]) == 1
    assert (out / "ct-image" / "SEG.dcm").read_bytes() == before
    assert main(["import", "pair", *two, str(out), "--name", "P2"]) == 0
    patients = {str(pydicom.dcmread(path, stop_before_pixels=True).PatientID) for path in out.glob("*/SEG.dcm")}
    assert patients == {"ct-image", "P2"}


def test_images_of_one_name_in_many_folders_are_told_apart_by_the_folders_below_the_list(tmp_path: Path) -> None:
    cases = [{"image": f"patients/{n}/ct/image.nii.gz", "label": f"patients/{n}/ct/label.nii.gz"} for n in ("a", "b")]
    pairs = datalist_pairs(listing(tmp_path, {"training": cases}))
    assert [one.name for one in pairs] == ["patients-a-ct-list-image", "patients-b-ct-list-image"]
    assert len({one.patient_id for one in pairs}) == 2


def test_the_name_of_a_case_is_the_same_whatever_else_is_in_the_list(tmp_path: Path) -> None:
    images = ["a/b/c.nii.gz", "a-b/c.nii.gz", "a/b-c.nii.gz", "c.nii.gz", "b/c.nii.gz", "imagesTr/c.nii.gz"]
    cases = [{"image": image, "label": "l.nii.gz"} for image in images]
    alone = [datalist_pairs(listing(tmp_path, {"training": [case]}))[0] for case in cases]
    assert len({one.name for one in alone}) == len(images) - 1  # imagesTr says nothing
    for left in ("c.nii.gz", "imagesTr/c.nii.gz"):
        together = datalist_pairs(listing(tmp_path, {"training": [case for case in cases if case["image"] != left]}))
        assert [(one.name, one.patient_id) for one in together] == [
            (one.name, one.patient_id) for one, image in zip(alone, images, strict=True) if image != left
        ]


def test_each_list_of_a_datalist_gives_its_split_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    def case(name: str, **more: object) -> dict:
        return {"image": [f"{name}.nii.gz"], "label": f"{name}_l.nii.gz", **more}

    data = {"training": [case("a", fold="0"), case("b", fold=1)], "val": [case("c")], "test": [case("d")], "numTest": 1}
    file = listing(tmp_path, data)
    file.write_text("\ufeff" + file.read_text())
    assert [one.trial[1] for one in datalist_pairs(file)] == ["validation", "train", "validation", "test"]
    with pytest.raises(ConfigurationError, match="1 of other names"):
        datalist_pairs(listing(tmp_path, data | {"holdout": [case("e")]}))
    with pytest.raises(ConfigurationError, match="whole number as fold"):
        datalist_pairs(listing(tmp_path, {"training": [case("a", fold="first")]}))
    with pytest.raises(ConfigurationError, match="labels as"):
        datalist_pairs(listing(tmp_path, data | {"labels": {"1": {"name": "tumour"}}}))
    with pytest.raises(ConfigurationError, match="labels as"):
        datalist_pairs(listing(tmp_path, data | {"labels": ["background", "tumour"]}))


def test_an_entry_with_several_labels_or_a_foreign_failure_skips_that_case_alone(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        hu, label = volumes(number)
        save(tmp_path / f"{name}.nii.gz", hu)
        save(tmp_path / f"{name}_l.nii.gz", label)
    broken = bytearray(save(tmp_path / "b.nii", volumes(1)[0]).read_bytes())
    broken[70:72] = (255).to_bytes(2, "little")  # a data type that NIfTI does not have
    (tmp_path / "b.nii").write_bytes(bytes(broken))
    cases = [
        {"image": "a.nii.gz", "label": ["a_l.nii.gz", "b_l.nii.gz"]},
        {"image": "b.nii", "label": "b_l.nii.gz"},
        {"image": "c.nii.gz", "label": "c_l.nii.gz"},
    ]
    report = import_pairs(datalist_pairs(listing(tmp_path, {"training": cases})), tmp_path / "out")
    assert report.imported == ("list-c",)
    codes = {name: reason.split(":")[0] for name, reason in report.skipped.items()}
    assert codes == {"list-a": "bad_entry", "list-b": "unreadable_volume"}


def test_pictures_of_sixteen_bits_and_in_capitals_are_read_and_transparent_ones_refused(tmp_path: Path) -> None:
    from PIL import Image

    grey = np.linspace(0, 65535, 80 * 64).reshape(64, 80)
    benign = tmp_path / "src" / "benign"
    benign.mkdir(parents=True)
    Image.fromarray(grey.astype(np.uint16)).save(benign / "benign (1).PNG")
    Image.fromarray(np.dstack([grey.astype(np.uint8)] * 4)).save(benign / "benign (2).png")
    mask = np.zeros((64, 80), np.uint8)
    mask[20:30, 20:30] = 255
    for number in (1, 2):
        Image.fromarray(mask).save(benign / f"benign ({number})_mask.png")
    report = import_images("busi", tmp_path / "src", tmp_path / "out")
    assert report.imported == ("busi-benign-0001",)
    assert report.skipped["busi-benign-0002"].startswith("unreadable_image")
    pixels = pydicom.dcmread(tmp_path / "out" / "busi-benign-0001" / "us.dcm").pixel_array
    np.testing.assert_array_equal(pixels, np.rint(grey.astype(np.uint16) / 257))


def test_one_scan_under_two_patients_is_one_case_though_their_labels_differ(
    workspace: Workspace, tmp_path: Path
) -> None:
    hu, label = volumes(1)
    other = label.copy()
    other[4, 4, 4] = 0
    for name, drawn in (("P001", label), ("P777", other)):
        save(tmp_path / f"{name}.nii.gz", hu)
        save(tmp_path / f"{name}_seg.nii.gz", drawn)
    cases = [{"image": f"{n}.nii.gz", "label": f"{n}_seg.nii.gz", "fold": k} for k, n in enumerate(("P001", "P777"))]
    file = listing(tmp_path, {"labels": {"1": "lung tumor"}, "training": cases})
    import_pairs(datalist_pairs(file), workspace.landing / "lung_ct")
    raw, _ = ingest(workspace, "lung_ct")
    assert sorted(str(row["reason_code"]) for row in raw) == ["None", "duplicate_case"]
