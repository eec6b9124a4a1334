"""Composition: from `conf/<program>/<experiment>.yaml` and overrides to the fields of an experiment, which are not yet validated.

Hydra composes the file, its `defaults:` list, the profile and `key=value` overrides, which takes 0.2 s. What came of it is kept on
disk, so that another process needs neither the time nor Hydra: each composition in a file of its own, named by a hash of all that it
is made from. What is kept is checked and validated again by whoever reads it, so that a changed model holds at once.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from med_assets.errors import ConfigurationError, DiskFull
from med_assets.storage.files import read_yaml, write_text
from med_assets.storage.names import MAX_PARTITION, OPTION

FORMER_NAMES = {"fallbacks": "ladder", "memory_plan": "rung"}
"""Fields that had another name before, by the present one. The former name is still read, in YAML files, overrides and the
`experiment.json` of checkpoints, and it still stands for the field in the hash, so that a new name trains nothing again."""

PRESENT_NAMES = {former: name for name, former in FORMER_NAMES.items()}

GROUPS = {"profile": "profiles", "site": "sites@site"}
"""Choices between files: their names in an override (`site=head_neck`), and Hydra's own names for them."""

RESOLVER = re.compile(r"\$\{(?![\w.\[\]]+\})")
"""An interpolation that is more than the name of a field, such as a resolver, whose name may itself be interpolated."""

OVERRIDE_KEY = re.compile(r"(\+\+?|~)?([A-Za-z]\w*)((?:\.[A-Za-z]\w*)*)", re.ASCII)
"""The left side of an override: what Hydra is to do, and a field, whose first name may be a group of files."""

PART = re.compile(r"(\w+/)*\w+(@[A-Za-z_][\w.]*)?(: (\w+|\$\{\w+\}))?")
"""An entry of a `defaults` list: a file beside the experiment, or a group, a package within the experiment, and the name of a
file of it, which may be that of another group's choice."""

DEFAULTS = re.compile(r"^defaults:.*(\n([ \t\r#-].*)?)*", re.MULTILINE)
"""A `defaults` list as it is written nearly always: the lines from its name to the next field."""

PACKAGE = re.compile(r"^\s*#\s*@package\s+(\S+)", re.MULTILINE)
"""Line of a file that says where in the configuration its content goes."""

RESERVED = re.compile(r"hydra|_(target|args|partial|recursive|convert|call|name|method)_")
"""Keys by which Hydra finds files and calls functions."""

CACHE_VARIABLE = "MED_ASSETS_CACHE"
"""Environment variable that names another folder than `med_assets` in the user's folder of caches."""

KEPT = 64
"""Compositions of one experiment that are kept, the newest: one for each content of its files, profile and overrides."""

COMPOSERS = ("hydra-core", "omegaconf", "PyYAML")
"""Packages whose versions a composition depends on."""

_hydra_lock = threading.Lock()


def states_of(folder: Path) -> Callable[[str], str]:
    """Return a function from the name of an experiment of this folder to a hash of all files that its composition can read.

    These are its own file, all files in folders below, and those beside it that one of these names, by whatever way; all links count too.
    Others, such as policies and other experiments, change nothing of it. The folder is read once.
    """
    links: list[tuple[str, str]] = []
    contents: dict[str, bytes] = {}
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = f"{below}{entry.name}"
                if entry.is_symlink():
                    links.append((name, os.readlink(entry.path)))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif name.endswith(".yaml") and entry.is_file():
                    with open(entry.path, "rb") as stream:
                        contents[name] = stream.read()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    beside = {name.removesuffix(".yaml") for name in contents if "/" not in name}
    named = {name: beside & _named(content) for name, content in contents.items()}
    deeper = sorted(name for name in contents if "/" in name)
    of_all = hashlib.sha256(repr((sorted(links), [(name, digests[name]) for name in deeper])).encode()).hexdigest()
    linked = any((folder / name).is_dir() for name, _ in links)  # a linked folder may be that of the experiments
    named_by_all = beside if linked else set().union(*(named[name] for name in deeper))

    def state_of(experiment: str) -> str:
        waiting = {experiment, *named_by_all}
        read: dict[str, str] = {}
        while waiting:
            name = f"{waiting.pop()}.yaml"
            if name in contents and name not in read:
                read[name] = digests[name]
                waiting |= named[name]
        return hashlib.sha256(repr((of_all, sorted(read.items()))).encode()).hexdigest()

    return state_of


def _named(content: bytes) -> set[str]:
    """The words of a YAML file that may name a file beside it: those of its `defaults` list, without reading YAML."""
    text = content.decode(errors="replace")
    found = DEFAULTS.search(text)
    return set(re.findall(r"\w+", found[0] if found else text if "defaults" in text else ""))


def compose(folder: Path, name: str, overrides: tuple[str, ...], state: str) -> dict[str, Any]:
    """Return the fields of the experiment `name` of a folder of `conf/`, whose files are in this state, from the cache where it has them.

    Raises ConfigurationError for a file or an override that can't be used, which is never cached.
    """
    for override in overrides:
        _refuse_power(override, folder)
    key = hashlib.sha256(repr((state, name, overrides, _code())).encode()).hexdigest()
    kept = _cache()
    if kept is None:
        return _composed(folder, name, overrides)
    path = kept / folder.name / name / f"{key}.json"
    content = _read(path)
    if content is None:
        content = _composed(folder, name, overrides)
        _write(path, content)
    return content


def _cache() -> Path | None:
    """The folder of compositions; None where the user has no home."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen) / "experiments"
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without an entry in the system, as containers have
        return None
    return caches / "med_assets" / "experiments"


@cache
def _code() -> tuple[str, ...]:
    """What composes: this module and its packages."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), *(version(package) for package in COMPOSERS)


def _signed(path: Path, body: str) -> str:
    return hashlib.sha256(f"{path.stem}\n{body}".encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """What `_write` kept at a path; None where there is nothing, or what another wrote or damage left."""
    try:
        signature, _, body = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    content: dict[str, Any] | None = json.loads(body) if signature == _signed(path, body) else None
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    """Keep a composition; not one with values that JSON changes, nor where nothing can be written."""
    try:
        body = json.dumps(content)
    except TypeError:
        return
    if json.loads(body) != content:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(path, f"{_signed(path, body)}\n{body}", durable=False)
        newest_first = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for old in newest_first[KEPT:]:
            old.unlink()
    except (OSError, DiskFull):  # the cache saves time alone: without it, each process composes
        return


def _composed(folder: Path, name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Compose an experiment with Hydra. Raises ConfigurationError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _check_files(folder, name)
    with _hydra_lock:
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
                config = hydra_compose(config_name=name, overrides=[_hydra_name(override) for override in overrides])
                _refuse_resolvers(OmegaConf.to_container(config, resolve=False), name)
                content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            given = f" with overrides {list(overrides)}" if overrides else ""
            raise ConfigurationError(f"experiment {name}{given} can't be composed: {error}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _refuse_power(override: str, folder: Path) -> None:
    """Raise ConfigurationError for an override that reaches beyond the configuration; overrides also come from Dagster's launchpad."""
    key, _, value = override.partition("=")
    if RESOLVER.search(override):
        raise ConfigurationError(
            "expected an override that refers to the configuration alone, as in ${schedule.epochs}, got a resolver; environment, "
            "files and functions are out of reach"
        )
    parsed = OVERRIDE_KEY.fullmatch(key)
    too_long = len(key) > MAX_PARTITION
    if (
        not parsed
        or too_long
        or any(RESERVED.fullmatch(part) or part == "defaults" for part in key.lstrip("+~").split("."))
    ):
        raise ConfigurationError(
            "expected overrides as key=value with a field of the experiment as key, such as schedule.epochs=2, got another key"
        )
    prefix, first, more = parsed.groups()
    group = folder / GROUPS.get(first, first).partition("@")[0]
    if group.is_dir() and not more:
        options = sorted(path.stem for path in group.glob("*.yaml"))
        if prefix or not OPTION.fits(value):
            raise ConfigurationError(
                f"expected {first}=NAME with one of the files conf/{folder.name}/{group.name}/NAME.yaml ({', '.join(options)})"
            )
    elif (".." in value and "/" in value) or value.lstrip("'\"[ ").startswith("/"):
        raise ConfigurationError(f"expected a value of {key} that is no path, got one; files are named in conf/")
    elif key.lstrip("+") == "launch.options" and "/" in value:
        raise ConfigurationError(
            "expected options of sbatch without a path in an override; those with one stand in conf/"
        )


def _check_files(folder: Path, name: str) -> None:
    """Raise ConfigurationError for a file of an experiment that is no YAML, or reaches out of the configuration.

    These are the experiment's own file and all that its `defaults` lists lead to: each lies below `folder`, none sets anything
    of Hydra, which could add folders to search, and none names a function. Files that an override chooses are among them.
    """
    waiting, checked = [folder / f"{name}.yaml"], set()
    while waiting:
        path = waiting.pop()
        if path in checked or not path.is_file():  # Hydra says what is missing, and where it looked
            continue
        checked.add(path)
        where = f"conf/{folder.name}/{path.relative_to(folder).as_posix()}"
        if not path.resolve().is_relative_to(folder):
            raise ConfigurationError(
                f"{where}: expected a file within conf/{folder.name}, got a link that leads out of it"
            )
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ConfigurationError(f"{where}: expected fields with values, got {type(content).__name__}")
        written = path.read_text(encoding="utf-8")
        packages = PACKAGE.findall(written)
        if any(RESERVED.search(package) for package in packages) or _reserved(content):
            raise ConfigurationError(
                f"{where}: expected fields of the experiment, got settings of Hydra or a function to call"
            )
        for entry in content.get("defaults") or ():
            (group, option), *others = entry.items() if isinstance(entry, dict) and entry else [(entry, None)]
            text = f"{group}" if option is None else f"{group}: {option}"
            if others or not PART.fullmatch(text) or RESERVED.search(text):
                raise ConfigurationError(
                    f"{where}: expected entries of defaults to be files of this folder, such as _base or `profiles: full`, got another"
                )
            own = path.parent / str(group).partition("@")[0]
            if option is None and own.name not in _named(path.read_bytes()):  # `states_of` looks for it
                raise ConfigurationError(
                    f"{where}: expected defaults at the start of a line with names as they are, got one with escapes or elsewhere"
                )
            if option is None:
                waiting.append(own.with_name(f"{own.name}.yaml"))
            else:
                waiting += own.glob("*.yaml")


def _reserved(content: Any) -> bool:
    """Whether a key, at any depth, is one of Hydra's own."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if any(isinstance(key, str) and RESERVED.fullmatch(key) for key in part):
                return True
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False


def _refuse_resolvers(content: Any, name: str) -> None:
    """Raise ConfigurationError for an interpolation that calls a resolver, such as `oc.env`, anywhere in a configuration."""
    if isinstance(content, dict):
        for key, value in content.items():
            _refuse_resolvers(key, name)
            _refuse_resolvers(value, name)
    elif isinstance(content, list):
        for value in content:
            _refuse_resolvers(value, name)
    elif isinstance(content, str) and RESOLVER.search(content):
        raise ConfigurationError(
            f"experiment {name}: expected interpolations within the configuration alone, as in ${{schedule.epochs}}, got a "
            "resolver; environment, files and functions are out of reach"
        )


def _hydra_name(override: str) -> str:
    """An override with Hydra's name of a group of files, and with the present name of a field."""
    key, equals, value = override.partition("=")
    section, dot, field = key.rpartition(".")
    present = f"{section}.{PRESENT_NAMES.get(field, field)}" if dot else field
    return f"{GROUPS.get(key, present)}{equals}{value}"
