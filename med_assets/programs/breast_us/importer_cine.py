"""Cine loops of ultrasound to one folder per frame: each frame an image of its own, with the mask that a SEG has of it.

Patient, study and regions are those of the loop, so that all frames of a patient are in one split. Of a loop that a SEG refers to by
ReferencedFrameNumber the frames with a segment are taken; of any other, evenly spaced ones, to be predicted.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from med_assets.dicom.discover import Instance, load, scan
from med_assets.dicom.loops import Loop, key_frames, masks_of_frames, read_loop, single_image
from med_assets.dicom.objects import save
from med_assets.dicom.segmentation_2d import Segment2D, write_segmentation_2d
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.importing.folders import CaseFolders, content_of, identifier
from med_assets.landing.importing.report import ImportReport
from med_assets.programs.breast_us.prepare import united


def import_loops(src: Path, dest: Path, frames_per_loop: int, limit: int | None = None) -> ImportReport:
    """Write dest/<loop>-frame-<number>/ with us.dcm, and seg.dcm where there is a mask, for frames of the loops below a folder.

    Patient, names and dates are as they come: intake de-identifies what is written. A folder appears only when complete, and what can't
    be used is reported as skipped. Frames are decoded one by one. Raises ConfigurationError where there is no loop.
    """
    if frames_per_loop < 1:
        raise ConfigurationError(f"expected --frames-per-loop of 1 or more, got {frames_per_loop}")
    found = scan(src)
    loops = sorted((one for one in found.instances if one.modality == "US"), key=lambda one: one.sop_instance_uid)
    if not loops:
        raise ConfigurationError(f"expected DICOM of ultrasound in {src}, found none; give the folder of the loops")
    segs = defaultdict(list)
    for one in found.instances:
        if one.modality == "SEG":
            for uid in one.referenced_sops:
                segs[uid].append(one)
    made = CaseFolders(dest)
    for loop in loops[:limit]:
        name = loop.path.relative_to(src).with_suffix("").as_posix().replace("/", "-")
        _import(made, name, loop, segs[loop.sop_instance_uid], frames_per_loop)
    for unread in found.rejected:
        made.skipped[identifier(unread.path.relative_to(src).as_posix())] = f"{unread.code}: {unread.message}"
    return made.report()


def _import(made: CaseFolders, name: str, instance: Instance, segs: list[Instance], frames_per_loop: int) -> None:
    """Write the frames of one loop; a loop that can't be read is skipped whole."""
    paths = [instance.path, *(one.path for one in segs)]
    try:
        loop = read_loop(instance.path)
        masks: dict[int, list[Segment2D]] = {}
        for seg in segs:
            for number, segments in masks_of_frames(load(seg), instance.sop_instance_uid).items():
                masks.setdefault(number, []).extend(segments)
        if segs and not masks:
            raise CaseRejected(
                "no_image",
                "expected a SEG that says by ReferencedFrameNumber which frames it is of, got one that doesn't; export it with them",
            )
        wanted = sorted(masks) or key_frames(loop.n_frames, frames_per_loop)
        if stray := sorted(number for number in wanted if not 1 <= number <= loop.n_frames):
            raise CaseRejected(
                "no_image",
                f"expected frames 1 to {loop.n_frames}, got a segment on frame {stray[0]}; is it of this loop?",
            )
        for number, pixels in zip(wanted, loop.frames(wanted), strict=True):
            write = partial(_write, loop=loop, number=number, pixels=pixels, segments=masks.get(number, []))
            frame = identifier(f"{name}-frame-{number:05d}")
            made.write(frame, instance.path, partial(content_of, paths, number), write)
    except CaseRejected as error:
        made.skipped[identifier(name)] = f"{error.code}: {error.message}"


def _write(folder: Path, loop: Loop, number: int, pixels: np.ndarray, segments: list[Segment2D]) -> None:
    image: Dataset = single_image(loop, number, pixels)
    save(image, folder / "us.dcm")
    if segments:
        label, mask = united(segments, (pixels.shape[0], pixels.shape[1]))
        write_segmentation_2d(folder / "seg.dcm", mask, label, image)
