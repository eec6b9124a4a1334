"""What a node of a Slurm cluster runs: the command of a job, with signals and requeueing around it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import med_assets
from med_assets.launch.jobs import RESULT
from med_assets.training import status

EXIT = "slurm.exit"
"""File of a job folder that says how its script ended."""

STUCK = 76
"""Exit code of the script at the wall-clock limit when this start saved nothing: another would not get further."""

NO_ENVIRONMENT, NO_PROGRAM, NO_SCRATCH, NO_HOME, NO_SOURCE = range(77, 82)
"""Exit codes of the script on a node that lacks something."""

SEEN = "slurm.home"
"""File of a job folder by which a node knows that it sees the folder that the submit host sees."""

SEEN_WITHIN_S = 60
"""How long it may be unseen on a node, s: NFS keeps what it knows of a folder for up to 60 s."""

BODY = """work= signals=0
trap 'limit=yes; signals=$((signals + 1)); kill -TERM $work 2>/dev/null' USR1
trap 'stopped=yes; signals=$((signals + 1)); kill -TERM $work 2>/dev/null' TERM
{command} &
work=$!
heard=
until [ "$heard" = $signals ]; do  # a wait that a signal ends says the signal's number, also when the work ends at that moment
  heard=$signals
  wait $work; code=$?
done
if [ -n "$limit" ] && [ -z "$stopped" ] && {unfinished}; then
  if [ -z "$(find {saves} -newer slurm.started -name '*.ckpt' -o -newer slurm.started -name manifest.json 2>/dev/null | head -n 1)" ]; then
    code={stuck}
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "stopped before the wall-clock limit; the job is requeued and goes on from what it saved last"
    exit 0
  else
    code={stopped}
  fi
fi
"""

SHARED = """#!/bin/bash
# Written by med_assets at each submission. USR1 comes before the wall-clock limit, TERM when the job is cancelled or preempted.
until [ "$(cat {seen} 2> /dev/null)" = {token} ]; do
  [ "$SECONDS" -lt {seen_within_s} ] || exit {no_home}
  sleep 1
done
[ -x {python} ] && [ -d {source} ] || exit {no_source}
{environment}export PYTHONPATH={source}${{PYTHONPATH:+:$PYTHONPATH}}
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE  # with them Lightning would expect srun
limit= stopped=
rm -f {exit}
touch slurm.started
{body}echo "$SLURM_JOB_ID $code" > {exit}
exit $code
"""

NODE = """#!/bin/bash
# Written by med_assets at each submission, and sent by sbatch. USR1 comes before the wall-clock limit, TERM when the job is cancelled or preempted.
umask 077
{settings}{environment}unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE  # with them Lightning would expect srun
export MED_ASSETS_HOME="${{MED_ASSETS_HOME:-{scratch}/med-assets-$(id -u)}}"
command -v med-assets > /dev/null || exit {no_program}
own=$(mktemp -d {scratch}/med-assets-job.XXXXXX) && cd "$own" || exit {no_scratch}
trap 'rm -rf "$own"' EXIT
limit= stopped=
touch slurm.started
{body}exit $code
"""

ENVIRONMENT = """secrets={file}
[ -f "$secrets" ] && case "$(stat -Lc '%a %u' "$secrets")" in "600 $(id -u)" | "400 $(id -u)") true ;; *) false ;; esac || exit {no_environment}
set -a; . "$secrets"; set +a
"""


def _environment(file: str | None) -> str:
    return "" if file is None else ENVIRONMENT.format(file=shlex.quote(file), no_environment=NO_ENVIRONMENT)


def _body(command: Sequence[str], unfinished: str, saves: str) -> str:
    return BODY.format(
        command=shlex.join(command), unfinished=unfinished, saves=saves, stuck=STUCK, stopped=status.REQUEUE
    )


ASKED_TO_STOP = f'[ "$code" -eq {status.REQUEUE} ]'
"""A stage has a result unless it was stopped, for which it has a code of its own."""

SAVES = '"$MED_ASSETS_HOME/store" "$MED_ASSETS_HOME/tmp/jobs"'
"""Where a stage saves what it has done: artifacts, and checkpoints of its trainings."""


def shared_script(
    command: Sequence[str], token: str, environment_file: str | None = None, *, stage: bool = False
) -> str:
    """What a node runs in a job folder that it shares with the submit host: a command with the code of this process.

    `token` is what stands in the file SEEN of that folder.
    """
    source = shlex.quote(str(Path(med_assets.__file__).resolve().parent.parent))
    body = (
        _body(command, ASKED_TO_STOP, SAVES)
        if stage
        else _body(command, f"[ ! -f {RESULT} ]", "checkpoints predictions")
    )
    return SHARED.format(
        environment=_environment(environment_file),
        source=source,
        exit=EXIT,
        body=body,
        python=shlex.quote(command[0]),
        seen=SEEN,
        token=token,
        seen_within_s=SEEN_WITHIN_S,
        no_home=NO_HOME,
        no_source=NO_SOURCE,
    )


def node_script(command: Sequence[str], settings: Mapping[str, str], environment_file: str | None, scratch: str) -> str:
    """What a node runs that shares nothing with the submit host: a stage, with its settings and what a file of the node sets."""
    lines = "".join(f"export {name}={shlex.quote(text)}\n" for name, text in sorted(settings.items()))
    return NODE.format(
        settings=lines,
        environment=_environment(environment_file),
        scratch=shlex.quote(scratch),
        body=_body(command, ASKED_TO_STOP, SAVES),
        no_program=NO_PROGRAM,
        no_scratch=NO_SCRATCH,
    )
