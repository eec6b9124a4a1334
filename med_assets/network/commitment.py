"""Storage commitment, push model: which of the instances that a peer names are here, on the disk. DICOM PS3.4 annex J."""

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from med_assets.network.association import keep_answers
from med_assets.network.configuration import Node
from med_assets.network.inbox import Inbox

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.association import Association
    from pynetdicom.events import Event

log = logging.getLogger(__name__)

PUSH_MODEL, PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
"""The SOP class of storage commitment and its only instance."""

REQUEST, ALL_COMMITTED, SOME_FAILED = 1, 1, 2
"""Action type of a request, and event types of its report."""

NO_SUCH_INSTANCE = 0x0112
"""Failure reason of what is not here. DICOM PS3.3 C.14."""

SUCCESS, NO_SUCH_ACTION, INVALID_ARGUMENT = 0x0000, 0x0123, 0x0115

MAX_INSTANCES = 100_000
"""Instances in one request; a study of CT has thousands."""

ATTEMPTS_S = (0.2, 2.0, 10.0, 60.0, 300.0)
"""Seconds before each attempt to deliver a report; the first lets the answer to the request go out."""


def commit(event: "Event", node: Node, inbox: Inbox) -> tuple[int, int]:
    """Take a request and deliver its report later; returns the status of the answer, and the number of instances asked for."""
    if event.action_type != REQUEST:
        return NO_SUCH_ACTION, 0
    asked = event.action_information
    transaction, items = asked.get("TransactionUID"), list(asked.get("ReferencedSOPSequence") or ())
    if not transaction or not 0 < len(items) <= MAX_INSTANCES:
        return INVALID_ARGUMENT, 0
    report = report_on(str(transaction), items, inbox)
    threading.Thread(target=_deliver, args=(report, event.assoc, node), daemon=True).start()
    return SUCCESS, len(items)


def report_on(transaction: str, items: "list[Dataset]", inbox: Inbox) -> "Dataset":
    """The report of a request: what is here, and what is not."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    here = inbox.holds({str(item.get("ReferencedSOPInstanceUID", "")) for item in items})
    report = Dataset()
    report.TransactionUID = transaction
    committed, failed = [], []
    for item in items:
        line = Dataset()
        line.ReferencedSOPClassUID = str(item.get("ReferencedSOPClassUID", ""))
        line.ReferencedSOPInstanceUID = str(item.get("ReferencedSOPInstanceUID", ""))
        if line.ReferencedSOPInstanceUID in here:
            committed.append(line)
        else:
            line.FailureReason = NO_SUCH_INSTANCE
            failed.append(line)
    if committed:
        report.ReferencedSOPSequence = Sequence(committed)
    if failed:
        report.FailedSOPSequence = Sequence(failed)
    return report


def _deliver(report: "Dataset", assoc: "Association", node: Node) -> None:
    """Send a report on the association of the request while it lasts, else on one of our own."""
    for wait_s in ATTEMPTS_S:
        time.sleep(wait_s)
        try:
            if (assoc.is_established and _send(report, assoc)) or _send_anew(report, assoc, node):
                return
        except Exception as error:  # the next attempt, or another request of the peer
            log.info("a report of storage commitment was not delivered: %s", type(error).__name__)
    log.warning("a report of storage commitment was not delivered; the peer has to ask again")


def _send(report: "Dataset", assoc: "Association") -> bool:
    kind = SOME_FAILED if "FailedSOPSequence" in report else ALL_COMMITTED
    status, _ = assoc.send_n_event_report(report, kind, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    return status is not None and status.get("Status") == SUCCESS


def _send_anew(report: "Dataset", assoc: "Association", node: Node) -> bool:
    from pynetdicom import build_role
    from pynetdicom.ae import ApplicationEntity

    if node.port is None:
        return False
    request: Any = assoc.requestor.primitive
    entity = ApplicationEntity(ae_title=str(request.called_ae_title).strip())
    entity.add_requested_context(PUSH_MODEL)
    role = build_role(PUSH_MODEL, scu_role=False, scp_role=True)
    own = entity.associate(node.host, node.port, ae_title=node.ae_title, ext_neg=[role])
    if not own.is_established:
        return False
    try:
        return _send(report, keep_answers(own))
    finally:
        own.release()
