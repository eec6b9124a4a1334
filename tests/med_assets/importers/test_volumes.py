"""Image and label volumes become CT slices and a segmentation in the same place, or are left out with a reason."""

import json
import shutil
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest

from med_assets.cli.main import main
from med_assets.dicom.discover import scan
from med_assets.dicom.geometry import Volume, read_ct_series
from med_assets.dicom.seg import agreement, place, read_segments
from med_assets.errors import ConfigurationError
from med_assets.landing.importing.folders import identifier
from med_assets.landing.importing.volume_files import read_volume
from med_assets.landing.importing.volumes import datalist_pairs, import_pairs, msd_pairs, pair

FOLD_0 = "015 020 022 046 048 062 064 071 073 079 086 092 096"
TASK06 = (
    "001 003 004 005 006 009 010 014 015 016 020 022 023 025 026 027 029 031 033 037 038 041 042 044 045 046 048 049 051 053 054 055 "
    "057 058 059 061 065 070 071 073 074 075 079 083 084 086 092 093 095 096 018 028 034 036 043 047 062 064 066 069 078 080 081"
)
SHAPE = (9, 8, 7)  # i, j, k
TURN = np.deg2rad(6)
RAS = np.array(
    [
        [-0.8, 0, 0, 40.5],
        [0, 0.9 * np.cos(TURN), -2.5 * np.sin(TURN), -12.25],
        [0, 0.9 * np.sin(TURN), 2.5 * np.cos(TURN), 7.125],
        [0, 0, 0, 1],
    ]
)
"""A tilted grid whose first axis runs to the right, from NIfTI indices to RAS mm."""


def volumes(seed=0):
    """HU and labels on (i, j, k), nothing symmetric."""
    numbers = np.random.default_rng(seed)
    hu = numbers.integers(-1000, 1500, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 2:4, 3:5] = 1
    labels[6, 6, 6] = 3
    labels[0, 0, 0] = 255
    return hu, labels


def save(path: Path, array: np.ndarray, affine: np.ndarray = RAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, affine).to_filename(path)
    return path


@pytest.fixture
def one(tmp_path):
    """A pair of NIfTI files."""
    hu, labels = volumes()
    return pair(save(tmp_path / "in" / "image.nii.gz", hu), save(tmp_path / "in" / "label.nii.gz", labels))


def read(folder: Path):
    """CT, masks on its grid, and how they agree."""
    ct = read_ct_series([pydicom.dcmread(path) for path in sorted((folder / "CT").iterdir())])
    masks, agreed = place(read_segments(pydicom.dcmread(folder / "SEG.dcm")), ct.geometry)
    return ct, masks, agreed


def points_of(geometry, mask):
    """RAS points in mm of the voxels of a mask, sorted."""
    points = geometry.to_points(np.argwhere(mask)) * (-1, -1, 1)
    return points[np.lexsort(np.round(points, 3).T)]


def test_voxels_keep_their_value_and_their_place(tmp_path, one):
    report = import_pairs([one], tmp_path / "out", {1: "lung_tumor"})
    assert (report.imported, report.skipped) == (("in-image",), {})
    ct, masks, agreed = read(tmp_path / "out" / "in-image")
    hu, labels = volumes()
    assert agreed.kind == "identical"
    assert list(masks) == ["lung_tumor", "label_3"]
    for value, mask in zip((1, 3), masks.values(), strict=True):
        expected = np.argwhere(labels == value) @ RAS[:3, :3].T + RAS[:3, 3]
        np.testing.assert_allclose(
            points_of(ct.geometry, mask), expected[np.lexsort(np.round(expected, 3).T)], atol=1e-5
        )  # fmt: skip
        np.testing.assert_array_equal(np.sort(ct.array[mask]), np.sort(hu[labels == value]))
    np.testing.assert_allclose(ct.geometry.spacing_mm, (2.5, 0.9, 0.8), atol=1e-6)


ORDERS = ((0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flip", [(), (0,), (0, 1, 2)])
def test_the_order_and_direction_of_axes_in_the_file_change_nothing(tmp_path, order, flip):
    hu, _ = volumes()
    image = nibabel.Nifti1Image(hu, RAS)
    expected = read_volume(save(tmp_path / "a.nii", hu))
    ornt = np.array([[order.index(axis), -1 if axis in flip else 1] for axis in range(3)])
    turned = image.as_reoriented(ornt)
    turned.to_filename(tmp_path / "b.nii")
    found = read_volume(tmp_path / "b.nii")
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.geometry.same_grid(expected.geometry, 1e-4)


def test_nrrd_in_any_of_its_spaces_is_the_same_volume(tmp_path):
    hu, _ = volumes()
    expected = read_volume(save(tmp_path / "a.nii", hu))
    for space, signs in (("left-posterior-superior", (-1, -1, 1)), ("RAS", (1, 1, 1)), ("LAS", (-1, 1, 1))):
        affine = np.diag([*signs, 1]) @ RAS
        header = {"space": space, "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
        nrrd.write(str(tmp_path / "a.nrrd"), hu, header)
        found = read_volume(tmp_path / "a.nrrd")
        np.testing.assert_array_equal(found.array, expected.array)
        assert found.geometry.same_grid(expected.geometry, 1e-4)


def test_importing_twice_gives_the_same_bytes_and_skips_what_is_there(tmp_path, one):
    for dest in ("a", "b"):
        import_pairs([one], tmp_path / dest)
    files = [sorted((tmp_path / dest).rglob("*.dcm")) for dest in ("a", "b")]
    assert len(files[0]) == 7 + 1
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert import_pairs([one], tmp_path / "a").existing == ("in-image",)


def test_identifiers_that_an_anonymiser_took_out_of_slices_are_filled_in_and_nothing_else_changes(tmp_path, one):
    import_pairs([one], tmp_path / "dicom")
    slices = tmp_path / "dicom" / "in-image" / "CT"
    taken = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID")
    for path in slices.iterdir():
        ds = pydicom.dcmread(path)
        for keyword in taken:
            setattr(ds, keyword, "")
        ds.save_as(path)
    assert import_pairs([pair(slices, one.label)], tmp_path / "out").imported == ("in-image-CT",)
    assert not scan(tmp_path / "out" / "in-image-CT").rejected
    for before, after in zip(
        sorted(slices.iterdir()), sorted((tmp_path / "out/in-image-CT/CT").iterdir()), strict=True
    ):
        bare, full = pydicom.dcmread(before), pydicom.dcmread(after)
        assert (full.SOPInstanceUID, full.PatientID) == (bare.file_meta.MediaStorageSOPInstanceUID, "in-image-CT")
        assert len(full.StudyInstanceUID) > 10
        for keyword in taken:
            setattr(full, keyword, "")
        assert full == bare
    assert read(tmp_path / "out" / "in-image-CT")[2].kind == "identical"


def test_hu_below_the_usual_and_fractions_are_written_as_the_nearest_integer(tmp_path, one):
    hu = volumes()[0].astype(np.float32)
    hu[0, 0, 0], hu[1, 0, 0] = -3024, 10.6
    save(one.image, hu)
    import_pairs([one], tmp_path / "out")
    ct = read(tmp_path / "out" / "in-image")[0]
    assert ct.array.min() == -3024
    np.testing.assert_array_equal(np.sort(ct.array.ravel()), np.sort(np.rint(hu).ravel()))


def test_a_label_on_another_grid_is_written_where_it_is_and_found_to_be_elsewhere(tmp_path, one):
    moved = RAS.copy()
    moved[0, 3] += 3
    save(one.label, volumes()[1], moved)
    assert import_pairs([one], tmp_path / "out").imported
    ct = read_ct_series([pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "in-image" / "CT").iterdir())])
    segments = read_segments(pydicom.dcmread(tmp_path / "out" / "in-image" / "SEG.dcm"))
    found = agreement(ct.geometry, segments.planes)
    assert found.kind == "mismatch"
    assert found.drift_mm == pytest.approx(3, abs=1e-5)


def test_nan_is_unlabelled_and_a_named_value_that_does_not_occur_is_an_empty_segment(tmp_path, one):
    labels = volumes()[1].astype(np.float32)
    labels[2, 2, 2] = np.nan
    save(one.label, labels)
    import_pairs([one], tmp_path / "out", {1: "tumour", 2: "heart", 3: "rib"})
    masks = read(tmp_path / "out" / "in-image")[1]
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"tumour": 12, "heart": 0, "rib": 1}


def sheared():
    affine = RAS.copy()
    affine[0, 1] = 0.2
    return affine


def no_place(path: Path, array: np.ndarray) -> None:
    image = nibabel.Nifti1Image(array, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.to_filename(path)


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("missing_file", lambda image, label: label.unlink()),
        ("unreadable_volume", lambda image, label: image.write_bytes(image.read_bytes()[:200])),
        ("unreadable_volume", lambda image, label: label.write_bytes(b"no volume")),
        ("not_a_volume", lambda image, label: save(image, np.zeros((*SHAPE, 2), np.int16))),
        ("not_a_volume", lambda image, label: save(image, np.zeros((9, 8, 1), np.int16))),
        ("missing_geometry", lambda image, label: no_place(image, volumes()[0])),
        ("sheared_affine", lambda image, label: save(image, volumes()[0], sheared())),
        ("not_hounsfield", lambda image, label: save(image, volumes()[0] * np.float32(np.nan))),
        ("not_hounsfield", lambda image, label: save(image, volumes()[0] * np.float32(100))),
        ("not_integer_labels", lambda image, label: save(label, volumes()[1] * np.float32(0.5))),
        ("not_integer_labels", lambda image, label: save(label, -volumes()[1].astype(np.int16))),
        ("no_labels", lambda image, label: save(label, volumes()[1] * 0)),
    ],
)
def test_a_bad_pair_is_skipped_with_a_code_and_the_others_go_through(tmp_path, one, code, spoil):
    good = pair(
        save(tmp_path / "good" / "image.nii.gz", volumes(1)[0]), save(tmp_path / "good" / "l.nii.gz", volumes()[1])
    )
    spoil(one.image, one.label)
    report = import_pairs([one, good], tmp_path / "out")
    assert report.imported == ("good-image",)
    assert {name: reason.split(":")[0] for name, reason in report.skipped.items()} == {"in-image": code}
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["good-image"]


def decathlon(folder: Path, ids, labels=None) -> Path:
    """dataset.json of a decathlon task, without its files."""
    listed = [{"image": f"./imagesTr/lung_{one}.nii.gz", "label": f"./labelsTr/lung_{one}.nii.gz"} for one in ids]
    folder.mkdir(parents=True)
    data = {"name": "Lung", "labels": labels or {"0": "background", "1": "cancer"}, "training": listed, "test": []}
    (folder / "dataset.json").write_text(json.dumps(data))
    return folder


def test_the_folds_of_task06_are_those_of_its_published_fine_tuning(tmp_path):
    ids = TASK06.split()
    pairs = msd_pairs(decathlon(tmp_path / "Task06_Lung", [*ids[40:], *ids[:40]]))
    assert len(pairs) == 63
    validation = [one.name.removeprefix("Task06_Lung-lung_") for one in pairs if one.trial[1] == "validation"]
    assert " ".join(validation) == FOLD_0
    assert {one.trial[0] for one in pairs} == {"MSD Task06_Lung"}
    assert pairs[0].patient_id == "MSD-Task06_Lung-lung_001"
    folds = [
        {one.name for one in msd_pairs(tmp_path / "Task06_Lung", k) if one.trial[1] == "validation"} for k in range(5)
    ]
    assert [len(fold) for fold in folds] == [13, 13, 13, 12, 12]
    assert len(set.union(*folds)) == 63
    with pytest.raises(ConfigurationError, match="0 to 4"):
        msd_pairs(tmp_path / "Task06_Lung", 5)


def test_a_decathlon_task_imports_what_it_lists_and_says_what_it_could_not(tmp_path, capsys):
    folder = decathlon(tmp_path / "Task06_Lung", ["001", "002", "003"])
    for number, one in enumerate(("001", "002", "009")):
        save(folder / "imagesTr" / f"lung_{one}.nii.gz", volumes(number)[0])
        save(folder / "labelsTr" / f"lung_{one}.nii.gz", (volumes()[1] == 1).astype(np.uint8))
        (folder / "imagesTr" / f"._lung_{one}.nii.gz").write_bytes(b"Mac OS X")
    assert main(["import", "msd", str(folder), str(tmp_path / "out"), "--val-fold", "1"]) == 1
    output = capsys.readouterr().out
    assert "imported 2 cases, 0 were there already" in output
    assert "Task06_Lung-lung_003 missing_file" in output
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "Task06_Lung-lung_001",
        "Task06_Lung-lung_002",
    ]
    assert list(read(tmp_path / "out" / "Task06_Lung-lung_001")[1]) == ["cancer"]
    ds = pydicom.dcmread(tmp_path / "out" / "Task06_Lung-lung_001" / "SEG.dcm")
    assert (ds.ClinicalTrialProtocolID, ds.PatientID) == ("MSD Task06_Lung", "MSD-Task06_Lung-lung_001")
    for one in ("imagesTr", "labelsTr"):
        shutil.copy(folder / one / "lung_009.nii.gz", folder / one / "lung_003.nii.gz")
    assert main(["import", "msd", str(folder), str(tmp_path / "out"), "--val-fold", "1"]) == 0
    assert "imported 1 cases, 2 were there already" in capsys.readouterr().out


def test_a_datalist_gives_each_case_its_split_and_its_slices_stay_as_they_are(tmp_path):
    first = pair(save(tmp_path / "x" / "a.nii", volumes()[0]), save(tmp_path / "x" / "la.nii", volumes()[1]))
    import_pairs([first], tmp_path / "dicom")
    slices = tmp_path / "dicom" / "x-a" / "CT"
    data = {
        "training": [
            {"image": "x/a.nii", "label": "x/la.nii", "fold": 0},
            {"image": "dicom/x-a/CT", "label": "x/la.nii", "fold": 2},
        ],
        "testing": [{"image": "x/la.nii", "label": "x/la.nii"}, "x/b.nii"],
        "labels": {"background": 0, "tumour": 1},
    }
    (tmp_path / "list.json").write_text(json.dumps(data))
    pairs = datalist_pairs(tmp_path / "list.json", 2)
    ct = identifier("dicom/x-a/")
    assert {one.name: one.trial[1] for one in pairs} == {
        "x-list-a": "train", f"{ct}-list-CT": "validation", "x-list-la": "test", "x-list-b": "test"
    }  # fmt: skip
    report = import_pairs(pairs, tmp_path / "out")
    assert {name: reason.split(":")[0] for name, reason in report.skipped.items()} == {"x-list-b": "missing_label"}
    found = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / f"{ct}-list-CT" / "CT").iterdir())]
    original = [pydicom.dcmread(path) for path in sorted(slices.iterdir())]
    assert [ds.SOPInstanceUID for ds in found] == [ds.SOPInstanceUID for ds in original]
    assert [ds.PixelData for ds in found] == [ds.PixelData for ds in original]
    assert {ds.ClinicalTrialSiteID for ds in found} == {"validation"}
    _, masks, agreed = read(tmp_path / "out" / f"{ct}-list-CT")
    assert (list(masks), agreed.kind) == (["tumour", "label_3"], "identical")


def test_a_folder_of_whole_slices_is_copied_byte_by_byte_and_another_is_refused(tmp_path, one):
    import_pairs([one], tmp_path / "dicom")
    slices = tmp_path / "dicom" / "in-image" / "CT"
    assert import_pairs([pair(slices, one.label)], tmp_path / "out").imported == ("in-image-CT",)
    copied = sorted((tmp_path / "out" / "in-image-CT" / "CT").iterdir())
    assert [path.read_bytes() for path in copied] == [path.read_bytes() for path in sorted(slices.iterdir())]
    (found,) = [one for one in scan(tmp_path / "out").instances if one.modality == "SEG"]
    assert set(found.referenced_sops) == {pydicom.dcmread(path).SOPInstanceUID for path in copied}
    (slices / "notes.txt").write_text("not a slice")
    assert import_pairs([pair(slices, one.label)], tmp_path / "b").skipped["in-image-CT"].startswith("not_dicom")
    (slices / "notes.txt").unlink()
    ds = pydicom.dcmread(sorted(slices.iterdir())[0])
    ds.SeriesInstanceUID = "1.2.3"
    ds.save_as(sorted(slices.iterdir())[0])
    assert import_pairs([pair(slices, one.label)], tmp_path / "b").skipped["in-image-CT"].startswith("mixed_series")


def test_the_command_says_what_it_expected(tmp_path, one, capsys):
    assert main(["import", "pair", str(one.image), str(tmp_path / "out")]) == 1
    assert "a pair needs a label" in capsys.readouterr().err
    names = ["--names", "1=lung_tumor"]
    assert main(["import", "pair", str(one.image), str(one.label), str(tmp_path / "out"), *names]) == 0
    assert list(read(tmp_path / "out" / "in-image")[1]) == ["lung_tumor", "label_3"]
    assert main(["import", "datalist", str(tmp_path / "none.json"), str(tmp_path / "out")]) == 1
    assert "none.json" in capsys.readouterr().err
    for bad in ("lung_tumor", "a=b", "1="):
        with pytest.raises(SystemExit):
            main(["import", "pair", str(one.image), str(one.label), str(tmp_path / "out"), "--names", bad])


@pytest.mark.real_data
@pytest.mark.slow
def test_a_real_lesion_keeps_its_published_volume_and_the_image_its_voxels(real_data, tmp_path):
    folder = real_data / "lung_ct"
    report = import_pairs([pair(folder / "lung1_image.nrrd", folder / "lung1_label.nrrd")], tmp_path, {1: "lung tumor"})
    assert report.imported == ("lung_ct-lung1_image",), report.skipped
    ct, masks, agreed = read(tmp_path / "lung_ct-lung1_image")
    assert agreed.kind == "identical"
    assert masks["lung tumor"].sum() * np.prod(ct.geometry.spacing_mm) == pytest.approx(1361.1978, abs=1e-3)
    stored, header = nrrd.read(str(folder / "lung1_image.nrrd"))
    assert header["space"] == "left-posterior-superior"
    np.testing.assert_array_equal(ct.array, stored.transpose(2, 1, 0))


@pytest.mark.real_data
@pytest.mark.slow
def test_thirty_one_real_labels_land_on_their_dicom_series(real_data, tmp_path):
    folder = real_data / "lung_ct"
    image, label = folder / "example_ct_dicom", folder / "example_seg_dicom.nii.gz"
    assert import_pairs([pair(image, label)], tmp_path).imported == ("lung_ct-example_ct_dicom",)
    case = tmp_path / "lung_ct-example_ct_dicom"
    assert not scan(case).rejected
    ct, masks, agreed = read(case)
    assert agreed.kind in ("identical", "float_noise")
    nifti = nibabel.load(label)
    data = np.asanyarray(nifti.dataobj)
    assert len(masks) == len(np.unique(data)) - 1 == 31  # 32 values, with the background
    # From (z, y, x) towards LPS to the file's own (i, j, k) towards RAS.
    swap = np.eye(4)[[2, 1, 0, 3]]
    flip = np.array([[1, 0, 0, 0], [0, -1, 0, data.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    from_dicom = np.diag([-1, -1, 1, 1]) @ ct.geometry.affine() @ swap @ flip
    np.testing.assert_allclose(from_dicom, nifti.affine, atol=1e-6)
    back = np.zeros(ct.geometry.shape, np.uint8)
    for name, mask in masks.items():
        back[mask] = int(name.removeprefix("label_"))
    np.testing.assert_array_equal(back.transpose(2, 1, 0)[:, ::-1], data)
    originals = [pydicom.dcmread(path) for path in sorted(image.iterdir())]
    copies = [pydicom.dcmread(path) for path in sorted((case / "CT").iterdir())]
    assert [ds.PixelData for ds in copies] == [ds.PixelData for ds in originals]
    assert [ds.SOPInstanceUID for ds in copies] == [ds.file_meta.MediaStorageSOPInstanceUID for ds in originals]


@pytest.mark.real_data
def test_a_small_real_volume_reads_as_a_volume(real_data):
    found = read_volume(real_data / "lung_ct" / "example_ct_sm.nii.gz")
    assert isinstance(found, Volume)
    assert found.array.shape == (30, 101, 122)
    assert found.geometry.spacing_mm == pytest.approx((3, 3, 3))


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ('{"training": [[{"image": "a.nii.gz", "label": "b.nii.gz"}]]}', "utf-8", "make it one list"),
        ('{"training": [{"image": "a.nii.gz"}, ["a.nii.gz", "b.nii.gz"]]}', "utf-8", "make it one list"),
        ('{"training": [{"image": "a.nii.gz"}]}', "utf-16", "save it as UTF-8"),
    ],
)
def test_a_list_within_a_list_and_another_encoding_are_refused_in_words(tmp_path, text, encoding, expected):
    (tmp_path / "list.json").write_text(text, encoding=encoding)
    with pytest.raises(ConfigurationError, match=expected):
        datalist_pairs(tmp_path / "list.json")


def test_a_datalist_with_a_byte_order_mark_lists_of_one_path_and_names_of_any_script(tmp_path):
    people = ["\u5f20\u4f1f", "\u738b\u82b3", "\u674e\u5a1c", "\u5218\u6d0b"]
    entries = [
        {"image": [f"{one}.nii.gz"], "label": [f"{one}_label.nii.gz"], "fold": k} for k, one in enumerate(people)
    ]
    entries.append({"image": "a.nii.gz", "label": [["a_label.nii.gz"], ["b_label.nii.gz"]], "fold": 0})
    (tmp_path / "list.json").write_text("\ufeff" + json.dumps({"training": entries}, ensure_ascii=False), "utf-8")
    *named, nested = datalist_pairs(tmp_path / "list.json")
    assert [(one.image.name, one.problem) for one in named] == [(f"{one}.nii.gz", "") for one in people]
    assert len({one.name for one in named}) == len({one.patient_id for one in named}) == 4
    assert nested.problem == "expected one path as label, got list of 2"
