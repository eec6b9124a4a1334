"""One folder of the landing zone per imported case: written once, replaced when its source was corrected, never mixed up."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from med_assets.errors import CaseRejected, DiskFull, RemoteFailed
from med_assets.landing.importing.report import ImportReport
from med_assets.storage.files import digest, file_sha256, read_json, write_json

RECORDS = ".imported"
"""Folder of the destination, hidden from intake, that holds by name what each case was made of."""

MAX_CHARS = 64
"""Longest identifier: what VR LO holds, the type of PatientID."""

NAME_TAKEN = (
    "expected a new name, or the source that this folder was imported from; got a case from another source, or of an "
    "earlier version, with this name and other content. Rename the source, or remove the folder"
)

TOO_LONG = "missing_file: expected names that files can have, got a longer one in the data set's table; mend the table"

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


def identifier(raw: str) -> str:
    """An ASCII identifier of at most 64 characters for a name of any script: different names never give the same one.

    A plain name (letters, digits, `_`, `.` and `-`) stays. Any other keeps its plain characters for people, and gets a hash of
    the whole name, so that what is dropped (accents, blanks, other scripts) still tells patients apart.
    """
    if _PLAIN.match(raw) and len(raw) <= MAX_CHARS:
        return raw
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", raw).strip("._") or "name"
    return f"{readable[:47]}-{hashlib.sha256(_name_bytes(raw)).hexdigest()[:16]}"


def _name_bytes(raw: str) -> bytes:
    """The bytes of a name: those of its file, or, where no file can have it (a lone surrogate of JSON), of its code points."""
    try:
        return raw.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return raw.encode(errors="surrogatepass")


def existing(path: Path, what: str) -> Path:
    """`path`, where it is a plain file or a link to one: a pipe or device would be waited for without end.

    `what` names the file in the message. Raises CaseRejected("missing_file").
    """
    if not may_exist(str(path)) or not path.is_file():
        raise CaseRejected("missing_file", f"expected {what} as a plain file, got none; fetch it again")
    return path


def may_exist(path: str) -> bool:
    """Whether a file can have this path here: no NUL, no lone surrogate, no part longer than file systems allow."""
    try:
        Path(path).lstat()
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def content_of(paths: Iterable[Path], *more: Any) -> str:
    """Hash of the bytes of files, of all files below folders, and of other values; what is absent counts as absent."""
    found: list[Any] = list(more)
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_dir():
                found.append([file.name, file_sha256(file) if file.is_file() else None])
    return digest(*found)


def _failed(error: Exception) -> str:
    return f"import_failed: reading this case failed with {type(error).__name__}; check its files"


class CaseFolders:
    """The case folders below `dest` that one import writes, and what happened to each."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest
        self.imported: list[str] = []
        self.existing: list[str] = []
        self.updated: list[str] = []
        self.skipped: dict[str, str] = {}

    def write(self, name: str, source: Path | str, made_of: Callable[[], str], write: Callable[[Path], None]) -> bool:
        """Make `dest/name` by `write(folder)`, which appears only when complete; False where the case is skipped.

        `source` is where the case comes from, a path or the address of a bucket, and `made_of` gives the hash of what it is made
        of (`content_of`); it reads the case's files, so it runs here, where a failure is this case's alone.
        The same content is left alone. Other content replaces the folder only where it comes from the same source, as a
        corrected label does; from elsewhere it may be another patient, and is skipped as `name_taken`. A folder without a record
        is one of an earlier version: it stays where it holds the very files that would be written. Whatever fails skips this
        case alone.
        """
        from med_assets.dicom.elements import quietly

        folder, record = self.dest / name, self.dest / RECORDS / f"{name}.json"
        part = self.dest / f".{name}.part"
        try:
            with quietly():
                content = made_of()
            address = os.path.realpath(source) if isinstance(source, Path) else source
            origin = {"source": digest(address), "content": content}
            before = read_json(record) if record.is_file() else {}
            if folder.exists():
                if before.get("content") == content:
                    self.existing.append(name)
                    return True
                if before and before.get("source") != origin["source"]:
                    raise CaseRejected(
                        "name_taken",
                        NAME_TAKEN,
                    )
            shutil.rmtree(part, ignore_errors=True)
            with quietly():
                write(part)
            if folder.exists() and not before:
                if content_of([part]) != content_of([folder]):
                    raise CaseRejected("name_taken", NAME_TAKEN)
                write_json(record, origin)
                self.existing.append(name)
                return True
            replaced = folder.exists()
            if replaced:
                old = self.dest / f".{name}.old"
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
                part.rename(folder)
                shutil.rmtree(old)
            else:
                part.rename(folder)
            write_json(record, origin)
            (self.updated if replaced else self.imported).append(name)
            return True
        except CaseRejected as rejected:
            self.skipped[name] = f"{rejected.code}: {rejected.message}"
        except (DiskFull, RemoteFailed):  # no fault of the case
            raise
        except OSError as error:
            long = error.errno == errno.ENAMETOOLONG
            self.skipped[name] = TOO_LONG if long else _failed(error)
        except Exception as error:  # one bad case never stops an import; the text of a foreign error may hold names
            self.skipped[name] = _failed(error)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return False

    def report(self) -> ImportReport:
        """What happened to each case."""
        return ImportReport(tuple(self.imported), tuple(self.existing), self.skipped, tuple(self.updated))
