"""Who may use the review page: this machine alone, readers with a password, or readers that a reverse proxy names."""

import hashlib
import hmac
import ipaddress
import os
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from med_assets.deidentification.audit_trail import MAX_PERSON_CHARS
from med_assets.errors import ConfigurationError
from med_assets.serving.binding import is_loopback
from med_assets.settings import Settings
from med_assets.storage.escaping import visible
from med_assets.storage.files import write_text
from med_assets.storage.locks import alone_here

PROXY_HEADER = "MED_ASSETS_REVIEW_PROXY_HEADER"
"""Variable with the name of the header in which a reverse proxy names the reader, such as X-Remote-User."""

TRUSTED_PROXIES = "MED_ASSETS_REVIEW_TRUSTED_PROXIES"
"""Variable with the addresses or networks of the proxies whose header counts, by comma."""

LOGINS = "MED_ASSETS_REVIEW_LOGINS"
"""Variable with the file of readers and their hashed passwords; `review_logins` of the home unless set."""

SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 14, 8, 5
"""Cost of a hash, 16 MiB and about 0.3 s: OWASP Password Storage Cheat Sheet (2024), the setting with N = 2^14."""

SCRYPT_MEMORY = 64 << 20
"""Memory that a hash may take: a file with a larger cost is refused."""

MIN_PASSWORD_CHARS, MAX_PASSWORD_CHARS = 12, 256

SESSION_S = 12 * 3600.0
"""A session that is not used for so long ends."""

MAX_SESSIONS, MAX_ANONYMOUS = 1000, 1000
"""Sessions of readers and of visitors who are not known yet; the one that was not used for longest ends first."""

MAX_FAILURES, FAILURES_S = 10, 60.0
"""Wrong passwords within so many seconds after which no password is looked at."""


def reader_name(text: str) -> str:
    """The name of a reader as it is recorded. Raises ConfigurationError for one that is empty, too long, or can't be seen whole."""
    name = text.strip()
    if not name or len(name) > MAX_PERSON_CHARS or visible(name) != name or any(mark in name for mark in ":\n\t"):
        raise ConfigurationError(
            f"expected a name of 1 to {MAX_PERSON_CHARS} characters without colon and control characters for a reader, got "
            f"{len(name)} characters"
        )
    return name


@dataclass(frozen=True)
class HashedPassword:
    """A password by its scrypt hash, with what it was made with."""

    n: int
    r: int
    p: int
    salt: bytes
    hash: bytes

    @classmethod
    def of(cls, password: str) -> "HashedPassword":
        """Hash a new password. Raises ConfigurationError for a short or a very long one."""
        if not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS:
            raise ConfigurationError(
                f"expected a password of {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters, got {len(password)}"
            )
        salt = secrets.token_bytes(16)
        return cls(SCRYPT_N, SCRYPT_R, SCRYPT_P, salt, _scrypt(password, salt, SCRYPT_N, SCRYPT_R, SCRYPT_P))

    @classmethod
    def parse(cls, text: str) -> "HashedPassword":
        """Read what `written` gives. Raises ValueError."""
        kind, n, r, p, salt, found = text.split("$")
        if kind != "scrypt" or not 0 < 128 * int(n) * int(r) < SCRYPT_MEMORY or not 0 < int(p) <= 16:
            raise ValueError("no scrypt hash")
        return cls(int(n), int(r), int(p), bytes.fromhex(salt), bytes.fromhex(found))

    def written(self) -> str:
        """The hash as a word."""
        return f"scrypt${self.n}${self.r}${self.p}${self.salt.hex()}${self.hash.hex()}"

    def fits(self, password: str) -> bool:
        """Whether this is the hash of a password; takes as long for a wrong one."""
        found = _scrypt(password[:MAX_PASSWORD_CHARS], self.salt, self.n, self.r, self.p)
        return hmac.compare_digest(found, self.hash)


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=SCRYPT_MEMORY, dklen=32)


def logins_path(ws: Settings, environ: Mapping[str, str] = os.environ) -> Path:
    """The file of the readers' passwords."""
    return Path(environ[LOGINS]) if environ.get(LOGINS) else ws.home / "review_logins"


def read_logins(path: Path) -> dict[str, HashedPassword]:
    """Hashed passwords by reader; none where there is no file. Raises ConfigurationError for a line that is none."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"expected the logins of readers in {path.name}, got {type(error).__name__}"
        ) from error
    found = {}
    for number, line in enumerate(lines, start=1):
        name, _, text = line.partition(":")
        try:
            found[reader_name(name)] = HashedPassword.parse(text)
        except (ValueError, ConfigurationError):
            raise ConfigurationError(
                f"{path.name}: expected NAME:HASH in line {number}, got something else; `med-assets review-login NAME` writes it"
            ) from None
    return found


def write_login(ws: Settings, reader: str, password: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Set the password of a reader, whose earlier one no longer holds; returns the file, which only its owner can read."""
    path, name, hashed = logins_path(ws, environ), reader_name(reader), HashedPassword.of(password)
    with alone_here(ws, "review-logins"):
        logins = read_logins(path) | {name: hashed}
        write_text(path, "".join(f"{one}:{known.written()}\n" for one, known in sorted(logins.items())))
        path.chmod(0o600)
    return path


@dataclass(frozen=True)
class Proxies:
    """Reverse proxies that name the reader: the header they use, and the networks that they are in."""

    header: str
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

    def trust(self, client: str) -> bool:
        """Whether a request from this address came through one of them."""
        try:
            address = ipaddress.ip_address(client)
        except ValueError:
            return False
        return any(address in network for network in self.networks)


@dataclass(frozen=True)
class Access:
    """How readers are known: by a proxy's header, by password, or, where both are None, as the one whom `reader` names."""

    reader: str = ""
    logins: Mapping[str, HashedPassword] | None = None
    proxies: Proxies | None = None

    @property
    def is_local(self) -> bool:
        """Whether nobody has to log in, since only this machine reaches the page."""
        return self.logins is None and self.proxies is None


def access_of(ws: Settings, host: str, reader: str, environ: Mapping[str, str] = os.environ) -> Access:
    """Who may use a page that is bound to `host`, as the environment says.

    Raises ConfigurationError where other machines could use it without being known.
    """
    header, networks = environ.get(PROXY_HEADER, ""), environ.get(TRUSTED_PROXIES, "")
    if bool(header) != bool(networks):
        raise ConfigurationError(f"expected {PROXY_HEADER} and {TRUSTED_PROXIES} together, got only one of them")
    if header:
        try:
            trusted = tuple(ipaddress.ip_network(one.strip()) for one in networks.split(","))
        except ValueError as error:
            raise ConfigurationError(
                f"expected addresses or networks in {TRUSTED_PROXIES}, such as 10.0.0.5, {error}"
            ) from None
        return Access(proxies=Proxies(header.lower(), trusted))
    if logins := read_logins(logins_path(ws, environ)):
        return Access(logins=logins)
    if not is_loopback(host):
        raise ConfigurationError(
            "expected logins of readers for an address that other machines reach, got none; make them with `med-assets review-login "
            f"NAME`, or set {PROXY_HEADER} and {TRUSTED_PROXIES}, or bind to 127.0.0.1"
        )
    return Access(reader=reader_name(reader))


@dataclass
class Session:
    """A browser that uses the page: its reader, empty before a login, and the token that each of its writes must hold."""

    reader: str
    id: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    used_at: float = field(default_factory=time.monotonic)


class Sessions:
    """The sessions of a server, in memory: they end with it."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Session] = OrderedDict()
        self._anonymous: OrderedDict[str, Session] = OrderedDict()
        self._failures: deque[float] = deque()

    def find(self, session_id: str) -> Session | None:
        """The session that a cookie names, unless it ended."""
        for kept in (self._known, self._anonymous):
            if (session := kept.get(session_id)) is not None:
                if time.monotonic() - session.used_at > SESSION_S:
                    del kept[session_id]
                    return None
                session.used_at = time.monotonic()
                kept.move_to_end(session_id)
                return session
        return None

    def start(self, reader: str) -> Session:
        """A new session of a reader, or of a visitor who is not known yet."""
        session = Session(reader)
        kept, most = (self._known, MAX_SESSIONS) if reader else (self._anonymous, MAX_ANONYMOUS)
        kept[session.id] = session
        while len(kept) > most:
            kept.popitem(last=False)
        return session

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._known.pop(session.id, None)
        self._anonymous.pop(session.id, None)

    def may_try(self) -> bool:
        """Whether a password is looked at: not after many wrong ones within a short time."""
        while self._failures and time.monotonic() - self._failures[0] > FAILURES_S:
            self._failures.popleft()
        return len(self._failures) < MAX_FAILURES

    def failed(self) -> None:
        """Count a wrong password."""
        self._failures.append(time.monotonic())


UNKNOWN_READER = HashedPassword(SCRYPT_N, SCRYPT_R, SCRYPT_P, bytes(16), bytes(32))
"""Stands for the password of a reader whom nobody knows, so that looking it up takes as long."""


def is_login(access: Access, reader: str, password: str) -> bool:
    """Whether a reader has this password."""
    hashed = (access.logins or {}).get(reader)
    return (hashed or UNKNOWN_READER).fits(password) and hashed is not None
