"""Translate what a training process writes into its job folder to Dagster Pipes messages.

The training process knows nothing of Dagster: it writes `history.csv` (one row per epoch) and its log. This reader
tails both and hands lines on as Pipes messages, so that they show in the UI while the training runs, also for a
training that an earlier run started.
"""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_pipes import PipesParams

from med_assets.jobs import LOG

HISTORY = "history.csv"
"""The file of a job folder with one row per epoch."""

PIPES_VERSION = "0.1"
"""Version of the message protocol that is spoken here."""


class JobReader(dg.PipesMessageReader):
    """Follows one job folder; `poll()` passes on what came since the last call."""

    def __init__(self, job: Path) -> None:
        self.job = job
        self._log_at = (job / LOG).stat().st_size if (job / LOG).is_file() else 0
        self._epoch = -1.0
        self._handler: Any = None

    @property
    def expected_writer_count(self) -> int:
        """One training writes into a job folder."""
        return 1

    @contextmanager
    def read_messages(self, handler: Any) -> Iterator[PipesParams]:
        """Open the stream for one Pipes session; what is left is passed on at its end."""
        self._handler = handler
        self._send("opened", {"extras": {}})
        try:
            yield {"job": self.job.name}
        finally:
            self.poll()
            self._send("closed", {})

    def no_messages_debug_text(self) -> str:
        """What to look at when nothing came."""
        return f"Expected {HISTORY} and {LOG} in the job folder {self.job.name}."

    def _send(self, method: str, params: dict[str, Any]) -> None:
        self._handler.handle_message({"__dagster_pipes_version": PIPES_VERSION, "method": method, "params": params})

    def poll(self) -> list[dict[str, float]]:
        """Pass new log lines on, and return the numbers of epochs not seen before."""
        for line in self._new_lines():
            self._send("log", {"message": line, "level": "INFO"})
        epochs = self._new_epochs()
        for row in epochs:
            text = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
            self._send("log", {"message": f"epoch {row['epoch']:.0f}: {text}", "level": "INFO"})
        return epochs

    def _new_lines(self) -> list[str]:
        path = self.job / LOG
        if not path.is_file():
            return []
        with path.open("rb") as stream:
            stream.seek(self._log_at)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._log_at += len(whole) + len(newline)
        return [line for line in whole.decode(errors="replace").splitlines() if line.strip()]

    def _new_epochs(self) -> list[dict[str, float]]:
        path = self.job / HISTORY
        if not path.is_file():
            return []
        whole, _, _ = path.read_text().rpartition("\n")
        found = []
        for row in csv.DictReader(io.StringIO(whole)):
            numbers = {name: number for name, text in row.items() if name and (number := _number(text)) is not None}
            if numbers.get("epoch", -1.0) > self._epoch:
                self._epoch = numbers["epoch"]
                found.append(numbers)
        return found


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
