"""What a training that hangs is doing: the state of its processes, memory of the machine, and what nvidia-smi says of the GPUs.

Nothing here waits for what may hang itself, and no command line, path or host name is written.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import psutil

GPU_WAIT_S = 10.0
"""Longest wait for nvidia-smi, s: it does not return when the driver hangs."""

GPU_FIELDS = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw,pstate"
"""What is asked of nvidia-smi for each GPU."""


def diagnostics(pid: int, nvidia_smi: str | None = None) -> str:
    """Return the state of a process and of all below it, memory and GPUs, as lines of text; `nvidia_smi` is that program unless it is found."""
    return "\n".join([*_processes(pid), *_memory(), *_gpus(nvidia_smi or shutil.which("nvidia-smi"))])


def _processes(pid: int) -> Iterator[str]:
    yield "processes (pid, parent, state, threads, CPU s, memory MiB, name):"
    try:
        top = psutil.Process(pid)
        found = [top, *top.children(recursive=True)]
    except psutil.Error as error:
        yield f"  {pid}: {type(error).__name__}"
        return
    for one in found:
        try:
            with one.oneshot():
                times, memory = one.cpu_times(), one.memory_info().rss / 2**20
                yield (
                    f"  {one.pid} {one.ppid()} {one.status()} {one.num_threads()} {times.user + times.system:.1f} {memory:.0f} {one.name()}"
                )
        except psutil.Error as error:
            yield f"  {one.pid}: {type(error).__name__}"


def _memory() -> Iterator[str]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    yield (
        f"memory: {memory.available / 2**20:.0f} of {memory.total / 2**20:.0f} MiB available, swap {swap.used / 2**20:.0f} of "
        f"{swap.total / 2**20:.0f} MiB used"
    )


def _gpus(program: str | None) -> Iterator[str]:
    if program is None:
        yield "GPU: there is no nvidia-smi"
        return
    command = [program, f"--query-gpu={GPU_FIELDS}", "--format=csv"]
    try:
        asked = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        yield f"GPU: nvidia-smi does not start ({error.strerror})"
        return
    try:
        text, _ = asked.communicate(timeout=GPU_WAIT_S)
    except subprocess.TimeoutExpired:
        asked.kill()
        if asked.stdout is not None:
            asked.stdout.close()
        # Not waited for any longer: a process that waits for the driver can't be killed before that answers.
        with suppress(subprocess.TimeoutExpired):
            asked.wait(1.0)
        yield f"GPU: nvidia-smi did not answer within {GPU_WAIT_S:g} s, as when the driver hangs"
        return
    yield "GPU:"
    yield from (f"  {line}" for line in text.decode(errors="replace").splitlines())
