"""`med-assets receive`: a DICOM node that keeps what its peers send (C-STORE), answers C-ECHO and commits to what it has.

An instance is on the disk before it is acknowledged. Logs have counts and the names of nodes that the site gave them, nothing that
a peer sent.
"""

import logging
import ssl
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.dicom.sop_classes import SUPPORTED_CLASSES
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.folder import LocalLanding
from med_assets.network.commitment import PUSH_MODEL, commit
from med_assets.network.configuration import (
    Network,
    Receiver,
    load_network,
    network_file,
    plain_address,
    require_pynetdicom,
)
from med_assets.network.inbox import Inbox, Outcome
from med_assets.settings import Settings
from med_assets.storage.files import NO_ROOM

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.association import Association
    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

log = logging.getLogger(__name__)

VERIFICATION = "1.2.840.10008.1.1"
"""The SOP class of C-ECHO."""

SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
UNSUPPORTED_CLASS, NOT_AUTHORISED, PROCESSING_FAILURE = 0x0122, 0x0124, 0x0110
"""Statuses of a C-STORE response. DICOM PS3.4 table B.2-1, PS3.7 annex C."""

REJECTED_FOR_GOOD, BY_USER, UNKNOWN_CALLING, UNKNOWN_CALLED = 1, 1, 3, 7
"""Result, source and reasons of a rejected association. DICOM PS3.8 table 9-21."""

NEGOTIATION_S = 10.0
"""Seconds that a peer has to ask for an association once it is connected."""

MAX_PDU_BYTES = 1 << 17
"""Largest part of a message that peers are asked to send at a time; of the usual 16 kB a CT slice needs thirty."""

TICK_S = 0.5

NO_INSTANCES = "no instance is taken: disk full, or the landing zone is away"

NOT_STORABLE = (
    "1.2.840.10008.1.2.4.94",
    "1.2.840.10008.1.2.4.95",
    "1.2.840.10008.1.2.4.204",
    "1.2.840.10008.1.2.4.205",
)
"""JPIP transfer syntaxes, whose pixels stay with the sender, behind an address in the dataset."""


@dataclass
class Session:
    """An association that was let in: its number, its node, its program's inbox, and what came of its instances."""

    number: int
    node: str
    inbox: Inbox
    counts: Counter[str] = field(default_factory=Counter)


class Reception:
    """What happens to the requests of peers; pynetdicom calls it in a thread of each association."""

    def __init__(self, network: Network, receiver: Receiver, inboxes: dict[str, Inbox]) -> None:
        self.network, self.receiver, self.inboxes = network, receiver, inboxes
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self._last = 0

    def requested(self, event: "Event") -> None:
        """Let a peer in that is configured, comes from its own address and calls a title of ours; reject all others."""
        assoc = event.assoc
        try:
            primitive: Any = assoc.requestor.primitive
            calling, called = str(primitive.calling_ae_title).strip(), str(primitive.called_ae_title).strip()
            name = self._node(calling, plain_address(str(assoc.requestor.address)))
            program = self.receiver.ae_titles.get(called)
        except Exception as error:  # whatever a stranger sent: no answer of pynetdicom's own, which would let it in
            log.warning("an association is rejected: %s", type(error).__name__)
            _reject(assoc, UNKNOWN_CALLING)
            return
        if name is None:
            log.warning("an association is rejected: AE title and address are those of no node in receiver.accept")
            _reject(assoc, UNKNOWN_CALLING)
        elif program is None:
            log.warning("an association of %s is rejected: it calls none of receiver.ae_titles", name)
            _reject(assoc, UNKNOWN_CALLED)
        else:
            with self._lock:
                self._last += 1
                self._sessions[id(assoc)] = Session(self._last, name, self.inboxes[program])

    def _node(self, ae_title: str, address: str) -> str | None:
        """Name of the node that may send under this title from this address."""
        for name in self.receiver.accept:
            node = self.network.nodes[name]
            if node.ae_title == ae_title and address in node.addresses():
                return name
        return None

    def _session(self, event: "Event") -> Session | None:
        with self._lock:
            return self._sessions.get(id(event.assoc))

    def store(self, event: "Event") -> int:
        """Answer a C-STORE request; success means that the instance is on the disk."""
        session = self._session(event)
        if session is None:
            return NOT_AUTHORISED
        try:
            status, what = self._stored(session, event)
        except CaseRejected as refusal:
            status, what = (MISMATCH if refusal.code == "mismatch" else NOT_UNDERSTOOD), f"refused ({refusal.code})"
        except Exception as error:  # the peer keeps its instance and gets a status of failure
            full = isinstance(error, OSError) and error.errno in NO_ROOM
            status, what = (OUT_OF_RESOURCES if full else PROCESSING_FAILURE), f"failed ({type(error).__name__})"
        session.counts[what] += 1
        return status

    @staticmethod
    def _stored(session: Session, event: "Event") -> tuple[int, str]:
        request: Any = event.request
        sop_class, instance = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        if sop_class not in SUPPORTED_CLASSES:
            return UNSUPPORTED_CLASS, "refused (unsupported_sop_class)"
        outcome = session.inbox.store(event.encoded_dataset(), sop_class, instance, session.number)
        if outcome is Outcome.NO_SPACE:
            return OUT_OF_RESOURCES, "put off (no_space)"
        return SUCCESS, str(outcome)

    def action(self, event: "Event") -> tuple[int, None]:
        """Answer a request for storage commitment; its report follows."""
        session = self._session(event)
        if session is None:
            return NOT_AUTHORISED, None
        node = self.network.nodes[session.node]
        try:
            status, n_asked = commit(event, node, session.inbox)
        except Exception as error:  # the peer asks again
            status, n_asked = PROCESSING_FAILURE, 0
            session.counts[f"failed ({type(error).__name__})"] += 1
        session.counts["asked for commitment"] += n_asked
        return status, None

    def released(self, event: "Event") -> None:
        """Settle what an association sent that ended properly."""
        self._ended(event.assoc, properly=True)

    def lost(self, event: "Event") -> None:
        """Keep what an association sent that was aborted or cut; its studies settle when they have been quiet."""
        self._ended(event.assoc, properly=False)
        if event.assoc.requestor.primitive is None:
            # A connection that asked for nothing, such as a check of health, would count as an association for NEGOTIATION_S.
            queue: Any = event.assoc.dul.to_user_queue
            queue.put(None)  # what a wait that timed out gives too

    def _ended(self, assoc: "Association", *, properly: bool) -> None:
        with self._lock:
            session = self._sessions.pop(id(assoc), None)
        if session is None:
            return
        n_settled = session.inbox.ended(session.number, properly=properly)
        if session.counts:
            counts = ", ".join(f"{number} {what}" for what, number in sorted(session.counts.items()))
            log.info("%s: %s; %d studies settled%s", session.node, counts, n_settled, "" if properly else "; cut off")


def _reject(assoc: "Association", reason: int) -> None:
    assoc.acse.send_reject(REJECTED_FOR_GOOD, BY_USER, reason)
    assoc.is_rejected = True
    assoc.kill()


def tls_context(receiver: Receiver, folder: Path) -> ssl.SSLContext | None:
    """How connections are encrypted, None where they are not. Raises ConfigurationError."""
    tls = receiver.tls
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(folder / tls.certificate, folder / tls.key)
        if tls.ca is not None:
            context.load_verify_locations(folder / tls.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(
            f"receiver.tls: expected a certificate with its key, and authorities, in PEM form, got {type(error).__name__}"
        ) from None
    return context


def keep_quiet() -> None:
    """Let libraries say nothing in this process: what they quote is what peers sent."""
    warnings.simplefilter("ignore")
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).disabled = True
        for child in [each for each in logging.root.manager.loggerDict if each.startswith(f"{name}.")]:
            logging.getLogger(child).disabled = True


def _listen(
    receiver: Receiver, reception: Reception, context: ssl.SSLContext | None
) -> "tuple[ApplicationEntity, ThreadedAssociationServer]":
    from pynetdicom import AllStoragePresentationContexts, evt
    from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
    from pynetdicom.ae import ApplicationEntity

    entity = ApplicationEntity(ae_title=next(iter(receiver.ae_titles)))
    entity.maximum_associations = receiver.max_associations
    entity.maximum_pdu_size = MAX_PDU_BYTES
    entity.acse_timeout = NEGOTIATION_S
    entity.network_timeout = entity.dimse_timeout = receiver.idle_s
    syntaxes = [syntax for syntax in ALL_TRANSFER_SYNTAXES if syntax not in NOT_STORABLE]
    for stored in {str(each.abstract_syntax) for each in AllStoragePresentationContexts} | SUPPORTED_CLASSES:
        entity.add_supported_context(stored, syntaxes)  # also those that are refused, so that the peer gets a status
    for served in (VERIFICATION, PUSH_MODEL):
        entity.add_supported_context(served)
    handlers: list[Any] = [
        (evt.EVT_REQUESTED, reception.requested),
        (evt.EVT_C_STORE, reception.store),
        (evt.EVT_N_ACTION, reception.action),
        (evt.EVT_RELEASED, reception.released),
        (evt.EVT_ABORTED, reception.lost),
        (evt.EVT_CONN_CLOSE, reception.lost),
    ]
    try:
        server = entity.start_server(
            (receiver.host, receiver.port), block=False, ssl_context=context, evt_handlers=handlers
        )
    except OSError as error:
        raise ConfigurationError(
            f"expected an address that can be bound, got {receiver.host}:{receiver.port} ({type(error).__name__})"
        ) from None
    assert server is not None
    return entity, server


@contextmanager
def listening(ws: Settings, network: Network) -> Iterator[tuple[dict[str, Inbox], str]]:
    """Take what peers send while the block runs; yields inboxes by program and the address. Raises ConfigurationError."""
    receiver = network.receiver
    if receiver is None:
        raise ConfigurationError(f"expected the part `receiver` in {network_file(ws).name}, got none")
    context = tls_context(receiver, network_file(ws).parent)
    keep_quiet()
    inboxes = {name: _inbox(ws, name, receiver) for name in sorted(set(receiver.ae_titles.values()))}
    for name, inbox in inboxes.items():
        n_settled, n_conflicts = inbox.recover(), inbox.conflicts()
        if n_settled:
            log.info("%s: %d studies of an earlier process settled", name, n_settled)
        if n_conflicts:
            log.warning("%s: %d instances in .conflicts, with another content under a known UID", name, n_conflicts)
    entity, server = _listen(receiver, Reception(network, receiver, inboxes), context)
    assert server.socket is not None
    host, port = server.socket.getsockname()[:2]
    try:
        yield inboxes, f"{host}:{port} ({'TLS' if context else 'no TLS'})"
    finally:
        entity.shutdown()
        for inbox in inboxes.values():
            inbox.recover()
            inbox.close()


def receive(ws: Settings) -> None:
    """Take what peers send until a signal ends it. Raises ConfigurationError."""
    require_pynetdicom()
    network = load_network(ws)
    with listening(ws, network) as (inboxes, address):
        assert network.receiver is not None
        titles = ", ".join(f"{title} for {name}" for title, name in network.receiver.ae_titles.items())
        print(f"receiving on {address}: {titles}", flush=True)
        _settle_until_interrupted(inboxes)


def _settle_until_interrupted(inboxes: dict[str, Inbox]) -> None:
    had_space = dict.fromkeys(inboxes, True)
    while True:
        time.sleep(TICK_S)
        for name, inbox in inboxes.items():
            if n_settled := inbox.settle_quiet():
                log.info("%s: %d studies settled, quiet for %g s", name, n_settled, inbox.quiet_s)
            try:
                space = inbox.has_space()
            except OSError:  # such as a share that is away: instances are refused, and peers keep them
                space = False
            if space != had_space[name]:
                had_space[name] = space
                log.warning("%s: %s", name, "instances are taken again" if space else NO_INSTANCES)


def landing_folder(ws: Settings, program: str) -> Path:
    """The landing folder of a program that takes from the network. Raises ConfigurationError where it is a bucket."""
    landing = ws.landing_zone(program)
    if not isinstance(landing, LocalLanding):
        raise ConfigurationError(
            f"expected a folder as the landing zone of {program}, got {landing.title(program)}; what comes over the network is "
            "written to a folder alone"
        )
    return landing.folder(program)


def _inbox(ws: Settings, program: str, receiver: Receiver) -> Inbox:
    return Inbox(landing_folder(ws, program), receiver.min_free_gb * 1e9, receiver.quiet_s)
