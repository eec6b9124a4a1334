"""Voxels over HTTP: their bytes, where they lie, what they mean, and which requests are refused."""

import subprocess
import sys
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from starlette.testclient import TestClient

from med_assets.catalog import Catalog
from med_assets.dicom.geometry import Geometry
from med_assets.programs.lung_ct.kept import PREDICTION
from med_assets.programs.rt_dose.kept import PREDICTION as DOSE
from med_assets.records import PreparedCase, Status
from med_assets.review.app import STATIC
from med_assets.review.viewing.contract import ANATOMICAL, Grid, middle_of
from med_assets.review.viewing.planes import planes_of
from med_assets.settings import Workspace
from med_assets.storage.files import file_sha256, read_yaml
from tests.med_assets.programs.breast_us.builders import write_prepared as write_breast
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared as write_lung
from tests.med_assets.review.builders import client
from tests.med_assets.review.viewing.builders import add_case, add_prediction, write_placed_dose

CASE = "/lung_ct/cases/a1"
HEADER = 352


@pytest.fixture
def browser(workspace: Workspace) -> TestClient:
    """A browser on a home with one CT, which a model predicted."""
    key = add_case(workspace, "lung_ct", write_lung)
    truth = np.load(workspace.store.fetch(key) / "truth.npy") == 23
    shifted = np.roll(truth, 1, axis=2)
    add_prediction(
        workspace, "lung_ct", key, "foundation", lambda folder: np.save(folder / PREDICTION, np.packbits(shifted))
    )
    return client(workspace)


def layer(browser: TestClient, name: str, path: str = CASE) -> dict:
    found = browser.get(f"{path}/view.json").json()
    return next(one for view in found["views"] for one in view["layers"] if one["name"] == name)


def nifti(content: bytes, tmp_path: Path) -> nibabel.Nifti1Image:
    (tmp_path / "layer.nii").write_bytes(content)
    return nibabel.load(tmp_path / "layer.nii")


def test_a_volume_is_a_nifti_file_with_the_voxels_at_their_places(
    browser: TestClient, workspace: Workspace, tmp_path: Path
) -> None:
    image = nifti(browser.get(layer(browser, "ct")["volume"]).content, tmp_path)
    folder = workspace.store.fetch("prepared/a1")
    geometry = Geometry((20, 24, 24), (10.0, 12.0, 12.0), (0.0, 0.0, 0.0))
    assert np.array_equal(np.asarray(image.dataobj), np.load(folder / "ct.npy").transpose(2, 1, 0))
    assert np.allclose(image.affine, geometry.nifti_affine())
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header["sform_code"] == 1
    assert image.header.get_xyzt_units()[0] == "mm"


def test_label_and_prediction_are_bits_of_one_layer(browser: TestClient, workspace: Workspace, tmp_path: Path) -> None:
    found = layer(browser, "masks")
    bits = np.asarray(nifti(browser.get(found["volume"]).content, tmp_path).dataobj).transpose(2, 1, 0)
    truth = np.load(workspace.store.fetch("prepared/a1") / "truth.npy") == 23
    of = {mask["role"]: 1 << mask["bit"] for mask in found["masks"] if mask["role"] != "structure"}
    assert np.array_equal(bits & of["label"] > 0, truth)
    assert np.array_equal(bits & of["prediction"] > 0, np.roll(truth, 1, axis=2))
    hidden = browser.get(f"{CASE}/view.json?model=none").json()["views"][0]["layers"][1]["masks"]
    assert "prediction" not in {mask["role"] for mask in hidden}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_has_the_voxels_of_the_volume(browser: TestClient, workspace: Workspace, axis: int) -> None:
    ct = np.load(workspace.store.fetch("prepared/a1") / "ct.npy")
    address = layer(browser, "ct")["address"].replace("AXIS", str(axis)).replace("INDEX", "7")
    assert np.array_equal(np.frombuffer(browser.get(address).content, "<i2"), ct.take(7, axis).ravel())


def test_a_dose_is_the_stored_value_times_its_slope(workspace: Workspace, tmp_path: Path) -> None:
    key = add_case(workspace, "rt_dose", write_placed_dose)
    planned = np.load(workspace.store.fetch(key) / "dose.npy")
    predicted = (planned * 1.02).astype(np.float32)
    add_prediction(workspace, "rt_dose", key, "baseline", lambda folder: np.save(folder / DOSE, predicted))
    browser = client(workspace)
    for name, dose in (
        ("dose_planned", planned),
        ("dose_predicted", predicted),
        ("dose_difference", predicted - planned),
    ):
        image = nifti(browser.get(layer(browser, name, "/rt_dose/cases/a1")["volume"]).content, tmp_path)
        slope = float(image.dataobj.slope)
        assert slope == pytest.approx(0.002, abs=0.001)
        assert np.abs(image.get_fdata().transpose(2, 1, 0) - dose).max() <= slope
    (view,) = browser.get("/rt_dose/cases/a1/view.json").json()["views"]
    limits = next(table for table in view["tables"] if table["title"].startswith("Limits"))
    assert limits["columns"] == ["Structure", "Limit", "planned", "predicted"]
    assert all(row[2] != row[3] for row in limits["rows"] if row[0] == "PTV70")
    names = [line["name"] for line in view["charts"][0]["lines"]]
    assert "PTV70, planned" in names
    assert "PTV70, predicted" in names


def test_a_grid_without_a_place_in_the_patient_states_none(workspace: Workspace, tmp_path: Path) -> None:
    add_case(workspace, "breast_us", lambda folder: write_breast(folder, pixel_mm=None))
    browser = client(workspace)
    image = nifti(browser.get(layer(browser, "image", "/breast_us/cases/a1")["volume"]).content, tmp_path)
    assert image.header["sform_code"] == image.header["qform_code"] == 0
    assert image.header.get_xyzt_units()[0] == "unknown"
    (view,) = browser.get("/breast_us/cases/a1/view.json").json()["views"]
    assert view["spacing_mm"] is None
    assert view["planes"][0]["letters"] == []


def test_a_part_is_sent_where_a_part_is_asked_for(browser: TestClient) -> None:
    address = layer(browser, "ct")["volume"]
    whole = browser.get(address)
    assert whole.headers["accept-ranges"] == "bytes"
    for text, part in (
        ("bytes=0-9", whole.content[:10]),
        (f"bytes={HEADER - 4}-{HEADER + 3}", whole.content[HEADER - 4 : HEADER + 4]),
        ("bytes=-6", whole.content[-6:]),
        (f"bytes={len(whole.content) - 2}-", whole.content[-2:]),
        ("bytes=5-999999999", whole.content[5:]),
    ):
        answer = browser.get(address, headers={"range": text})
        assert answer.status_code == 206
        assert answer.content == part
    for text in ("bytes=9999999999-", "bytes=8-3", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=-0"):
        answer = browser.get(address, headers={"range": text})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{len(whole.content)}"
    other = browser.get(address, headers={"range": "bytes=0-9", "if-range": '"other"'})
    assert other.status_code == 200


def test_a_browser_keeps_what_an_address_with_its_key_names(browser: TestClient) -> None:
    address = layer(browser, "ct")["volume"]
    answer = browser.get(address)
    assert "immutable" in answer.headers["cache-control"]
    assert browser.get(address, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert "immutable" not in browser.get(f"{CASE}/layers/ct.nii").headers["cache-control"]
    assert browser.get(f"{CASE}/view.json").headers["cache-control"] == "no-store"
    without = browser.get(f"{CASE}/view.json?model=none").json()["key"]
    assert without != browser.get(f"{CASE}/view.json").json()["key"]


@pytest.mark.parametrize(
    "path",
    [
        "/lung_ct/cases/a2/view.json",
        "/other/cases/a1/view.json",
        "/lung_ct/cases/a/view.json",
        f"{CASE}/view.json?model=other",
        f"{CASE}/view.json?model=..%2F..%2Fcheckpoint",
        f"{CASE}/layers/other.nii",
        f"{CASE}/layers/..%2Fcase.json",
        f"{CASE}/layers/..%2f..%2f..%2fraw.nii",
        "/lung_ct/cases/..%2Fa1/view.json",
        "/lung_ct/cases/%2e%2e/layers/ct.nii",
        f"{CASE}/layers/ct/3/0",
        f"{CASE}/layers/ct/0/20",
        f"{CASE}/layers/ct/0/-1",
        f"{CASE}/layers/ct/0/99999999999999999999",
        f"{CASE}/layers/ct/zero/0",
    ],
)
def test_what_there_is_not_is_not_found(browser: TestClient, path: str) -> None:
    assert browser.get(path).status_code == 404


def test_a_case_that_the_audit_quarantined_is_displayed(browser: TestClient, workspace: Workspace) -> None:
    catalog = Catalog(workspace, "lung_ct")
    (row,) = catalog.prepared()
    refused = replace(row, status=Status.QUARANTINED, reason_code="audit", reason="expected 48 slices")
    catalog.replace(PreparedCase, [refused], row.batch)
    assert browser.get(f"{CASE}/view.json").status_code == 200
    assert f'data-view="{CASE}/view.json"' in browser.get(CASE).text
    catalog.replace(PreparedCase, [replace(refused, artifact="")], row.batch)
    assert browser.get(f"{CASE}/view.json").status_code == 404
    assert "data-view" not in browser.get(CASE).text


def test_a_damaged_case_says_so(browser: TestClient, workspace: Workspace) -> None:
    (workspace.store.fetch("prepared/a1") / "ct.npy").unlink()
    answer = browser.get(f"{CASE}/view.json")
    assert answer.status_code == 409
    assert "prepare it again" in answer.json()["error"]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_patients_right_is_on_the_left_however_the_voxels_are_stored(order: tuple[int, int, int]) -> None:
    axes = np.eye(3)[[2, 1, 0]]  # S, P, L: the order of axial slices
    for signs in product((1, -1), repeat=3):
        direction = tuple(
            tuple(float(value) for value in sign * axes[axis]) for axis, sign in zip(order, signs, strict=True)
        )
        grid = Grid.of(Geometry((4, 5, 6), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0), direction))
        for plane in planes_of(grid, ANATOMICAL):
            across = {"axial": 2, "coronal": 1, "sagittal": 0}[plane.name]
            assert abs(direction[plane.axis][across]) == 1
            right = np.array(direction[plane.columns.axis]) * (-1 if plane.columns.flipped else 1)
            down = np.array(direction[plane.rows.axis]) * (-1 if plane.rows.flipped else 1)
            assert right.tolist() == {"sagittal": [0, 1, 0]}.get(plane.name, [1, 0, 0])
            assert down.tolist() == {"axial": [0, 1, 0]}.get(plane.name, [0, 0, -1])
            assert plane.letters == {
                "axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I"),
            }[plane.name]  # fmt: skip
            assert plane.rows.spacing_mm == plane.rows.axis + 1


def test_a_case_opens_in_its_largest_slice() -> None:
    mask = np.zeros((5, 8, 8), bool)
    mask[1, 0, 0] = mask[3, 2:5, 3:6] = True
    assert middle_of(mask) == (3, 3, 4)
    assert middle_of(np.zeros((2, 2, 2), bool)) is None


def test_no_program_needs_torch_to_show_a_case() -> None:
    code = (
        "import sys, med_assets.review.app\nfrom med_assets.program import registered\n"
        "for name in registered(): __import__(f'med_assets.programs.{name}.views')\n"
        "print([name for name in ('torch', 'monai', 'matplotlib', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_scripts_of_others_are_those_that_were_recorded() -> None:
    (source,) = (STATIC / "vendor").glob("*/source.yaml")
    recorded = read_yaml(source)["sha256"]
    assert {path.name: file_sha256(path) for path in source.parent.iterdir() if path != source} == recorded
