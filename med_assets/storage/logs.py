"""The log of a process for people, or as JSON lines for whoever collects logs: `MED_ASSETS_LOG=json`.

A JSON line says what it is about: program, stage, batch and run, from the block that it was written in. Only the messages of med_assets
pass, which are written to be safe; those of libraries may quote what they read, and stay out.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from med_assets.errors import ConfigurationError
from med_assets.storage.phi_safe import outline

VARIABLE = "MED_ASSETS_LOG"
FORMS = ("text", "json")

OURS = ("med_assets", "assets", "sensors", "resources")
"""Loggers whose messages are written to be safe."""

WITHHELD = "a message of a library, withheld since it may identify a patient; MED_ASSETS_LOG=text shows it"

FIELDS = ("command", "program", "stage", "batch", "run")

log = logging.getLogger("med_assets")

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039 - never changed in place


def is_json(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the log of this process is JSON lines."""
    return environ.get(VARIABLE) == "json"


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, message, and what of FIELDS is known."""

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.partition(".")[0] in OURS
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **{name: _about.get().get(name) for name in FIELDS},
            "logger": record.name,
            "message": record.getMessage() if ours else WITHHELD,
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = outline(record.exc_info[1])
        return json.dumps({name: text for name, text in line.items() if text is not None})


def configure(level: int = logging.INFO, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Send the log of this process to a stream, stderr by default, in the form that the environment says. Raises ConfigurationError."""
    if (form := environ.get(VARIABLE) or FORMS[0]) not in FORMS:
        raise ConfigurationError(f"expected {VARIABLE} to be one of {FORMS}, got {form!r}")
    handler = logging.StreamHandler(stream or sys.stderr)
    if is_json(environ):
        handler.setFormatter(JsonLines())
        logging.captureWarnings(True)
    else:
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    log.setLevel(level)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """What is logged in the block is about these, of FIELDS, and those of the blocks around it."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


@contextmanager
def stage(name: str, program: str, batch: str | None = None) -> Iterator[None]:
    """What is logged in the block is about a stage, and as JSON so are its start and its end."""
    with about(program=program, stage=name, **({"batch": batch} if batch else {})):
        if not is_json():
            yield
            return
        begun = time.monotonic()
        log.info("the stage begins")
        try:
            yield
        except Exception as error:
            log.error("the stage failed after %.1f s with %s", time.monotonic() - begun, type(error).__name__)
            raise
        log.info("the stage ended after %.1f s", time.monotonic() - begun)


def complain(text: str) -> None:
    """Say on stderr why a command fails, in the form of the log."""
    if is_json():
        log.error(text)
    else:
        print(text, file=sys.stderr)
