"""What an error of a job means: out of memory, a full disk, a failed accelerator, or none of these."""

import re
from pathlib import Path

import torch

from med_assets.errors import AcceleratorFailed, MedAssetsError, OutOfMemory
from med_assets.storage.files import disk_full

ALLOCATORS = re.compile(
    r"out of memory"
    r"|can(?:'|no)t allocate memory"  # torch's DefaultCPUAllocator, and the system
    r"|DefaultCPUAllocator"
    r"|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED"
    r"|Unable to allocate .*iB",  # NumPy
    re.IGNORECASE,
)
"""What allocators say when they have nothing left; each of them raises a plain RuntimeError in some version."""

DRIVER = re.compile(r"CUDA error|NCCL error|cuDNN error|HIP error|device-side assert|CUDA driver", re.IGNORECASE)
"""What a failed driver, or a device that fell off its bus, makes torch say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is an allocator with nothing left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    cause = error.__cause__
    found = isinstance(error, RuntimeError | OSError) and ALLOCATORS.search(str(error)) is not None
    return found or (cause is not None and is_out_of_memory(cause))


def is_accelerator_failure(error: BaseException) -> bool:
    """Whether the device or its driver failed: the process can't use it any more, a new one may."""
    return not is_out_of_memory(error) and isinstance(error, RuntimeError) and DRIVER.search(str(error)) is not None


def ending(error: BaseException, job: Path) -> MedAssetsError | None:
    """An error by its name where it ends a job, whatever it was at: OutOfMemory, DiskFull or AcceleratorFailed; else None."""
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return OutOfMemory(str(error))
    if (full := disk_full(error, job)) is not None:
        return full
    if is_accelerator_failure(error):
        return AcceleratorFailed(f"{str(error).splitlines()[0]}; what was saved before is whole")
    return None
