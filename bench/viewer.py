"""Time from the click to the first picture of a CT of 512 x 512 x 300 in headless Chromium, until all of it is in the browser, and of scrolling.

`python -m bench.viewer [REPEATS]`. WebGL is not used; Chromium draws without a GPU. The case has a label and a prediction, so three
planes with both masks are the first picture. The server is `med-assets review` in a process of its own.
"""

import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.common import KEY, show, workspace
from med_assets.catalog import Catalog
from med_assets.dicom.geometry import Geometry
from med_assets.evaluation.predicting import prediction_key
from med_assets.programs.lung_ct.kept import PREDICTION
from med_assets.records import CaseVersion, Checkpoint, PreparedCase, Status
from med_assets.settings import Workspace
from med_assets.storage.files import write_json

SHAPE, SPACING_MM = (300, 512, 512), (1.0, 0.7, 0.7)
CASE, CHECKPOINT = "bench0", "checkpoint/bench0"
TARGET, TARGET_ID = "lung tumor", 23
CHROMIUM = "/usr/bin/chromium"
SCROLLS = 100
ROOT = Path(__file__).resolve().parents[1]

SCROLLING = """async (steps) => {
  const viewer = document.querySelector(".viewer").viewer, times = [];
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  for (let step = 0; step < steps; step++) {
    const start = performance.now();
    viewer.scroll(viewer.planes[step % 3], 1);
    do await frame(); while (viewer.planes.some((plane) => plane.drawn !== plane.index));
    times.push(performance.now() - start);
  }
  return times;
}"""


def write_case(ws: Workspace) -> None:
    """Put a case of noise in a body into the store, with the mask of a ball, and a prediction a little beside it."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    body = ((x - 256) / 200) ** 2 + ((y - 256) / 150) ** 2 < 1
    ball, beside = (((z - 150) ** 2 + (y - 240) ** 2 + (x - at) ** 2) < 40**2 for at in (300, 306))
    artifact = f"prepared/{CASE}"
    with ws.store.create(artifact) as folder:
        ct = np.where(body, 40, -1000).astype(np.int16) + rng.integers(-30, 30, SHAPE, np.int16)
        np.save(folder / "ct.npy", ct)
        np.save(folder / "truth.npy", np.where(ball, TARGET_ID, 0).astype(np.uint8))
        np.save(folder / "image.npy", np.zeros((8, 8, 8), np.float32))
        np.save(folder / "label.npy", np.zeros((8, 8, 8), np.uint8))
        np.save(folder / "sources.npy", np.zeros((8, 8, 8), np.int16))
        write_json(
            folder / "case.json",
            {
                "case_id": CASE, "geometry": Geometry(SHAPE, SPACING_MM, (0.0, 0.0, 0.0)).to_dict(), "spacing_mm": [1.5] * 3,
                "target": TARGET, "target_id": TARGET_ID, "exposure": "unseen", "synthetic": True, "settings": {},
            },
        )  # fmt: skip
        write_json(folder / "truth.json", {"names": {str(TARGET_ID): TARGET}})
    catalog = Catalog(ws, "lung_ct")
    batch = "2026-01-31T09-30-00_0a1b2c"
    version = CaseVersion(
        program="lung_ct", batch=batch, case_id=CASE, patient_id="bench", version="v", content_hash="c", images_hash="i",
        artifact=artifact, given_split=None, n_instances=SHAPE[0], synthetic=True, status=Status.OK, reason_code=None, reason=None,
        deidentified_by=None, parent=None,
    )  # fmt: skip
    catalog.replace(CaseVersion, [version], batch)
    catalog.replace(PreparedCase, [PreparedCase.of(version.row() | {"warnings": None})], batch)
    checkpoint = Checkpoint(
        program="lung_ct", experiment="foundation", checkpoint=CHECKPOINT, experiment_hash="h", dataset_version="d", n_train=1,
        n_val=1, synthetic=True, weights_sha256="w", git_commit=None,
    )  # fmt: skip
    catalog.replace(Checkpoint, [checkpoint], "foundation")
    with ws.store.create(prediction_key(ws, "lung_ct", CHECKPOINT, artifact)) as folder:
        np.save(folder / PREDICTION, np.packbits(beside))


@contextmanager
def server(ws: Workspace) -> Iterator[str]:
    """The review page of a home; its address."""
    environment = {"MED_ASSETS_HOME": str(ws.home), "MED_ASSETS_PSEUDONYM_KEY": KEY, "MED_ASSETS_PURPOSE": "demo"}
    environment |= {"MED_ASSETS_PROFILE": "demo", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-m", "med_assets.cli", "review", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        if found is None:
            sys.exit("the server did not start")
        yield found.group()
    finally:
        process.terminate()
        process.wait()


def measure(address: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds from the click, in a browser that has kept nothing, and of each of SCROLLS slices."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {"first picture": [], "whole volume": [], "scrolling": []}
    with sync_playwright() as playwright:
        for _ in range(repeats):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.goto(address)  # a reader comes from a list
            page.goto(f"{address}/lung_ct/cases/{CASE}", wait_until="commit")
            page.wait_for_selector('.viewer[data-state="complete"]', timeout=60_000)
            root = page.locator(".viewer")
            found["first picture"].append(float(root.get_attribute("data-first-ms") or "nan"))
            found["whole volume"].append(float(root.get_attribute("data-complete-ms") or "nan"))
            found["scrolling"] += page.evaluate(SCROLLING, SCROLLS)
            browser.close()
    return found


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        ws = workspace(Path(folder) / "home")
        write_case(ws)
        with server(ws) as address:
            measured = measure(address, repeats)
    rows = [
        (what, len(times), statistics.median(times), sorted(times)[round(0.95 * (len(times) - 1))], max(times))
        for what, times in measured.items()
    ]
    show("A CT of 512 x 512 x 300 in the viewer, ms", ("what", "n", "median", "95 %", "longest"), rows)


if __name__ == "__main__":
    main()
