"""Cine loops of ultrasound: US Multi-frame Image objects, whose frames are decoded one by one.

Frames are numbered from 1, as in ReferencedFrameNumber. DICOM PS3.3, C.7.6.5 (Cine) and C.8.5.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

from med_assets.dicom.blanking import PIXEL_GROUP, Box
from med_assets.dicom.discover import load
from med_assets.dicom.elements import decoding, number, text
from med_assets.dicom.objects import Identity, derived_uid, save, set_pixels
from med_assets.dicom.seg import frame_segment, segment_coding, stored_frames
from med_assets.dicom.segmentation_2d import Segment2D
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

    def frames(self, numbers: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """Decode one frame after another to grey values 0 to 255, uint8 (rows, columns); those of these numbers, or all.

        Raises CaseRejected: truncated_file, undecodable_pixels.
        """
        from pydicom.pixels import iter_pixels

        wanted = range(1, self.n_frames + 1) if numbers is None else numbers
        decoded = iter_pixels(self.dataset, indices=[number - 1 for number in wanted])
        for _ in wanted:
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


CINE = frozenset({
    "NumberOfFrames", "FrameIncrementPointer", "FrameTime", "FrameTimeVector", "FrameDelay", "CineRate", "RecommendedDisplayFrameRate",
    "ActualFrameDuration", "EffectiveDuration", "StartTrim", "StopTrim", "PreferredPlaybackSequencing", "RepresentativeFrameNumber",
})  # fmt: skip
"""Keywords of what only a loop has."""


def key_frames(n_frames: int, wanted: int) -> list[int]:
    """Return the numbers, from 1, of `wanted` frames that are evenly spaced, each in the middle of its part; all of a shorter loop."""
    if n_frames <= wanted:
        return list(range(1, n_frames + 1))
    return [int((part + 0.5) * n_frames / wanted) + 1 for part in range(wanted)]


def single_image(loop: Loop, frame: int, pixels: np.ndarray) -> Dataset:
    """Return one frame as an Ultrasound Image of its own, grey, with all that the loop says of patient, study and regions."""
    whole = loop.dataset
    ds = Dataset()
    ds.update(
        {
            element.tag: copy(element)
            for element in whole
            if element.keyword not in CINE and element.tag.group != PIXEL_GROUP and element.keyword not in COLOUR
        }
    )
    uid = derived_uid(text(whole, "SOPInstanceUID"), "frame", str(frame))
    ds.SOPClassUID, ds.SOPInstanceUID, ds.InstanceNumber = UltrasoundImageStorage, uid, frame
    ds.ImageType = ["DERIVED", *list(whole.get("ImageType") or ["", "SECONDARY"])[1:]]
    set_pixels(ds, pixels)
    ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
    return ds


COLOUR = frozenset(
    {"PlanarConfiguration", "SmallestImagePixelValue", "LargestImagePixelValue", "LossyImageCompression"}
)
"""Keywords that describe the loop's own pixels, whose frames are written as grey."""


def masks_of_frames(seg: Dataset, loop_uid: str) -> dict[int, list[Segment2D]]:
    """Return by number of a loop's frame the segments that a SEG has on it, of each the union of the frames of one segment.

    A frame of the SEG says by ReferencedFrameNumber which frame of the loop it is of; one that says none is of no use here. Raises
    CaseRejected as `read_segments_2d` does.
    """
    coding = segment_coding(seg)
    frames = list(seg.get("PerFrameFunctionalGroupsSequence") or ())
    shared = next(iter(seg.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    size = (int(number(seg, "Rows") or 0), int(number(seg, "Columns") or 0))
    found: dict[int, dict[int, np.ndarray]] = {}
    for frame, plane in zip(frames, stored_frames(seg, len(frames), size), strict=True):
        in_file = None if coding.kind == "LABELMAP" else frame_segment(frame, shared)
        for of in _referenced_frames(frame, loop_uid):
            masks = found.setdefault(of, {})
            for key, mask in coding.masks(plane, in_file):
                masks[key] = masks.get(key, np.zeros(size, bool)) | mask
    return {
        of: [Segment2D(key, coding.labels[key], masks[key]) for key in sorted(masks)]
        for of, masks in sorted(found.items())
    }


def _referenced_frames(frame: Dataset, loop_uid: str) -> list[int]:
    """Numbers of the loop's frames that a frame of a SEG is derived from."""
    numbers: list[int] = []
    for derivation in frame.get("DerivationImageSequence") or ():
        for source in derivation.get("SourceImageSequence") or ():
            if text(source, "ReferencedSOPInstanceUID") == loop_uid and "ReferencedFrameNumber" in source:
                value = source.ReferencedFrameNumber
                numbers += [int(one) for one in (value if not isinstance(value, str | int) else [value])]
    return numbers
