"""Cine loops of ultrasound: US Multi-frame Image objects, whose frames are decoded one by one.

Frames are numbered from 1, as in ReferencedFrameNumber. DICOM PS3.3, C.7.6.5 (Cine) and C.8.5.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UltrasoundMultiFrameImageStorage

from med_assets.dicom.blanking import Box
from med_assets.dicom.discover import load
from med_assets.dicom.elements import decoding, number, text
from med_assets.dicom.objects import Identity, save, set_pixels
from med_assets.dicom.ultrasound import grey_values, require_grey_or_colour, us_object
from med_assets.errors import CaseRejected

MAX_FRAMES = 20_000
"""Frames of one loop: several minutes at sixty a second."""

MAX_FRAME_SAMPLES = 1 << 25
"""Samples of one frame, 5800 x 5800 in grey."""


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop: its object with the frames as they are stored, their number, and the time of each since the first, s."""

    dataset: Dataset
    n_frames: int
    times_s: tuple[float, ...] | None

    def frames(self) -> Iterator[np.ndarray]:
        """Decode one frame after another to grey values 0 to 255, uint8 (rows, columns).

        Raises CaseRejected: truncated_file, undecodable_pixels.
        """
        from pydicom.pixels import iter_pixels

        decoded = iter_pixels(self.dataset)
        for _ in range(self.n_frames):
            with decoding(text(self.dataset.file_meta, "TransferSyntaxUID")):
                frame = next(decoded)
            yield grey_values(self.dataset, np.asarray(frame))


def read_loop(path: Path) -> Loop:
    """Read a loop; a single image is one of one frame. Only its encoded bytes are held, and no frame is decoded yet.

    Raises CaseRejected: wrong_modality, unusual_pixels, too_large, and what `load` raises.
    """
    ds = load(path)
    require_grey_or_colour(ds)
    n_frames = int(number(ds, "NumberOfFrames") or 1)
    samples = int(ds.Rows) * int(ds.Columns) * int(ds.SamplesPerPixel)
    if not 1 <= n_frames <= MAX_FRAMES or samples > MAX_FRAME_SAMPLES:
        raise CaseRejected(
            "too_large",
            f"Expected at most {MAX_FRAMES} frames of {MAX_FRAME_SAMPLES} samples; got {n_frames} of {samples}. Send a part of the loop.",
        )
    return Loop(ds, n_frames, _times_s(ds, n_frames))


def _times_s(ds: Dataset, n_frames: int) -> tuple[float, ...] | None:
    """The time of each frame by FrameTimeVector, FrameTime or CineRate; None where the loop states none that fits."""
    vector = ds.get("FrameTimeVector")
    if vector is not None:
        steps = [float(step) for step in (vector if not isinstance(vector, str | float | int) else [vector])]
        if len(steps) == n_frames and all(step >= 0 for step in steps):
            return tuple(float(time) / 1000 for time in np.cumsum([0.0, *steps[1:]]))
    step_ms, rate = number(ds, "FrameTime"), number(ds, "CineRate")
    step = step_ms / 1000 if step_ms else 1 / rate if rate else 0.0
    return tuple(index * step for index in range(n_frames)) if step > 0 else None


def write_us_loop(
    path: Path,
    frames: np.ndarray,
    identity: Identity,
    *,
    frame_ms: float,
    pixel_mm: tuple[float, float] | None = None,
    region: Box | None = None,
) -> Dataset:
    """Write grey frames, uint8 (frames, rows, columns), as an Ultrasound Multi-frame Image; the same input gives the same bytes."""
    ds = us_object(frames.shape[1:], identity, UltrasoundMultiFrameImageStorage, pixel_mm, region, "loop")
    set_pixels(ds, frames)
    ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = len(frames), frame_ms, Tag("FrameTime")
    ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
    save(ds, path)
    return ds
