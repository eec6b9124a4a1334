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
