"""The most memory that a process has used, of the accelerator and of the host. It imports no Lightning, as predicting does not."""

import resource

import torch


def reset_peak() -> None:
    """Begin a phase: the accelerator's peak is measured from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float | None]:
    """Return `peak_host_mb` and `peak_accelerator_mb` since the last reset, MiB; the latter None without CUDA.

    The host's peak is the process's highest resident size until now, since the system does not say it per phase.
    """
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return {"peak_host_mb": round(host, 1), "peak_accelerator_mb": gpu and round(gpu, 1)}


def measured_peak() -> dict[str, float]:
    """Return what `peak_memory` measured, without what there is not."""
    return {name: value for name, value in peak_memory().items() if value is not None}
