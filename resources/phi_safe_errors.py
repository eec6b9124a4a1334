"""Keep patient data out of logs and the event log where raw files are touched.

Messages of unexpected errors (a path in an OSError, a value in a pydicom error) and library warnings can carry names of
patients. Under `phi_safe` only the type of an unexpected error and the places in the code leave; the errors of
med_assets are written to be safe and pass with their message.
"""

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import dagster as dg

from med_assets.errors import MedAssetsError

T = TypeVar("T")
TALKATIVE = ("pydicom", "pylibjpeg", "pydicom.pixels")
"""Loggers that quote values of the files they read."""


def outline(error: BaseException) -> str:
    """Type of an error and the code it passed through, innermost last, without any value it carries."""
    frames = traceback.extract_tb(error.__traceback__)
    places = (
        f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in frames
    )
    return f"{type(error).__name__} at " + " > ".join(places)


@contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def phi_safe(work: Callable[[], T]) -> T:
    """Do some work; libraries that quote values are silent, and no message of an unexpected error gets out.

    A function and not a context manager, since an error raised while another is being handled would carry that one
    along, message and all. Raises dagster.Failure.
    """
    try:
        with _silence():
            return work()
    except (dg.Failure, dg.RetryRequested):
        raise
    except MedAssetsError as error:
        message = f"{type(error).__name__}: {error}"
    except Exception as error:
        message = (
            f"{outline(error)}; its message is withheld since it may identify a patient. "
            "Run the same step with `med-assets` on this machine to read it"
        )
    raise dg.Failure(message, allow_retries=False)
