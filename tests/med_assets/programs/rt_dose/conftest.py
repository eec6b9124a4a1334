"""Prepared cases for the tests of rt_dose."""

from pathlib import Path

import pytest

from med_assets.programs.rt_dose.prepared import PreparedCase
from tests.med_assets.programs.rt_dose.builders import write_case


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    return PreparedCase.open(write_case(tmp_path / "case0"))
