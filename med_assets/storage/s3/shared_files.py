"""Files for people that machines of a shared home have in common: reports, plots, records of experiments, exported predictions.

    PREFIX/shared/reports/index/GROUP.json        names, hashes and sizes of the files of a group, written by compare-and-swap
    PREFIX/shared/reports/files/SHA256            their bytes, named by content and never changed

A machine writes files to its own folder, as it does without a bucket, and pushes those that changed when its stage is done; another pulls what
is newer before it reads. Files that are pushed together appear together, since they are in one version of the index. What a machine deletes
stays in the bucket.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from med_assets.errors import RemoteFailed
from med_assets.storage.files import canonical_json, digest, file_sha256, read_json, write_json
from med_assets.storage.locks import alone_here
from med_assets.storage.s3 import conditional
from med_assets.storage.s3.body import head
from med_assets.storage.s3.bucket import THREADS, Location, in_words
from med_assets.storage.s3.checksums import SHA256
from med_assets.storage.s3.index import RemoteObject, pages
from med_assets.storage.s3.log import side_by_side
from med_assets.storage.s3.staging import Staging, Wanted
from med_assets.storage.scratch import scratch

if TYPE_CHECKING:
    from med_assets.settings import Settings

log = logging.getLogger(__name__)

TOP = "_"
"""Group of the files that lie above all groups."""

LOST = "NoSuchKey"
"""Start of what a transfer says of an object that is not there."""

LAST = (".html", ".md")
"""Endings of what refers to other files: it is put in its place after them."""

FRESH_S = 10.0
"""Seconds for which `refresh` asks no more."""

SMALL_BYTES = 8 * 2**20
"""Larger files go up in parts."""

LOCK = "shared-files"
"""Lock within a machine: one process at a time compares its folder with the bucket."""


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    sha256: str
    size: int

    @property
    def object(self) -> str:
        """Name of the object below the prefix."""
        return f"files/{self.sha256}"


@dataclass(frozen=True)
class Seen:
    """A file of this machine when it was last as in the bucket."""

    size: int
    mtime_ns: int
    sha256: str

    @property
    def content(self) -> Content:
        """What it held."""
        return Content(self.sha256, self.size)

    def is_still(self, path: Path) -> bool:
        """Whether the file was not written since."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass
class _Record:
    """What this machine has of the bucket, by name; it may be lost at any time."""

    path: Path
    born_ns: int
    """When it was made: what was written here before, and is not in it, is older than what the bucket has."""
    seen: dict[str, Seen]

    @classmethod
    def read(cls, path: Path) -> "_Record":
        """The record in a file, or a new one, which is written."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            found = read_json(path)
            return cls(path, int(found["born_ns"]), {name: Seen(*each) for name, each in found["seen"].items()})
        new = cls(path, 0, {})
        new.write()
        new.born_ns = path.stat().st_ctime_ns  # by the clock that the times of other files there are by
        new.write()
        return new

    def note(self, name: str, path: Path, content: Content) -> None:
        """Remember that a file is as in the bucket, unless it is not any more."""
        status = path.stat()
        if status.st_size == content.size:
            self.seen[name] = Seen(status.st_size, status.st_mtime_ns, content.sha256)

    def is_as_seen(self, name: str, path: Path) -> bool:
        """Whether a file was not written since it was as in the bucket."""
        seen = self.seen.get(name)
        return seen is not None and path.is_file() and seen.is_still(path)

    def is_older(self, name: str, path: Path) -> bool:
        """Whether a file was written before anything was recorded, so that it is not known to be newer than the bucket's."""
        return name not in self.seen and path.stat().st_ctime_ns < self.born_ns

    def write(self) -> None:
        """Write the record; a power cut may undo that."""
        seen = {name: [each.size, each.mtime_ns, each.sha256] for name, each in self.seen.items()}
        write_json(self.path, {"born_ns": self.born_ns, "seen": seen}, durable=False)


class SharedFiles:
    """A folder of this machine and the prefix of a bucket that it shares.

    The `home` of this machine keeps what it has of the bucket. `group_of` says by the name of a file, relative to the folder, to which group it belongs. Of a `whole` group the files of the last machine
    that pushed any take the place of all earlier ones; else they are added.
    """

    def __init__(
        self,
        client: Any,
        location: Location,
        folder: Path,
        home: Path,
        group_of: Callable[[str], str],
        *,
        whole: bool = False,
    ) -> None:
        self.client, self.location, self.folder, self.home = client, location, folder, home
        self.group_of, self.whole = group_of, whole

    def _record(self, group: str) -> _Record:
        return _Record.read(self.home / "tmp" / "shared" / digest(str(self.location)) / f"{group.split('/')[0]}.json")

    def begin(self, group: str) -> None:
        """Know from now on which files of a group are written here: they are newer than the bucket's."""
        self._record(group)

    def push(self, paths: Iterable[Path]) -> list[str]:
        """Let other machines have these files, as far as they changed since they were pushed or pulled; returns their names."""
        conditional.require(self.client, self.location)
        by_record: dict[str, dict[str, Path]] = {}
        for path in paths:
            name = path.relative_to(self.folder).as_posix()
            by_record.setdefault(self.group_of(name).split("/")[0], {})[name] = path
        return sorted(name for which, files in by_record.items() for name in self._push(self._record(which), files))

    def _push(self, record: _Record, files: Mapping[str, Path]) -> list[str]:
        """Push the files of one record that changed; returns their names."""
        written = [name for name, path in files.items() if not record.is_as_seen(name, path)]
        if not written:
            return []
        groups = self._by_group(files if self.whole else written, {self.group_of(name) for name in written})
        present = dict(zip(groups, side_by_side(self._index, groups), strict=True))
        there = {name: content for index, _ in present.values() for name, content in index.items()}
        changed = [name for name in written if not (name in there and record.is_older(name, files[name]))]
        hashes = {content.sha256 for content in there.values()}
        uploaded = side_by_side(lambda name: self._upload(files[name], hashes), changed)
        contents = dict(zip(changed, uploaded, strict=True))
        new = there | {name: record.seen[name].content for name in files if name in record.seen} | contents

        def add(group: str) -> None:
            self._add(group, {name: new[name] for name in groups[group]}, *present[group])

        side_by_side(add, groups)
        for name, content in contents.items():
            record.note(name, files[name], content)
        record.write()
        return changed

    def withdraw(self, names: Collection[str]) -> None:
        """Take files that a stage removed here out of their groups, those aside that another machine wrote anew meanwhile."""
        for group, of_group in self._by_group(names, {self.group_of(name) for name in names}).items():
            record = self._record(group)
            gone = {name: record.seen.pop(name).content for name in of_group if name in record.seen}
            present, etag = self._index(group)
            while left := {name for name, content in gone.items() if present.get(name) == content}:
                files = {name: content for name, content in present.items() if name not in left}
                if self._write(group, files, etag):
                    break
                present, etag = self._index(group)
            record.write()

    def _by_group(self, names: Iterable[str], groups: Collection[str]) -> dict[str, list[str]]:
        """Those groups with those of the names that belong to them."""
        found: dict[str, list[str]] = {group: [] for group in sorted(groups)}
        for name in names:
            if (group := self.group_of(name)) in groups:
                found[group].append(name)
        return found

    def _upload(self, path: Path, there: Collection[str]) -> Content:
        """Write the bytes of a file to the bucket, unless they are `there`; of a file that is replaced meanwhile those of one version.

        What no index names is written again, so that nobody names an object that is about to be removed.
        """
        with path.open("rb") as stream:
            content = Content(hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell())
            if content.sha256 not in there:
                stream.seek(0)
                if content.size <= SMALL_BYTES:
                    conditional.put(self.client, self.location, content.object, stream.read())
                else:
                    self._upload_in_parts(stream, content)
        return content

    def lacking(self, paths: Iterable[Path]) -> list[Path]:
        """Those of some files that the bucket does not have as they are. Raises RemoteFailed."""
        files = {path.relative_to(self.folder).as_posix(): path for path in paths}
        groups = sorted({self.group_of(name) for name in files})
        there: dict[str, Content] = {}
        for index in side_by_side(self.index, groups):
            there |= index
        return [path for name, path in files.items() if name not in there or file_sha256(path) != there[name].sha256]

    def _upload_in_parts(self, stream: BinaryIO, content: Content) -> None:
        from boto3.s3.transfer import TransferConfig
        from s3transfer.manager import TransferManager

        with (
            in_words("sharing files"),
            TransferManager(self.client, TransferConfig(max_concurrency=THREADS)) as manager,
        ):
            key, extra = self.location.key(content.object), {"Metadata": {SHA256: content.sha256}}
            manager.upload(stream, self.location.bucket, key, extra).result()

    def groups(self) -> list[str]:
        """The groups that a listing of the bucket shows, which may lack the newest."""
        with in_words("listing the bucket"):
            found = [self.location.name(each.key) for each in pages(self.client, self.location, "index/")]
        return [name.removeprefix("index/").removesuffix(".json") for name in found]

    def index(self, group: str) -> dict[str, Content]:
        """The files of a group as the bucket has them. Raises RemoteFailed."""
        return self._index(group)[0]

    def _index(self, group: str) -> tuple[dict[str, Content], str | None]:
        found = conditional.get(self.client, self.location, f"index/{group}.json")
        if found is None:
            return {}, None
        try:
            files = {
                _inside(name): Content(_hash(sha256), int(size))
                for name, (sha256, size) in json.loads(found.content)["files"].items()
            }
        except (ValueError, TypeError, KeyError, AttributeError):
            raise RemoteFailed(
                f"expected an index of files in {self.location}/index/{group}.json, got something else; remove that object, and the next stage "
                "that writes such files makes it again"
            ) from None
        return files, found.etag

    def _add(self, group: str, new: Mapping[str, Content], present: Mapping[str, Content], etag: str | None) -> None:
        """Add files to a group, or of a whole one put them in place of all, whoever else writes its index meanwhile."""
        while (files := dict(new) if self.whole else {**present, **new}) != present:
            if self._write(group, files, etag):
                return
            present, etag = self._index(group)

    def _write(self, group: str, files: Mapping[str, Content], etag: str | None) -> bool:
        """Write the index of a group over the one with this ETag, None for none; False when another machine was first."""
        listed = {name: [content.sha256, content.size] for name, content in sorted(files.items())}
        text = canonical_json({"files": listed, "writer": secrets.token_hex(8)}).encode()
        if etag is None:
            return conditional.put_new(self.client, self.location, f"index/{group}.json", text) is None
        return conditional.put_over(self.client, self.location, f"index/{group}.json", text, etag) is not None

    def pull(self, group: str) -> list[str]:
        """Bring the files of a group here that are newer in the bucket; returns their names.

        A file that was written here since it was last pushed stays as it is. Raises RemoteFailed, where nothing is changed.
        """
        files, record = self.index(group), self._record(group)
        wanted = {name: content for name, content in files.items() if self._is_newer(record, name, content)}
        placed = self._download(wanted, record) if wanted else []
        gone = [
            name for name in record.seen if self.whole and files and self.group_of(name) == group and name not in files
        ]
        for name in gone:
            if record.is_as_seen(name, self.folder / name):
                (self.folder / name).unlink(missing_ok=True)
            record.seen.pop(name)
        if wanted or gone:
            record.write()
        return placed

    def _is_newer(self, record: _Record, name: str, content: Content) -> bool:
        path, seen = self.folder / name, record.seen.get(name)
        if not path.is_file():
            return True
        if seen is None:
            return record.is_older(name, path) and file_sha256(path) != content.sha256
        return seen.sha256 != content.sha256 and seen.is_still(path)

    def _download(self, wanted: Mapping[str, Content], record: _Record) -> list[str]:
        """Put files in their places when all of them are here; returns their names. One whose bytes the bucket lost stays as it is."""
        with tempfile.TemporaryDirectory(dir=scratch(self.home)) as folder:
            staging = Staging(self.client, self.location.bucket, Path(folder), limit_bytes=0)
            keys = {name: self.location.key(content.object) for name, content in wanted.items()}
            asked = [Wanted("", key) for key in dict.fromkeys(keys.values())]
            paths, failures = staging.fetch(asked, Path(folder) / "files", progress=False)
            if failed := [each for each in failures if not each.exception.startswith(LOST)]:
                raise RemoteFailed(
                    f"{len(failed)} of {len(asked)} files of {self.location} did not come ({failed[0].exception}); try again later"
                )
            whole = {key for key, path in paths.items() if file_sha256(path) == key.rpartition("/")[2]}
            if lost := [name for name in wanted if keys[name] not in whole]:
                log.warning(
                    "%d files of %s, such as %s, are not what was written, or were removed; the stage that writes them makes them again",
                    len(lost),
                    self.location,
                    lost[0],
                )
            placed = sorted(wanted.keys() - set(lost), key=lambda name: (name.endswith(LAST), name))
            for name in placed:
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                copy = Path(folder) / "copy"
                copy.write_bytes(paths[keys[name]].read_bytes())  # two names may have one content
                copy.replace(target)
                record.note(name, target, wanted[name])
        return sorted(placed)

    def unused(self, older_than_s: float) -> list[RemoteObject]:
        """Objects that no index names, such as reports of before, and that are older; whoever names one again writes it again."""
        named: set[str] = set()
        for index in side_by_side(self.index, self.groups()):
            named |= {content.sha256 for content in index.values()}
        with in_words("listing the bucket"):
            found = list(pages(self.client, self.location, "files/"))
        until = time.time() - older_than_s
        return [one for one in found if one.modified < until and one.key.rpartition("/")[2] not in named]

    def remove(self, key: str, older_than_s: float) -> bool:
        """Remove an object that `unused` returned, unless it was written since."""
        with in_words("removing shared files"):
            if head(self.client, self.location.bucket, key).modified >= time.time() - older_than_s:
                return False
            self.client.delete_object(Bucket=self.location.bucket, Key=key)
        return True


def _hash(text: Any) -> str:
    """A SHA-256 as it is. Raises ValueError for another text."""
    if not (isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text)):
        raise ValueError("expected a SHA-256")
    return text


def _inside(name: str) -> str:
    """A name as it is. Raises ValueError for one that leads out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or any(part in ("..", ".") or "\0" in part for part in parts):
        raise ValueError("expected a name below the folder")
    return name


def files_below(folder: Path) -> Iterator[Path]:
    """The files below a folder that are written to their end; none where there is no folder."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _by_program(name: str) -> str:
    return name.partition("/")[0] if "/" in name else TOP


def _by_case(name: str) -> str:
    return "/".join(name.split("/")[:2]) if name.count("/") > 1 else TOP


def _shared(ws: "Settings", kind: str, folder: Path, group_of: Callable[[str], str], whole: bool) -> SharedFiles | None:
    """Files of one kind; None in the home of one machine."""
    from med_assets.storage.s3.store import S3Store

    if ws.store_location is None or not isinstance(ws.store, S3Store):
        return None
    location = Location(ws.store_location.bucket, ws.store_location.key(f"shared/{kind}"))
    return SharedFiles(ws.store.client, location, folder, ws.home, group_of, whole=whole)


def reports(ws: "Settings") -> SharedFiles | None:
    """What people read of all programs, a group for each; None in the home of one machine."""
    return _shared(ws, "reports", ws.reports, _by_program, whole=False)


def predictions(ws: "Settings") -> SharedFiles | None:
    """Exported predictions, a group for each case; None in the home of one machine."""
    return _shared(ws, "predictions", ws.predictions, _by_case, whole=True)


def files_of(files: SharedFiles, program: str) -> list[Path]:
    """Files of this machine that belong to a program, or to all."""
    return [*files_below(files.folder / program), *(path for path in files.folder.glob("[!.]*") if path.is_file())]


def push(ws: "Settings", program: str) -> None:
    """Let other machines have what changed among the reports and predictions of a program; nothing in the home of one machine."""
    for files in (reports(ws), predictions(ws)):
        if files is not None:
            with alone_here(ws, LOCK):
                files.push(files_of(files, program))


def pull(ws: "Settings", program: str) -> None:
    """Bring the reports of a program here that are newer in the bucket; nothing in the home of one machine."""
    if (files := reports(ws)) is not None:
        with alone_here(ws, LOCK):
            files.pull(program)
            files.pull(TOP)
        _refreshed[str(ws.home), program] = time.monotonic()


@contextmanager
def sharing(ws: "Settings", program: str, *, reads: bool) -> Iterator[None]:
    """A stage of a program: one that `reads` reports finds those of other machines, and they find what any stage wrote or removed.

    What a stage that raises an error wrote is there for others after the next stage of this machine. Nothing in the home of one machine.
    """
    files, others = reports(ws), predictions(ws)
    if files is None or others is None:
        yield
        return
    if reads:
        pull(ws, program)
    with alone_here(ws, LOCK):
        for each in (files, others):
            each.begin(program)
        files.begin(TOP)
    before = {path.relative_to(ws.reports).as_posix() for path in files_below(ws.reports / program)}
    yield
    push(ws, program)
    removed = [name for name in before if not (ws.reports / name).exists()]
    if removed and (ws.reports / program).is_dir():  # else a person deleted the folder, which deletes nothing elsewhere
        with alone_here(ws, LOCK):
            files.withdraw(removed)


_refreshed: dict[tuple[str, str], float] = {}
"""By home and program when this process pulled reports last."""


def refresh(ws: "Settings", program: str) -> None:
    """`pull`, at most every FRESH_S seconds, for what asks again and again."""
    if (
        ws.store_location is not None
        and time.monotonic() - _refreshed.get((str(ws.home), program), -FRESH_S) >= FRESH_S
    ):
        pull(ws, program)


def pull_predictions(ws: "Settings", program: str, case_ids: Iterable[str]) -> None:
    """Bring the exported predictions of cases here; nothing in the home of one machine."""
    if (files := predictions(ws)) is not None:
        with alone_here(ws, LOCK):
            for case_id in case_ids:
                files.pull(f"{program}/{case_id}")
