"""Tests of sensors and schedules."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.conftest import WITHOUT_OUTPUT


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance with a home of its own, as schedules need one."""
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides=WITHOUT_OUTPUT) as made:
        yield made
