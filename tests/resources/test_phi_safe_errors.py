"""Nothing that may identify a patient leaves where raw files are touched."""

import logging
import warnings

import dagster as dg
import pytest

from med_assets.errors import CaseRejected
from resources.phi_safe_errors import phi_safe


def test_the_message_of_an_unexpected_error_is_withheld_and_its_place_is_kept() -> None:
    def work() -> None:
        raise ValueError("SMITH^JOHN")

    with pytest.raises(dg.Failure) as caught:
        phi_safe(work)
    assert str(caught.value.description).startswith("ValueError at ")
    assert "resources/test_phi_safe_errors.py" in str(caught.value.description)
    assert "SMITH" not in str(caught.value.description)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_an_error_of_med_assets_passes_with_its_message() -> None:
    def work() -> None:
        raise CaseRejected("missing_slice", "expected 3 slices, got 2")

    with pytest.raises(dg.Failure, match="CaseRejected: expected 3 slices, got 2"):
        phi_safe(work)


def test_warnings_and_logs_of_libraries_that_quote_values_are_silenced(caplog: pytest.LogCaptureFixture) -> None:
    def work() -> str:
        warnings.warn("invalid value 'SMITH^JOHN'", UserWarning, stacklevel=1)
        logging.getLogger("pydicom").warning("SMITH^JOHN")
        return "done"

    assert phi_safe(work) == "done"
    assert not caplog.records
    logging.getLogger("pydicom").warning("audible again")
    assert len(caplog.records) == 1
