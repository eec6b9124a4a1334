"""DICOMweb: queries (QIDO-RS), retrieval (WADO-RS) and storing (STOW-RS), by Python's own HTTP. DICOM PS3.18 chapter 10."""

import ipaddress
import json
import stat
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from med_assets.errors import ConfigurationError, RemoteFailed
from med_assets.network.configuration import Node

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DICOM_JSON, DICOM = "application/dicom+json", "application/dicom"

ANSWER_S = 120.0
"""Seconds that a server has for its next bytes."""

MAX_PART_BYTES = 4 << 30
"""Largest answer to a request for one instance, which is held in memory."""

MAX_JSON_BYTES = 256 << 20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the address of a node is what the site configured, and credentials go to it alone."""

    def redirect_request(self, *args: Any, **keywords: Any) -> None:
        return None


def authorization(node: Node, folder: Path) -> str | None:
    """The header of requests to a node. Raises ConfigurationError where others could read it, on disk or on the line."""
    if node.authorization is None or node.dicomweb is None:
        return None
    path = folder / node.authorization
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"expected {path.name} to be for its owner alone, got more; run `chmod 600` on it")
    address = urlsplit(node.dicomweb)
    if address.scheme != "https" and not _is_this_machine(address.hostname or ""):
        raise ConfigurationError(
            "expected https for a node with authorization, got http, which anybody on the line reads"
        )
    return path.read_text().strip()


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Client:
    """Requests to the DICOMweb services of a node."""

    def __init__(self, node: Node, folder: Path) -> None:
        if node.dicomweb is None:
            raise ConfigurationError("expected the address `dicomweb` of the node in network.yaml, got none")
        self.base, self._header = node.dicomweb, authorization(node, folder)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def request(
        self, path: str, accept: str, limit: int, body: bytes | None = None, content_type: str = ""
    ) -> tuple[int, str, bytes]:
        """Status, content type and body of an answer. Raises RemoteFailed for a failure, which quotes nothing of it."""
        headers = {"Accept": accept} | ({"Content-Type": content_type} if content_type else {})
        if self._header:
            headers["Authorization"] = self._header
        asked = urllib.request.Request(f"{self.base}{path}", data=body, headers=headers)
        try:
            with self._opener.open(asked, timeout=ANSWER_S) as answer:
                content = answer.read(limit + 1)
                if len(content) > limit:
                    raise RemoteFailed(f"expected an answer of at most {limit >> 20} MB, got more")
                return answer.status, answer.headers.get("Content-Type", ""), content
        except urllib.error.HTTPError as error:
            if error.code == 409 and body is not None:  # some instances were not stored; the body says which
                return error.code, error.headers.get("Content-Type", ""), error.read(MAX_JSON_BYTES)
            message = f"expected an answer of the DICOMweb server, got HTTP {error.code}"
        except (OSError, ValueError) as error:
            message = f"expected an answer of the DICOMweb server, got {type(error).__name__}"
        raise RemoteFailed(message)

    def find(self, path: str, parameters: Mapping[str, str]) -> "list[Dataset]":
        """Matches of a query. Raises RemoteFailed."""
        from pydicom.dataset import Dataset

        query = urlencode(parameters, safe="*", quote_via=quote)
        status, _, body = self.request(f"{path}?{query}" if query else path, DICOM_JSON, MAX_JSON_BYTES)
        if status == 204 or not body:
            return []
        try:
            return [Dataset.from_json(match) for match in json.loads(body)]
        except Exception as error:  # whatever a server sends that is no DICOM JSON
            raise RemoteFailed(f"expected DICOM JSON, got {type(error).__name__} from reading it") from None

    def instances(self, path: str) -> Iterator[bytes]:
        """The DICOM files below a path, in the transfer syntax that the server has. Raises RemoteFailed."""
        accept = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
        _, content_type, body = self.request(path, accept, MAX_PART_BYTES)
        yield from parts(content_type, body)

    def store(self, files: Sequence[bytes]) -> tuple[int, bytes]:
        """Store files; status and body of the answer. Raises RemoteFailed."""
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        body = b"".join(head + content + b"\r\n" for content in files) + f"--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="{DICOM}"; boundary={boundary}'
        status, _, answer = self.request("/studies", DICOM_JSON, MAX_JSON_BYTES, body, kind)
        return status, answer


def parts(content_type: str, body: bytes) -> Iterator[bytes]:
    """The parts of a multipart body, whole as they are. Raises RemoteFailed."""
    words = [word.strip() for word in content_type.split(";")]
    boundary = next((word[9:].strip('"') for word in words if word.lower().startswith("boundary=")), "")
    if not boundary or not words[0].lower().startswith("multipart/"):
        raise RemoteFailed("expected a multipart answer with its boundary, got another")
    mark = b"--" + boundary.encode("latin-1")
    for part in (b"\r\n" + body).split(b"\r\n" + mark)[1:]:
        if part.startswith(b"--"):
            return
        _, blank, content = part.partition(b"\r\n\r\n")
        if not blank:
            raise RemoteFailed("expected a header in each part of the answer, got one without")
        yield content
    raise RemoteFailed("expected the end of a multipart answer, got one that is cut")
