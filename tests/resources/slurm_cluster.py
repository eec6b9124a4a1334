"""A real Slurm cluster on this machine: munged, slurmctld and a slurmd for each node, as the current user, in one folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd")
NODE_LOST_AFTER_S = 10
"""A node whose slurmd does not answer for so long is down, s."""
COMMANDS = ("munge", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
SBIN = ("/usr/sbin", "/sbin", "/usr/local/sbin")
"""Where distributions put daemons; not on the PATH of every user."""
START_WITHIN_S = 30.0
SOCKET_CHARS = 100
"""Longest path of a Unix socket that is safe everywhere."""

# A requeued job waits for cred_expire (5 s at least, 120 s by default). Two partitions on one node, so that one preempts.
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=2
MessageTimeout=5
SlurmdTimeout={lost_after_s}
MailProg=/bin/true
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""


class CannotStart(Exception):
    """Why there is no cluster here."""


def _found(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))
    if path is None:
        raise CannotStart(f"no {name} here; on Debian, `apt-get install slurm-wlm munge` brings it")
    return path


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def until(true: Callable[[], object], what: str, within_s: float = START_WITHIN_S) -> None:
    """Wait until something is so; raises TimeoutError that says what was waited for."""
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(0.05)


class Cluster:
    """The cluster, its nodes, and how to reach it. The one node of a cluster without `nodes` has the name of this machine."""

    def __init__(self, folder: Path, nodes: Sequence[str] = ()) -> None:
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        self.nodes = tuple(nodes) or (self.host,)
        self.cpus = os.cpu_count() or 1
        self.env: Mapping[str, str] = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str) -> str:
        """Output of one of Slurm's commands."""
        env = {**os.environ, **self.env}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    def start(self, name: str, *arguments: str, daemon: str = "") -> None:
        """Start a daemon in the foreground, its words in a file of its own. `name` is that of its program unless given."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [_found(daemon or name), *arguments],
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self, name: str) -> None:
        """Stop a daemon that was started here."""
        process = self.daemons.pop(name)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self.start(f"slurmd-{node}", "-D", "-N", node, daemon="slurmd")

    def processes_of(self, node: str) -> list[psutil.Process]:
        """What runs on a node: its slurmd, the steps that it started, and their processes, in this order."""
        daemons, steps, work = [], [], []
        for process in psutil.process_iter():
            try:
                environ = process.environ()
                if environ.get("SLURM_CONF") != self.env["SLURM_CONF"]:
                    continue
                if process.pid == self._pid(node):
                    daemons.append(process)
                elif environ.get("SLURMD_NODENAME") == node:
                    # A step writes over its own environment.
                    parent = process.parent()
                    steps += [parent] if parent is not None and parent.name() == "slurmstepd" else []
                    work.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [*daemons, *steps, *work]

    def _pid(self, node: str) -> int:
        daemon = self.daemons.get(f"slurmd-{node}")
        return daemon.pid if daemon else -1

    def kill_node(self, node: str) -> None:
        """End a node as a power cut does: everything on it at once. It is down once slurmctld misses it."""
        while running := self.processes_of(node):
            for process in running:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(running, 5)
        self.daemons.pop(f"slurmd-{node}").wait(10)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it takes jobs."""
        self.start("slurmctld", "-D")
        until(self._idle, "the node is idle")

    def start_all(self) -> None:
        """Start everything. Raises CannotStart with the words of the daemon that did not."""
        for name in (*DAEMONS, *COMMANDS):
            _found(name)
        controller_port, *ports = _free_ports(1 + len(self.nodes))
        (self.folder / "state").mkdir()
        for node in self.nodes:
            (self.folder / "spool" / node).mkdir(parents=True)
        address = f"NodeHostname={self.host} NodeAddr=127.0.0.1 CPUs={self.cpus} State=UNKNOWN"
        nodes = [f"NodeName={node} Port={port} {address}" for node, port in zip(self.nodes, ports, strict=True)]
        (self.folder / "slurm.conf").write_text(
            CONF.format(
                folder=self.folder, host=self.host, user=getuser(), cpus=self.cpus,
                controller_port=controller_port, nodes="\n".join(nodes), lost_after_s=NODE_LOST_AFTER_S,
            )
        )  # fmt: skip
        key, munge_socket = self.folder / "munge.key", self.folder / "munge.socket"
        if len(str(munge_socket)) > SOCKET_CHARS:
            raise CannotStart(f"the temporary folder's path is too long for a socket: {munge_socket}")
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}-file={self.folder / f'munge.{name}'}" for name in ("key", "pid", "seed", "log")]
        try:
            # --force: only this user needs to reach the socket, so its folder may be closed to others.
            self.start("munged", "--foreground", "--force", f"--socket={munge_socket}", "--num-threads=1", *files)
            until(munge_socket.exists, "munged has its socket")
            for node in self.nodes:
                self.start_node(node)
            self.start_controller()
        except TimeoutError as error:
            logs = "\n".join(
                f"{name}: {line}"
                for name in ("munged", "slurmctld", *(f"slurmd-{node}" for node in self.nodes))
                if (path := self.folder / f"{name}.log").exists()
                for line in path.read_text(errors="replace").splitlines()[-3:]
            )
            raise CannotStart(f"{error}\n{logs}") from error

    def resume(self) -> bool:
        """Bring the node back after it was down; False while Slurm does not take that yet."""
        try:
            self.run("scontrol", "update", f"NodeName={self.host}", "State=RESUME")
        except subprocess.CalledProcessError:
            return self._idle()
        return True

    def stop_all(self) -> None:
        """Cancel what runs, and stop what was started."""
        if "slurmctld" in self.daemons:
            try:
                self.run("scancel", "--user", getuser())
                until(lambda: not self.run("squeue", "--noheader"), "all jobs are over")
            except (subprocess.SubprocessError, TimeoutError):
                pass  # a cluster that no longer answers is stopped all the same
        for name in reversed(list(self.daemons)):
            self.stop(name)

    def _idle(self) -> bool:
        try:
            states = self.run("sinfo", "--noheader", "--Node", "--format=%T", "--partition=main").split()
            return len(states) == len(self.nodes) and set(states) <= {"idle", "mixed", "allocated"}
        except subprocess.SubprocessError:
            return False


@contextmanager
def cluster(folder: Path, nodes: Sequence[str] = ()) -> Iterator[Cluster]:
    """A running cluster; raises CannotStart with the reason when there can be none."""
    found = Cluster(folder, nodes)
    try:
        found.start_all()
        yield found
    finally:
        found.stop_all()
