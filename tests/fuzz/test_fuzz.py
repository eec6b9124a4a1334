"""Mutated files of every program end nothing, hide nothing and are quoted nowhere."""

from pathlib import Path

import pytest

from med_assets.settings import Workspace
from tests.fuzz.__main__ import PROGRAMS
from tests.fuzz.rounds import run


@pytest.mark.drill
@pytest.mark.parametrize("program", PROGRAMS)
def test_mutated_files_are_taken_or_refused_and_the_case_beside_them_is_accepted(
    workspace: Workspace, tmp_path: Path, program: str
) -> None:
    assert run(workspace, program, seed=1, files=30, seeds=tmp_path / "seeds").failures == []
