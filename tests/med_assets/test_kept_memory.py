"""Memory that a process takes once for many arrays."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, numpy as np
from med_assets.storage.memory import give_back_memory, keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS'))
if {keep}:
    keep_freed_memory()
small = resident()
counts = [faults() for _ in range(5)]
give_back_memory()
print(sum(counts[1:]) / max(1, counts[0]), resident() - small)
"""


def measured(keep: bool) -> tuple[float, float]:
    """Pages that later arrays take anew as a share of the first one's, and kB kept at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", CODE.format(keep=keep)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    again, kept_kb = done.stdout.split()
    return float(again), float(kept_kb)


@pytest.mark.skipif(sys.platform != "linux", reason="what is called is glibc's")
def test_kept_memory_is_taken_from_the_system_once_and_given_back() -> None:
    again, kept_kb = measured(keep=True)
    assert again < 0.1 < measured(keep=False)[0]
    assert kept_kb < 16_000
