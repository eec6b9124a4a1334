"""Studies in the layout of the RSNA challenge are imported with their points, and those that fail are listed with the reason."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from med_assets.cli.main import main
from med_assets.dicom.discover import scan
from med_assets.dicom.geometry import SAGITTAL, canonical, read_mr_series
from med_assets.dicom.rtstruct import read_points
from med_assets.errors import ConfigurationError
from med_assets.programs.lumbar_mr import LumbarMr
from med_assets.programs.lumbar_mr.importer_rsna import CONDITION, LEVELS, import_studies
from med_assets.programs.lumbar_mr.phantom import write_case

SHAPE, SPACING_MM = (6, 96, 96), (6.0, 2.8, 2.8)
REMOVED = ("SeriesDescription", "EchoTime", "RepetitionTime", "Modality", "FrameOfReferenceUID")
"""What the challenge's files do not have."""


def positions(path):
    """LPS mm of the points of a structure set by name."""
    return {point.name: point.position_mm for point in read_points(pydicom.dcmread(path)).points}


def write_source(src: Path, studies: tuple[int, ...]) -> dict[int, dict[str, np.ndarray]]:
    """A challenge folder of spine phantoms, each with a T1 series beside its T2 series; returns the true points, LPS mm."""
    descriptions, coordinates, truth = [], [], {}
    for study in studies:
        phantom = src.parent / f"phantom-{study}"
        write_case(phantom, study, shape=SHAPE, spacing_mm=SPACING_MM)
        truth[study] = positions(phantom / "points.dcm")
        for kind, words in ((1, "Sagittal T1"), (2, "Sagittal T2/STIR")):
            series = study * 10 + kind
            folder = src / "train_images" / str(study) / str(series)
            folder.mkdir(parents=True)
            descriptions.append((study, series, words))
            for path in sorted((phantom / "MR").iterdir()):
                ds = pydicom.dcmread(path)
                for keyword in REMOVED:
                    delattr(ds, keyword)
                ds.SeriesInstanceUID, ds.SeriesNumber = f"1.2.{series}", kind
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.{series}.{ds.InstanceNumber}"
                ds.save_as(folder / f"{ds.InstanceNumber}.dcm")
        grid = canonical(
            read_mr_series([pydicom.dcmread(path) for path in (phantom / "MR").iterdir()]), SAGITTAL
        ).geometry
        for level in LEVELS:
            s, y, x = grid.to_index(truth[study][level])[0]
            # The challenge names an image, so a point is on a slice.
            truth[study][level] = grid.to_points([[round(s), y, x]])[0]
            coordinates.append((study, study * 10 + 2, round(s) + 1, CONDITION, level, x, y))
            coordinates.append((study, study * 10 + 1, 2, "Left Neural Foraminal Narrowing", level, 1.0, 1.0))
    pd.DataFrame(descriptions, columns=["study_id", "series_id", "series_description"]).to_csv(
        src / "train_series_descriptions.csv", index=False
    )
    columns = ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    pd.DataFrame(coordinates, columns=columns).to_csv(src / "train_label_coordinates.csv", index=False)
    pd.DataFrame({"study_id": studies, "spinal_canal_stenosis_l1_l2": "Normal/Mild"}).to_csv(
        src / "train.csv", index=False
    )
    return truth


def change(path: Path, edit) -> None:
    table = pd.read_csv(path)
    edit(table).to_csv(path, index=False)


@pytest.fixture
def source(tmp_path: Path):
    src = tmp_path / "source"
    src.mkdir()
    return src, write_source(src, (11, 12, 13))


def test_the_t2_series_of_each_study_is_imported_with_its_points_in_patient_coordinates(source, tmp_path) -> None:
    src, truth = source
    report = import_studies(src, tmp_path / "out")
    assert report.imported == ("RSNA-11", "RSNA-12", "RSNA-13")
    for study in (11, 12, 13):
        folder = tmp_path / "out" / f"RSNA-{study}"
        points = positions(folder / f"{study}2.dcm")
        assert tuple(points) == LEVELS
        for level in LEVELS:
            np.testing.assert_allclose(points[level], truth[study][level], atol=0.01)
        (case,), refusals = LumbarMr().group(scan(folder).instances)
        assert not refusals
        assert len(case.instances) == SHAPE[0] + 1
        LumbarMr().verify(case)
    assert import_studies(src, tmp_path / "out").existing == report.imported
    assert import_studies(src, tmp_path / "few", limit=2).imported == ("RSNA-11", "RSNA-12")
    some = import_studies(src, tmp_path / "named", ["13", "99"])
    assert (some.imported, list(some.skipped)) == (("RSNA-13",), ["RSNA-99"])


def test_studies_that_fail_are_listed_with_the_reason_and_others_go_on(source, tmp_path, capsys) -> None:
    src, _ = source

    def away(table):
        table.loc[(table["study_id"] == 12) & (table["level"] == "L5/S1"), "instance_number"] = 77
        return table

    change(src / "train_label_coordinates.csv", away)
    shutil.rmtree(src / "train_images" / "13")
    assert main(["import", "rsna-lumbar", str(src), str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "imported 1 cases" in output
    assert "bad_point: " in output
    assert "missing_images: " in output
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["RSNA-11"]


def test_a_study_without_a_listed_sagittal_t2_series_is_left_to_intake(source, tmp_path) -> None:
    src, _ = source
    change(src / "train_series_descriptions.csv", lambda table: table[table["series_id"] != 112])
    assert not import_studies(src, tmp_path / "out", ["11"]).skipped
    cases, (refusal,) = LumbarMr().group(scan(tmp_path / "out" / "RSNA-11").instances)
    assert not cases
    assert refusal.code == "no_sagittal_t2"


def test_a_series_without_points_is_a_case_too(source, tmp_path) -> None:
    src, _ = source
    change(src / "train_label_coordinates.csv", lambda table: table[table["study_id"] != 11])
    import_studies(src, tmp_path / "out", ["11"])
    (case,), _ = LumbarMr().group(scan(tmp_path / "out" / "RSNA-11").instances)
    assert {one.modality for one in case.instances} == {"MR"}


def test_a_point_outside_its_image_and_a_level_twice_are_refused(source, tmp_path) -> None:
    src, _ = source

    def broken(table):
        mine = table["condition"] == CONDITION
        table.loc[(table["study_id"] == 11) & mine & (table["level"] == "L1/L2"), "x"] = 96.0
        table.loc[(table["study_id"] == 12) & mine & (table["level"] == "L1/L2"), "level"] = "L2/L3"
        return table

    change(src / "train_label_coordinates.csv", broken)
    report = import_studies(src, tmp_path / "out", ["11", "12"])
    assert "within its image, got column 96" in report.skipped["RSNA-11"]
    assert "repeated level" in report.skipped["RSNA-12"]


def test_a_missing_table_or_column_stops_the_import(source, tmp_path) -> None:
    src, _ = source
    change(src / "train.csv", lambda table: table.rename(columns={"study_id": "study"}))
    with pytest.raises(ConfigurationError, match=r"train\.csv with the columns"):
        import_studies(src, tmp_path / "out")
    (src / "train.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"expected train\.csv"):
        import_studies(src, tmp_path / "out")


def test_a_point_in_an_image_number_that_two_images_have_is_refused(source, tmp_path) -> None:
    src, _ = source
    table = pd.read_csv(src / "train_label_coordinates.csv")
    mine = table[(table["study_id"] == 11) & (table["condition"] == CONDITION)].iloc[0]
    folder = src / "train_images" / "11" / str(mine["series_id"])
    paths = {int(pydicom.dcmread(path).InstanceNumber): path for path in folder.glob("*.dcm")}
    other = next(path for number, path in sorted(paths.items()) if number != mine["instance_number"])
    ds = pydicom.dcmread(other)
    ds.InstanceNumber = int(mine["instance_number"])
    ds.save_as(other)
    report = import_studies(src, tmp_path / "out", ["11"])
    assert report.skipped["RSNA-11"].startswith("bad_point: ")
    assert f"InstanceNumber {mine['instance_number']}" in report.skipped["RSNA-11"]
    assert "got it in 2" in report.skipped["RSNA-11"]
