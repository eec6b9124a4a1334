"""Files from a web server, large ones over bad lines: resumed where they stopped, whole or not there, with their hash beside them."""

import fcntl
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from med_assets import __version__
from med_assets.errors import ConfigurationError, DiskFull, RemoteFailed
from med_assets.storage.files import disk_full_guard, file_sha256, sync, write_json, write_text
from med_assets.storage.progress import Progress, report

FAILURES = 5
"""Failures in a row, without a byte between them, after which a download gives up."""

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""Wait after the first failure, doubled with each further one, and the longest, which also bounds what a server may ask for."""

TIMEOUT_S = 60.0
"""A server that sends nothing for so long has failed once."""

CHUNK_BYTES = 1 << 20
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Download:
    """A file that is in place: its size and hash, and how many of its bytes earlier calls had fetched."""

    path: Path
    size_bytes: int
    sha256: str
    resumed_at: int
    existed: bool


class _Unfinished(Exception):
    """A transfer ended early; what came is kept."""


class _OnlySecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect, but not from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        demand_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def demand_secure(url: str) -> None:
    """Raise ConfigurationError for an address that is neither https nor of this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ConfigurationError(f"expected an https address, got {parts.scheme}://{parts.hostname}")


def sha256_path(path: Path) -> Path:
    """Path of the hash beside a file, in the format that `sha256sum --check` reads."""
    return path.with_name(path.name + ".sha256")


def download(
    url: str,
    path: Path,
    credentials: Mapping[str, str],
    refused: str,
    sha256: str | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> Download:
    """Download a file to `path`, going on from what an earlier call left in `path.part`; one that is there is checked instead.

    `credentials` are headers that the first server alone gets, none that it redirects to. `sha256` is the hash that the publisher states, if any;
    that of the file is written beside it in any case. Raises ConfigurationError with `refused` where the server wants credentials or consent, for an
    address that has no such file and for a file that is not the expected one; RemoteFailed when the server fails again and again; DiskFull.
    """
    demand_secure(url)
    with disk_full_guard(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return _existing(path, sha256)
        with _alone(path):
            if path.exists():
                return _existing(path, sha256)
            part = _Part(path)
            resumed_at = part.size()
            _complete(url, part, credentials, refused, wait)
            found = file_sha256(part.path)
            if sha256 not in (None, found):
                part.discard()
                raise ConfigurationError(
                    f"expected {path.name} with SHA-256 {sha256}, got {found}; it was thrown away: the publisher's file has changed"
                )
            sync(part.path)
            write_text(sha256_path(path), f"{found}  {path.name}\n")
            size = part.size()
            part.path.replace(path)
            sync(path.parent)
            part.discard()
            return Download(path, size, found, resumed_at, existed=False)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a download, of which each machine has its own also in a shared home, and which the end of the process releases. Raises ConfigurationError where another has it."""
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(f"expected one download of {path.name} at a time, another is running") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _existing(path: Path, sha256: str | None) -> Download:
    """The file that is there, whose hash must be the publisher's and the one that was written when it came, as far as there are any."""
    found = file_sha256(path)
    recorded = sha256_path(path)
    known = [sha256] if sha256 else []
    with suppress(OSError, IndexError):
        known.append(recorded.read_text(encoding="utf-8").split()[0])
    if wrong := [each for each in known if each != found]:
        raise ConfigurationError(
            f"expected {path} with SHA-256 {wrong[0]}, got {found}: it is another file or damaged; remove it and give the same command again"
        )
    if not recorded.is_file():
        write_text(recorded, f"{found}  {path.name}\n")
    return Download(path, path.stat().st_size, found, 0, existed=True)


class _Part:
    """The bytes that have come, and the version of the file that they are of, by which a server tells whether it has another now."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".part")
        self._about = path.with_name(path.name + ".part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self) -> str | None:
        try:
            version = json.loads(self._about.read_text(encoding="utf-8"))["version"]
        except (OSError, ValueError, KeyError):
            return None
        return str(version) if version else None

    def begin(self, version: str | None) -> None:
        """Forget the bytes that came, and write down of which version the next are."""
        self.path.write_bytes(b"")
        write_json(self._about, {"version": version})

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)


def _complete(
    url: str, part: _Part, credentials: Mapping[str, str], refused: str, wait: Callable[[float], object]
) -> None:
    """Transfer until all is there."""
    failures = 0
    while True:
        before = part.size()
        try:
            _transfer(url, part, credentials)
            return
        except urllib.error.HTTPError as error:
            with error:
                reason, asked = _of_status(error, part, refused), _asked_wait_s(error)
        except (_Unfinished, OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and not isinstance(
                error, urllib.error.URLError | TimeoutError | ConnectionError
            ):
                raise  # of the disk
            reason, asked = _words(error), 0.0
        failures = 1 if part.size() > before else failures + 1
        if failures >= FAILURES:
            raise RemoteFailed(
                f"{urlsplit(url).hostname} failed {failures} times in a row ({reason}); {part.size() / 1e6:.0f} MB are kept, and the same "
                "command goes on from there"
            )
        wait(min(max(asked, FIRST_WAIT_S * 2 ** (failures - 1)), LONGEST_WAIT_S))


def _words(error: BaseException) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


def _of_status(error: urllib.error.HTTPError, part: _Part, refused: str) -> str:
    """What a status says that may pass. Raises ConfigurationError for one that will not."""
    if error.code in (401, 403):
        raise ConfigurationError(f"the server refuses (HTTP {error.code}): {refused}") from error
    if error.code == 416:  # what came is longer than the file is now
        part.discard()
    elif error.code not in TRANSIENT:
        raise ConfigurationError(
            f"expected the file at {urlsplit(error.url).hostname}, got HTTP {error.code} ({error.reason}): it may have moved"
        ) from error
    return f"HTTP {error.code}"


def _asked_wait_s(error: urllib.error.HTTPError) -> float:
    text = error.headers.get("Retry-After", "") if error.headers else ""
    return float(text) if text.isdecimal() else 0.0


def _transfer(url: str, part: _Part, credentials: Mapping[str, str]) -> None:
    """One request, for what is lacking where the version is known. Raises _Unfinished when the connection ends early."""
    start, version = part.size(), part.version()
    request = urllib.request.Request(
        url, headers={"User-Agent": f"med-assets/{__version__}", "Accept-Encoding": "identity"}
    )
    if start and version:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", version)
    for name, value in credentials.items():
        request.add_unredirected_header(name, value)
    with urllib.request.build_opener(_OnlySecureRedirects).open(request, timeout=TIMEOUT_S) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise ConfigurationError(
                f"expected a file from {urlsplit(answer.url).hostname}, got a web page: sign in there, and accept what it asks for"
            )
        total = _begin(answer, part, start)
        _demand_space(part.path, None if total is None else total - part.size())
        _write(answer, part.path, total)
    if total is not None and part.size() != total:
        raise _Unfinished(f"the connection ended after {part.size()} of {total} bytes")


def _begin(answer: Any, part: _Part, start: int) -> int | None:
    """Bytes of the whole file where the server tells; what came before is forgotten unless the answer goes on from it."""
    if answer.status == 206:
        fits = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if fits and int(fits[1]) == start:
            return int(fits[2])
        part.discard()
        raise _Unfinished("the server answered with another part of the file than was asked for")
    # A weak ETag does not promise the same bytes.
    tag = answer.headers.get("ETag")
    part.begin(answer.headers.get("Last-Modified") if tag is None or tag.startswith("W/") else tag)
    length = answer.headers.get("Content-Length", "")
    if not length.isdecimal() and not answer.chunked:
        raise ConfigurationError(
            f"expected the length of the file from {urlsplit(answer.url).hostname}, got none: a part would look like the whole"
        )
    return int(length) if length.isdecimal() else None


def _demand_space(path: Path, needed_bytes: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed_bytes is not None and needed_bytes > free:
        raise DiskFull(
            f"expected {needed_bytes / 1e9:.1f} GB of free disk in {path.parent}, found {free / 1e9:.1f} GB; free some, and give the same "
            "command again"
        )


def _write(answer: IO[bytes], path: Path, total: int | None) -> None:
    started, done = time.monotonic(), path.stat().st_size
    with path.open("ab") as stream:
        try:
            while chunk := answer.read(CHUNK_BYTES):
                stream.write(chunk)
                done += len(chunk)
                if total:
                    elapsed = time.monotonic() - started
                    report(Progress(f"download of {path.stem}", "MB", done // 10**6, total // 10**6, elapsed))
        except http.client.IncompleteRead as error:  # of an answer in chunks
            stream.write(error.partial)
            raise _Unfinished("the connection ended within a chunk") from error
        finally:
            stream.flush()
            os.fsync(stream.fileno())
