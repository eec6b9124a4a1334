"""Keep patient data out of logs where raw files are touched.

Messages of unexpected errors (a path in an OSError, a value in a pydicom error) and library warnings can carry names of
patients. Only the type of an unexpected error and the places in the code leave; the errors of med_assets are written to be
safe and pass with their message.
"""

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
def silence() -> Iterator[None]:
    """No warning, and nothing of libraries that quote values, gets out of the block."""
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
