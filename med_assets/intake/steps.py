"""The step that a process is in, noted in memory that it shares with the one that watches it: a note wakes nobody.

A file of a case has two steps, and each message would wake who watches.
"""

import json
import os
import signal
import struct
import tempfile
import time
from dataclasses import dataclass

_AROUND = struct.Struct("<QQ")
"""Number of the note, and bytes of it, before it; the number again behind it."""

_NUMBER = struct.Struct("<Q")

_MOST_BYTES = 1 << 16
"""Of a note: its key has the path of a file."""

_ATTEMPTS = 1000
"""To read a note that is written at the same time."""


@dataclass(frozen=True)
class Step:
    """What is about to be read: a key that is the same in each attempt, and the seconds that it may take."""

    key: str
    limit_s: float


@dataclass(frozen=True)
class Note:
    """A step, and when it began (`time.monotonic`, which all processes of a machine share)."""

    step: Step
    began_s: float

    def left_s(self, since_s: float) -> float:
        """Seconds that the step may still take; it began no earlier than `since_s`."""
        return max(self.began_s, since_s) + self.step.limit_s - time.monotonic()


class NoteFile:
    """A file in memory with the last note, by its descriptor; one process writes while another one reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._number = 0

    @classmethod
    def new(cls) -> "NoteFile":
        """An empty one, which is on no disk where the system has files in memory: keys of steps have names of files."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("steps"))
        with tempfile.TemporaryFile() as stream:
            return cls(os.dup(stream.fileno()))

    def write(self, step: Step) -> None:
        """Note that a step begins."""
        self._number += 1
        text = json.dumps((step.key, step.limit_s, time.monotonic())).encode()
        content = _AROUND.pack(self._number, len(text)) + text + _NUMBER.pack(self._number)
        os.pwrite(self.descriptor, content, 0)

    def clear(self) -> None:
        """Note that no step has begun; called while the other process waits."""
        os.pwrite(self.descriptor, _AROUND.pack(0, 0), 0)

    def read(self) -> Note | None:
        """The last note; None for none, and for what a process left that something in a file took over."""
        for _ in range(_ATTEMPTS):
            around = os.pread(self.descriptor, _AROUND.size, 0)
            number, length = _AROUND.unpack(around) if len(around) == _AROUND.size else (0, 0)
            if not number or length > _MOST_BYTES:
                return None
            content = os.pread(self.descriptor, length + _NUMBER.size, _AROUND.size)
            if content[length:] == _NUMBER.pack(number):
                return _note(content[:length])
        return None

    def close(self) -> None:
        """Give the descriptor back, once."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def _note(content: bytes) -> Note | None:
    try:
        key, limit_s, began_s = json.loads(content)
        return Note(Step(str(key), float(limit_s)), float(began_s))
    except (ValueError, TypeError):
        return None


def ending(step: Step, status: int | None, memory_gb: float) -> str:
    """Message about a step in which a process ended with an exit status, or that was not done in time (None), without the name of a file."""
    what = step.key.partition(" ")[0] or "entry"
    if status is None:
        return (
            f"expected this {what} to be read within {step.limit_s:.0f} s (MED_ASSETS_INTAKE_FILE_S), it was not. Export it again, "
            f"or allow more time and take the batch in again with `med-assets ingest PROGRAM --batch BATCH`"
        )
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return (
        f"expected this {what} to be readable; the process that read it ended with {how}, as decoders do on damaged "
        f"bytes, and all do beyond {memory_gb:.1f} GB (MED_ASSETS_INTAKE_MEMORY_GB). Export it again, uncompressed"
    )
