"""Jobs on a Slurm cluster: submit, find again, ask for the state, cancel. Needs Slurm's commands, and no accounting database.

A job folder on a file system that submit host and nodes share is all they say to each other: `slurm.sh` is what the node
runs (`slurm_scripts`), `slurm.json` which job that is, `slurm.exit` how its script ended. The job's name is made of the folder's path, so a
job that was submitted by a process that died before it wrote `slurm.json` is found too, and nothing is submitted twice.

Without such a file system (`shared_folder: false`) jobs are stages of the graph alone. The script goes by sbatch itself, log and result
through the bucket of the home, and what is secret stands in a file of the node.

dagster-slurm (1.22, Apache-2.0, marked alpha) was read first and not taken. It reaches the cluster over SSH and ships an
environment there, which a shared file system makes needless; it finds a job again by tags of earlier runs, not by what goes
into the training, so the command line or a later run would submit a second one; and it does not requeue before the limit.
submitit (MIT) was not taken either: it reads states with `sacct`, which needs accounting, pickles the function and its result, and
finds a job only by the id that the submitting process kept.
"""

import fcntl
import os
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from med_assets.errors import LaunchFailed
from med_assets.launch import clusters, launcher
from med_assets.launch.clusters import ClusterLauncher, Known
from med_assets.launch.jobs import LOCK, LOG, Kind, kind
from med_assets.launch.launcher import Handle, Phase, State
from med_assets.launch.slurm_scripts import (
    EXIT,
    NO_ENVIRONMENT,
    NO_HOME,
    NO_PROGRAM,
    NO_SCRATCH,
    NO_SOURCE,
    SEEN,
    STUCK,
    node_script,
    shared_script,
)
from med_assets.storage.files import HASH_CHARS, digest, read_json, write_json, write_text
from med_assets.training import status

JOB, SCRIPT = "slurm.json", "slurm.sh"

NO_LOG = "53"
"""What Slurm calls the signal of a job whose log its node could not open."""

ANSWER_WITHIN_S = 60.0
"""How long one of Slurm's commands may take, s."""

RESULT_VISIBLE_WITHIN_S = 60.0
"""How long a file written on a node may be unseen elsewhere, s: NFS keeps what it knows of a folder for up to 60 s."""

PENDING = {
    "Resources": "waits for free nodes",
    "Priority": "jobs of higher priority come first",
    "BeginTime": "waits for its start time; a requeued job starts again after about two minutes",
    "Dependency": "waits for another job",
    "PartitionTimeLimit": "asks for more time than its partition allows; lower launch.time_min",
    "PartitionNodeLimit": "asks for more than its partition has; change launch.partition",
    "PartitionDown": "its partition is down; change launch.partition or ask the administrator",
    "JobHeldUser": "is held; `scontrol release` lets it go",
    "JobHeldAdmin": "is held by the administrator",
    "JobHoldMaxRequeue": "is held, since it was requeued too often; `scontrol release` lets it go",
    "launch_failed_requeued_held": "is held, since its node could not start it; `scontrol release` tries again",
    "ReqNodeNotAvail": "the nodes it needs are down or reserved",
    "BadConstraints": "no node has what it asks for; see launch.* of the experiment",
}
"""What Slurm's reasons mean to a person; others are shown as they are."""

ENDS = {
    "TIMEOUT": ("reached its wall-clock limit before it had stopped; raise launch.stop_before_limit_s", True),
    "PREEMPTED": ("gave way to a job of higher priority and was not requeued", True),
    "NODE_FAIL": ("lost its node {nodes} and was not requeued", True),
    "BOOT_FAIL": ("was given the node {nodes}, which did not start", True),
    "OUT_OF_MEMORY": (
        "used more memory than it asked for; raise launch.memory_gb, or lower schedule.batch or runtime.workers", False,
    ),
    "CANCELLED": ("was cancelled by a person (scancel); start it again to go on from its last checkpoint", False),
    "DEADLINE": ("could not end before its deadline; see launch.options", False),
}  # fmt: skip
"""How a job may end without a result: in words, and whether starting it again may help."""

UNPREPARED = {
    NO_ENVIRONMENT: "found no launch.environment_file on {nodes} that belongs to its user and has mode 0600; see docs/slurm.md",
    NO_PROGRAM: "found no med-assets on the PATH of {nodes}; install it there, or set PATH in launch.environment_file",
    NO_HOME: "does not see the folder of this job on {nodes}: share MED_ASSETS_HOME under the same path, or, for stages, set "
    "launch.shared_folder: false; see docs/slurm.md",
    NO_SOURCE: "does not see the Python environment and the source of this host on {nodes}; share them under the same paths",
    NO_SCRATCH: "could not write to launch.scratch on {nodes}",
}
"""What a node lacks, by the exit code of its script."""

SENT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_", "TZ", "SLURM_", "SBATCH_", "SQUEUE_", "MUNGE_")
"""Variables that sbatch gets, or how they start, where nodes share nothing: Slurm keeps a job's environment on disk."""

FIELD = re.compile(r"(?:^|\s)([A-Za-z][\w/:]*)=(.*?)(?=\s+[A-Za-z][\w/:]*=|\s*$)")


FIXED_OPTIONS = (
    "--array", "--job-name", "--no-requeue", "--open-mode", "--output", "--parsable", "--requeue", "--signal", "--wait", "--wrap",
)  # fmt: skip
"""Options of sbatch by which a training is found, followed and requeued; an experiment can't give them."""


class Configuration(clusters.Configuration):
    """What a job asks Slurm for.

    What is None is not asked for: the cluster's own default holds, or that of sbatch's variables (SBATCH_PARTITION, ...).
    """

    launcher: Literal["slurm"] = "slurm"
    partition: str | None = Field(default=None, description="Slurm partition")
    time_min: int | None = Field(default=None, ge=1, description="wall-clock limit of one start, min")
    memory_gb: int | None = Field(default=None, ge=1, description="memory of the node, GiB")
    cpus: int | None = Field(default=None, ge=1, description="CPU cores, count; at least runtime.workers + 1")
    gpus: int | None = Field(default=None, ge=0, description="GPUs of the node, count")
    stop_before_limit_s: int = Field(
        default=300,
        ge=1,
        le=65535,
        description="how long before the wall-clock limit to stop and requeue, s; up to 60 s more",
    )
    options: tuple[str, ...] = Field(default=(), description="more options of sbatch, such as --account=imaging")
    shared_folder: bool = Field(
        default=True,
        description="whether nodes see the home and the Python environment under the paths of the submit host; where not, stages alone are jobs",
    )
    environment_file: str | None = Field(
        default=None,
        description="file on each node, readable by its owner alone, that sets the variables of stages, secrets among them; absolute path",
    )
    scratch: str = Field(
        default="/tmp",
        description="folder on each node for the log, and for the home unless the file sets one; absolute path",
    )

    @model_validator(mode="after")
    def _can_be_asked_for(self) -> Self:
        if self.time_min is not None and self.time_min * 60 <= self.stop_before_limit_s:
            raise ValueError(
                f"time_min ({self.time_min} min) must be longer than stop_before_limit_s ({self.stop_before_limit_s} s)"
            )
        for name, path in (("environment_file", self.environment_file), ("scratch", self.scratch)):
            if path is not None and not PurePosixPath(path).is_absolute():
                raise ValueError(f"expected an absolute path for {name}, got {path!r}")
        for option in self.options:
            if not option.startswith("--"):
                raise ValueError(f"expected an option of sbatch in one word, such as --account=imaging, got {option!r}")
            if option.split("=")[0] in FIXED_OPTIONS:
                raise ValueError(f"{option} is set by the launcher itself and can't be given")
        return self


def job_name(job: Path, *, shared: bool = True) -> str:
    """Name of the Slurm job of a folder: the folder's own name, and a hash of where it is, where all see it."""
    return f"med-assets-{job.name}-{digest(str(job))[:8]}" if shared else f"med-assets-{job.name}"


def options(job: Path, launch: Configuration) -> list[str]:
    """Options of sbatch for a job; those of the experiment come last, so that they win."""
    asked = {
        "--partition": launch.partition,
        "--time": launch.time_min,
        "--mem": launch.memory_gb and f"{launch.memory_gb}G",
        "--cpus-per-task": launch.cpus,
        "--gres": launch.gpus and f"gpu:{launch.gpus}",
    }
    shared = launch.shared_folder
    log = job / LOG if shared else f"{launch.scratch}/{job_name(job, shared=False)}-%j.log"
    return [
        "--parsable", "--requeue", "--nodes=1", f"--job-name={job_name(job, shared=shared)}",
        f"--chdir={job if shared else launch.scratch}", f"--output={log}",
        "--open-mode=append", f"--signal=B:USR1@{launch.stop_before_limit_s}",
        *(f"{option}={value}" for option, value in asked.items() if value),
        *launch.options,
    ]  # fmt: skip


def _slurm(*words: str, env: Mapping[str, str] | None = None) -> str:
    """Output of one of Slurm's commands. Raises LaunchFailed with its message."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_WITHIN_S,
            stdin=subprocess.DEVNULL,
            env=env,
        )
    except FileNotFoundError as error:
        raise LaunchFailed(
            f"expected Slurm's command {words[0]} on the PATH; run this on a submit host, or set MED_ASSETS_LAUNCHER=local"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchFailed(
            f"{words[0]} did not answer within {ANSWER_WITHIN_S:g} s; is slurmctld up? (`sinfo`)"
        ) from error
    if done.returncode:
        raise LaunchFailed(f"{words[0]} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip()


def partitions() -> str:
    """Names of the cluster's partitions, the default one with a star. Raises LaunchFailed when Slurm does not answer."""
    return ", ".join(_slurm("sinfo", "--noheader", "--format=%P").split())


def show(job_id: str) -> dict[str, str] | None:
    """What Slurm knows of a job; None once it has forgotten it (MinJobAge, 5 minutes after its end)."""
    try:
        text = _slurm("scontrol", "show", "job", "--oneliner", job_id)
    except LaunchFailed as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return dict(FIELD.findall(text))


def ended(fields: Mapping[str, str]) -> bool:
    """Whether a job is over, by what Slurm knows of it."""
    return fields.get("JobState", "") in {"COMPLETED", "FAILED", *ENDS}


def _going_on(title: str, fields: Mapping[str, str]) -> str:
    """A job that has not ended, in words."""
    state, reason = fields.get("JobState", "").lower(), fields.get("Reason", "None")
    restarts = fields.get("Restarts", "0")
    words = f"{title} is {state}"
    if state == "pending" and reason != "None":
        meaning = PENDING.get(reason.split(",")[0])
        words += f" ({reason}): {meaning}" if meaning else f" ({reason.replace('_', ' ')})"
    elif state == "running":
        words += f" on {fields.get('NodeList', '?')}"
    return words if restarts == "0" else f"{words}, requeued {restarts} times so far"


def _code(job: Path, text: str) -> int:
    """Exit code as a shell gives it, of Slurm's `code:signal`; that of its script where the node could not open the log of a job."""
    code, _, signal = text.partition(":")
    if signal == NO_LOG:
        return NO_HOME if (job / SEEN).is_file() else NO_SCRATCH
    return 128 + int(signal) if signal not in ("", "0") else int(code or 0)


def _token(job: Path) -> str:
    """What a node must find in the folder of a job, to know that it sees this folder and no other of this path. It never changes: a
    node may remember a file for a while."""
    path = job / SEEN
    if not path.is_file():
        write_text(path, secrets.token_hex(HASH_CHARS // 2))
    return path.read_text()


def _exit_code(job: Path, job_id: str) -> int | None:
    """What the script of this very job left behind at its end, None if it could not."""
    try:
        of_job, code = (job / EXIT).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(code) if of_job == job_id else None


class SlurmLauncher(ClusterLauncher):
    """Runs a job's command as a Slurm job, with what `launch` asks for."""

    configuration: Configuration
    configuration_type: ClassVar[type[launcher.Configuration]] = Configuration
    record: ClassVar[str] = JOB
    cluster_name: ClassVar[str] = "Slurm"

    @property
    def shares_folder(self) -> bool:
        return self.configuration.shared_folder

    def submit(self, job: Path, command: Sequence[str], env: Mapping[str, str]) -> Handle:
        asked = self.configuration
        with (job / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (found := self.find(job)) is not None:
                return found
            if self.shares_folder:
                stage = kind(job) is Kind.STAGE
                token = _token(job)
                script = shared_script(command, token, asked.environment_file if stage else None, stage=stage)
            else:
                script = node_script(command, env, asked.environment_file, asked.scratch)
                env = {name: text for name, text in os.environ.items() if name.startswith(SENT)}
            write_text(job / SCRIPT, script)
            answer = _slurm("sbatch", *options(job, asked), str(job / SCRIPT), env=env)
            job_id = answer.split(";")[0]
            write_json(job / JOB, {"job_id": job_id, "name": self._name(job)})
            return Handle(job, job_id, title(job_id), started_here=True)

    def find(self, job: Path) -> Handle | None:
        """The job of this folder that has not ended, or None. Raises LaunchFailed when Slurm does not answer."""
        known = [read_json(job / JOB)] if (job / JOB).is_file() else []
        name = self._name(job)
        named = _slurm("squeue", "--me", "--noheader", f"--name={name}", "--format=%i").split()
        for record in [*known, *({"job_id": job_id, "name": name} for job_id in named)]:
            fields = show(record["job_id"])
            # Job ids start anew when a cluster is set up again, so the name must fit too.
            if fields and fields.get("JobName") == record["name"] and not ended(fields):
                write_json(job / JOB, record)
                return Handle(job, record["job_id"], title(record["job_id"]))
        return None

    def cancel(self, handle: Handle) -> None:
        _slurm("scancel", handle.id)

    def _name(self, job: Path) -> str:
        return job_name(job, shared=self.shares_folder)

    def examine(self) -> str:
        return f"Slurm partitions {partitions()}"

    def _state(self, handle: Handle, known: Known, now: float) -> State:
        fields = show(handle.id)
        if (state := state_of(handle, fields)) is not None:
            return state
        # Ended well, or forgotten by Slurm without a word of how: the result may be written and not yet visible here.
        code = _exit_code(handle.job, handle.id) if fields is None else 0
        if known.may_have_result(now, RESULT_VISIBLE_WITHIN_S) and code == 0:
            return State(Phase.RUNNING, f"{handle.title} ended; waiting for its result to be visible here")
        how = "ended" if fields else "is no longer known to Slurm, and ended"
        return State(Phase.RESUMABLE, f"{handle.title} {how} without a result")


def title(job_id: str) -> str:
    """Name of a Slurm job for people."""
    return f"Slurm job {job_id}"


def state_of(handle: Handle, fields: dict[str, str] | None) -> State | None:
    """State of a job by what Slurm knows of it, or by its folder where Slurm has forgotten it; None for an end without an error."""
    name, nodes = (fields or {}).get("JobState", ""), (fields or {}).get("NodeList", "")
    if fields is not None and not ended(fields):
        return State(Phase.RUNNING, _going_on(handle.title, fields))
    if name in ENDS:
        words, again = ENDS[name]
        return State(Phase.RESUMABLE if again else Phase.ENDED, f"{handle.title} {words.format(nodes=nodes)}")
    code = _exit_code(handle.job, handle.id) if fields is None else _code(handle.job, fields.get("ExitCode", ""))
    if code == STUCK:
        words = "saved nothing before its wall-clock limit, so it would never get further; raise launch.time_min"
        return State(Phase.ENDED, f"{handle.title} {words}")
    if code in UNPREPARED:
        return State(Phase.ENDED, f"{handle.title} {UNPREPARED[code].format(nodes=nodes or 'its node')}")
    if code == status.REQUEUE:
        return State(Phase.RESUMABLE, f"{handle.title} was asked to stop, and was not requeued by its node")
    if not code:
        return None
    if code > 128:
        killed = f"{handle.title} was killed by signal {code - 128} on {nodes or 'its node'}"
        return State(Phase.RESUMABLE, killed)
    return State(Phase.ENDED, f"{handle.title} ended with exit code {code} and no result")
