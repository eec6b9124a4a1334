"""Tests of sensors and schedules: none sees what an earlier one left behind in Dagster."""

from collections.abc import Iterator

import pytest
from dagster._core.storage.defs_state.base import set_defs_state_storage


@pytest.fixture(autouse=True)
def no_instance_of_another_test() -> Iterator[None]:
    """Contexts of sensors and schedules leave a storage in a context variable that refers to their instance weakly."""
    with set_defs_state_storage(None):
        yield
