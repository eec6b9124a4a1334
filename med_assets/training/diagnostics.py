"""What a training that hangs is doing: its processes, memory of the machine, what nvidia-smi says of the GPUs, and what the kernel logged.

Nothing here waits for what may hang itself, and no command line, path or host name is written.
"""

import shutil
from collections.abc import Iterator

import psutil

from med_assets.training.kernel_log import recent
from med_assets.training.nvidia_smi import NoAnswer, ask

GPU_FIELDS = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw,pstate"
"""What is asked of nvidia-smi for each GPU."""


def diagnostics(pid: int, nvidia_smi: str | None = None) -> str:
    """Return the state of a process and of all below it, memory, GPUs and the kernel's log, as lines of text; `nvidia_smi` is that program unless it is found."""
    return "\n".join([*_processes(pid), *_memory(), *_gpus(nvidia_smi or shutil.which("nvidia-smi")), *_kernel()])


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
    try:
        lines = ask(program, GPU_FIELDS, header=True)
    except NoAnswer as error:
        yield f"GPU: {error}"
        return
    yield "GPU:"
    yield from (f"  {line}" for line in lines)


def _kernel() -> Iterator[str]:
    yield "kernel:"
    yield from (f"  {line}" for line in recent())
