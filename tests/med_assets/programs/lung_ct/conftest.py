"""Prepared cases for the tests of lung_ct."""

from pathlib import Path

import pytest

from med_assets.programs.lung_ct.prepared import PreparedCase
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    return PreparedCase.open(write_prepared(tmp_path / "case0"))
