"""`med-assets retrieve`: what a node has of the studies that are asked for, into the landing zone.

A node is asked which series of the program's modalities it has, and sends those instances that are not here. A journal holds
keyed hashes of what came, so that a series which was moved away after its intake is not asked for again.
"""

import hashlib
import hmac
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from med_assets.dicom.elements import text
from med_assets.dicom.sop_classes import MODALITIES
from med_assets.errors import CaseRejected, ConfigurationError, DiskFull, RemoteFailed
from med_assets.network.association import (
    FIND,
    GET,
    MOVE,
    NATIVE,
    PENDING,
    SUCCESS,
    Context,
    association,
    find,
    status_name,
)
from med_assets.network.configuration import Network, Node, Receiver, load_network, network_file, require_pynetdicom
from med_assets.network.dicomweb import Client
from med_assets.network.inbox import RETRIEVING, Inbox, Outcome, instances_in, is_taken, require_uid
from med_assets.network.receiver import keep_quiet, landing_folder, listening
from med_assets.program import get
from med_assets.settings import Workspace
from med_assets.storage.files import HASH_CHARS, sync

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger(__name__)

WAYS = ("web", "move", "get")
"""How instances come: WADO-RS, C-MOVE to our own receiver, or C-GET on the association that asks."""

PAGE = 200
"""Matches that a DICOMweb server is asked for at a time."""

MAX_UIDS = 100
"""Instances in one request of C-MOVE or C-GET."""


@dataclass(frozen=True)
class Asked:
    """Which studies are asked for; at least one is given."""

    since: date | None = None
    until: date | None = None
    description: str | None = None
    modality: str | None = None
    accession: str | None = None

    def matching(self) -> dict[str, str]:
        """Matching keys of a query at the level of studies. DICOM PS3.4 C.2.2.2."""
        found = {}
        if self.since or self.until:
            found["StudyDate"] = "-".join(f"{day:%Y%m%d}" if day else "" for day in (self.since, self.until))
        if self.description:
            # Orthanc 1.10 unescapes nothing in an address, so a wider question is asked and its answers are compared.
            found["StudyDescription"] = f"*{'*'.join(self.description.split())}*"
        if self.modality:
            found["ModalitiesInStudy"] = self.modality
        if self.accession:
            found["AccessionNumber"] = self.accession
        return found

    def fits(self, study: "Dataset") -> bool:
        """Whether a match has the description, as far as the node says."""
        stated = text(study, "StudyDescription").casefold()
        return not (self.description and stated) or " ".join(self.description.split()).casefold() in stated


@dataclass(frozen=True)
class Series:
    """A series of a node: its UIDs, its modality, and its instances."""

    study: str
    uid: str
    modality: str
    instances: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """A series that was found, and those of its instances that are not here."""

    series: Series
    missing: tuple[str, ...]
    known: bool
    """Whether the journal says that it came before."""

    @property
    def wanted(self) -> tuple[str, ...]:
        return () if self.known else self.missing


@dataclass(frozen=True)
class Listed:
    """A line for people about a study, without anything of the patient; `study` is a keyed hash."""

    study: str
    modalities: str
    series: int
    instances: int
    here: int


@dataclass(frozen=True)
class Retrieved:
    """What a retrieval came to."""

    series: int
    instances: int
    failed: int


class Source(Protocol):
    """A node that is asked."""

    def studies(self, matching: dict[str, str]) -> "list[Dataset]": ...

    def series(self, study: str) -> "list[Dataset]": ...

    def instances(self, study: str, series: str) -> "list[Dataset]": ...

    def fetch(self, planned: Planned) -> None:
        """Let the wanted instances come. Raises RemoteFailed."""
        ...


class WebSource:
    """A node by QIDO-RS and WADO-RS."""

    def __init__(self, client: Client, inbox: Inbox | None) -> None:
        self.client, self.inbox = client, inbox

    def _pages(self, path: str, parameters: dict[str, str]) -> "list[Dataset]":
        found: list[Dataset] = []
        while True:
            page = self.client.find(path, parameters | {"limit": str(PAGE), "offset": str(len(found))})
            found += page
            if len(page) < PAGE:
                return found

    def studies(self, matching: dict[str, str]) -> "list[Dataset]":
        return self._pages("/studies", matching | {"includefield": "StudyDescription"})

    def series(self, study: str) -> "list[Dataset]":
        return self._pages(f"/studies/{study}/series", {})

    def instances(self, study: str, series: str) -> "list[Dataset]":
        return self._pages(f"/studies/{study}/series/{series}/instances", {})

    def fetch(self, planned: Planned) -> None:
        one = planned.series
        for uid in planned.wanted:
            for content in self.client.instances(f"/studies/{one.study}/series/{one.uid}/instances/{uid}"):
                _keep(self.inbox, content, None, uid)


class DicomSource:
    """A node by C-FIND, and C-MOVE or C-GET."""

    def __init__(self, node: Node, title: str, folder: Path, way: str, inbox: Inbox | None) -> None:
        self.node, self.title, self.folder, self.way, self.inbox = node, title, folder, way, inbox

    def _find(self, level: str, keys: dict[str, str]) -> "list[Dataset]":
        with association(self.node, self.title, [(FIND, NATIVE)], self.folder) as assoc:
            return find(assoc, _identifier(level, keys))

    def studies(self, matching: dict[str, str]) -> "list[Dataset]":
        return self._find("STUDY", {"StudyInstanceUID": "", **matching})

    def series(self, study: str) -> "list[Dataset]":
        return self._find("SERIES", {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": ""})

    def instances(self, study: str, series: str) -> "list[Dataset]":
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": ""}
        return self._find("IMAGE", keys)

    def fetch(self, planned: Planned) -> None:
        one = planned.series
        keys = {"StudyInstanceUID": one.study, "SeriesInstanceUID": one.uid}
        if len(planned.wanted) == len(one.instances):
            self._ask(_identifier("SERIES", keys))
            return
        for start in range(0, len(planned.wanted), MAX_UIDS):
            uids = planned.wanted[start : start + MAX_UIDS]
            self._ask(_identifier("IMAGE", {**keys, "SOPInstanceUID": "\\".join(uids)}))

    def _ask(self, identifier: "Dataset") -> None:
        if self.way == "move":
            with association(self.node, self.title, [(MOVE, NATIVE)], self.folder) as assoc:
                self._finish(assoc.send_c_move(identifier, self.title, MOVE))
            return
        classes: list[Context] = [(one, NATIVE) for kind in MODALITIES.values() for one in kind.classes]
        with association(
            self.node, self.title, [(GET, NATIVE)], self.folder, takes=self._take, takes_classes=classes
        ) as assoc:
            self._finish(assoc.send_c_get(identifier, GET))

    def _take(self, event: Any) -> int:
        try:
            request = event.request
            _keep(
                self.inbox,
                event.encoded_dataset(),
                str(request.AffectedSOPClassUID),
                str(request.AffectedSOPInstanceUID),
            )
        except Exception:  # the node counts it as failed, and so do we, since it is not here
            return 0xC000
        return SUCCESS

    @staticmethod
    def _finish(answers: "Iterator[tuple[Dataset, Dataset | None]]") -> None:
        code = None
        for status, _ in answers:
            code = status.get("Status")
        if code != SUCCESS and code not in PENDING:
            raise RemoteFailed(f"expected the node to send all that was asked for, got {status_name(code)}")


def _identifier(level: str, keys: dict[str, str]) -> "Dataset":
    from pydicom.dataset import Dataset

    found = Dataset()
    found.SpecificCharacterSet = "ISO_IR 192"
    found.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(found, keyword, value)
    return found


def _keep(inbox: Inbox | None, content: bytes, sop_class: str | None, instance: str) -> None:
    """Store what came. Raises RemoteFailed for what is none of ours, DiskFull."""
    assert inbox is not None
    try:
        outcome = inbox.store(content, sop_class, instance, sender=1)
    except CaseRejected as refusal:
        raise RemoteFailed(f"expected the instance that was asked for, got something else ({refusal.code})") from None
    if outcome is Outcome.NO_SPACE:
        raise _disk_full(inbox.folder)


def _disk_full(folder: Path) -> DiskFull:
    return DiskFull(
        f"less free space in the landing folder {folder} than receiver.min_free_gb of network.yaml; what came is whole: free some "
        "space and start the same command again"
    )


class Journal:
    """What came from nodes, as keyed hashes: a line of JSON for each series."""

    def __init__(self, ws: Workspace, program: str) -> None:
        self.path = ws.home / "network" / "retrieved" / f"{program}.jsonl"
        self._key = hmac.new(ws.key, b"network\0journal of retrieval", hashlib.sha256).digest()

    def token(self, *parts: str) -> str:
        """A keyed hash that stands for UIDs."""
        return hmac.new(self._key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:HASH_CHARS]

    def content(self, series: Series) -> str:
        """What stands for a series with just these instances."""
        return self.token("series", series.uid, *sorted(series.instances))

    def complete(self) -> set[str]:
        """Contents of the series of which all instances came."""
        if not self.path.is_file():
            return set()
        found = set()
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a process that was killed
                continue
            if row.get("failed") == 0:
                found.add(str(row.get("series")))
        return found

    def add(self, node: str, way: str, planned: Planned, failed: int) -> None:
        """Append a line that is on the disk when this returns."""
        row = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "node": node,
            "way": way,
            "study": self.token("study", planned.series.study),
            "series": self.content(planned.series),
            "asked": len(planned.wanted),
            "failed": failed,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        sync(self.path.parent)


class Pace:
    """A limit of instances per minute, kept by waiting after what came; 0 for none."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute, self.next_at = per_minute, 0.0

    def wait(self) -> None:
        """Wait until more may be asked for."""
        time.sleep(max(0.0, self.next_at - time.monotonic()))

    def used(self, instances: int) -> None:
        """Count what was asked for."""
        if self.per_minute:
            self.next_at = time.monotonic() + 60.0 * instances / self.per_minute


class Retrieval:
    """One node asked for one program."""

    def __init__(self, ws: Workspace, program: str, name: str, way: str | None) -> None:
        """Raises ConfigurationError."""
        self.ws, self.program, self.name = ws, program, name
        self.network: Network = load_network(ws)
        self.node = self.network.node(name)
        self.way = way or ("web" if self.node.dicomweb else "move")
        self.files = network_file(ws).parent
        self.folder = landing_folder(ws, program)
        self.journal = Journal(ws, program)
        if self.way != "web":
            require_pynetdicom()
            keep_quiet()

    def source(self, inbox: Inbox | None) -> Source:
        """The node as what is asked."""
        if self.way == "web":
            return WebSource(Client(self.node, self.files), inbox)
        return DicomSource(self.node, self.network.own_title(self.program), self.files, self.way, inbox)

    def plan(self, asked: Asked, limit: int | None, *, again: bool) -> list[Planned]:
        """What the node has, and what of it is not here. Raises RemoteFailed, ConfigurationError."""
        matching = asked.matching()
        if not matching:
            raise ConfigurationError(
                "expected at least one of --since, --until, --description, --modality and --accession, got none"
            )
        source, kinds = self.source(None), get(self.program).modalities
        here, complete = instances_in(self.folder), set() if again else self.journal.complete()
        found = []
        for study in _uids([row for row in source.studies(matching) if asked.fits(row)], "StudyInstanceUID")[:limit]:
            for row in source.series(study):
                if text(row, "Modality") in kinds:
                    (uid,) = _uids([row], "SeriesInstanceUID")
                    sops = tuple(_uids(source.instances(study, uid), "SOPInstanceUID"))
                    series = Series(study, uid, text(row, "Modality"), sops)
                    missing = tuple(sop for sop in sops if sop not in here)
                    found.append(Planned(series, missing, self.journal.content(series) in complete))
        return found

    def listed(self, plan: Sequence[Planned]) -> list[Listed]:
        """A line for each study."""
        lines = []
        for study in dict.fromkeys(one.series.study for one in plan):
            of = [one for one in plan if one.series.study == study]
            total = sum(len(one.series.instances) for one in of)
            lines.append(
                Listed(
                    self.journal.token("study", study)[:8],
                    "+".join(sorted({one.series.modality for one in of})),
                    len(of),
                    total,
                    total - sum(len(one.wanted) for one in of),
                )
            )
        return lines

    def run(self, plan: Sequence[Planned], per_minute: int) -> Retrieved:
        """Let all come that is not here; what fails is counted, and the others come. Raises DiskFull, ConfigurationError."""
        pace, n_series, n_instances, n_failed = Pace(per_minute), 0, 0, 0
        with self._inbox() as inbox:
            source = self.source(inbox)
            for study in dict.fromkeys(one.series.study for one in plan if one.wanted):
                for planned in (one for one in plan if one.series.study == study and one.wanted):
                    self._require_space()
                    pace.wait()
                    try:
                        source.fetch(planned)
                    except RemoteFailed as error:
                        log.warning("a series of %s: %s", self.name, error)
                    pace.used(len(planned.wanted))
                    failed = len(set(planned.wanted) - instances_in(self.folder))
                    self.journal.add(self.name, self.way, planned, failed)
                    n_series, n_instances = n_series + (failed == 0), n_instances + len(planned.wanted) - failed
                    n_failed += failed
                if inbox is not None:
                    inbox.settle(study)
        return Retrieved(n_series, n_instances, n_failed)

    def _min_free_bytes(self) -> float:
        receiver = self.network.receiver
        return 1e9 * (receiver.min_free_gb if receiver else float(Receiver.model_fields["min_free_gb"].default))

    def _require_space(self) -> None:
        if shutil.disk_usage(self.folder).free < self._min_free_bytes():
            raise _disk_full(self.folder)

    @contextmanager
    def _inbox(self) -> Iterator[Inbox | None]:
        """Where instances are kept; none for C-MOVE, whose instances come to the receiver that runs, or that runs within the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if self.way == "move":
                if not is_taken(self.folder):
                    stack.enter_context(listening(self.ws, self.network))
                yield None
                return
            inbox = Inbox(self.folder, self._min_free_bytes(), 0, RETRIEVING)
            stack.callback(inbox.close)
            inbox.recover()
            stack.callback(inbox.recover)
            yield inbox


def _uids(rows: "Sequence[Dataset]", keyword: str) -> list[str]:
    """UIDs of answers, each once; one that is none is refused, since it would be part of an address or a file's name."""
    try:
        return list(dict.fromkeys(require_uid(text(row, keyword)) for row in rows))
    except CaseRejected:
        raise RemoteFailed(f"expected a UID as {keyword} of each match, got something else") from None
