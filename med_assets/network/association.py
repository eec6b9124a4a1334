"""Associations that this machine asks for: queries, retrieval and sending."""

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets.errors import ConfigurationError, RemoteFailed
from med_assets.network.configuration import Node

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.association import Association

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
"""Study Root query, move and get. DICOM PS3.4 annex C."""

SUCCESS, WARNINGS, PENDING = 0x0000, (0xB000, 0xB006, 0xB007), (0xFF00, 0xFF01)

NATIVE = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""Transfer syntaxes of messages, and of what comes by C-GET: explicit and implicit little endian."""

ANSWER_S = 120.0
"""Seconds that a node has for its next answer; a PACS may take its images from tape."""

Context = tuple[str, Sequence[str]]
"""A SOP class and the transfer syntaxes in which it is sent or taken."""


def _tls(node: Node, folder: Path) -> tuple[ssl.SSLContext, str] | None:
    if node.tls is None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(folder / node.tls.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if node.tls.certificate is not None:
            context.load_cert_chain(folder / node.tls.certificate, folder / node.tls.key if node.tls.key else None)
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(f"expected certificates in PEM form for a node, got {type(error).__name__}") from None
    return context, node.host


class _Checkpoint(threading.Event):
    """Where the thread of an association waits while a request of this side is answered.

    In pynetdicom 3.0 the thread states that it is paused before it looks whether it has to be, so that it may take the answer to a request
    made in between from whoever waits for it, until the time for answers is over. This one looks again after it goes on.
    """

    def __init__(self, assoc: "Association") -> None:
        super().__init__()
        self._assoc = assoc

    def wait(self, timeout: float | None = None) -> bool:
        while True:
            self._assoc._is_paused = True
            found = super().wait(timeout)
            self._assoc._is_paused = False
            if not found or self.is_set():
                return found


def keep_answers(assoc: "Association") -> "Association":
    """See to it that answers to requests on an association reach who asked."""
    checkpoint = _Checkpoint(assoc)
    checkpoint.set()
    assoc._reactor_checkpoint = checkpoint
    return assoc


@contextmanager
def association(
    node: Node,
    title: str,
    contexts: Sequence[Context],
    folder: Path,
    *,
    takes: Callable[[Any], int] | None = None,
    takes_classes: Sequence[Context] = (),
) -> "Iterator[Association]":
    """An association with a node; with `takes` the node may send instances of `takes_classes` on it (C-GET).

    Raises RemoteFailed when the node does not answer or refuses, ConfigurationError when it has no port.
    """
    from pynetdicom import build_role, evt
    from pynetdicom.ae import ApplicationEntity

    if node.port is None:
        raise ConfigurationError("expected the port of the node in network.yaml, got none")
    entity = ApplicationEntity(ae_title=title)
    entity.acse_timeout = entity.connection_timeout = 30
    entity.dimse_timeout = entity.network_timeout = ANSWER_S
    for sop_class, syntaxes in (*contexts, *takes_classes):
        entity.add_requested_context(sop_class, list(syntaxes))
    roles = [build_role(sop_class, scu_role=True, scp_role=True) for sop_class, _ in takes_classes]
    found = entity.associate(
        node.host,
        node.port,
        ae_title=node.ae_title,
        ext_neg=list(roles),
        evt_handlers=[(evt.EVT_C_STORE, takes)] if takes else [],
        tls_args=_tls(node, folder),
    )
    if not found.is_established:
        why = "it rejects the association" if found.is_rejected else "it does not answer, or aborts"
        raise RemoteFailed(
            f"expected an association with {node.host}:{node.port}, got none: {why}; does it run, and does it know the AE title {title}?"
        )
    keep_answers(found)
    try:
        yield found
    finally:
        if found.is_established:
            found.release()


def find(assoc: "Association", query: "Dataset") -> "list[Dataset]":
    """All matches of a query. Raises RemoteFailed."""
    matches = []
    for status, match in assoc.send_c_find(query, FIND):
        code = status.get("Status")
        if code in PENDING and match is not None:
            matches.append(match)
        elif code != SUCCESS:
            raise RemoteFailed(f"expected matches of a query, got {status_name(code)}")
    return matches


def status_name(code: int | None) -> str:
    """A status for people."""
    return "no answer" if code is None else f"status {code:04X}"
