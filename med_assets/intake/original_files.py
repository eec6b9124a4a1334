"""The original files of a case, as they lie in the landing zone, for what reads them once more."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from med_assets.dicom.archives import expand, is_archive
from med_assets.errors import MedAssetsError
from med_assets.settings import Settings


def original_files(ws: Settings, program: str, members: Mapping[str, Sequence[str]], work: Path) -> list[Path]:
    """Local paths of files that are still there, by name in the landing zone and members of it where it is an archive.

    What has to be fetched or unpacked is put into the folder `work`. Raises LandingUnreadable.
    """
    there = ws.landing_zone(program).originals(program, list(members), work / "fetched")
    paths: list[Path] = []
    for number, (name, path) in enumerate(there.items()):
        paths += _members(path, members[name], work / str(number)) if any(members[name]) else [path]
    return paths


def _members(archive: Path, names: Sequence[str], out: Path) -> list[Path]:
    try:
        if is_archive(archive):
            expand(archive, out)
    except (MedAssetsError, OSError):  # what intake read may be gone or replaced since
        return []
    return [out / name for name in names if (out / name).is_file()]
