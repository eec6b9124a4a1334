"""A request to stop: a signal, or the end of the piece of time that a job gets at once."""

import math
import signal
import threading
import time
from types import FrameType
from typing import Any


class StopRequest:
    """Whether this process is to stop: somebody asked it to (SIGTERM), or its piece of `after_s` is over.

    Used as a context: the signal's handler is ours within. The end of a piece waits for a validation to end, which could
    never be got through if it took longer than a piece.
    """

    def __init__(self, after_s: float | None = None) -> None:
        self.asked = False
        self._until = math.inf if after_s is None else time.monotonic() + after_s
        self._before: Any = None

    @property
    def due(self) -> bool:
        """Whether to stop at the end of a step or an epoch."""
        return self.asked or time.monotonic() >= self._until

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGTERM)
            self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def listen(self) -> None:
        """Make SIGTERM set `asked`; Lightning puts a handler of its own in place when a fit begins."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
