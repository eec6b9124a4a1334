"""Results that are to be sent: on the disk until the node has them, tried again with growing pauses.

The queue holds de-identified objects alone. Where a node gets results under the original patient and study, they are relinked in
memory at the moment of sending.
"""

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from med_assets.errors import ConfigurationError
from med_assets.settings import Settings
from med_assets.storage.files import read_json, sync, sync_all, write_json
from med_assets.storage.locks import alone_here

FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 6 * 3600.0
"""Seconds until the second attempt, which double with each further one, up to the longest."""

ITEM = "item.json"


@dataclass(frozen=True)
class Item:
    """The results of a case for a node, and what came of sending them so far."""

    id: str
    node: str
    program: str
    case_id: str
    files: tuple[str, ...]
    sent: tuple[str, ...] = ()
    attempts: int = 0
    next_at: float = 0.0
    """Seconds since the epoch before which it is not tried again."""

    error: str = ""

    @property
    def left(self) -> tuple[str, ...]:
        """Files that the node does not have yet."""
        return tuple(name for name in self.files if name not in self.sent)

    def failed(self, error: str, now: float) -> "Item":
        """The item after an attempt that left something."""
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self.attempts)
        return replace(self, attempts=self.attempts + 1, next_at=now + pause, error=error)


@dataclass(frozen=True)
class Waiting:
    """A line for people about an item."""

    id: str
    node: str
    program: str
    case: str
    left: int
    attempts: int
    next: str
    error: str


class Queue:
    """The queue of a home."""

    def __init__(self, ws: Settings) -> None:
        self.ws, self.folder = ws, ws.home / "network" / "queue"

    def add(self, node: str, program: str, case_id: str, files: Sequence[Path]) -> Item:
        """Put copies of files into the queue; they are on the disk when this returns."""
        if not files:
            raise ConfigurationError("expected results to send, got none")
        with alone_here(self.ws, "network-queue"):
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
            item = Item(f"{stamp}-{secrets.token_hex(3)}", node, program, case_id, tuple(path.name for path in files))
            folder, final = self.folder / f".{item.id}", self.folder / item.id
            folder.mkdir(parents=True)
            for path in files:
                shutil.copyfile(path, folder / path.name)
            write_json(folder / ITEM, asdict(item))
            sync_all([*folder.iterdir(), folder])
            folder.rename(final)
            sync(self.folder)
        return item

    def items(self) -> list[Item]:
        """All that waits, oldest first."""
        if not self.folder.is_dir():
            return []
        return [_item(path) for path in sorted(self.folder.glob("[!.]*")) if (path / ITEM).is_file()]

    def due(self, now: float | None = None) -> Iterator[Item]:
        """What may be tried now, also after the clock went back."""
        now = time.time() if now is None else now
        for item in self.items():
            if item.next_at <= now or item.next_at > now + LONGEST_PAUSE_S:
                yield item

    def path(self, item: Item, name: str) -> Path:
        """Where a file of an item lies."""
        return self.folder / item.id / name

    def update(self, item: Item) -> None:
        """Keep what came of an attempt; an item of which nothing is left is removed."""
        folder = self.folder / item.id
        if item.left:
            write_json(folder / ITEM, asdict(item))
        else:
            hidden = folder.with_name(f".{item.id}")
            folder.rename(hidden)
            shutil.rmtree(hidden)

    def listed(self) -> list[Waiting]:
        """A line for each item."""
        return [
            Waiting(
                item.id,
                item.node,
                item.program,
                item.case_id,
                len(item.left),
                item.attempts,
                datetime.fromtimestamp(item.next_at, UTC).isoformat(timespec="seconds") if item.next_at else "now",
                item.error or "-",
            )
            for item in self.items()
        ]


def _item(folder: Path) -> Item:
    try:
        row = read_json(folder / ITEM)
        return Item(**row | {"files": tuple(row["files"]), "sent": tuple(row["sent"])})
    except (json.JSONDecodeError, TypeError, KeyError):
        raise ConfigurationError(
            f"expected an item of the queue in {folder.name}, got something else; remove this folder of network/queue and send again"
        ) from None
