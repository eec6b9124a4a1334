"""Phantoms are whole, deterministic, marked as synthetic, and plausible enough to plan and learn on."""

import numpy as np
import pydicom
import pytest

from med_assets.dicom.geometry import read_ct_series
from med_assets.dicom.rtdose import read_dose
from med_assets.dicom.rtplan import read_plan
from med_assets.dicom.rtstruct import rasterise, read_rois
from med_assets.dicom.write import is_synthetic
from med_assets.programs.rt_dose.phantom import PRESCRIPTION_GY, ROI_NAMES, anatomy, centred_geometry, write_case

SMALL = {"shape": (24, 32, 32), "spacing_mm": (8.0, 10.0, 10.0)}


def read(folder):
    """CT volume, dose volume, plan and masks by structure of a phantom, found by content."""
    datasets = [pydicom.dcmread(path) for path in folder.rglob("*") if path.is_file()]
    by_modality = {ds.Modality: ds for ds in datasets}
    ct = read_ct_series([ds for ds in datasets if ds.Modality == "CT"])
    structure_of = {name: structure for structure, names in ROI_NAMES.items() for name in names}
    masks = {structure_of[roi.name]: rasterise(roi, ct.geometry) for roi in read_rois(by_modality["RTSTRUCT"])}
    return ct, read_dose(by_modality["RTDOSE"]), read_plan(by_modality["RTPLAN"]), masks, datasets


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "case"
    write_case(folder, seed=3)
    return read(folder)


def test_every_structure_is_there_and_comes_back_voxel_equal(case):
    ct, _, _, masks, _ = case
    geometry = centred_geometry((48, 64, 64), (4.0, 5.0, 5.0))
    assert ct.geometry == geometry
    drawn = anatomy(geometry, np.random.default_rng([3, 48, 64, 64]))
    assert set(masks) == set(ROI_NAMES)
    for structure, mask in masks.items():
        np.testing.assert_array_equal(mask, drawn[structure], err_msg=structure)


def test_every_file_says_that_it_is_synthetic(case):
    assert all(is_synthetic(ds) for ds in case[4])


def test_targets_get_their_dose_and_organs_are_spared(case):
    _, dose, plan, masks, _ = case
    assert plan.prescription_gy == PRESCRIPTION_GY
    assert 0.95 * 70 <= np.percentile(dose.array[masks["PTV70"]], 5) <= 70
    assert np.percentile(dose.array[masks["PTV56"]], 5) >= 0.95 * 56
    assert dose.array.max() <= 1.08 * PRESCRIPTION_GY
    assert dose.array[~masks["Body"]].max() == 0
    for organ in ("Rectum", "Bladder", "Femur_L", "Femur_R", "Bowel"):
        assert dose.array[masks[organ]].mean() < 0.6 * PRESCRIPTION_GY


def test_anatomy_is_the_right_way_round(case):
    ct, _, _, masks, _ = case
    x, y, z = np.array(
        [ct.geometry.to_points(np.argwhere(masks[s]).mean(axis=0))[0] for s in ("Femur_L", "Rectum", "Bladder")]
    ).T
    prostate = ct.geometry.to_points(np.argwhere(masks["Prostate"]).mean(axis=0))[0]
    assert x[0] > prostate[0]
    assert y[1] > prostate[1] > y[2]
    assert z[2] > prostate[2]


def test_tissues_have_their_ct_numbers(case):
    ct, _, _, masks, _ = case
    assert abs(np.median(ct.array[masks["Bladder"]]) - 8) < 10
    assert np.median(ct.array[masks["Femur_L"]]) > 200
    assert np.median(ct.array[~masks["Body"]]) < -950


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_patient(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_case(tmp_path / name, seed, **SMALL)
    files = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in "abc"
    }
    assert files["a"] == files["b"]
    assert not set(files["a"].values()) & set(files["c"].values())
    patients = {name: {ds.PatientID for ds in read(tmp_path / name)[4]} for name in "ac"}
    assert patients == {"a": {"PHANTOM-0001"}, "c": {"PHANTOM-0002"}}


def test_one_patient_can_have_several_cases(tmp_path):
    write_case(tmp_path / "first", 1, patient_id="PHANTOM-X", **SMALL)
    write_case(tmp_path / "second", 2, patient_id="PHANTOM-X", **SMALL)
    first, second = (read(tmp_path / name)[4] for name in ("first", "second"))
    assert {ds.PatientID for ds in first + second} == {"PHANTOM-X"}
    assert first[0].StudyInstanceUID != second[0].StudyInstanceUID


@pytest.mark.parametrize("seed", range(1, 9))
def test_structures_keep_inside_the_body_and_the_prostate_inside_its_targets(seed):
    masks = anatomy(centred_geometry((48, 64, 64), (4.0, 5.0, 5.0)), np.random.default_rng([seed, 48, 64, 64]))
    for structure in ROI_NAMES:
        assert masks[structure].sum() >= 100
        assert not (masks[structure] & ~masks["Body"]).any()
    assert not (masks["Prostate"] & ~masks["PTV70"]).any()
    assert not (masks["PTV70"] & ~masks["PTV56"]).any()
    assert not masks["Body"][:, [0, -1]].any()
    assert not masks["Body"][:, :, [0, -1]].any()


def test_a_folder_that_exists_is_not_written_into(tmp_path):
    write_case(tmp_path / "case", 1, **SMALL)
    with pytest.raises(FileExistsError, match="choose another name"):
        write_case(tmp_path / "case", 2, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["case"]
