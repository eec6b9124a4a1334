"""Image files that are no DICOM, such as NIfTI or PNG, written as the DICOM of a case, so that they pass what DICOM passes."""

from dataclasses import dataclass
from pathlib import Path

from med_assets import program
from med_assets.capabilities import PlainImages
from med_assets.storage.files import file_sha256


@dataclass(frozen=True)
class PlainImage:
    """An image file of a program's own kinds; `folder`, which is empty, gets its DICOM."""

    program: str
    image: Path
    folder: Path


def write_plain_image(task: PlainImage) -> None:
    """Write the DICOM of one image; its patient is known by the content of the file alone, never by its name.

    Runs in the process that reads files of strangers, with its limits of memory and time. Raises CaseRejected.
    """
    chosen = program.get(task.program)
    assert isinstance(chosen, PlainImages)
    chosen.write_plain_image(task.image, task.folder, f"file-{file_sha256(task.image)[:32]}")
