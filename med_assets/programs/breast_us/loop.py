"""A cine loop, predicted frame by frame: the area of the lesion over time, and how alike frames that follow each other are."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from med_assets.dicom.loops import Loop, read_loop
from med_assets.dicom.ultrasound import pixel_size_mm
from med_assets.programs.breast_us.classes import of_lesion
from med_assets.programs.breast_us.predict import Predictor, load_predictor, probabilities
from med_assets.programs.breast_us.prepare import box_of_tissue
from med_assets.storage.files import replacing, write_json
from med_assets.training.accelerator import inference_device

FRAMES, SUMMARY, CURVE, MASKS = "frames.csv", "loop.json", "area.png", "masks"


@dataclass(frozen=True)
class Frame:
    """What is predicted of one frame, numbered from 1 as in ReferencedFrameNumber; None where it is undefined."""

    frame: int
    time_s: float | None
    lesion_pixels: int
    lesion_mm2: float | None
    highest_probability: float
    iou_with_previous: float | None
    """|A and B| / |A or B| of this frame's lesion and that of the frame before; undefined where both are empty, and for the first."""


def predict_loop(checkpoint: Path, path: Path, out: Path, threshold: float, masks: bool) -> list[Path]:
    """Write FRAMES, SUMMARY and CURVE, and with `masks` one PNG of the whole picture for each frame; returns their paths.

    Raises CaseRejected for a file that is no ultrasound, and as the decoding of its frames does.
    """
    loop = read_loop(path)
    out.mkdir(parents=True, exist_ok=True)
    frames = _frames(load_predictor(checkpoint, inference_device()), loop, threshold, out / MASKS if masks else None)
    with replacing(out / FRAMES) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(Frame.__dataclass_fields__)
        writer.writerows([_shown(getattr(one, name)) for name in Frame.__dataclass_fields__] for one in frames)
    write_json(out / SUMMARY, summary(frames))
    _plot(out / CURVE, frames)
    return [out / FRAMES, out / SUMMARY, out / CURVE, *([out / MASKS] if masks else [])]


def _shown(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"


def _frames(predictor: Predictor, loop: Loop, threshold: float, masks: Path | None) -> list[Frame]:
    """Predict one frame after another; of each only numbers are kept, and the mask until the next."""
    from PIL import Image

    box, pixel = box_of_tissue(loop.dataset), pixel_size_mm(loop.dataset)
    found: list[Frame] = []
    before: np.ndarray | None = None
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
    for number, grey in enumerate(loop.frames(), start=1):
        image = grey[box]
        chances = probabilities(predictor.both(image)[0], image.shape)
        probability = of_lesion(chances) if predictor.experiment.classes else chances[0]
        mask = probability > threshold
        n = int(np.count_nonzero(mask))
        found.append(
            Frame(
                number,
                None if loop.times_s is None else loop.times_s[number - 1],
                n,
                None if pixel is None else n * pixel[0] * pixel[1],
                float(probability.max()),
                None if before is None else likeness(before, mask),
            )
        )
        if masks is not None:
            whole = np.zeros(grey.shape, np.uint8)
            whole[box] = mask * np.uint8(255)
            Image.fromarray(whole).save(masks / f"frame_{number:05d}.png")
        before = mask
    return found


def likeness(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return |A and B| / |A or B| of two masks; None where both are empty."""
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else None


def summary(frames: Sequence[Frame]) -> dict[str, object]:
    """Return what is measured of the whole loop, each number with its definition and n."""
    likenesses = [one.iou_with_previous for one in frames if one.iou_with_previous is not None]
    largest = max(frames, key=lambda one: one.lesion_pixels)
    with_lesion = sum(one.lesion_pixels > 0 for one in frames)
    return {
        "frames": len(frames),
        "frames_with_lesion": with_lesion,
        "largest": {"frame": largest.frame, "time_s": largest.time_s, "lesion_mm2": largest.lesion_mm2} if with_lesion else None,
        "temporal_consistency": {
            "value": float(np.mean(likenesses)) if likenesses else None,
            "n": len(likenesses),
            "definition": "mean over pairs of frames that follow each other of |A and B| / |A or B| of the predicted lesion; pairs without "
            "a lesion in both are left out, and without any pair it is undefined",
        },
    }  # fmt: skip


def _plot(path: Path, frames: Sequence[Frame]) -> None:
    """Plot the area of the lesion and the likeness of consecutive frames over time, or over frames where no time is stated."""
    from med_assets.reporting.style import colour, figure

    timed, sized = frames[0].time_s is not None, frames[0].lesion_mm2 is not None
    along = [one.time_s if timed else one.frame for one in frames]
    with figure(path, 6.4, 4.2) as fig:
        area, alike = fig.subplots(2, 1, sharex=True)
        area.plot(along, [one.lesion_mm2 if sized else one.lesion_pixels for one in frames], color=colour(0))
        area.set(ylabel=f"lesion, {'mm²' if sized else 'pixels'}")
        area.set_ylim(bottom=0)
        values = [np.nan if one.iou_with_previous is None else one.iou_with_previous for one in frames]
        alike.plot(along, values, color=colour(1))
        alike.set(ylabel="IoU with the frame before", ylim=(0, 1.02), xlabel="time, s" if timed else "frame")
