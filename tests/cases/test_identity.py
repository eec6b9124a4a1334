"""Identity of invented cases through intake and preparation: what stays, what is blanked or replaced, what is refused."""

import numpy as np
import pydicom
import pytest

from med_assets.files import read_json
from med_assets.programs.breast_us.prepared import PreparedCase as Picture
from med_assets.settings import Workspace
from med_assets.stages.prepare import FACTS_FILE
from tests.invented import Study, flat_seg, ingest, us, write

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
    write([image, flat_seg(st, image, LESION)], workspace.landing / "breast_us" / "c18")
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
    write([image, flat_seg(st, image, LESION, label=label)], workspace.landing / "breast_us" / "c19")
    raw, prepared = ingest(workspace, "breast_us")
    assert [row["status"] for row in (*raw, *prepared)] == ["ok", "ok"]
    assert facts(workspace, prepared[0])["label"] == "malignant"
    assert Picture.open(workspace.store.fetch(prepared[0]["artifact"])).label == "malignant"


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
