"""The types of the whole repository."""

import pytest

from tests.test_house import tool


@pytest.mark.slow
def test_mypy_finds_nothing() -> None:
    """Takes a minute of one core in a fresh clone, beside the tests of the other."""
    done = tool("mypy")
    assert done.returncode == 0, done.stdout + done.stderr
