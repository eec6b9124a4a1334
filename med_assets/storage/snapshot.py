"""Folders whose files others replace, as they are at one moment."""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from med_assets.errors import ConfigurationError
from med_assets.storage.files import walk
from med_assets.storage.together import stamp

LONGEST_S = 120.0
"""How long a moment without a write is waited for."""


def snapshot(folders: Mapping[str, Path], into: Path) -> None:
    """Put the files of folders, by the names given, below `into` as they all are at one moment.

    Each file is only ever replaced, so a link to it stays what it was. Files are looked at again when all are linked: when none
    is another by then, all of them were there at once. Raises ConfigurationError where there is no such moment.
    """
    end = time.monotonic() + LONGEST_S
    linked: dict[str, tuple[int, ...]] = {}
    while (there := _stamps(folders)) != linked:
        if time.monotonic() > end:
            raise ConfigurationError(
                f"expected a moment without a write to the tables within {LONGEST_S:.0f} s, got none; try again when fewer stages run"
            )
        for name in [name for name in linked if linked[name] != there.get(name)]:
            (into / name).unlink()
            del linked[name]
        for name in there.keys() - linked.keys():
            if (found := _link(_source(folders, name), into / name)) is not None:
                linked[name] = found


def _source(folders: Mapping[str, Path], name: str) -> Path:
    first, _, rest = name.partition("/")
    return folders[first] / rest


def _stamps(folders: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """Stamp of each file, those aside that are being written."""
    found = {}
    for name, folder in folders.items():
        for path in walk(folder) if folder.is_dir() else ():
            try:
                if not path.name.startswith(".") and path.is_file():
                    found[f"{name}/{path.relative_to(folder).as_posix()}"] = stamp(path)
            except FileNotFoundError:  # replaced or removed just now
                continue
    return found


def _link(path: Path, target: Path) -> tuple[int, ...] | None:
    """Link a file, or copy it to another disk; returns the stamp of what is linked, None for a file that is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        before = stamp(path)
        try:
            os.link(path, target)
        except FileNotFoundError:
            return None
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(path, target)
            return before
        return stamp(target)
    except FileNotFoundError:
        return None
