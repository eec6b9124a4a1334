"""A file tried on the champion: the service of `med-assets serve` within the review page, with progress, and nothing kept."""

import json
import secrets
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from med_assets.errors import MedAssetsError
from med_assets.serving.service import Answer, Limits, Service, Visit
from med_assets.settings import Workspace

LIMITS = Limits(waiting=2, upload_bytes=2_000_000_000, seconds=600.0)
"""As `med-assets serve` has them; it lets more wait."""

KEPT_S = 600.0
"""Seconds that an upload and its answer are kept, unless they are removed before."""

MOST_FILE_BYTES = 200_000_000
"""Largest file of an answer that is sent by itself; all are in its archive."""


@dataclass(eq=False)
class Trial:
    """One upload of one session, until it is removed."""

    id: str
    session: str
    visit: Visit
    ends_at: float
    job: "Future[Answer] | None" = None
    started: float = field(default_factory=time.monotonic)

    def state(self) -> dict[str, Any]:
        """What came of it so far, as JSON has it."""
        service, job = self.visit.service, self.job
        waited = round(time.monotonic() - self.started, 1)
        if job is None or not job.done():
            phase = "waiting" if job is None or not job.running() else "predicting"
            if phase == "predicting" and service.model.loaded is None:
                phase = "loading the model"
            return {"state": phase, "seconds": waited, "usual_seconds": service.metrics.mean_s()}
        if job.cancelled():
            return {"state": "failed", "error": "it was called off"}
        if (error := job.exception()) is not None:
            # The text of a foreign error may hold values of the upload.
            return {
                "state": "failed",
                "error": str(error) if isinstance(error, MedAssetsError) else type(error).__name__,
            }
        return {"state": "done", **json.loads(job.result().result)}

    def file(self, name: str) -> bytes | None:
        """A file of the answer by its name in the archive; None for one that there is not, or that is too large."""
        if self.job is None or not self.job.done() or self.job.cancelled() or self.job.exception() is not None:
            return None
        with zipfile.ZipFile(self.job.result().archive) as packed:
            if name not in packed.namelist() or packed.getinfo(name).file_size > MOST_FILE_BYTES:
                return None
            return packed.read(name)


class Trials:
    """The services of all programs, each made when a file is first tried, and what they hold; threads may share it."""

    def __init__(self, ws: Workspace, clock: Callable[[], float] = time.monotonic) -> None:
        self.ws, self._clock = ws, clock
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}
        self._trials: dict[str, Trial] = {}

    def service(self, program_name: str) -> Service:
        """The service of a program, which loads the champion meanwhile when it is new."""
        with self._lock:
            if program_name not in self._services:
                self._services[program_name] = Service(self.ws, program_name, LIMITS)
                self._services[program_name].warm_up()
            return self._services[program_name]

    def enter(self, program_name: str, session: str) -> Trial:
        """A place for one upload. Raises Busy."""
        self.remove_expired()
        visit = self.service(program_name).enter()
        trial = Trial(secrets.token_urlsafe(16), session, visit, self._clock() + KEPT_S)
        with self._lock:
            self._trials[trial.id] = trial
        return trial

    def find(self, trial_id: str, session: str, program_name: str) -> Trial | None:
        """The trial of this id, for its own session alone."""
        self.remove_expired()
        found = self._trials.get(trial_id)
        if found is None or found.session != session or found.visit.service.program != program_name:
            return None
        return found

    def remove(self, trial: Trial) -> None:
        """Remove an upload and all that was made of it."""
        with self._lock:
            self._trials.pop(trial.id, None)
        trial.visit.end()

    def remove_expired(self) -> None:
        """Remove what is older than KEPT_S."""
        for trial in [one for one in self._trials.copy().values() if one.ends_at <= self._clock()]:
            self.remove(trial)

    def close(self) -> None:
        """Remove everything and end the services."""
        for trial in list(self._trials.values()):
            self.remove(trial)
        for service in self._services.values():
            service.close()
