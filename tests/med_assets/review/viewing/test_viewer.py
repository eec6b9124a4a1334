"""The viewer in a real browser: where voxels and overlays appear on the screen, by their pixels."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from med_assets.dicom.geometry import Geometry
from med_assets.programs.breast_us.kept import PROBABILITY
from med_assets.programs.lumbar_mr.kept import HEATS, SLICE_HEATS, SUMMARY
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lung_ct.kept import PREDICTION
from med_assets.programs.retinal_oct.kept import PREDICTION as CLASSES
from med_assets.programs.rt_dose.kept import PREDICTION as DOSE
from med_assets.settings import Workspace
from med_assets.storage.files import write_json
from tests.med_assets.programs.breast_us.builders import write_prepared as write_breast
from tests.med_assets.programs.lumbar_mr.builders import write_prepared as write_lumbar
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared as write_lung
from tests.med_assets.programs.retinal_oct.builders import write_prepared as write_oct
from tests.med_assets.review.viewing.builders import add_case, add_prediction, served, write_placed_dose

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[[str], "Page"]

PIXEL = """([voxel, name]) => {
  const viewer = document.querySelector(".viewer").viewer;
  const plane = viewer.planes.find((one) => one.name === name);
  const [x, y] = plane.pointOf(voxel).map(Math.round);
  const { width, height } = plane.canvas;
  return [[...plane.canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3), x / width, y / height];
}"""
"""Colour at the place of a voxel in a plane, and that place as a share of width and height."""

SETTLE = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def pixel(page: "Page", voxel: Sequence[float], plane: str) -> tuple[list[int], float, float]:
    colour, x, y = page.evaluate(PIXEL, [list(voxel), plane])
    return colour, x, y


def state(page: "Page", expression: str) -> Any:
    page.evaluate(SETTLE)
    return page.evaluate(
        f"(() => {{ const viewer = document.querySelector('.viewer').viewer; return {expression}; }})()"
    )


def press(page: "Page", *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
    page.evaluate(SETTLE)


def is_red(colour: Sequence[int]) -> bool:
    return colour[0] > colour[2] + 20


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what a viewer draws when its layer has come."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def is_grey(colour: Sequence[int]) -> bool:
    return max(colour) - min(colour) <= 2


def write_cube(folder: Path, axes: str) -> None:
    """A CT in air with a bright cube in the upper left front of the patient, which is labelled; voxels run along `axes`."""
    write_lung(folder)
    shape = (12, 16, 20)
    towards = {"S": (0, 0, 1), "I": (0, 0, -1), "P": (0, 1, 0), "A": (0, -1, 0), "L": (1, 0, 0), "R": (-1, 0, 0)}
    direction = tuple(tuple(float(value) for value in towards[letter]) for letter in axes)
    # Far along L, S and A.
    at = tuple(slice(-5, -1) if letter in "LSA" else slice(1, 5) for letter in axes)
    ct, truth = np.full(shape, -1000, np.int16), np.zeros(shape, np.uint8)
    ct[at], truth[at] = 1000, 23
    np.save(folder / "ct.npy", ct)
    np.save(folder / "truth.npy", truth)
    path = folder / "case.json"
    geometry = Geometry(shape, (3.0, 2.0, 1.5), (0.0, 0.0, 0.0), direction).to_dict()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"geometry": geometry}))


@pytest.mark.parametrize("axes", ["SPL", "LIP", "IAR"])
def test_left_is_left_and_the_mask_lies_on_what_it_outlines(workspace: Workspace, open_page: Open, axes: str) -> None:
    key = add_case(workspace, "lung_ct", lambda folder: write_cube(folder, axes))
    truth = np.load(workspace.store.fetch(key) / "truth.npy") == 23
    middle = [float(values.mean()) for values in np.nonzero(truth)]
    with served(workspace) as address:
        page = open_page(f"{address}/lung_ct/cases/a1?model=none")
        press(page, "x", "3")
        for plane, right, down in (("axial", 1, 0), ("coronal", 1, 0), ("sagittal", 0, 0)):
            colour, x, y = pixel(page, middle, plane)
            assert (x > 0.5) == bool(right), f"{plane} of {axes}: left of the patient is right of the picture"
            assert (y > 0.5) == bool(down), f"{plane} of {axes}: front and head are up"
            assert colour[1] > colour[0] + 20, f"{plane}: the label's green lies on the cube"
            beside = list(middle)
            depth = state(page, f"viewer.planes.find((one) => one.name === '{plane}').axis")
            for axis in {0, 1, 2} - {depth}:
                beside[axis] = truth.shape[axis] - 1 - middle[axis]
            assert is_grey(pixel(page, beside, plane)[0]), f"{plane}: nothing is drawn opposite of the cube"
        press(page, "o")
        colour, _, _ = pixel(page, middle, "axial")
        assert is_grey(colour)
        assert colour[0] > 240, "the cube is white in the bone window"


def test_keyboard_and_wheel_scroll_zoom_and_set_windows(workspace: Workspace, open_page: Open) -> None:
    add_case(workspace, "lung_ct", write_lung)
    with served(workspace) as address:
        page = open_page(f"{address}/lung_ct/cases/a1")
        start = state(page, "viewer.cursor")
        press(page, "ArrowDown", "ArrowDown", "ArrowUp")
        assert state(page, "viewer.cursor") == [start[0] + 1, *start[1:]]
        press(page, "ArrowRight", "ArrowDown")
        assert state(page, "viewer.cursor") == [start[0] + 1, start[1] + 1, start[2]]
        press(page, *["PageDown"] * 9)
        assert state(page, "viewer.cursor")[1] == 23, "the last slice is the end"
        press(page, "2")
        assert state(page, "[viewer.window.low, viewer.window.high]") == [-160, 240]
        press(page, "+")
        assert state(page, "viewer.zoom") == 1.25
        press(page, "0")
        assert state(page, "viewer.zoom") == 1
        page.locator("canvas[data-plane=axial]").hover()
        page.mouse.wheel(0, 80)
        assert state(page, "viewer.cursor")[0] == start[0] + 3
        assert "axial" in page.locator("figcaption").first.inner_text()
        page.locator("canvas[data-plane=axial]").click(position={"x": 5, "y": 300})
        assert state(page, "viewer.cursor")[2] == 0, "a click moves the crosshair"


def test_the_difference_of_label_and_prediction_has_colours_of_its_own(workspace: Workspace, open_page: Open) -> None:
    key = add_case(workspace, "lung_ct", lambda folder: write_cube(folder, "SPL"))
    truth = np.load(workspace.store.fetch(key) / "truth.npy") == 23
    predicted = np.roll(truth, -2, axis=2)
    add_prediction(
        workspace, "lung_ct", key, "foundation", lambda folder: np.save(folder / PREDICTION, np.packbits(predicted))
    )
    places = {
        name: [float(value) for value in np.argwhere(mask)[len(np.argwhere(mask)) // 2]]
        for name, mask in (("missed", truth & ~predicted), ("added", predicted & ~truth), ("both", truth & predicted))
    }
    with served(workspace) as address:
        page = open_page(f"{address}/lung_ct/cases/a1")
        press(page, "x", "d")
        red, green, blue = pixel(page, places["missed"], "axial")[0]
        assert min(red, blue) > green + 20, "missed is magenta"
        red, green, blue = pixel(page, places["added"], "axial")[0]
        assert min(red, green) > blue + 20, "added is amber"
        red, green, blue = pixel(page, places["both"], "axial")[0]
        assert green > red > 0, "both is green"


def test_a_dose_has_colours_isodoses_and_a_dvh(workspace: Workspace, open_page: Open) -> None:
    key = add_case(workspace, "rt_dose", write_placed_dose)
    folder = workspace.store.fetch(key)
    planned = np.load(folder / "dose.npy")
    add_prediction(workspace, "rt_dose", key, "baseline", lambda out: np.save(out / DOSE, planned * np.float32(1.03)))
    hot = [float(value) for value in np.unravel_index(int(planned.argmax()), planned.shape)]
    with served(workspace) as address:
        page = open_page(f"{address}/rt_dose/cases/a1")
        page.evaluate(f"document.querySelector('.viewer').viewer.moveTo({hot})")
        press(page, "x")
        red, green, blue = pixel(page, hot, "axial")[0]
        assert red > blue + 40, "the highest dose is red"
        assert red > green + 20
        assert is_grey(pixel(page, [hot[0], 1, 1], "axial")[0]), "no dose outside of the body has no colour"
        legend = page.locator(".viewer-legend")
        assert "100 %" in legend.all_inner_texts()
        page.get_by_role("button", name="in Gy").click()
        assert "70 Gy" in legend.all_inner_texts()
        page.get_by_label("predicted - planned").check()
        page.get_by_label("predicted dose").uncheck()
        until(lambda: is_red(pixel(page, hot, "axial")[0]), "more than planned is red")
        assert page.locator(".viewer-chart canvas").count() == 1
        assert page.locator(".viewer-table tbody tr").count() > 5


def test_level_points_maps_and_second_peaks_are_on_the_spine(workspace: Workspace, open_page: Open) -> None:
    key = add_case(workspace, "lumbar_mr", write_lumbar)
    case = json.loads((workspace.store.fetch(key) / "case.json").read_text())
    rows, columns = case["shape"][1:]

    def on_map(point: Sequence[float]) -> tuple[int, int]:
        return int(point[1] * 160 / rows), int(point[2] * 160 / columns)

    def predict(out: Path) -> None:
        heats = np.zeros((5, 160, 160), np.float16)
        for number, level in enumerate(LEVELS):
            y, x = on_map(case["levels"][level])
            heats[number, y - 4 : y + 5, x - 4 : x + 5] = 0.9
        y, x = on_map(case["levels"]["l3_l4"])
        heats[4, y - 3 : y + 4, x - 3 : x + 4] = 0.7  # L5/S1 could be a level or two higher
        np.save(out / HEATS, heats)
        np.save(out / SLICE_HEATS, heats[None])
        points = {level: {"voxel": case["levels"][level], "mm": [0, 0, 0]} for level in LEVELS}
        table = {level: {"confidence": 0.9, "second_peak_share": 0.3} for level in LEVELS}
        middle = case["middle"]
        write_json(out / SUMMARY, {"points": points, "middle": middle, "slices": [middle], "uncertainty": table})

    add_prediction(workspace, "lumbar_mr", key, "point_net", predict)
    with served(workspace) as address:
        page = open_page(f"{address}/lumbar_mr/cases/a1")
        markers = {(one["text"], one["role"]) for one in state(page, "viewer.view.markers")}
        assert ("L4/L5", "label") in markers
        assert ("L4/L5", "prediction") in markers
        assert [text for text, role in markers if role == "second peak"] == ["L5/S1 second, 32%"]
        press(page, "x", "l", "p")
        point = case["levels"]["l1_l2"]
        red, green, blue = pixel(page, [point[0], point[1] + 2, point[2] + 2], "sagittal")[0]
        assert not is_grey((red, green, blue)), "the map lies on its level"
        _, _, y = pixel(page, point, "sagittal")
        assert y < 0.5, "L1 is above"
        away = [point[0], rows - 3, 3]
        assert is_grey(pixel(page, away, "sagittal")[0])
        assert page.locator("canvas").first.get_attribute("data-plane") == "sagittal"
        assert "0.9" in page.locator(".viewer-table").inner_text()


def test_a_volume_of_the_eye_has_bscans_and_classes(workspace: Workspace, open_page: Open) -> None:
    key = add_case(workspace, "retinal_oct", lambda folder: write_oct(folder, label=2))
    chances = {"probabilities": dict(zip(("healthy", "b", "c", "d"), (0.1, 0.2, 0.3, 0.4), strict=True)), "class": "d"}
    add_prediction(workspace, "retinal_oct", key, "probe", lambda out: write_json(out / CLASSES, chances))
    image = np.load(workspace.store.fetch(key) / "image.npy")
    with served(workspace) as address:
        page = open_page(f"{address}/retinal_oct/cases/a1")
        assert page.locator(".viewer").count() == 2
        assert page.locator("canvas").all()[0].get_attribute("data-plane") == "B-scan"
        press(page, "x")
        frame = state(page, "viewer.cursor")[0]
        bright, dark = (int(find(image[frame].mean(axis=1))) for find in (np.argmax, np.argmin))
        assert pixel(page, [frame, bright, 8], "B-scan")[0][0] > pixel(page, [frame, dark, 8], "B-scan")[0][0] + 60
        assert page.locator(".viewer-table tbody tr").count() == 4


def test_an_ultrasound_image_has_masks_and_a_probability(workspace: Workspace, open_page: Open) -> None:
    key = add_case(workspace, "breast_us", write_breast)
    truth = np.load(workspace.store.fetch(key) / "truth.npy") != 0
    probability = np.where(truth, 0.8, 0.0).astype(np.float16)
    add_prediction(workspace, "breast_us", key, "tinyusfm", lambda out: np.save(out / PROBABILITY, probability))
    inside = [0.0, *(float(values[len(values) // 2]) for values in np.nonzero(truth))]
    with served(workspace) as address:
        page = open_page(f"{address}/breast_us/cases/a1")
        press(page, "x", "p")
        red, green, _ = pixel(page, inside, "image")[0]
        assert green > red + 10, "the label alone is green"
        press(page, "l", "p")
        red, green, blue = pixel(page, inside, "image")[0]
        assert min(red, green) > blue + 10, "the prediction alone is amber"
        assert is_grey(pixel(page, [0, 1, 1], "image")[0])
