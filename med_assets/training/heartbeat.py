"""The heartbeat of a job's process, by which its supervisor knows that it works and does not hang."""

import faulthandler
import os
import sys
import time
from pathlib import Path

from med_assets.storage.files import write_json
from med_assets.training.ranks import rank

BEAT_EVERY_S = 1.0
"""Least time between two heartbeats within an epoch, s."""


class Beats:
    """Writes `heartbeat.json` as work goes on, and all stacks to stderr when none was written for `hang_after_s`.

    The supervisor ends a process whose heartbeat stands still; the stacks are in the log by then.
    """

    def __init__(self, path: Path, hang_after_s: float) -> None:
        self.path, self.hang_after_s, self._last = path, hang_after_s, 0.0
        self._at = (0, 0)

    def beat(self, phase: str, at: tuple[int, int] | None = None, *, always: bool = True) -> None:
        """Write a beat now, or, unless `always`, only when the last is a second old; `at` is (epoch, step)."""
        self._at = at or self._at
        faulthandler.dump_traceback_later(self.hang_after_s, repeat=True)
        now = time.time()
        if rank() == 0 and (always or abs(now - self._last) >= BEAT_EVERY_S):
            self._last = now
            beat = {"time": now, "pid": os.getpid(), "phase": phase, "epoch": self._at[0], "step": self._at[1]}
            # Not synced to disk: a beat is for who watches now, and a power cut ends the watching too.
            write_json(self.path, beat, durable=False)

    def stop(self, phase: str) -> None:
        """Write the last beat, unless the disk is full, and stop watching."""
        try:
            self.beat(phase)
        except OSError as error:
            print(f"the last heartbeat could not be written: {error}", file=sys.stderr)
        faulthandler.cancel_dump_traceback_later()
