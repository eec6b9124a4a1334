"""How much of text burnt into pixels `med_assets.dicom.text_detection` finds: `python -m bench.text_in_pixels [--write]`.

Invented strings are planted into phantoms of ultrasound, several in a picture, as an opaque overlay of one grey level. A string counts
as found when at least 99 % of the pixels of its letters lie in a box, and so would be blanked. False positives are boxes in pictures
without text: ultrasound, CT and OCT. One core, about four minutes. `--write` puts the tables into docs/burnt-in-text.md.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.common import show
from med_assets.dicom.text_detection import find_text

SIZES_PIXELS, CONTRASTS, PICTURES = (8, 10, 12, 16, 24), (20, 40, 80, 160), 6
STRINGS = ("TEST PATIENT 0001", "PHANTOM 1900-01-01", "ID TEST-4711", "INVENTED CLINIC")
"""All planted in each picture."""

SHAPE = (240, 320)
FOUND_SHARE = 0.99
SEED = 20260101
PAGE = Path(__file__).resolve().parent.parent / "docs" / "burnt-in-text.md"
BEGIN, END = "<!-- made by python -m bench.text_in_pixels --write -->", "<!-- end of the tables -->"

Row = tuple[object, ...]


def interval(found: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934), in per cent."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, found, n - found + 1)) if found else 0.0
    high = float(beta.ppf(0.975, found + 1, n - found)) if found < n else 1.0
    return 100 * low, 100 * high


def ink(shape: tuple[int, int], string: str, size: int, left: int, top: int) -> np.ndarray:
    """Coverage 0 to 1 of each pixel by the letters of a string."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("L", (shape[1], shape[0]))
    ImageDraw.Draw(canvas).text((left, top), string, fill=255, font=ImageFont.load_default(size=size))
    return np.asarray(canvas) / 255.0


def planted(
    picture: np.ndarray, size: int, contrast: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture with each string in a band of its own, and the pixels of the letters of each."""
    rows, columns = picture.shape
    out, letters, band = picture.astype(np.float64), [], rows // len(STRINGS)
    for number, string in enumerate(STRINGS):
        width = int(0.75 * size * len(string))
        top = number * band + int(rng.integers(0, band - size - 4))
        left = int(rng.integers(4, max(5, columns - width)))
        cover = ink(picture.shape, string, size, left, top)
        level = min(255.0, float(picture[cover > 0].mean()) + contrast)
        out = out * (1 - cover) + level * cover
        letters.append(cover > 0.5)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8), letters


def is_found(letters: np.ndarray, boxes: Sequence[tuple[slice, slice]]) -> bool:
    """Whether blanking the boxes would blank the letters."""
    blanked = np.zeros(letters.shape, bool)
    for box in boxes:
        blanked[box] = True
    return bool(blanked[letters].mean() >= FOUND_SHARE)


def tissue(seed: int) -> np.ndarray:
    """The tissue of a phantom of ultrasound, without its border."""
    from med_assets.programs.breast_us.phantom import phantom

    made = phantom(seed, SHAPE)
    return made.pixels[made.region]


def sensitivity() -> Iterator[Row]:
    """A row for each size and contrast."""
    for size in SIZES_PIXELS:
        for contrast in CONTRASTS:
            rng, hits, n = np.random.default_rng((SEED, size, contrast)), 0, 0
            for seed in range(PICTURES):
                picture, letters = planted(tissue(seed), size, contrast, rng)
                boxes = find_text(picture)
                hits += sum(is_found(one, boxes) for one in letters)
                n += len(letters)
            low, high = interval(hits, n)
            yield size, contrast, n, hits, f"{100 * hits / n:.0f} % ({low:.0f} to {high:.0f})"


def clean_pictures() -> Iterator[tuple[str, np.ndarray]]:
    """Pictures without text, by their kind."""
    import tempfile

    from pydicom import dcmread

    from med_assets import program
    from med_assets.dicom.blanking import stored_pixels
    from med_assets.dicom.text_detection import as_picture

    for seed in range(20):
        yield "ultrasound", tissue(100 + seed)
    for name, kind, modality in (("lung_ct", "CT", "CT"), ("retinal_oct", "OCT", "OPT")):
        with tempfile.TemporaryDirectory() as scratch:
            program.get(name).write_phantoms(Path(scratch) / "cases", 2, 1)
            frames = []
            for path in sorted(Path(scratch).rglob("*.dcm")):
                ds = dcmread(path)
                if ds.Modality == modality:
                    frames += list(stored_pixels(ds))
        for frame in frames[:: max(1, len(frames) // 20)][:20]:
            yield kind, as_picture(frame)


def false_positives() -> Iterator[Row]:
    """A row for each kind of picture."""
    n: dict[str, int] = {}
    boxes: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for kind, picture in clean_pictures():
        started = time.perf_counter()
        found = find_text(picture)
        n[kind], boxes[kind] = n.get(kind, 0) + 1, boxes.get(kind, 0) + len(found)
        seconds[kind] = seconds.get(kind, 0.0) + time.perf_counter() - started
    for kind in n:
        yield kind, n[kind], boxes[kind], f"{boxes[kind] / n[kind]:.2f}", f"{seconds[kind] / n[kind]:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the tables into docs/burnt-in-text.md")
    write = parser.parse_args().write
    heads = (
        ("size of the font, pixels", "contrast, grey levels", "n", "found", "sensitivity (95 % interval)"),
        ("pictures without text", "n", "boxes", "boxes per picture", "seconds per picture"),
    )
    found, false = list(sensitivity()), list(false_positives())
    show("Text burnt into pixels: strings found", heads[0], found)
    show("Text burnt into pixels: boxes where there is no text", heads[1], false)
    if write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        tables = f"{markdown(heads[0], found)}\n\n{markdown(heads[1], false)}"
        PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


if __name__ == "__main__":
    main()
