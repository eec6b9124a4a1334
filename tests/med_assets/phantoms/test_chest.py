"""Chest phantoms are whole, deterministic, marked as synthetic, and plausible enough to learn on."""

import time

import numpy as np
import pydicom
import pytest

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.geometry import read_ct_series
from med_assets.dicom.seg import agreement, place, read_segments
from med_assets.dicom.write import is_synthetic
from med_assets.errors import CaseRejected
from med_assets.programs.lung_ct.phantom import LABELS, TUMOUR, anatomy, labelled, tumours, write_case
from med_assets.programs.phantoms import centred_geometry

SHAPE, SPACING_MM = (40, 48, 48), (6.0, 6.5, 6.5)
VOXEL_ML = 0.2535


def read(folder):
    """CT volume, segments and datasets of a phantom, found by content."""
    datasets = [pydicom.dcmread(path) for path in folder.rglob("*") if path.is_file()]
    ct = read_ct_series([ds for ds in datasets if ds.Modality == "CT"])
    (seg,) = (ds for ds in datasets if ds.Modality == "SEG")
    return ct, read_segments(seg), datasets


def drawn(seed):
    """Masks and tumours of a case as they were drawn, without its files."""
    geometry, rng = centred_geometry(SHAPE, SPACING_MM), np.random.default_rng([seed, *SHAPE])
    masks = anatomy(geometry, rng)
    return masks, tumours(geometry, masks, rng)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "case"
    write_case(folder, seed=3)
    return read(folder)


def test_every_label_is_there_on_the_grid_of_the_ct_and_comes_back_voxel_equal(case):
    ct, segments, _ = case
    assert ct.geometry == centred_geometry(SHAPE, SPACING_MM)
    placed, found = place(segments, ct.geometry)
    assert found.kind == "identical"
    assert [segment.label for segment in segments.segments] == list(LABELS)
    for name, mask in labelled(*drawn(3)).items():
        np.testing.assert_array_equal(placed[name], mask, err_msg=name)


def test_every_file_says_that_it_is_synthetic_before_and_after_deidentification(case):
    deidentifier = Deidentifier(b"k" * 32, LABELS)
    assert all(is_synthetic(ds) for ds in case[2])
    assert all(is_synthetic(deidentifier.apply(ds)) for ds in case[2])


def test_tissues_have_their_ct_numbers(case):
    ct, segments, _ = case
    masks = place(segments, ct.geometry)[0]

    def median(*names):
        return float(np.median(ct.array[np.logical_or.reduce([masks[name] for name in names])]))

    assert -920 < median(*(name for name in LABELS if name.endswith("lobe"))) < -750
    assert 20 < median("heart") < 190
    assert abs(median("liver") - 60) < 20
    assert -500 < median(TUMOUR) < 70
    assert np.median(ct.array[:, 0]) < -950
    assert (ct.array > 200).mean() > 0.005
    assert ct.array.min() >= -1024


def test_anatomy_is_the_right_way_round(case):
    ct, segments, _ = case
    masks = place(segments, ct.geometry)[0]
    x, y, z = (
        {name: ct.geometry.to_points(np.argwhere(mask).mean(axis=0))[0][axis] for name, mask in masks.items()}
        for axis in range(3)
    )
    assert x["left lung upper lobe"] > 40
    assert x["right lung upper lobe"] < -40
    assert x["heart"] > 0 > x["liver"]
    assert y["heart"] < y["aorta"] < y["spinal cord"]
    assert z["liver"] < z["heart"] < z["trachea"]
    assert z["right lung lower lobe"] < z["right lung upper lobe"]
    assert y["right lung lower lobe"] > y["right lung middle lobe"]


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_case_has_one_to_three_tumours_of_plausible_size_in_the_chest_and_no_voxel_twice(seed):
    masks, lumps = drawn(seed)
    assert 1 <= len(lumps) <= 3
    assert all(0.5 <= lump.mask.sum() * VOXEL_ML <= 200 for lump in lumps)
    assert all((lump.mask & masks["lungs"]).any() for lump in lumps)
    labels = labelled(masks, lumps)
    assert sum(mask.astype(int) for mask in labels.values()).max() == 1
    assert all(mask.sum() >= 20 or name == TUMOUR for name, mask in labels.items())
    assert 1000 < masks["lungs"].sum() * VOXEL_ML < 4500
    assert not masks["body"][:, [0, -1]].any()
    assert not masks["body"][:, :, [0, -1]].any()


def test_cases_differ_in_number_size_and_density_of_tumours():
    lumps = [drawn(seed)[1] for seed in range(1, 21)]
    assert len({len(case) for case in lumps}) == 3
    volumes = [lump.mask.sum() * VOXEL_ML for case in lumps for lump in case]
    assert min(volumes) < 8 < 25 < max(volumes)
    densities = [lump.hu for case in lumps for lump in case]
    assert min(densities) < -200
    assert max(densities) > 20


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_patient(tmp_path):
    started = time.perf_counter()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_case(tmp_path / name, seed)
    print(f"{(time.perf_counter() - started) / 3:.2f} s per case")
    files = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in "abc"
    }
    assert files["a"] == files["b"]
    assert not set(files["a"].values()) & set(files["c"].values())
    patients = {name: {ds.PatientID for ds in read(tmp_path / name)[2]} for name in "ac"}
    assert patients == {"a": {"PHANTOM-0001"}, "c": {"PHANTOM-0002"}}


def test_one_patient_can_have_several_cases(tmp_path):
    write_case(tmp_path / "first", 1, patient_id="PHANTOM-X")
    write_case(tmp_path / "second", 2, patient_id="PHANTOM-X")
    first, second = (read(tmp_path / name)[2] for name in ("first", "second"))
    assert {ds.PatientID for ds in first + second} == {"PHANTOM-X"}
    assert first[0].StudyInstanceUID != second[0].StudyInstanceUID


def test_a_shifted_segmentation_does_not_fit_its_image(tmp_path):
    write_case(tmp_path / "case", 1, seg_shift_mm=3.0)
    ct, segments, _ = read(tmp_path / "case")
    found = agreement(ct.geometry, segments.planes)
    assert found.kind == "mismatch"
    assert found.drift_mm == pytest.approx(3.0)
    with pytest.raises(CaseRejected):
        place(segments, ct.geometry)


def test_a_grid_without_room_for_a_tumour_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"about 230 x 260 x 310 mm|finer or larger"):
        write_case(tmp_path / "case", 1, shape=(4, 6, 6))
    assert not (tmp_path / "case").exists()


def test_a_folder_that_exists_is_not_written_into(tmp_path):
    write_case(tmp_path / "case", 1)
    with pytest.raises(FileExistsError, match="choose another name"):
        write_case(tmp_path / "case", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["case"]
