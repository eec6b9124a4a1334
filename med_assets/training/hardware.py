"""What a training ran on, in words that name the hardware and never the machine."""

import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch


def hardware(device: str) -> dict[str, Any]:
    """Processor, usable cores, memory in GiB, and the accelerator that `device` (cpu, cuda:0, mps:0) is.

    No host name, address or serial number is among it.
    """
    kind, _, index = device.partition(":")
    accelerator = None
    if kind == "cuda":
        accelerator = torch.cuda.get_device_name(int(index or 0))
    elif kind != "cpu":
        accelerator = kind
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "accelerator": accelerator,
    }


def processor(described: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the processor as it names itself; its architecture where it does not."""
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()
