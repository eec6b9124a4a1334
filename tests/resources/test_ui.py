"""One Dagster for each instance."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from resources.ui import LOCK, STOPPING

ROOT = Path(__file__).resolve().parents[2]


def start(home: Path, tools: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "DAGSTER_HOME": str(home), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-c", "from resources import ui; ui.main([], dev=('dagster', 'dev'))"],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def holder(home: Path) -> int:
    """The process of the Dagster that works on an instance."""
    return int((home / LOCK).read_text())


def test_a_second_dagster_on_one_instance_says_so_in_one_line_and_ends(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    program = tools / "dagster"
    program.write_text('#!/bin/sh\necho "$@"\nexec sleep 600\n')
    program.chmod(0o755)
    review = tools / "med-assets"
    review.write_text(f'#!/bin/sh\necho "$@ $$" >> {tmp_path / "reviews"}\nexec sleep 600\n')
    review.chmod(0o755)
    home, other = tmp_path / "dagster", tmp_path / "other"

    def reviews(n: int) -> list[str]:
        """The lines of the reviews that were started, once there are this many."""
        end = time.monotonic() + 120
        while not (tmp_path / "reviews").is_file() or len((tmp_path / "reviews").read_text().splitlines()) < n:
            assert time.monotonic() < end
            time.sleep(0.05)
        return (tmp_path / "reviews").read_text().splitlines()

    first = start(home, tools)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "dev -w workspace.yaml\n"
        second = start(home, tools)
        out, output = second.communicate(timeout=60)
        assert (second.returncode, out) == (1, "")
        assert output.count("\n") == 1
        assert f"process {holder(home)}" in output
        elsewhere = start(other, tools)
        assert elsewhere.stdout is not None
        assert elsewhere.stdout.readline() == "dev -w workspace.yaml\n"
        reviews(2)  # which ends with it, and may not have been started yet
        elsewhere.terminate()
        elsewhere.communicate()
    finally:
        os.kill(holder(home), signal.SIGKILL)
        first.communicate()
    assert first.returncode != 0
    assert not (home / STOPPING).exists()
    time.sleep(0.1)
    third = start(home, tools)
    assert third.stdout is not None
    assert third.stdout.readline() == "dev -w workspace.yaml\n"
    lines = reviews(3)
    third.terminate()
    third.communicate()
    assert [line.rpartition(" ")[0] for line in lines] == ["review --port 3001"] * 3
    assert not [line for line in lines if Path("/proc", line.rpartition(" ")[2]).exists()], "it ends with Dagster"
