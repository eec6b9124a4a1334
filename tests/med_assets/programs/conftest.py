"""Tests of the programs."""

import pytest


@pytest.fixture(autouse=True)
def figures_as_users_get_them(full_layout: None) -> None:
    """What a program plots is laid out as users get it; the figures of other tests are not."""
