"""Identity of invented cases through intake and preparation: what stays, what is blanked or replaced, what is refused."""

import numpy as np
import pydicom
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataelem import DataElement

from med_assets.preparation.stage import FACTS_FILE
from med_assets.programs.breast_us.prepared import PreparedCase as Picture
from med_assets.settings import Workspace
from med_assets.storage.files import read_json
from tests.invented import (
    Study,
    box_contours,
    chest_case,
    ct,
    ingest,
    plan_case,
    rt_dose_voxels,
    segmentation_2d,
    us,
    write,
)

GREY = np.random.default_rng(19).integers(40, 200, (160, 240)).astype(np.uint8)
LESION = np.zeros((160, 240), bool)
LESION[70:100, 90:130] = True


def stored(ws: Workspace, row: dict) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(ws.store.fetch(row["artifact"]).glob("*.dcm"))]


def facts(ws: Workspace, row: dict) -> dict:
    return read_json(ws.store.fetch(row["artifact"]) / FACTS_FILE)


@pytest.mark.parametrize("colour", [False, True])
def test_text_above_the_region_of_tissue_is_blanked_where_the_sender_declares_none(
    workspace: Workspace, colour: bool
) -> None:
    st = Study("c18")
    grey = np.zeros((160, 240), np.uint8)
    grey[40:150, 20:220] = GREY[40:150, 20:220]
    grey[5:25, 10:230] = np.where((np.arange(220) // 6 % 2 == 0)[None], 255, 0)
    pixels = np.repeat(grey[..., None], 3, axis=2) if colour else grey
    image = us(st, pixels, bia="NO", region=(20, 40, 219, 149), photometric="RGB" if colour else "MONOCHROME2")
    write([image, segmentation_2d(st, image, LESION)], workspace.landing / "breast_us" / "c18")
    raw, prepared = ingest(workspace, "breast_us")
    assert [row["status"] for row in (*raw, *prepared)] == ["ok", "ok"]
    (kept,) = [ds for ds in stored(workspace, raw[0]) if ds.Modality == "US"]
    expected = pixels.copy()
    expected[:40], expected[150:], expected[:, :20], expected[:, 220:] = 0, 0, 0, 0
    assert np.array_equal(kept.pixel_array, expected)
    assert kept.pixel_array[5:25, 10:230].mean() == 0.0
    assert facts(workspace, prepared[0])["lesion_pixels"] == int(LESION.sum())


@pytest.mark.parametrize("label", ["Malignant", "MALIGNANT", " malignant_", "ｍalignant"])
def test_a_label_is_compared_in_preparation_as_it_is_at_intake(workspace: Workspace, label: str) -> None:
    st = Study("c19")
    image = us(st, GREY, region=(0, 0, 239, 159))
    write([image, segmentation_2d(st, image, LESION, label=label)], workspace.landing / "breast_us" / "c19")
    raw, prepared = ingest(workspace, "breast_us")
    assert [row["status"] for row in (*raw, *prepared)] == ["ok", "ok"]
    assert facts(workspace, prepared[0])["label"] == "malignant"
    assert Picture.open(workspace.store.fetch(prepared[0]["artifact"])).label == "malignant"


def test_numbers_that_equal_an_identifier_by_chance_stay_and_those_of_the_sender_go(workspace: Workspace) -> None:
    folder = workspace.landing / "rt_dose"
    case = plan_case("c16a")
    for ds in case:
        ds.StudyID = "1500"
    for ds in case[:25]:
        ds.WindowWidth, ds.WindowCenter = "1500", "300"
    write(case, folder / "c16a")
    case = plan_case("c16b")
    for ds in case:
        ds.AccessionNumber = "1200"
    for ds in case[:25]:
        ds.ReconstructionDiameter = "1200"
    write(case, folder / "c16b")
    case = plan_case("c16c", st=Study("c16c", patient="123456"))
    for ds in case[:25]:
        ds.SeriesNumber = "123456"
    write(case, folder / "c16c")
    case = plan_case("c16d", st=Study("c16d", patient="1"))
    case[25].AccessionNumber = "77665544"  # of the RTSTRUCT alone
    for ds in case[:25]:
        ds.SeriesNumber, ds.AcquisitionNumber, ds.AccessionNumber = "1", "77665544", "1"
    write(case, folder / "c16d")
    raw, prepared = ingest(workspace, "rt_dose")
    assert [row["status"] for row in (*raw, *prepared)] == ["ok"] * 8
    kept = {"c16a": 0, "c16b": 0, "c16c": 0, "c16d": 0}
    for row in raw:
        for ds in stored(workspace, row):
            if ds.Modality != "CT":
                continue
            if ds.get("WindowWidth") == 1500:
                kept["c16a"] += ds.WindowCenter == 300 and not ds.StudyID and ds.SeriesNumber == 1
            elif ds.get("ReconstructionDiameter") == 1200:
                kept["c16b"] += not ds.AccessionNumber and ds.SeriesNumber == 1
            elif ds.SeriesNumber is None:
                kept["c16c"] += ds.AcquisitionNumber == 1 and ds.InstanceNumber is not None
            else:
                kept["c16d"] += ds.SeriesNumber == 1 and ds.AcquisitionNumber is None
    assert kept == {"c16a": 25, "c16b": 25, "c16c": 25, "c16d": 25}


@pytest.mark.parametrize("name", ["CT", "AXIAL^CHEST", "Original^Primary", "Mono^Rect", "Plan^Gy", "Kim^Lee"])
def test_a_patient_who_is_called_like_a_term_is_taken_in_and_the_terms_stay(workspace: Workspace, name: str) -> None:
    case = plan_case("terms", st=Study("terms", patient="CHEST"))
    for ds in case:
        ds.PatientName = name
    for ds in case[:25]:
        ds.BodyPartExamined = "CHEST"
    write(case, workspace.landing / "rt_dose" / "terms")
    raw, prepared = ingest(workspace, "rt_dose")
    assert [row["status"] for row in (*raw, *prepared)] == ["ok", "ok"]
    images = [ds for ds in stored(workspace, raw[0]) if ds.Modality == "CT"]
    assert {tuple(ds.ImageType) for ds in images} == {("ORIGINAL", "PRIMARY", "AXIAL")}
    assert {ds.BodyPartExamined for ds in images} == {"CHEST"}


@pytest.mark.parametrize("name", ["LungTumour", "lung_tumor", "TUMOR, lung"])
def test_a_class_is_compared_in_preparation_as_it_is_at_intake(workspace: Workspace, name: str) -> None:
    st = Study("lung")
    slices = ct(st)
    zs = [float(ds.ImagePositionPatient[2]) for ds in slices]
    write(
        chest_case("lung", [(name, box_contours(22.5, zs))], slices=slices, st=st), workspace.landing / "lung_ct" / "a"
    )
    raw, prepared = ingest(workspace, "lung_ct")
    assert [row["status"] for row in (*raw, *prepared)] == ["ok", "ok"]
    measured = facts(workspace, prepared[0])
    assert (measured["labels_without_class"], measured["target_present"]) == (0, True)


def test_code_strings_of_another_spelling_decide_as_readers_compare_them(workspace: Workspace) -> None:
    case = plan_case("spelling")
    structures, dose = case[25], case[27]
    with disable_value_validation():
        contours = [contour for roi in structures.ROIContourSequence for contour in roi.ContourSequence]
        for ds, keyword, value in (
            (dose, "DoseUnits", "Gy"),
            (dose, "DoseSummationType", "Plan"),
            *((contour, "ContourGeometricType", "Closed_Planar") for contour in contours),
        ):
            ds[keyword] = DataElement(keyword, "CS", value)
        write(case, workspace.landing / "rt_dose" / "spelling")
    raw, prepared = ingest(workspace, "rt_dose")
    assert [row["status"] for row in (*raw, *prepared)] == ["ok", "ok"]
    assert rt_dose_voxels(workspace, prepared[0])["Rectum"] == 729


def test_a_quantity_that_equals_an_identifier_stays_and_a_number_that_is_one_goes(workspace: Workspace) -> None:
    from med_assets.dicom.objects import stored
    from tests.invented import Study, ingest, plan_case, write

    landing = workspace.landing / "rt_dose"
    case = plan_case("study id")
    for one in case:
        one.StudyID = "1500"
    for one in case[:25]:
        one.WindowWidth, one.WindowCenter = "1500", "300"
    write(case, landing / "a")
    case = plan_case("accession")
    for one in case:
        one.AccessionNumber = "1200"
    for one in case[:25]:
        one.ReconstructionDiameter = "1200"
    write(case, landing / "b")
    case = plan_case("series number", st=Study("series number", patient="123456"))
    for one in case[:25]:
        one.SeriesNumber, one.BodyPartExamined, one.ImageType = "123456", "MEIER", ["ORIGINAL", "PRIMARY", "MEIER"]
    write(case, landing / "c")
    raw, prepared = ingest(workspace, "rt_dose")
    assert [row["status"] for row in prepared] == ["ok"] * 3, [row["reason"] for row in raw]
    slices = [one for row in raw for one in stored(workspace.store.fetch(row["artifact"]))["CT"]]
    assert {str(one.get("WindowWidth")) for one in slices} >= {"1500"}
    assert {str(one.get("ReconstructionDiameter")) for one in slices} >= {"1200"}
    assert "123456" not in {str(one.get("SeriesNumber")) for one in slices}
    assert not any("MEIER" in str(one) for one in slices)
    assert ["ORIGINAL", "PRIMARY", "REMOVED"] in [list(one.ImageType) for one in slices]
