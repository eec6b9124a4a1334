"""Jobs as processes of this machine, each in a session of its own."""

import fcntl
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from med_assets.launch import launcher
from med_assets.launch.jobs import LOCK, LOG, RESULT, Kind, kind
from med_assets.launch.launcher import Handle, Phase, State
from med_assets.storage import preloaded
from med_assets.storage.files import write_json
from med_assets.training import status

if TYPE_CHECKING:
    import psutil

PROCESS = "process.json"
START_TOLERANCE_S = 1.0
"""Two start times of one pid closer than this are one process; a reused pid differs by far more."""


def started_s(process: "psutil.Process") -> float:
    """When a process started: on Linux seconds since boot, which a clock that is set does not move; else since the epoch."""
    stat = Path(f"/proc/{process.pid}/stat")
    try:
        ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    except FileNotFoundError:
        return float(process.create_time())
    return ticks / os.sysconf("SC_CLK_TCK")


def running(job: Path) -> "psutil.Process | None":
    """The live process of a job folder, or None; a pid that now belongs to another process does not count."""
    import psutil

    try:
        known = json.loads((job / PROCESS).read_text())
        process = psutil.Process(known["pid"])
        same = abs(started_s(process) - known["started_s"]) < START_TOLERANCE_S
        alive = same and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, KeyError, psutil.NoSuchProcess):
        return None
    return process if alive else None


class Configuration(launcher.Configuration):
    """This machine has nothing to be asked for."""

    launcher: Literal["local"] = "local"


class LocalLauncher(launcher.Launcher):
    """Runs a job's command on this machine. A process survives the end of whoever started it."""

    configuration_type: ClassVar[type[launcher.Configuration]] = Configuration
    record: ClassVar[str] = PROCESS
    cancelled_by_ctrl_c: ClassVar[bool] = True
    starts_anew: ClassVar[bool] = True
    passes_secrets: ClassVar[bool] = True

    def __init__(self, configuration: launcher.Configuration | None = None) -> None:
        super().__init__(configuration or Configuration())
        self._children: dict[str, preloaded.Process] = {}

    def submit(self, job: Path, command: Sequence[str], env: Mapping[str, str]) -> Handle:
        import psutil

        with (job / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (found := self.find(job)) is not None:
                return found
            with (job / LOG).open("ab") as log:
                child = preloaded.start(command, env, log.fileno(), log.fileno())
            write_json(job / PROCESS, {"pid": child.pid, "started_s": started_s(psutil.Process(child.pid))})
            self._children[str(child.pid)] = child
            return Handle(job, str(child.pid), f"process {child.pid}", started_here=True)

    def find(self, job: Path) -> Handle | None:
        process = running(job)
        return None if process is None else Handle(job, str(process.pid), f"process {process.pid}")

    def state(self, handle: Handle) -> State:
        """State now; the exit code is known only of a process that was started by this launcher."""
        child = self._children.get(handle.id)
        alive = child.poll() is None if child else running(handle.job) is not None
        if alive:
            return State(Phase.RUNNING, f"the {kind(handle.job)} {handle.title} is running")
        if (handle.job / RESULT).is_file():
            return State(Phase.ENDED, f"the {kind(handle.job)} {handle.title} has ended")
        code = child.returncode if child else None
        # Lightning itself answers SIGTERM by leaving with 0, a command that is still importing with the number of the signal.
        stopped = code is not None and code > status.SIGNALLED and kind(handle.job) is Kind.STAGE
        if code is None or code <= 0 or code == status.REQUEUE or stopped:
            return State(Phase.RESUMABLE, f"the {kind(handle.job)} process was killed or asked to stop")
        return State(Phase.ENDED, f"the {kind(handle.job)} process ended with exit code {code} and no result")

    def cancel(self, handle: Handle) -> None:
        if (process := running(handle.job)) is not None:
            os.killpg(process.pid, signal.SIGTERM)
