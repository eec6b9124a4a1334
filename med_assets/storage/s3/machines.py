"""Which machines work on a shared home, and with which code: two versions would compute, and recompute, each its own results.

    PREFIX/machines.json      by name of the machine what it runs and when it was last seen, written by compare-and-swap

Times are for people; nothing is decided by them but when a machine that is gone is forgotten.
"""

import json
import logging
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from med_assets import __version__
from med_assets.errors import MedAssetsError
from med_assets.storage.files import canonical_json
from med_assets.storage.provenance import git_state
from med_assets.storage.s3 import conditional
from med_assets.storage.s3.bucket import Location

if TYPE_CHECKING:
    from med_assets.settings import Settings

log = logging.getLogger(__name__)

NAME = "machines.json"

MACHINE = "MED_ASSETS_MACHINE"
"""Variable with the name of this machine, where that of its host says nothing, as in a container."""

SEEN_EVERY_S = 3600.0
"""A machine writes that it is there once an hour at most."""

FORGOTTEN_S = 7 * 86400.0
"""A machine that was not seen for so long is no longer listed."""


@dataclass(frozen=True)
class Machine:
    """A machine: the version of its program, the commit that it was built from, and when it began or went on to work (UTC)."""

    version: str
    commit: str
    seen_at: str

    @property
    def code(self) -> str:
        """The code, for people."""
        return f"{self.version} ({self.commit[:12]}{'+dirty' if self.commit.endswith('+dirty') else ''})"

    def runs_as(self, other: "Machine") -> bool:
        """Whether two machines run the same code, as far as that is known."""
        return (self.version, self.commit) == (other.version, other.commit)

    @property
    def age_s(self) -> float:
        """Seconds since it was seen, by this machine's clock."""
        return time.time() - datetime.fromisoformat(self.seen_at).timestamp()


def this_machine() -> str:
    """Name of this machine: MED_ASSETS_MACHINE, else that of its host."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.environ.get(MACHINE) or platform.node() or "unknown")[:100]


def this_code() -> Machine:
    """What this machine runs, seen now."""
    return Machine(__version__, git_state(), datetime.now(UTC).isoformat(timespec="seconds"))


def read_machines(client: Any, location: Location) -> dict[str, Machine]:
    """All machines that were seen lately, by name. Raises RemoteFailed."""
    return _read(client, location)[0]


def _read(client: Any, location: Location) -> tuple[dict[str, Machine], str | None]:
    found = conditional.get(client, location, NAME)
    if found is None:
        return {}, None
    try:
        machines = {str(name): Machine(**fields) for name, fields in json.loads(found.content).items()}
        return {name: each for name, each in machines.items() if each.age_s < FORGOTTEN_S}, found.etag
    except (ValueError, TypeError, AttributeError):
        return {}, found.etag  # it is only for people, and made anew


def register(client: Any, location: Location) -> dict[str, Machine]:
    """Say that this machine works here; returns the others that run another code. Raises RemoteFailed."""
    name, own = this_machine(), this_code()
    while True:
        machines, etag = _read(client, location)
        before = machines.get(name)
        if before is None or not before.runs_as(own) or before.age_s > SEEN_EVERY_S:
            content = canonical_json(
                {each: asdict(machine) for each, machine in {**machines, name: own}.items()}
            ).encode()
            if etag is None:
                written = conditional.put_new(client, location, NAME, content) is None
            else:
                written = conditional.put_over(client, location, NAME, content, etag) is not None
            if not written:
                continue
        return different(machines, name, own)


def different(machines: Mapping[str, Machine], name: str, own: Machine) -> dict[str, Machine]:
    """The other machines that run another code."""
    return {each: machine for each, machine in machines.items() if each != name and not machine.runs_as(own)}


_registered: set[str] = set()
"""Homes for which this process registered."""


def begin(ws: "Settings") -> None:
    """Register this machine once in a process, and warn where others run another code; nothing in the home of one machine."""
    from med_assets.storage.s3.store import S3Store

    if ws.store_location is None or str(ws.store_location) in _registered or not isinstance(ws.store, S3Store):
        return
    _registered.add(str(ws.store_location))
    try:
        others = register(ws.store.client, ws.store_location)
    except MedAssetsError as error:  # it is only a warning that is missed; what the stage needs says so itself
        log.warning("this machine could not say that it works on the shared home: %s", error)
        return
    for name, machine in sorted(others.items()):
        log.warning(
            "machine %s ran %s, this one runs %s: where the code of a stage differs, each computes again what the other made; install the same",
            name,
            machine.code,
            this_code().code,
        )
