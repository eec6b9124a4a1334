"""Tests of sensors and schedules: none sees what an earlier one left behind in Dagster."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.defs_state.base import set_defs_state_storage


@pytest.fixture(autouse=True)
def no_instance_of_another_test() -> Iterator[None]:
    """Contexts of sensors and schedules leave a storage in a context variable that refers to their instance weakly."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance with a home of its own, as schedules need one."""
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as made:
        yield made
