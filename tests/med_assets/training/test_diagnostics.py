"""What is written of a training that hangs, and that asking for it hangs nowhere."""

import os
import time
from pathlib import Path

import pytest

from med_assets.training import nvidia_smi
from med_assets.training.diagnostics import diagnostics
from med_assets.training.kernel_log import RECORD_BYTES, recent


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_the_gpus_are_those_that_nvidia_smi_names(tmp_path: Path) -> None:
    text = diagnostics(os.getpid(), program(tmp_path / "smi", 'echo "0, H200, 97 %"; echo "$1" >&2'))
    assert text.partition("GPU:\n")[2].splitlines()[0] == "  0, H200, 97 %"
    assert "temperature.gpu" in text


def test_a_driver_that_does_not_answer_is_said_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia_smi, "WAIT_S", 0.1)
    assert "did not answer within 0.1 s" in diagnostics(os.getpid(), program(tmp_path / "smi", "exec sleep 5"))
    assert "does not start" in diagnostics(os.getpid(), str(tmp_path / "none"))


def test_a_process_that_is_gone_is_said() -> None:
    assert "NoSuchProcess" in diagnostics(2**22 + 1)


def test_the_kernels_lines_about_gpus_and_memory_are_kept_with_their_age_and_without_paths(tmp_path: Path) -> None:
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)
    log = tmp_path / "kmsg"
    os.mkfifo(log)
    records = [
        f"3,1,{now - 30_000_000},-;NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.\n SUBSYSTEM=pci\n",
        f"6,2,{now - 20_000_000},-;oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/user.slice/somebody,task=python,pid=7\n",
        f"6,3,{now - 10_000_000},-;eth0: link becomes ready\n",
        f"3,4,{now - 7_200_000_000},-;NVRM: Xid of two hours ago\n",
    ]
    # A pipe gives what is in it and then nothing more, as the kernel's log does; a writer that stays keeps it from ending.
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(log, os.O_WRONLY)
    for record in records:
        os.write(writer, record.encode().ljust(RECORD_BYTES, b"\0"))
    lines = recent(log)
    os.close(writer)
    os.close(reader)
    assert [line.partition(": ")[2] for line in lines] == [
        "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
        "oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=(path),task=python,pid=7",
    ]
    assert lines[0].startswith("30 s ago")


def test_a_kernel_log_that_may_not_be_read_is_said_so(tmp_path: Path) -> None:
    assert "not readable" in recent(tmp_path / "none")[0]
    assert "\nkernel:\n" in diagnostics(os.getpid())
