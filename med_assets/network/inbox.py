"""Instances that arrive over the network, on disk before they are acknowledged, and one entry of the landing zone per study.

Below a program's landing folder:

    .receiving/.tmp/...                       instances that are being written, never acknowledged
    .receiving/<study UID>/<UID>.dcm          acknowledged instances of studies that may still grow
    .conflicts/<study UID>/<UID>.<hash>.dcm   another content under the UID of an instance that is there
    <study UID>/<UID>.dcm                     settled: an entry that intake sees
    <study UID>-<UID>/<UID>.dcm               a label that came later than another one of its study: an entry of its own, see `_join`

Names with a dot in front are none of intake's. All are on one disk, so that each move is a rename. What is retrieved by this machine
itself has `.retrieving` in place of `.receiving`, so that it works beside a receiver.
"""

import fcntl
import io
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from med_assets.dicom.sop_classes import MODALITIES
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.storage.files import HASH_CHARS, NO_ROOM, file_sha256, sync

RECEIVING, RETRIEVING, CONFLICTS, TEMPORARY, LOCK = ".receiving", ".retrieving", ".conflicts", ".tmp", ".lock"

log = logging.getLogger(__name__)

SUFFIX = ".dcm"

UID = re.compile(r"[0-9]+(\.[0-9]+)*")

STUDY = re.compile(rf"{UID.pattern}(-{UID.pattern})?")
"""Names of entries: a study, or a later label of one."""

LABELS = {uid: modality for modality in ("SEG", "RTSTRUCT") for uid in MODALITIES[modality].classes}
"""Modality by class of labels, of which the second of a study corrects the first."""

MAX_UID_CHARS = 64

STRIPES = 64
"""Locks that studies share: instances of one study are put in place one after the other."""


class Outcome(StrEnum):
    """What came of an instance that a peer sent."""

    STORED = "stored"
    REPEATED = "repeated"
    CONFLICT = "conflict"
    NO_SPACE = "no_space"


@dataclass(frozen=True)
class Identifiers:
    """What a peer says that an instance is; the UIDs are valid, so that they can be names of files."""

    sop_class: str
    instance: str
    study: str


@dataclass
class _Open:
    """A study that may still grow: the associations that sent to it and have not ended, and its last instance."""

    senders: set[int] = field(default_factory=set)
    last_at: float = field(default_factory=time.monotonic)


def require_uid(text: str) -> str:
    """The UID, which is a safe name of a file. Raises CaseRejected("malformed_element")."""
    if len(text) > MAX_UID_CHARS or not UID.fullmatch(text):
        raise CaseRejected(
            "malformed_element",
            f"Expected a UID of digits and dots, at most {MAX_UID_CHARS} characters; got something else. Export it again.",
        )
    return text


_reading = threading.Lock()
"""Held while a header is read: what keeps warnings of pydicom quiet is one for the whole process."""


def identifiers_of(path: Path) -> Identifiers:
    """Read what an instance is, within the bounds of files of strangers. Raises CaseRejected."""
    from med_assets.dicom.elements import text
    from med_assets.dicom.parsing import read

    with _reading:
        dataset = read(path, header_only=True).dataset
        sop_class, instance, study = (
            text(dataset, word) for word in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")
        )
    if not (sop_class and instance and study):
        raise CaseRejected("missing_uid", "Expected UIDs of class, instance and study; got none for one of them.")
    return Identifiers(sop_class, require_uid(instance), require_uid(study))


class Inbox:
    """What one process takes for one program; no other one takes by the same way (`growing`) at the same time."""

    def __init__(self, folder: Path, min_free_bytes: float, quiet_s: float, growing: str = RECEIVING) -> None:
        """Take the folder, which is made where it is not there. Raises ConfigurationError where another process has it."""
        self.folder, self.min_free_bytes, self.quiet_s = folder, min_free_bytes, quiet_s
        self.receiving, self.temporary = folder / growing, folder / growing / TEMPORARY
        self.temporary.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.receiving / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigurationError(
                f"expected one process that takes for {folder.name}, got a second; another one with the same command runs on this "
                "landing zone"
            ) from None
        self._stripes = [threading.Lock() for _ in range(STRIPES)]
        self._open: dict[str, _Open] = {}
        self._state = threading.Lock()

    def close(self) -> None:
        """Let another receiver have the folder."""
        os.close(self._lock)

    def has_space(self) -> bool:
        """Whether there is as much free space as there must be."""
        return shutil.disk_usage(self.folder).free >= self.min_free_bytes

    def recover(self) -> int:
        """Settle what an earlier process had acknowledged and remove what it had not; returns the number of studies."""
        for path in self.temporary.iterdir():
            path.unlink()
        return sum(self.settle(path.name) for path in studies_in(self.receiving))

    @contextmanager
    def written(self, content: bytes) -> Iterator[Path]:
        """A file of ours with the bytes that a peer sent, on the disk; removed afterwards unless it was put in place.

        Raises OSError.
        """
        handle, name = tempfile.mkstemp(dir=self.temporary, suffix=SUFFIX)
        try:
            with io.FileIO(handle, "w") as stream:
                left = memoryview(content)
                while left:
                    left = left[stream.write(left) :]
                os.fsync(handle)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def store(self, content: bytes, sop_class: str | None, instance: str, sender: int) -> Outcome:
        """Keep an instance; when this returns, it is on the disk and stays there whatever happens.

        `sop_class` (None where it does not say) and `instance` are what the peer calls it. Raises CaseRejected.
        """
        if not self.has_space():
            return Outcome.NO_SPACE
        try:
            with self.written(content) as path:
                found = identifiers_of(path)
                if found.instance != instance or sop_class not in (None, found.sop_class):
                    raise CaseRejected(
                        "mismatch",
                        "Expected the SOP class and instance that the request names; got others in the dataset.",
                    )
                return self._place(path, found, sender)
        except OSError as error:
            if error.errno in NO_ROOM:
                return Outcome.NO_SPACE
            raise

    def _place(self, path: Path, found: Identifiers, sender: int) -> Outcome:
        name = f"{found.instance}{SUFFIX}"
        growing, settled = self.receiving / found.study, self.folder / found.study
        with self._stripe(found.study):
            with self._state:
                study = self._open.setdefault(found.study, _Open())
                study.senders.add(sender)
                study.last_at = time.monotonic()
            apart = f"{found.study}-{found.instance}"
            places = (settled, growing, self.folder / apart, self.receiving / apart)
            there = next((place / name for place in places if (place / name).is_file()), None)
            if there is None:
                _move(path, growing / name)
                return Outcome.STORED
            return self._compare(path, there, found.study)

    def _compare(self, path: Path, there: Path, study: str) -> Outcome:
        """Keep a file beside the one of its UID that is there, unless both have the same content."""
        sha256 = file_sha256(path)
        if file_sha256(there) == sha256:
            sync(there.parent)  # an earlier process may have been killed between the rename and this
            return Outcome.REPEATED
        conflict = self.folder / CONFLICTS / study / f"{there.stem}.{sha256[:HASH_CHARS]}{SUFFIX}"
        _move(path, conflict)
        return Outcome.CONFLICT

    def ended(self, sender: int, *, properly: bool) -> int:
        """Settle the studies that an association was the last to send to; after an abort they wait, since it may come again.

        Returns their number.
        """
        done = []
        with self._state:
            for name, study in self._open.items():
                study.senders.discard(sender)
                if properly and not study.senders:
                    done.append(name)
        return sum(map(self.settle, done))

    def settle_quiet(self) -> int:
        """Settle the studies that got no instance for `quiet_s`; returns their number."""
        now = time.monotonic()
        with self._state:
            done = [name for name, study in self._open.items() if now - study.last_at >= self.quiet_s]
        return sum(map(self.settle, done))

    def settle(self, study: str) -> bool:
        """Make what arrived of a study an entry of the landing zone, or a part of the one that it has; whether there was any.

        A process that is killed within leaves each instance in one of both places; the next one goes on. Where the landing zone
        can't be written now, the study stays, and `settle_quiet` tries it again.
        """
        growing, settled = self.receiving / study, self.folder / study
        with self._stripe(study):
            with self._state:
                self._open.pop(study, None)
            try:
                if not growing.is_dir():
                    return False
                try:
                    growing.rename(settled)
                except OSError:  # it has an entry, which this joins
                    self._join(growing, settled)
                sync(self.receiving)
                sync(self.folder)
            except OSError as error:
                log.warning("a study can't settle now: %s; it is tried again", type(error).__name__)
                with self._state:
                    self._open[study] = _Open()
                return False
            return True

    def _join(self, growing: Path, settled: Path) -> None:
        """Add what came later of a study to its entry, but a label to a study that has one: beside it, nobody could say which counts.

        Alone it is a correction, of which intake makes a new version of its case.
        """
        for path in self._corrections(growing, settled) if UID.fullmatch(settled.name) else ():
            apart = growing.parent / f"{settled.name}-{path.stem}"
            _move(path, apart / path.name)
            try:
                apart.rename(self.folder / apart.name)
            except OSError:
                self._join(apart, self.folder / apart.name)
        for path in sorted(growing.iterdir()):
            there = settled / path.name
            try:
                os.link(path, there)  # which replaces nothing, also when another process does the same
            except FileExistsError:
                if self._compare(path, there, settled.name) is Outcome.CONFLICT:
                    continue  # it was moved
            path.unlink()
        sync(settled)
        growing.rmdir()

    def _corrections(self, growing: Path, settled: Path) -> list[Path]:
        """Labels among what came later of a study, where its entry has one of their class."""
        later = {path: LABELS.get(identifiers_of(path).sop_class) for path in sorted(growing.iterdir())}
        if not any(later.values()):
            return []
        known = {LABELS.get(identifiers_of(path).sop_class) for path in settled.iterdir() if path.suffix == SUFFIX} - {
            None
        }
        return [path for path, kind in later.items() if kind in known and not (settled / path.name).exists()]

    def holds(self, uids: Collection[str]) -> set[str]:
        """Those of these instances that are here and on the disk."""
        return set(uids) & instances_in(self.folder)

    def conflicts(self) -> int:
        """Number of instances that came with another content than the one under their UID."""
        return sum(len(_names(study)) for study in studies_in(self.folder / CONFLICTS))

    @contextmanager
    def _stripe(self, study: str) -> Iterator[None]:
        with self._stripes[hash(study) % STRIPES]:
            yield


def is_taken(folder: Path) -> bool:
    """Whether a receiver runs on a program's landing folder."""
    try:
        handle = os.open(folder / RECEIVING / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def studies_in(parent: Path) -> list[Path]:
    """Folders of studies and of their later labels, which alone are named by UIDs."""
    if not parent.is_dir():
        return []
    return [path for path in parent.iterdir() if STUDY.fullmatch(path.name) and path.is_dir()]


def instances_in(folder: Path) -> set[str]:
    """UIDs of all instances that are acknowledged below a program's landing folder."""
    return {
        name.removesuffix(SUFFIX)
        for parent in (folder / RECEIVING, folder / RETRIEVING, folder)  # as they move, so that none is missed
        for study in studies_in(parent)
        for name in _names(study)
        if name.endswith(SUFFIX)
    }


def _names(folder: Path) -> list[str]:
    """Names in a folder, none where it was moved away meanwhile; what was in it is then listed where it is now."""
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _move(path: Path, to: Path) -> None:
    """Rename a file whose content is on the disk, so that its new name is there too."""
    new = [folder for folder in (to.parent, to.parent.parent) if not folder.is_dir()]
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
    sync(to.parent)
    for folder in new:
        sync(folder.parent)
