"""Configuration files of a MONAI bundle, merged as MONAI merges them and read without running anything.

A bundle's files may hold `$` expressions and `_target_` components, which MONAI executes. Here they are text: a reference alone
(`@a`, `$@a#b`) is followed, and any other expression has no value.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from med_assets import program
from med_assets.capabilities import ReadsBundles
from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.storage.conf import conf_folder
from med_assets.storage.files import write_text
from med_assets.storage.names import EXPERIMENT

METADATA = "configs/metadata.json"

MAX_BYTES = 4 << 20
"""Size of a configuration file that is read; those of the MONAI Model Zoo have some tens of kB."""

MAX_DEPTH = 64
"""Levels of nesting, and references that lead to one another, that are followed."""

REFERENCE = re.compile(r"\$?@([\w.]+(?:(?:#|::)[\w.]+)*)", re.ASCII)
"""A value that is a reference to another, and nothing else."""

SEPARATOR = "#"

SHOWN_CHARACTERS = 80
"""Characters of a value that a line shows."""


class Reading(StrEnum):
    """What came of an entry of a bundle."""

    MAPPED = "mapped"
    SAME = "the same here"
    NOT_MAPPED = "not mapped"


@dataclass(frozen=True)
class Line:
    """One entry of a bundle: its id, its value as text, what came of it, and the field that has it now or the reason why none has."""

    key: str
    value: str
    reading: Reading
    note: str


@dataclass(frozen=True)
class ReadBundle:
    """What a program read of a bundle: fields of an experiment, such as `optimiser.lr`, with their values, and a line for each entry."""

    fields: Mapping[str, Any]
    lines: tuple[Line, ...]


class Unresolved(Exception):
    """The value of an entry is an expression, which is not executed."""


class BundleConfiguration:
    """The merged configuration of a bundle, by MONAI's ids: `loss#smooth_dr`, `train#handlers#0`."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    @classmethod
    def of(cls, folder: Path, files: Sequence[str]) -> "BundleConfiguration":
        """Merge files of a bundle, relative to its folder; where two have an entry the later one holds, as in MONAI.

        Raises ConfigurationError for a file that is not there, lies outside, is too large or is no configuration.
        """
        from monai.bundle.config_parser import ConfigParser

        paths = [_inside(folder, name) for name in files]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of MONAI: an entry to merge that is not there yet is copied
                content = ConfigParser.load_config_files(paths)
        except Exception as error:  # a parser raises what it likes at what it can't read
            raise ConfigurationError(
                f"expected configuration files of a MONAI bundle in {', '.join(files)}, reading them failed with {type(error).__name__}: "
                f"{str(error)[:200]}"
            ) from None
        if not isinstance(content, dict) or not _depth_within(content, MAX_DEPTH):
            raise ConfigurationError(f"expected entries of at most {MAX_DEPTH} levels in {', '.join(files)}")
        return cls(content)

    def __contains__(self, key: str) -> bool:
        return _there(self.content, key)[0]

    def value(self, key: str) -> Any:
        """The value of an entry, references followed; lists too. Raises Unresolved for an expression, KeyError for an entry that is not there."""
        found, value = _there(self.content, key)
        if not found:
            raise KeyError(key)
        return self._resolved(value, MAX_DEPTH)

    def _resolved(self, value: Any, left: int) -> Any:
        if left == 0:
            raise Unresolved("references lead to one another")
        if isinstance(value, list):
            return [self._resolved(part, left - 1) for part in value]
        if isinstance(value, str) and (reference := REFERENCE.fullmatch(value)):
            found, referred = _there(self.content, reference[1].replace("::", SEPARATOR))
            if not found:
                raise Unresolved(f"refers to {reference[1]}, which is not there")
            return self._resolved(referred, left - 1)
        if isinstance(value, str) and value.startswith(("$", "%", "@")):
            raise Unresolved("an expression, which is not executed")
        return value

    def text(self, key: str) -> str:
        """An entry as JSON in ASCII, shortened: what can't be seen in it is seen."""
        text = json.dumps(self.written(key))
        return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."

    def written(self, key: str) -> Any:
        """An entry as it is written; None for one that is not there."""
        return _there(self.content, key)[1]

    def keys(self, deeper: Sequence[str]) -> Iterator[str]:
        """Ids of the entries; those of a mapping below `deeper` one by one."""
        for key, value in self.content.items():
            if key in deeper and isinstance(value, dict):
                yield from (f"{key}{SEPARATOR}{part}" for part in value)
            else:
                yield key


def metadata_of(folder: Path) -> Mapping[str, Any]:
    """The content of `configs/metadata.json`. Raises ConfigurationError."""
    path = _inside(folder, METADATA)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"expected JSON in {METADATA}, got {type(error).__name__}: {str(error)[:200]}"
        ) from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"expected fields with values in {METADATA}, got {type(found).__name__}")
    return found


def _inside(folder: Path, name: str) -> Path:
    root, path = folder.resolve(), (folder / name).resolve()
    if not path.is_relative_to(root):
        raise ConfigurationError(f"expected a file in the folder of the bundle, got {name}, which lies outside of it")
    if not path.is_file():
        raise ConfigurationError(f"expected {name} in the folder of the bundle, found no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigurationError(f"expected a configuration of at most {MAX_BYTES >> 20} MiB, {name} is larger")
    return path


def _there(content: Any, key: str) -> tuple[bool, Any]:
    """Whether an entry is there, and its value."""
    for part in key.split(SEPARATOR):
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdecimal() and int(part) < len(content):
            content = content[int(part)]
        else:
            return False, None
    return True, content


def _depth_within(value: Any, left: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left > 0 and all(_depth_within(part, left - 1) for part in parts)


def adopt_bundle(program_name: str, name: str, folder: Path, files: Sequence[str]) -> tuple[Path, ReadBundle]:
    """Read a bundle of a program's task into the experiment `name`: a new file in `conf/<program>/`, and what came of each entry.

    The file is written only if it is an experiment that can be trained. Raises ConfigurationError where there is one of that name, and for a
    bundle that can't be read.
    """
    chosen = program.get(program_name)
    if not isinstance(chosen, ReadsBundles):
        raise ConfigurationError(f"expected a program that reads MONAI bundles, got {program_name}, which does not")
    path = conf_folder(program_name) / f"{EXPERIMENT.check(name)}.yaml"
    if path.exists():
        raise ConfigurationError(
            f"expected a name that no experiment has, got {name}; choose another or remove the file"
        )
    metadata = metadata_of(folder)
    found = chosen.read_bundle(BundleConfiguration.of(folder, files), metadata)
    write_text(path, _as_yaml(found, metadata, files))
    try:
        load(program_name, name)
    except ConfigurationError:
        path.unlink()
        raise
    return path, found


def _as_yaml(found: ReadBundle, metadata: Mapping[str, Any], files: Sequence[str]) -> str:
    about = f"{metadata.get('name') or 'a MONAI bundle'}, version {metadata.get('version') or 'unknown'}"
    fields: dict[str, Any] = {}
    for key, value in found.fields.items():
        *above, last = key.split(".")
        inner = fields
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = value
    content = {
        "defaults": ["_base", "_self_", {"profiles": "full"}],
        "title": _plain(f"From {about}"),
        "description": _plain(
            f"Read from {', '.join(files)} of {about}; the later file holds. {metadata.get('description') or ''}"
        ).strip(),
        **fields,
    }
    return yaml.safe_dump(content, sort_keys=False, width=140, allow_unicode=True)


def _plain(text: str) -> str:
    """Text of a bundle on one line, without what composition would take for an interpolation."""
    return " ".join(text.replace("$", "").split())[:500]
