"""Hashes and atomic writes: the two things every stored byte goes through."""

import copy
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

import yaml

from med_assets.errors import ConfigurationError, DiskFull

HASH_CHARS = 16
"""Characters of a shortened SHA-256 in keys and ids: 64 bits, a collision among a million artifacts has odds below 1e-7."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write for which there is no space: on the disk, in the quota, or under the limit of a file's size."""


def keep_private() -> None:
    """Let this process, and those that it starts, make files and folders for their owner alone; called where a process begins."""
    os.umask(0o077)


def walk(folder: Path) -> Iterator[Path]:
    """All below a folder that is no folder, at any depth and in any order; links are not followed.

    A folder below it that can't be listed is yielded itself. Raises OSError where `folder` can't be listed. (`os.walk` and
    `Path.rglob` call themselves for each level, which ends at a thousand.)
    """
    waiting = [folder]
    while waiting:
        listed = waiting.pop()
        try:
            with os.scandir(listed) as entries:
                found = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError:
            if listed == folder:
                raise
            yield listed
            continue
        waiting += [path for path, is_folder in found if is_folder]
        yield from (path for path, is_folder in found if not is_folder)


def _plain(value: Any) -> Any:
    """What JSON holds of a value that it has no form for: a record as its row, all else as text."""
    if isinstance(value, Mapping):
        return dict(value)
    return value.row() if hasattr(value, "row") else str(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return _CANONICAL.encode(value)


def canonical_rows(columns: Mapping[str, Sequence[Any]]) -> str:
    """What `canonical_json` gives of the rows of a table, given by column, as objects: three times as fast."""
    names = sorted(columns)
    fields = ",".join(f"{canonical_json(name).replace('%', '%%')}:%s" for name in names)
    return _joined(f"{{{fields}}}", [columns[name] for name in names])


def canonical_lists(columns: Sequence[Sequence[Any]]) -> str:
    """The same of the rows as lists of their values."""
    return _joined(f"[{','.join(['%s'] * len(columns))}]", columns)


def _joined(template: str, columns: Sequence[Sequence[Any]]) -> str:
    return f"[{','.join(map(template.__mod__, zip(*map(_cells, columns), strict=True)))}]"


def _cells(column: Sequence[Any]) -> list[str]:
    """The JSON of each value of a column; text at the speed of C, and of few values each once."""
    kinds = set(map(type, column))
    if kinds <= {str}:
        return list(map(encode_basestring_ascii, column))
    if len(kinds - {type(None)}) == 1 and kinds <= {str, int, bool, type(None)}:
        texts = {value: canonical_json(value) for value in set(column)}
        return [texts[value] for value in column]
    return list(map(canonical_json, column))


def digest(*parts: Any) -> str:
    """Short SHA-256 of values (bytes as they are, all else as canonical JSON)."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else canonical_json(part).encode(errors="surrogateescape")
        sha.update(len(data).to_bytes(8, "big"))
        sha.update(data)
    return sha.hexdigest()[:HASH_CHARS]


def file_sha256(path: Path) -> str:
    """Full SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by its relative POSIX path, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Link a file, which takes no space, or copy it where the target is on another file system, or one without links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SYNCS_AT_A_TIME = 16
"""Files that are flushed side by side: a disk and its journal take them together, in a tenth of the time of one after the other."""


def sync_all(paths: Sequence[Path]) -> None:
    """Flush files and folders to disk; when it returns without an error all of them are there."""

    def sync_each(some: Sequence[Path]) -> None:
        for path in some:
            sync(path)

    n = max(1, min(SYNCS_AT_A_TIME, len(paths)))
    with ThreadPoolExecutor(n) as threads:
        for _ in threads.map(sync_each, [paths[first::n] for first in range(n)]):
            pass


def disk_full(error: BaseException, folder: Path) -> DiskFull | None:
    """The error as one that says what to do, when it means that a write below `folder` found no space; else None."""
    # numpy and torch report a failed write without its errno.
    if not isinstance(error, OSError | RuntimeError):
        return None
    silent = "requested and" in str(error) or "failed writing file" in str(error)
    if getattr(error, "errno", None) not in NO_ROOM and not silent:
        return None
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    return DiskFull(
        f"no space to write in {folder}: {free / 1e6:.0f} MB free on the disk (a quota or a limit of file size counts too); "
        "what was there before is whole: free some space and start the same command again, or move the home to a larger disk"
    )


@contextmanager
def disk_full_guard(folder: Path) -> Iterator[None]:
    """Raise DiskFull in place of errors that mean that there is no space below `folder`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (full := disk_full(error, folder)) is not None:
            raise full from error
        raise


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over it, on error it is removed.

    Without `durable` it is not synced: readers still see all or nothing, but a power cut may undo it. Raises DiskFull.
    """
    with disk_full_guard(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            if durable:
                sync(temporary)
            temporary.replace(path)
            if durable:
                sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes as `replacing` does without `durable`, for small files that are written often: in a third of its time. Raises DiskFull."""
    folder, name = os.path.split(path)
    temporary = f"{folder}/.{name}.{secrets.token_hex(4)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with disk_full_guard(path.parent):
        try:
            descriptor = os.open(temporary, flags, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, flags, 0o600)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(content)
            os.rename(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write text atomically."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write JSON atomically, indented and with sorted keys."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, default=_plain) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Parsed JSON of a file."""
    return json.loads(path.read_text())


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """Parsed YAML; a process asks for the same text again and again."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_yaml(path: Path) -> Any:
    """Content of a YAML file, by libyaml where PyYAML has it: ten times as fast, and the graph reads its settings often.

    Raises ConfigurationError that names the file, and the line where its syntax ends to be YAML.
    """
    where = "/".join(path.parts[-3:])
    try:
        return copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{where}{line}: expected YAML, {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigurationError(f"{where}: expected YAML, got characters that it can't have") from error
    except RecursionError as error:
        raise ConfigurationError(f"{where}: expected YAML, got one that is nested too deep") from error
