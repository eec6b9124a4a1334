"""Trainings as Slurm jobs: submit, find again, look, cancel. Needs Slurm's commands, and no accounting database.

A job folder on a file system that submit host and nodes share is all they say to each other: `slurm.sh` is what the node
runs, `slurm.json` which job that is, `slurm.exit` how its script ended. The job's name is made of the folder's path, so a
job that was submitted by a process that died before it wrote `slurm.json` is found too, and nothing is submitted twice.
"""

import fcntl
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import med_assets
from med_assets.errors import LaunchFailed
from med_assets.experiments import Launch
from med_assets.files import digest, read_json, write_json, write_text
from med_assets.jobs import LOCK, LOG, RESULT, State, command, launch_of, tail, without_secrets
from med_assets.training import status

JOB, SCRIPT, EXIT = "slurm.json", "slurm.sh", "slurm.exit"

ANSWER_WITHIN_S = 60.0
"""How long one of Slurm's commands may take, s."""

RESULT_VISIBLE_WITHIN_S = 60.0
"""How long a file written on a node may be unseen elsewhere, s: NFS keeps what it knows of a folder for up to 60 s."""

STUCK = 76
"""Exit code of the script at the wall-clock limit when this start wrote no checkpoint: another would not get further."""

NODE_SCRIPT = """#!/bin/bash
# Written by med_assets at each submission. USR1 comes before the wall-clock limit, TERM when the job is cancelled or preempted.
export PYTHONPATH={source}${{PYTHONPATH:+:$PYTHONPATH}}
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE  # with them Lightning would expect srun
rm -f {exit}
touch slurm.started
limit= stopped=
{command} &
training=$!
trap 'limit=yes; kill -TERM $training 2>/dev/null' USR1
trap 'stopped=yes; kill -TERM $training 2>/dev/null' TERM
wait $training; code=$?
while kill -0 $training 2>/dev/null; do wait $training; code=$?; done
if [ -n "$limit" ] && [ -z "$stopped" ] && [ ! -f {result} ]; then
  if [ -z "$(find checkpoints -name '*.ckpt' -newer slurm.started 2>/dev/null)" ]; then
    code={stuck}
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "stopped before the wall-clock limit; the job is requeued and goes on from its last checkpoint"
    exit 0
  else
    code={stopped}
  fi
fi
echo "$SLURM_JOB_ID $code" > {exit}
exit $code
"""

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

FIELD = re.compile(r"(?:^|\s)([A-Za-z][\w/:]*)=(.*?)(?=\s+[A-Za-z][\w/:]*=|\s*$)")


def job_name(job: Path) -> str:
    """Name of the Slurm job of a folder: the folder's own name, and a hash of where it is."""
    return f"med-assets-{job.name}-{digest(str(job))[:8]}"


def options(job: Path, launch: Launch) -> list[str]:
    """Options of sbatch for a job; those of the experiment come last, so that they win."""
    asked = {
        "--partition": launch.partition,
        "--time": launch.time_min,
        "--mem": launch.memory_gb and f"{launch.memory_gb}G",
        "--cpus-per-task": launch.cpus,
        "--gres": launch.gpus and f"gpu:{launch.gpus}",
    }
    return [
        "--parsable", "--requeue", "--nodes=1", f"--job-name={job_name(job)}", f"--chdir={job}", f"--output={job / LOG}",
        "--open-mode=append", f"--signal=B:USR1@{launch.stop_before_limit_s}",
        *(f"{option}={value}" for option, value in asked.items() if value),
        *launch.options,
    ]  # fmt: skip


def script(training: Sequence[str]) -> str:
    """What the node runs in the job folder: the training with the code of this process, signals and requeueing around it."""
    source = shlex.quote(str(Path(med_assets.__file__).resolve().parent.parent))
    files = {"exit": EXIT, "result": RESULT, "stuck": STUCK, "stopped": status.REQUEUE}
    return NODE_SCRIPT.format(source=source, command=shlex.join(training), **files)


def _slurm(*words: str, env: Mapping[str, str] | None = None) -> str:
    """Output of one of Slurm's commands. Raises LaunchFailed with what it said."""
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


class SlurmJob:
    """The Slurm job of a job folder."""

    def __init__(self, job: Path, job_id: str, *, started_here: bool = False, ask_s: float = 10.0) -> None:
        self.job, self.job_id, self.started_here, self.ask_s = job, job_id, started_here, ask_s
        self._state = State(True, f"Slurm job {job_id} is submitted")
        self._asked_at = self._ended_at = -float("inf")

    @property
    def title(self) -> str:
        """Name for people."""
        return f"Slurm job {self.job_id}"

    def look(self) -> State:
        """State now; Slurm itself is asked once in `ask_s` seconds at most."""
        now = time.monotonic()
        if (self.job / RESULT).is_file():
            return State(False, f"{self.title} has a result")
        if now - self._asked_at >= self.ask_s:
            self._asked_at = now
            try:
                self._state = self._judged(show(self.job_id), now)
            except LaunchFailed as error:
                self._state = State(True, f"Slurm does not answer, {self.title} is taken to go on ({error})")
        return self._state

    def cancel(self) -> None:
        """Cancel the job; one that ended stays as it is."""
        _slurm("scancel", self.job_id)

    def _judged(self, fields: dict[str, str] | None, now: float) -> State:
        name, nodes = (fields or {}).get("JobState", ""), (fields or {}).get("NodeList", "")
        if fields is not None and not ended(fields):
            return State(True, _going_on(self.title, fields))
        if name in ENDS:
            words, again = ENDS[name]
            return State(False, f"{self.title} {words.format(nodes=nodes)}", again)
        code = _exit_code(self.job, self.job_id) if fields is None else _code(fields.get("ExitCode", ""))
        if code == STUCK:
            words = (
                "wrote no checkpoint before its wall-clock limit, so it would never get further; raise launch.time_min"
            )
            return State(False, f"{self.title} {words}")
        if code == status.REQUEUE:
            return State(False, f"{self.title} was told to stop, and was not requeued by its node", True)
        if code:
            if code > 128:
                return State(False, f"{self.title} was killed by signal {code - 128} on {nodes or 'its node'}", True)
            return State(False, f"{self.title} ended with exit code {code} and no result")
        # Ended well, or forgotten by Slurm without a word of how: the result may be written and not yet visible here.
        if self._ended_at < 0:
            self._ended_at = now
        if now - self._ended_at < RESULT_VISIBLE_WITHIN_S and code == 0:
            return State(True, f"{self.title} ended; waiting for its result to be visible here")
        how = "ended" if fields else "is no longer known to Slurm, and ended"
        return State(False, f"{self.title} {how} without a result", True)


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


def _code(text: str) -> int:
    """Exit code as a shell gives it, of Slurm's `code:signal`."""
    code, _, signal = text.partition(":")
    return 128 + int(signal) if signal not in ("", "0") else int(code or 0)


def _exit_code(job: Path, job_id: str) -> int | None:
    """What the script of this very job left behind at its end, None if it could not."""
    try:
        of_job, code = (job / EXIT).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(code) if of_job == job_id else None


def recorded(job: Path) -> bool:
    """Whether the folder names a Slurm job, be it over or not; asks nobody."""
    return (job / JOB).is_file()


def find(job: Path, ask_s: float = 10.0) -> SlurmJob | None:
    """The job of this folder that has not ended, or None. Raises LaunchFailed when Slurm does not answer."""
    known = [read_json(job / JOB)] if recorded(job) else []
    named = _slurm("squeue", "--me", "--noheader", f"--name={job_name(job)}", "--format=%i").split()
    for record in [*known, *({"job_id": job_id, "name": job_name(job)} for job_id in named)]:
        fields = show(record["job_id"])
        # Job ids start anew when a cluster is set up again, so the name must fit too.
        if fields and fields.get("JobName") == record["name"] and not ended(fields):
            write_json(job / JOB, record)
            return SlurmJob(job, record["job_id"], ask_s=ask_s)
    return None


def submit(
    job: Path, training: Sequence[str] | None = None, env: Mapping[str, str] | None = None, ask_s: float = 10.0
) -> SlurmJob:
    """Submit a job folder to Slurm, unless it has a job there already. Raises LaunchFailed when Slurm does not take it."""
    environment = without_secrets(env or os.environ)
    with (job / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := find(job, ask_s)) is not None:
            return found
        write_text(job / SCRIPT, script(training or command(job)))
        answer = _slurm("sbatch", *options(job, launch_of(job)), str(job / SCRIPT), env=environment)
        job_id = answer.split(";")[0]
        write_json(job / JOB, {"job_id": job_id, "name": job_name(job)})
        return SlurmJob(job, job_id, started_here=True, ask_s=ask_s)


def run(job: Path, ask_s: float = 10.0, poll_s: float = 1.0) -> None:
    """Bring a job folder to its result on Slurm, telling its progress on stderr. Raises LaunchFailed when it ends without.

    Interrupted, it leaves the job running; called again, it follows the same job.
    """
    if (job / RESULT).is_file():
        return
    shown = (job / LOG).stat().st_size if (job / LOG).is_file() else 0
    training = submit(job, ask_s=ask_s)
    print(f"{training.title} {'submitted' if training.started_here else 'goes on; following it'}", file=sys.stderr)
    told = ""
    try:
        while True:
            state = training.look()
            if state.told != told:
                told = state.told
                print(told, file=sys.stderr)
            shown += _copy_log(job, shown)
            if not state.going_on:
                break
            time.sleep(poll_s)
    except KeyboardInterrupt:
        print(f"{training.title} goes on; `scancel {training.job_id}` stops it", file=sys.stderr)
        raise
    if not (job / RESULT).is_file():
        advice = "; give the same command again to go on from its last checkpoint" if state.again else ""
        raise LaunchFailed(f"{state.told}{advice}; the end of its log:\n{tail(job)}")


def _copy_log(job: Path, start: int) -> int:
    """Show what the log has from a place on; returns how many bytes that is."""
    if not (job / LOG).is_file():
        return 0
    with (job / LOG).open("rb") as stream:
        stream.seek(start)
        new = stream.read()
    sys.stderr.write(new.decode(errors="replace"))
    return len(new)
