"""Tests of reports and their figures."""

import pytest


@pytest.fixture(autouse=True)
def figures_as_users_get_them(full_layout: None) -> None:
    """What a report has is laid out as users get it; the figures of other tests are not."""
