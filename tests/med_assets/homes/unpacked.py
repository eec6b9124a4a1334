"""Homes of released versions: `VERSION.zip` is what that version made of two small phantoms, one in training and one in validation.

`make.py` makes one.
"""

import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent
VERSIONS = tuple(sorted(path.stem for path in FOLDER.glob("[0-9]*.zip")))


def unpack(version: str, home: Path) -> None:
    """Unpack the home of a released version."""
    with zipfile.ZipFile(FOLDER / f"{version}.zip") as archive:
        archive.extractall(home)
