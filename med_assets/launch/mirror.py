"""What another machine needs to go on with a training, copied into the bucket of a shared home while the training runs.

The process that follows a job copies its newest checkpoint; the training knows nothing of it and never waits for it. A machine that is asked for the
same training, after the one that ran it died, takes its lock over, fetches that state and goes on from there.
"""

import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from med_assets.errors import ArtifactCorrupt, LockLost, MedAssetsError
from med_assets.launch import jobs
from med_assets.launch.configuration import runs
from med_assets.launch.follow import HISTORY
from med_assets.launch.jobs import LOG, RESULT
from med_assets.settings import Settings
from med_assets.storage.files import folder_hashes, link_or_copy, read_json, sync_all
from med_assets.storage.s3.states import JobState
from med_assets.storage.s3.store import S3Store

log = logging.getLogger(__name__)

EVERY_S = 60.0
"""Least time between two copies, s; one that takes long is followed by a pause several times as long."""

PAUSE = 4
"""Pause after a copy in multiples of the time that it took."""

POLL_S = 1.0
"""Time between two looks for a new checkpoint, s."""

CHECKPOINTS = "checkpoints"
BESIDE = ("memory_plan.json", "events.jsonl", "tracking.json", HISTORY)
"""Files that a training goes on with beside its checkpoint, and its history for people; a job may lack some."""

LOG_BYTES = 1 << 16
"""End of the log that is copied."""

ALLOWED = re.compile(rf"{CHECKPOINTS}/(step-\d+\.(ckpt|json)|best-\d+\.pt)")
"""Names of the files of a checkpoint; no other is fetched, and so none that lies elsewhere."""


@contextmanager
def mirrored(
    ws: Settings, job: Path, resume: str = "auto", every_s: float = EVERY_S, *, publishes: bool = True
) -> Iterator[None]:
    """Take a training's state over from the machine that ran it before, and copy it to the bucket during the block.

    In the home of one machine this does nothing. The caller holds the lock of the training. `resume` is as in `launch.training.train`: with `never`
    the state of before is removed. A training that has its result is copied only where the caller does not publish it. Raises RemoteFailed where the state can't be read at the start; later failures are logged.
    """
    if not isinstance(ws.store, S3Store):
        yield
        return
    mirror = Mirror(JobState(ws.store, job.name), job, every_s, publishes=publishes)
    mirror.start(resume)
    try:
        yield
    finally:
        mirror.stop()


def remove_state(ws: Settings, job: Path) -> None:
    """Remove the copy of a training whose checkpoint is in the store. What can't be removed now costs only space."""
    if isinstance(ws.store, S3Store):
        try:
            JobState(ws.store, job.name).remove()
        except MedAssetsError as error:
            log.warning("the state of job %s stays in the bucket: %s", job.name, error)


def newest_step(job: Path) -> tuple[int, Path] | None:
    """The step of a job's newest finished checkpoint and its description; None where it has none."""
    found = max((job / CHECKPOINTS).glob("step-*.json"), default=None)
    return None if found is None else (int(found.stem.partition("-")[2]), found)


class Mirror:
    """Copies the newest checkpoint of a job again and again."""

    def __init__(self, state: JobState, job: Path, every_s: float, *, publishes: bool) -> None:
        self.state, self.job, self.every_s, self.publishes = state, job, every_s, publishes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mirror {job.name}", daemon=True)
        self._copied = -1
        self._failure = ""
        self._busy = False
        """Whether the last look copied something, or failed to."""

    def start(self, resume: str) -> None:
        """Claim the state, fetch it where it is newer than what is here, and begin to copy."""
        if resume == "never":
            self.state.discard()
        else:
            found = self.state.claim()
            here = newest_step(self.job)
            if found.files and found.step > (here[0] if here else -1) and not runs(self.job):
                self._fetch()
                log.warning("going on from step %d, which %s saved at %s", found.step, found.by, found.at)
            self._copied = found.step if found.files else -1
        self._thread.start()

    def stop(self) -> None:
        """End; what is new is copied once more."""
        self._over.set()
        self._thread.join()
        self._try()

    def _fetch(self) -> None:
        files = self.state.state.files
        if strays := [name for name in files if name not in (*BESIDE, LOG) and not ALLOWED.fullmatch(name)]:
            raise ArtifactCorrupt(
                f"expected the files of a training in the state of job {self.job.name}, got {len(strays)} others; give the command again "
                "with --resume never"
            )
        with TemporaryDirectory(dir=self.job, prefix=".state-") as scratch:
            fetched = Path(scratch) / "files"
            fetched.mkdir()
            self.state.fetch(fetched)
            sync_all([fetched / name for name in files])
            (self.job / CHECKPOINTS).mkdir(exist_ok=True)
            # The description last: a checkpoint without it does not count.
            for name in sorted(files, key=lambda name: name.startswith(CHECKPOINTS) and name.endswith(".json")):
                if not (name == LOG and (self.job / LOG).is_file()):
                    (fetched / name).replace(self.job / name)
            sync_all([self.job / CHECKPOINTS, self.job])

    def _run(self) -> None:
        pause_s = 0.0
        ended = time.monotonic()
        while not self._over.wait(min(POLL_S, self.every_s)):
            if time.monotonic() - ended < pause_s:
                continue
            began = time.monotonic()
            if not self._try():
                return
            ended = time.monotonic()
            pause_s = max(self.every_s, PAUSE * (ended - began)) if self._busy else 0.0

    def _try(self) -> bool:
        """Copy what is new; False when another machine has the job by now."""
        self._busy = False
        try:
            self._copy()
            self._failure = ""
        except FileNotFoundError:  # the training removed that checkpoint meanwhile, and has a newer one
            pass
        except LockLost as error:
            log.warning("%s", error)
            return False
        except (MedAssetsError, OSError) as error:
            self._busy = True
            if not self._failure:
                log.warning("job %s goes on, its state can't be saved in the bucket now: %s", self.job.name, error)
            self._failure = str(error)
        return True

    def _copy(self) -> None:
        newest = newest_step(self.job)
        if newest is None or newest[0] <= self._copied:
            return
        if self.publishes and (self.job / RESULT).is_file():
            return
        step, description = newest
        with TemporaryDirectory(dir=self.job, prefix=".state-") as scratch:
            folder = Path(scratch)
            (folder / CHECKPOINTS).mkdir()
            described = read_json(description)
            best = [described["best"]] if described["best"] is not None else []
            for name in (description.with_suffix(".ckpt").name, *best):
                link_or_copy(self.job / CHECKPOINTS / name, folder / CHECKPOINTS / name)
            shutil.copyfile(description, folder / CHECKPOINTS / description.name)
            for name in BESIDE:
                with suppress(FileNotFoundError):
                    shutil.copyfile(self.job / name, folder / name)
            with suppress(FileNotFoundError), (self.job / LOG).open("rb") as stream:
                stream.seek(max(0, (self.job / LOG).stat().st_size - LOG_BYTES))
                (folder / LOG).write_bytes(stream.read())
            files = folder_hashes(folder)
            expected = {description.with_suffix(".ckpt").name: described["sha256"]}
            expected |= dict.fromkeys(best, described["best_sha256"])
            if any(files[f"{CHECKPOINTS}/{name}"] != sha256 for name, sha256 in expected.items()):
                return  # damaged on this disk, as the training finds out when it goes on
            self._busy = True
            self.state.save(folder, files, step, jobs.title(self.job))
            self._copied = step
