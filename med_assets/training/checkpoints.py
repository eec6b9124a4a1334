"""Checkpoints of a job: written whole or not at all, verified before use, the last few kept.

`checkpoints/step-<n>.ckpt` holds everything a training needs to go on. `step-<n>.json` beside it, written after it,
says its SHA-256, the job it belongs to, where in which epoch it stands, and which file has the weights of the best
epoch so far, with their hash. A checkpoint without that file was never finished and does not count.
"""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med_assets.errors import ArtifactCorrupt, CheckpointMismatch, DiskFull
from med_assets.storage.files import disk_full, file_sha256, read_json, replacing, write_json
from med_assets.training.events import note

FOLDER = "checkpoints"


@dataclass(frozen=True)
class Found:
    """A verified checkpoint: optimiser steps taken, the epoch it goes on in, and batches already done in that epoch."""

    path: Path
    step: int
    epoch: int
    batches: int


class Checkpoints:
    """The checkpoints of one job. `key` says what they may be resumed with, `keep` how many are kept."""

    def __init__(self, job: Path, key: str, keep: int) -> None:
        self.job, self.folder, self.key, self.keep = job, job / FOLDER, key, keep

    def best_path(self, epoch: int) -> Path:
        """Where the weights of an epoch lie that was the best when it was validated."""
        return self.folder / f"best-{epoch:05d}.pt"

    def written(self) -> list[Path]:
        """Descriptions of the checkpoints that were finished, newest first."""
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def newest(self) -> Found | None:
        """Return the newest checkpoint that is whole, or None when none was ever finished.

        One whose bytes changed is passed over with a warning that is also noted in the job's events. Raises
        CheckpointMismatch for a checkpoint of another job, ArtifactCorrupt when there are some and none is whole.
        """
        problems: list[str] = []
        for path in self.written():
            problem, described = self._problem(path)
            if problem is None:
                # What was passed over is gone, or it would be the newest again and push whole ones out.
                for stem in problems:
                    (self.folder / stem.partition(":")[0]).with_suffix(".json").unlink(missing_ok=True)
                return Found(path.with_suffix(".ckpt"), described["step"], described["epoch"], described["batches"])
            problems.append(f"{path.stem}: {problem}")
            note(self.job, "checkpoint_corrupt", checkpoint=path.stem, reason=problem)
            warnings.warn(f"{FOLDER}/{path.stem}.ckpt is passed over: {problem}", RuntimeWarning, stacklevel=2)
        if problems:
            raise ArtifactCorrupt(
                f"none of the {len(problems)} checkpoints in {self.folder} is whole ({'; '.join(problems)}); "
                "use --resume never to start over"
            )
        return None

    def write(self, save: Callable[[Path], None], step: int, epoch: int, batches: int, best: Path | None) -> None:
        """Let `save` write a file and make it the newest checkpoint; older ones than the last `keep` are removed.

        Raises DiskFull when there is no space; the checkpoints before are then as they were.
        """
        path = self.folder / f"step-{step:08d}.ckpt"
        # A checkpoint that is written anew, after a fall back to one before, does not count until it is whole again.
        path.with_suffix(".json").unlink(missing_ok=True)
        try:
            with replacing(path) as temporary:
                save(temporary)
                described = {"sha256": file_sha256(temporary), "bytes": temporary.stat().st_size}
            described |= {"job_key": self.key, "step": step, "epoch": epoch, "batches": batches}
            described |= {"best": None} if best is None else {"best": best.name, "best_sha256": file_sha256(best)}
            write_json(path.with_suffix(".json"), described)
        except (OSError, RuntimeError, DiskFull) as error:
            if (full := self._full(error)) is not None:
                raise full from error
            raise
        self._prune()

    def clean(self) -> None:
        """Remove what an interrupted write left behind. Only for the one process that trains the job."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _problem(self, path: Path) -> tuple[str | None, dict[str, Any]]:
        try:
            described: dict[str, Any] = read_json(path)
        except ValueError:
            return "its description can't be read", {}
        if described["job_key"] != self.key:
            raise CheckpointMismatch(
                f"{FOLDER}/{path.stem}.ckpt was written by another experiment or for other cases; "
                "use --resume never to start over"
            )
        expected = [(path.with_suffix(".ckpt"), described["sha256"])]
        if described["best"] is not None:
            expected.append((self.folder / described["best"], described["best_sha256"]))
        for file, sha256 in expected:
            if not file.is_file():
                return f"{file.name} is missing", described
            if file_sha256(file) != sha256:
                return f"{file.name} does not have the hash it was written with", described
        return None, described

    def _prune(self) -> None:
        kept = self.written()[: self.keep]
        best = {read_json(path)["best"] for path in kept}
        for path in self.written()[self.keep :]:
            path.unlink()
        stems = {path.stem for path in kept}
        for path in [*self.folder.glob("step-*.ckpt"), *self.folder.glob("best-*.pt")]:
            if path.stem not in stems and path.name not in best:
                path.unlink()

    def _full(self, error: BaseException) -> DiskFull | None:
        """The error as a full disk, if it is one; torch reports a failed write without saying why."""
        free = shutil.disk_usage(self.folder).free
        sizes = [path.stat().st_size for path in self.folder.glob("step-*.ckpt")]
        needed = max(sizes, default=0)
        if isinstance(error, DiskFull) or disk_full(error, self.folder) is not None or free < needed:
            return DiskFull(
                f"no space for a checkpoint in {self.folder}: about {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB "
                "free; the checkpoints before are whole: free some space and start the same command again"
            )
        return None
