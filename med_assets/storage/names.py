"""Names that come from outside, each checked where it enters: the command line, Dagster's launchpad, settings, and files of a home.

A name becomes a part of a path, of a partition and of an asset key. So each kind has one form, in ASCII: nothing that leads
to another folder, ends a line, looks like another name, or is too long for a file.
"""

import re
from dataclasses import dataclass
from typing import Any

from med_assets.errors import ConfigurationError

MAX_CHARS, MAX_PARTITION = 100, 200
"""Longest name and partition: with the suffix of a file that is being written, either still is the name of a file."""

DEIDENTIFICATION = ("strict", "research")
"""Names of the profiles of de-identification, the default first; see `deidentification.profiles`."""

SHOWN_CHARS = 40
"""How much of a refused name a message shows."""


@dataclass(frozen=True)
class Kind:
    """A kind of name: its form as a pattern and in words, and where a person finds the names that there are."""

    noun: str
    pattern: re.Pattern[str]
    form: str
    remedy: str
    max_chars: int = MAX_CHARS

    def fits(self, name: Any) -> bool:
        """Whether this is a name of the kind, whether or not anything has it."""
        return isinstance(name, str) and len(name) <= self.max_chars and self.pattern.fullmatch(name) is not None

    def check(self, name: Any) -> str:
        """The name as it is. Raises ConfigurationError for what is none of the kind."""
        if not self.fits(name):
            raise ConfigurationError(
                f"expected the name of {self.noun}, {self.form}, got {escaped(name)}; {self.remedy}"
            )
        return str(name)


def escaped(name: Any) -> str:
    """A name as ASCII in quotes, so that what can't be seen is seen; a long one by its start."""
    text = name if isinstance(name, str) else str(name)
    more = f" and {len(text) - SHOWN_CHARS} more characters" if len(text) > SHOWN_CHARS else ""
    return f"{text[:SHOWN_CHARS]!a}{more}"


_WORD = r"[A-Za-z0-9][A-Za-z0-9_]*"
_WORDS = rf"{_WORD}(-+[A-Za-z0-9_]+)*"

PROGRAM = Kind(
    "a program", re.compile(r"[a-z][a-z0-9_]*"), "such as rt_dose", "`med-assets experiments` lists those there are"
)
EXPERIMENT = Kind(
    "an experiment",
    re.compile(_WORD),
    "of letters, digits and _ in ASCII, such as baseline",
    "`med-assets experiments` lists those there are; the name is that of its file in conf/",
)
OPTION = Kind(
    "a file of a group of conf/",
    re.compile(_WORDS),
    "of letters, digits, _ and - in ASCII, such as full",
    "give one of the files of that folder, without .yaml",
)
BATCH = Kind(
    "a batch",
    re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}-[0-9]{2}-[0-9]{2}_[0-9a-f]{6}"),
    "such as 2026-01-31T09-30-00_0a1b2c",
    "`med-assets batches PROGRAM` lists those there are",
)
BACKUP = Kind(
    "a backup",
    BATCH.pattern,
    "such as 2026-01-31T09-30-00_0a1b2c",
    "`med-assets restore FROM --list` lists those there are",
)
CASE = Kind(
    "a case",
    re.compile(_WORDS),
    "its id, or for some commands the first characters of it",
    "`med-assets cases PROGRAM` lists those there are",
)
ANALYSIS = Kind(
    "an analysis",
    re.compile(_WORD),
    "of letters, digits and _ in ASCII",
    "`med-assets analyse PROGRAM` names those there are",
)
TABLE = Kind(
    "a table", re.compile(r"[a-z][a-z0-9_]*"), "such as raw_cases", "`med-assets query 'show tables'` lists them"
)
ARTIFACT = Kind(
    "an artifact",
    re.compile(rf"[a-z]+/{_WORDS}"),
    "such as checkpoint/0123456789abcdef",
    "`med-assets leaderboard PROGRAM` shows those of models",
)
DATASET = Kind(
    "a version of a dataset",
    re.compile(r"[0-9a-f]{4,16}"),
    "its hash, or at least four of its first characters",
    "`med-assets card dataset PROGRAM` shows the present one",
)
PARTITION = Kind(
    "a partition within its table",
    re.compile(rf"{_WORDS}(/{_WORDS})*"),
    "such as rt_dose/baseline",
    "it is a program and what the table has of it: a batch, an experiment or a case",
    MAX_PARTITION,
)
