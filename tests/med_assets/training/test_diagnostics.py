"""What is written of a training that hangs, and that asking for it hangs nowhere."""

import os
from pathlib import Path

import pytest

from med_assets.training import diagnostics as module
from med_assets.training.diagnostics import diagnostics


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
    monkeypatch.setattr(module, "GPU_WAIT_S", 0.1)
    assert "did not answer within 0.1 s" in diagnostics(os.getpid(), program(tmp_path / "smi", "exec sleep 5"))
    assert "does not start" in diagnostics(os.getpid(), str(tmp_path / "none"))


def test_a_process_that_is_gone_is_said() -> None:
    assert "NoSuchProcess" in diagnostics(2**22 + 1)
