"""The table of links: which original patient and studies stand behind a case, encrypted, for those who hold the key alone.

Off unless MED_ASSETS_LINKS names a folder, since it re-identifies. The folder lies outside of the home, so that who gets a home, a
backup of it or its tables gets no link. Each case is a file of its own, encrypted (AES-256-GCM) with a key that is derived from
that of the pseudonyms. Every use is an entry of the audit trail, written before anything is shown.
"""

import hashlib
import hmac
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from med_assets.deidentification.audit_trail import Kind, record
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.relink import Header, Origin
from med_assets.errors import ConfigurationError
from med_assets.settings import Workspace
from med_assets.storage.files import HASH_CHARS, replacing

INSTALL = "pip install 'med-assets[dicom-network]'"

SUFFIX = ".link"

NONCE_BYTES = 12


@dataclass(frozen=True)
class Link:
    """A case and the headers of its original files, one for each study."""

    program: str
    case_id: str
    headers: tuple[Header, ...]

    def origin(self, key: bytes) -> Origin:
        """What gives objects of this case back to its patient and studies."""
        return Origin.of(self.headers, key)


class LinkTable:
    """The links of a site."""

    def __init__(self, ws: Workspace) -> None:
        """Raises ConfigurationError where links are off, or would lie where others read them."""
        if ws.links is None:
            raise ConfigurationError(
                "expected MED_ASSETS_LINKS with a folder outside of the home, for links from pseudonyms to patients, got none; they are off, "
                "and cases that were taken in meanwhile have none"
            )
        self.ws, self.folder = ws, ws.links
        home, folder = ws.home.resolve(), self.folder.resolve()
        if folder.is_relative_to(home) or home.is_relative_to(folder):
            raise ConfigurationError(
                "expected MED_ASSETS_LINKS with a folder that does not lie in the home or around it, got one that does"
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_mode & 0o077:
            raise ConfigurationError(
                "expected the folder of MED_ASSETS_LINKS to be for its owner alone, got more; run `chmod 700` on it"
            )
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise ConfigurationError(
                f"links need cryptography, which the extra dicom-network brings: {INSTALL}"
            ) from None
        self._cipher = AESGCM(self._derived("encryption"))

    def _derived(self, purpose: str) -> bytes:
        return hmac.new(self.ws.key, f"links\0{purpose}".encode(), hashlib.sha256).digest()

    def _path(self, program: str, case_id: str) -> Path:
        token = hmac.new(self._derived("names"), f"{program}\0{case_id}".encode(), hashlib.sha256).hexdigest()
        return self.folder / f"{token[: 2 * HASH_CHARS]}{SUFFIX}"

    def add(self, program: str, case_id: str, headers: Iterable[Header]) -> None:
        """Add what original files of a case say; what an earlier version of the case had stays."""
        before = self.get(program, case_id)
        merged = tuple(_by_study([*(before.headers if before else ()), *headers]))
        path = self._path(program, case_id)
        content = json.dumps({"program": program, "case_id": case_id, "headers": [asdict(one) for one in merged]})
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, zlib.compress(content.encode()), path.name.encode())
        with replacing(path) as temporary:  # which is for its owner alone
            temporary.write_bytes(sealed)

    def get(self, program: str, case_id: str) -> Link | None:
        """The link of a case, None where there is none. Raises ConfigurationError where it can't be opened with this key."""
        path = self._path(program, case_id)
        return self._read(path) if path.is_file() else None

    def of_study(self, uid: str) -> tuple[str, list[Link]]:
        """The pseudonymous UID of a study that is given by either UID, and the links of its cases."""
        pseudonym, here = Deidentifier(self.ws.key).uid, uid
        found = []
        for link in self._all():
            studies = {header.study for header in link.headers}
            if uid in studies or uid in map(pseudonym, studies):
                found.append(link)
                here = pseudonym(uid) if uid in studies else uid
        return (here if found else pseudonym(uid)), found

    def _all(self) -> Iterator[Link]:
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            yield self._read(path)

    def _read(self, path: Path) -> Link:
        from cryptography.exceptions import InvalidTag

        sealed = path.read_bytes()
        try:
            plain = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], path.name.encode())
        except (InvalidTag, ValueError):
            raise ConfigurationError(
                "expected a link that the key of this home opens, got one of another key, or a damaged file; restore it from a backup"
            ) from None
        row = json.loads(zlib.decompress(plain))
        headers = tuple(
            Header(one["study"], tuple(one["uids"]), one["texts"], tuple(one["roi_names"])) for one in row["headers"]
        )
        return Link(row["program"], row["case_id"], headers)


def _by_study(headers: Iterable[Header]) -> Iterator[Header]:
    """One header for each study, with all UIDs, and of each text the first."""
    studies: dict[str, list[Header]] = {}
    for header in headers:
        studies.setdefault(header.study, []).append(header)
    for study, of in studies.items():
        texts: dict[str, str] = {}
        for header in of:
            texts = {**header.texts, **texts}
        yield Header(study, tuple(sorted({uid for header in of for uid in header.uids})), texts)


def record_use(ws: Workspace, program: str, subject: str, purpose: str) -> None:
    """Record in the audit trail that somebody is shown, or uses, the link of a case; each use is an entry."""
    content = {"purpose": purpose, "use": f"{datetime.now(UTC).isoformat()}-{os.getpid()}"}
    record(ws, Kind.LINK, program, subject, content)
