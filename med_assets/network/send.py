"""`med-assets send`: results of a case to a node, by C-STORE or STOW-RS, under pseudonyms or given back to the original study."""

import io
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.deidentification.links import LinkTable, record_use
from med_assets.deidentification.relink import Origin
from med_assets.errors import ConfigurationError, MedAssetsError, RemoteFailed
from med_assets.network.association import SUCCESS, WARNINGS, association, status_name
from med_assets.network.configuration import Node, load_network, network_file, require_pynetdicom
from med_assets.network.dicomweb import Client
from med_assets.network.queue import Item, Queue
from med_assets.settings import Workspace
from med_assets.storage.locks import alone_here
from med_assets.storage.scratch import scratch

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FAILED_SEQUENCE = "00081198"
"""FailedSOPSequence in the answer of STOW-RS. DICOM PS3.18 table 10.5.3-1."""


def require_allowed(name: str, node: Node) -> None:
    """Raise ConfigurationError for a node that may get neither pseudonymous results nor those of the original study."""
    if node.research == node.relinked:
        raise ConfigurationError(
            f"expected either `research: true` or `relinked: true` of the node {name} in network.yaml, got "
            f"{'both' if node.research else 'neither'}: a research node gets results under pseudonyms, one that is relinked gets them under the "
            "original patient and study, through the table of links"
        )


class Sender:
    """Sends what is in the queue of a home."""

    def __init__(self, ws: Workspace) -> None:
        self.ws, self.network, self.queue = ws, load_network(ws), Queue(ws)
        self.files = network_file(ws).parent

    def check(self, name: str, program: str, case_id: str) -> None:
        """Raise ConfigurationError where results of a case can't go to a node, before anything is predicted."""
        node = self.network.node(name)
        require_allowed(name, node)
        if node.relinked and LinkTable(self.ws).get(program, case_id) is None:
            raise ConfigurationError(
                "expected a link of this case, which gives results back to the original study, got none; take its batch in again while "
                "MED_ASSETS_LINKS is set, with `med-assets ingest PROGRAM --batch BATCH`"
            )
        if node.dicomweb is None:
            require_pynetdicom()

    def send(self, items: Sequence[Item]) -> list[Item]:
        """Try each item once; returns those of which something is left, which stay in the queue."""
        left = []
        with alone_here(self.ws, "network-send"):
            present = {item.id for item in self.queue.items()}
            for item in (one for one in items if one.id in present):
                after = self._attempt(item)
                self.queue.update(after)
                left += [after] if after.left else []
        return left

    def _attempt(self, item: Item) -> Item:
        try:
            node = self.network.node(item.node)
            require_allowed(item.node, node)
            origin = self._origin(item) if node.relinked else None
            content = {name: self._content(item, name, origin) for name in item.left}
            sent, error = self._transmit(node, item, content)
        except MedAssetsError as failure:
            return item.failed(str(failure), time.time())
        after = replace(item, sent=(*item.sent, *sent))
        return after.failed(error, time.time()) if after.left else after

    def _origin(self, item: Item) -> Origin:
        """What gives the results of an item back to the original study; its use is on record. Raises ConfigurationError."""
        link = LinkTable(self.ws).get(item.program, item.case_id)
        if link is None:
            raise ConfigurationError("expected a link of this case, got none; it may have been removed since")
        record_use(self.ws, item.program, item.case_id, f"sent to {item.node}")
        return link.origin(self.ws.key)

    def _content(self, item: Item, name: str, origin: Origin | None) -> bytes:
        """The bytes of a file as they are sent. Raises CaseRejected."""
        path = self.queue.path(item, name)
        if origin is None:
            return path.read_bytes()
        with tempfile.TemporaryDirectory(dir=scratch(self.ws.home)) as folder:
            relinked = Path(folder) / "relinked.dcm"
            shutil.copyfile(path, relinked)
            origin.relink(relinked)
            return relinked.read_bytes()

    def _transmit(self, node: Node, item: Item, content: dict[str, bytes]) -> tuple[list[str], str]:
        """Names of files that the node has now, and why not the others. Raises RemoteFailed."""
        if node.dicomweb is not None:
            return _by_web(Client(node, self.files), content)
        return _by_association(node, self.network.own_title(item.program), self.files, content)


def _by_web(client: Client, content: dict[str, bytes]) -> tuple[list[str], str]:
    status, answer = client.store(list(content.values()))
    try:
        rows = json.loads(answer) if answer else {}
        failed = {
            str(row.get("00081155", {}).get("Value", [""])[0]) for row in rows.get(FAILED_SEQUENCE, {}).get("Value", ())
        }
    except (ValueError, AttributeError, IndexError):
        raise RemoteFailed("expected the answer of STOW-RS as DICOM JSON, got something else") from None
    sent = [name for name, data in content.items() if str(_read(data).SOPInstanceUID) not in failed and status < 300]
    return sent, "" if len(sent) == len(content) else f"the node did not store {len(content) - len(sent)} of them"


def _by_association(node: Node, title: str, files: Path, content: dict[str, bytes]) -> tuple[list[str], str]:
    objects = {name: _read(data) for name, data in content.items()}
    contexts = {(str(ds.SOPClassUID), (str(ds.file_meta.TransferSyntaxUID),)) for ds in objects.values()}
    sent, error = [], ""
    with association(node, title, sorted(contexts), files) as assoc:
        for name, ds in objects.items():
            try:
                code = assoc.send_c_store(ds).get("Status")
            except (ValueError, RuntimeError) as refusal:  # no context for it, or the association has ended
                error = f"the node takes no objects of this kind ({type(refusal).__name__})"
                continue
            if code == SUCCESS or code in WARNINGS:
                sent.append(name)
            else:
                error = status_name(code)
    return sent, error


def _read(content: bytes) -> "Dataset":
    import pydicom

    return pydicom.dcmread(io.BytesIO(content))
