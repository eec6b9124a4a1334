"""Where cases arrive: a folder, or a bucket (`med_assets.landing.bucket`) behind the same small interface."""

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from med_assets.errors import LandingUnreadable
from med_assets.landing.manifests import FOLDER, FolderLog, LoggedManifests, ManifestFiles, Manifests
from med_assets.storage.files import digest, file_sha256, walk

if TYPE_CHECKING:
    from med_assets.storage.s3.staging import Failure

LOOSE = "."
"""Name of the entry made of the files that lie directly in a program's landing folder and are no archives."""

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".txz")
"""Only groups loose files into entries; whether a file is an archive is decided by its content at intake."""


@dataclass(frozen=True)
class Entry:
    """One thing in the landing zone: its name there, a fingerprint of its files' names, sizes and times, and its last change."""

    name: str
    fingerprint: str
    changed_at: float
    n_files: int
    n_bytes: int = 0
    """Bytes of its files."""


@dataclass(frozen=True)
class Files:
    """The files of an entry on this machine: the folder that holds them and nothing else, if there is one, and each of them.

    `failures` are rows of what could not be fetched.
    """

    folder: Path | None
    files: list[Path]
    failures: list["Failure"] = field(default_factory=list)
    names: Mapping[Path, str] = field(default_factory=dict)
    """Names below the program's folder in the landing zone, as in `Landing.hashes`."""


class Landing(Protocol):
    """Where cases of all programs arrive; nothing is ever written there but the manifests of batches."""

    @property
    def manifests(self) -> Manifests:
        """The manifests of its batches."""
        ...

    def title(self, program: str) -> str:
        """Where cases of a program are dropped, for people."""
        ...

    def exists(self, program: str) -> bool:
        """Whether there is anything for this program."""
        ...

    def refresh(self) -> None:
        """List anew at the next call, however new the last listing is."""
        ...

    def entries(self, program: str) -> tuple[list[Entry], list[LandingUnreadable]]:
        """Entries that can be read, sorted by name, and the errors of the others; raises LandingUnreadable."""
        ...

    def read(self, program: str, name: str) -> Entry | None:
        """The entry as it is now, or None when there is none. Raises LandingUnreadable."""
        ...

    def hashes(self, program: str, name: str) -> list[tuple[str, str]] | None:
        """Name and SHA-256 of each file of an entry, None when that is not known without bringing them here."""
        ...

    def fetch(self, program: str, name: str, scratch: Path) -> Files:
        """The files of an entry on this machine, in the empty folder `scratch` if they have to be fetched."""
        ...

    def end_fetches(self) -> None:
        """End what other threads bring here with `bring`, which raises then."""
        ...

    def originals(self, program: str, names: Sequence[str], scratch: Path) -> dict[str, Path]:
        """Of files by their names in a batch's list those that are still there, on this machine, as `fetch` does.

        Raises LandingUnreadable.
        """
        ...


def entry_name(parts: Sequence[str]) -> str | None:
    """Name of the entry to which a file belongs by its path below the program's folder; None for what is hidden."""
    if parts[0].startswith("."):
        return None
    return parts[0] if len(parts) > 1 or parts[0].lower().endswith(ARCHIVE_SUFFIXES) else LOOSE


def _entry_of(item: os.DirEntry[str]) -> str | None:
    """Name of the entry to which something directly in a program's folder belongs; None for what is hidden."""
    folder = item.is_dir(follow_symlinks=False)
    return entry_name((item.name, "") if folder else (item.name,))


class LocalLanding:
    """The landing zone as a folder with one folder per program."""

    def __init__(self, root: Path, home: Path, shared: bool = False) -> None:
        self.root, self.home, self.shared = root, home, shared

    @cached_property
    def manifests(self) -> Manifests:
        """In the landing zone, or in the home where the landing zone can't be written to, such as a read-only share.

        Both count, since a share may become writable, or read-only, after the first batch. Machines that share a home add to a log in
        the landing zone.
        """
        own = self.root / FOLDER
        files = ManifestFiles(own, self.home / "landing" / FOLDER)
        if not self.shared:
            return files
        return LoggedManifests(str(own), lambda program: FolderLog(own / program / "log"), files, cache=None)

    def folder(self, program: str) -> Path:
        """Where cases of a program are dropped."""
        return self.root / program

    def title(self, program: str) -> str:
        return f"the landing folder {self.folder(program)}"

    def exists(self, program: str) -> bool:
        return self.folder(program).is_dir()

    def refresh(self) -> None:
        return

    def files(self, program: str, name: str) -> list[Path]:
        """All of an entry that is no folder, sorted: files, and links, pipes and the like, which intake refuses by name."""
        folder = self.folder(program)
        if name == LOOSE:
            with os.scandir(folder) as found:
                return sorted(Path(item.path) for item in found if _entry_of(item) == LOOSE)
        root = folder / name
        return [root] if root.is_symlink() or not root.is_dir() else sorted(walk(root))

    def read(self, program: str, name: str) -> Entry | None:
        """The entry as it is now, or None when it vanished while being read, or when there are no loose files.

        Each file costs one call of the system, so an idle landing zone costs that much per listing: content that changes in place
        does not show in the times of its folder. An empty folder is an entry without files. Raises LandingUnreadable when it,
        or all that is in it, can't be read; intake gives the reason for a part that can't.
        """
        seen: list[tuple[Any, ...]] = []
        changed, n_bytes, root = 0.0, 0, self.folder(program)
        try:
            for path in self.files(program, name):
                relative = _name_in(root, path)
                try:
                    status = path.lstat()
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
                    seen.append((relative, error.errno))  # nested deeper than a path may be long
                    continue
                kind = [] if stat.S_ISREG(status.st_mode) else [stat.S_IFMT(status.st_mode)]
                seen.append((relative, status.st_size, status.st_mtime_ns, *kind))
                changed = max(changed, status.st_mtime, status.st_ctime)
                n_bytes += status.st_size
            if not seen and name != LOOSE:
                changed = (root / name).stat().st_mtime
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(root, error) from None
        return Entry(name, digest(seen), changed, len(seen), n_bytes) if seen or name != LOOSE else None

    def entries(self, program: str) -> tuple[list[Entry], list[LandingUnreadable]]:
        folder, names = self.folder(program), {LOOSE}
        try:
            if folder.is_dir():
                with os.scandir(folder) as listed:
                    names |= {of for item in listed if (of := _entry_of(item)) is not None}
        except OSError as error:
            raise _unreadable(folder, error) from None
        found, refused = [], []
        for name in sorted(names) if folder.is_dir() else ():
            try:
                entry = self.read(program, name)
            except LandingUnreadable as error:
                refused.append(error)
                continue
            found += [entry] if entry else []
        return found, refused

    def hashes(self, program: str, name: str) -> list[tuple[str, str]] | None:
        """None when the entry has links, or files that can't be read, whose content is unknown."""
        root, found = self.folder(program), []
        for path in self.files(program, name):
            try:
                if not stat.S_ISREG(path.lstat().st_mode):
                    return None
                found.append((_name_in(root, path), file_sha256(path)))
            except OSError:
                return None
        return found

    def fetch(self, program: str, name: str, scratch: Path) -> Files:
        root, files = self.folder(program), self.files(program, name)
        names = {path: _name_in(root, path) for path in files}
        return Files(root / name if name != LOOSE and (root / name).is_dir() else None, files, names=names)

    def end_fetches(self) -> None:
        return

    def originals(self, program: str, names: Sequence[str], scratch: Path) -> dict[str, Path]:
        return {name: path for name in names if (path := self.folder(program) / name).is_file()}


def _name_in(root: Path, path: Path) -> str:
    """The name of a path below `root`, which was made by joining names to it: pathlib takes ten times as long to find it."""
    return os.fspath(path)[len(os.fspath(root)) + 1 :]


def _unreadable(folder: Path, error: OSError) -> LandingUnreadable:
    """The error in words, without the name of the entry, which can identify a patient."""
    return LandingUnreadable(
        f"what lies in the landing folder {folder} can't be read ({error.strerror}); mount it again, or give the user that "
        "runs this permission to read; nothing of it is lost, it is taken in when it can be read"
    )
