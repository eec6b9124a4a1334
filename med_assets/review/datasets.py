"""Datasets that follow what readers decide: one thread writes them anew, once for all decisions that came meanwhile."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from med_assets.dataset.stage import dataset
from med_assets.errors import MedAssetsError
from med_assets.settings import Settings

log = logging.getLogger(__name__)


class Datasets:
    """The datasets of a home that a server brings up to date."""

    def __init__(self, ws: Settings) -> None:
        self.ws = ws
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="datasets")
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[None]] = {}
        self._working = ""
        self._problems: dict[str, str] = {}

    def bring_up_to_date(self, program_name: str) -> "Future[None]":
        """Write the dataset of a program anew, once for all who ask before it starts; returns its end."""
        with self._lock:
            if program_name not in self._waiting:
                self._waiting[program_name] = self._thread.submit(self._write, program_name)
            return self._waiting[program_name]

    def state(self, program_name: str) -> str:
        """What a reader should know: that the dataset is being written, or why it could not be; empty where it is as decided."""
        with self._lock:
            if program_name in self._waiting or self._working == program_name:
                return "The dataset is being written."
            return self._problems.get(program_name, "")

    def _write(self, program_name: str) -> None:
        with self._lock:
            self._waiting.pop(program_name)
            self._working = program_name
        problem = ""
        try:
            dataset(self.ws, program_name)
        except MedAssetsError as error:
            problem = f"The decision is recorded; the dataset could not be written: {error}"
        except Exception as error:  # the text of a foreign error may hold values of a case
            problem = f"The decision is recorded; the dataset could not be written ({type(error).__name__})."
            log.error("%s: writing the dataset failed with %s", program_name, type(error).__name__)
        with self._lock:
            self._working = ""
            self._problems[program_name] = problem

    def close(self) -> None:
        """Finish what is asked for."""
        self._thread.shutdown(wait=True)
