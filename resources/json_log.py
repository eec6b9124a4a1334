"""Dagster's lines about a run as JSON, in the form of `med_assets.storage.logs`.

What Dagster says of an error, and lines of a job's log, may quote what was read and stay out.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TextIO

import dagster as dg
import dagster._loggers
from dagster._core.events import EVENT_TYPE_TO_DISPLAY_STRING
from dagster._core.log_manager import LOG_RECORD_METADATA_ATTR, DagsterLogRecordMetadata
from dagster._core.storage.tags import PARTITION_NAME_TAG

from med_assets.storage import logs

PROGRAM_TAG = "med_assets/program"
"""Tag of assets and runs with their program."""

QUOTED = "quoted"
"""Attribute of a record that is a line of a job's log."""


class DagsterLines(logging.Formatter):
    """One JSON object a line: what a line of `logs.JsonLines` has, and job, step and the type of Dagster's event."""

    def format(self, record: logging.LogRecord) -> str:
        about: DagsterLogRecordMetadata = getattr(record, LOG_RECORD_METADATA_ATTR)
        event, tags = about["dagster_event"], about["job_tags"]
        error = getattr(event.event_specific_data, "error", None) if event else None
        while error is not None and error.cause is not None:  # Dagster raises one of its own from that of a step
            error = error.cause
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "program": tags.get(PROGRAM_TAG),
            "batch": tags.get(PARTITION_NAME_TAG),
            "run": about["run_id"],
            "job": about["job_name"],
            "step": about["step_key"],
            "event": EVENT_TYPE_TO_DISPLAY_STRING.get(event.event_type, event.event_type_value) if event else None,
            "logger": record.name,
            "message": logs.WITHHELD if hasattr(record, QUOTED) else about["orig_message"],
            "error": error.cls_name if error else None,
        }
        return json.dumps({name: text for name, text in line.items() if text is not None})


def install() -> TextIO:
    """Make all runs of this process write JSON, and return the stream that they write to.

    It is stderr as it is now: during a step Dagster puts a file in its place, which another process copies to it, and which that process may
    not have read to its end when the run ends. Dagster has no setting for the logger: one of the definitions holds for runs whose
    configuration names it, and those of assets that a person chooses on its pages have none.
    """
    stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(DagsterLines())

    @dg.logger({"name": dg.Field(str, default_value="dagster"), "log_level": dg.Field(str, default_value="INFO")})
    def json_console(context: dg.InitLoggerContext) -> logging.Logger:
        made = logging.Logger(context.logger_config["name"], context.logger_config["log_level"].upper())
        made.addHandler(handler)
        return made

    dagster._loggers.colored_console_logger = json_console
    return stream
