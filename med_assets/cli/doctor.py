"""Is this machine ready? Each check says what was found and, when it matters, what to do."""

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from med_assets import program
from med_assets.capabilities import ConfigurationErrors
from med_assets.errors import ConfigurationError, LaunchFailed, MedAssetsError
from med_assets.experiments import configuration as experiments
from med_assets.landing import space
from med_assets.launch.configuration import launcher_class
from med_assets.launch.names import IN_PROCESS
from med_assets.reporting.card_words import card_words
from med_assets.settings import Settings, Workspace

GOOD, WARN, BAD = "ok", "warn", "bad"

NEEDED = ("pydicom", "torch", "monai", "lightning", "great-expectations", "duckdb", "pyarrow", "pymedphys", "dagster")
CODECS = ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pyjpegls")


@dataclass(frozen=True)
class Finding:
    """One check: its state (ok, warn or bad), its subject, what it found, and what to do."""

    state: str
    subject: str
    found: str
    advice: str = ""


def _python() -> Finding:
    version = sys.version_info[:2]
    text = f"{version[0]}.{version[1]}"
    if (3, 11) <= version < (3, 14):
        return Finding(GOOD, "Python", text)
    return Finding(BAD, "Python", text, "use Python 3.11, 3.12 or 3.13")


def _package(name: str, missing: str) -> Finding:
    try:
        return Finding(GOOD, name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(missing, name, "not installed", "run `make setup`")


def _accelerator() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding(BAD, "accelerator", f"torch can't be imported: {error}", "run `make setup`")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding(
            GOOD, "accelerator", f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        )
    if shutil.which("nvidia-smi"):
        advice = (
            "this torch has no CUDA or does not fit the driver; install torch for this machine and keep its version"
        )
        return Finding(
            WARN, "accelerator", f"a GPU driver is installed, but torch {torch.__version__} can't use it", advice
        )
    return Finding(
        GOOD,
        "accelerator",
        f"none; training runs on {torch.get_num_threads()} CPU threads; enough for the demo profile",
    )


def _workspace() -> Iterator[Finding]:
    try:
        ws = Workspace.from_env()
    except (ConfigurationError, ValueError) as error:
        yield Finding(BAD, "settings", str(error), "set the variable; docs/settings.md lists all of them")
        return
    yield Finding(GOOD, "settings", f"home {ws.home}, purpose {ws.purpose}, profile {ws.profile}")
    for name in dict.fromkeys((ws.launcher, ws.stage_launcher, *map(ws.stage_launcher_of, program.registered()))):
        if name != IN_PROCESS:
            yield from _launcher(name)
    folders = [("home", ws.home)] + [("landing folder", ws.landing)] * (ws.landing_location is None)
    for label, folder in folders:
        yield _writable(label, folder)
    yield Finding(GOOD, "disk", f"{space.free_bytes(ws.home) / 1e9:.1f} GB free")
    for warning in space.warnings(ws):
        found, _, advice = warning.rpartition("; ")
        yield Finding(WARN, "space", found, advice)


def _launcher(name: str) -> Iterator[Finding]:
    try:
        launcher = launcher_class(name)
        if (found := launcher(launcher.configuration_type()).examine()) is not None:
            yield Finding(GOOD, "launcher", found)
    except LaunchFailed as error:
        yield Finding(BAD, "launcher", str(error), f"trainings or stages can't start with {name}; see its page in docs")


def _writable(label: str, folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return Finding(GOOD, label, str(folder) if existing == folder else f"{folder} (created at first use)")
    except OSError as error:
        return Finding(
            BAD, label, f"{folder} can't be written: {error.strerror}", "change its owner, or choose another folder"
        )


def _experiments() -> Iterator[Finding]:
    for name in program.registered():
        found = []
        for experiment in experiments.names(name):
            try:
                found.append(experiments.load(name, experiment).name)
            except MedAssetsError as error:
                yield Finding(BAD, f"experiment {name}/{experiment}", str(error), "correct the YAML file")
        yield Finding(GOOD if found else BAD, f"experiments of {name}", ", ".join(found) or "none can be used")


def configurations() -> Iterator[Finding]:
    """What is wrong with the configuration files of programs."""
    for name in program.registered():
        chosen = program.get(name)
        for error in chosen.configuration_errors() if isinstance(chosen, ConfigurationErrors) else ():
            yield Finding(BAD, f"configuration of {name}", error, "correct the YAML file")
        try:
            card_words(name)
        except ConfigurationError as error:
            yield Finding(BAD, f"cards of {name}", str(error), "correct the YAML file")


def _dagster_home() -> Finding:
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        return Finding(
            WARN,
            "DAGSTER_HOME",
            "not set",
            "`make ui` sets it; without it Dagster loses the history of runs when it stops",
        )
    if not Path(home).is_absolute():
        return Finding(BAD, "DAGSTER_HOME", home, "Dagster needs an absolute path")
    return Finding(GOOD, "DAGSTER_HOME", home)


def examine_s3() -> list[Finding]:
    """The buckets of landing zone and store, from the settings to a write."""
    from med_assets.cli import doctor_s3 as remote

    try:
        ws = Settings.from_env()
        configured = remote.locations(ws, program.registered())
    except (ConfigurationError, ValueError) as error:
        return [Finding(BAD, "settings", str(error), "set the variable; docs/settings.md lists all of them")]
    return remote.examine(configured)


def _buckets() -> list[Finding]:
    """The same, and nothing when none is configured or the settings are bad already."""
    findings = examine_s3()
    return [] if findings[0].state == WARN or findings[0].subject == "settings" else findings


def _site() -> list[Finding]:
    """What machines that share a home need, where the settings are good and name a bucket for it."""
    try:
        ws = Settings.from_env()
    except (ConfigurationError, ValueError):
        return []
    if ws.store_location is None:
        return []
    from med_assets.cli import doctor_site

    try:
        return list(doctor_site.examine(ws))
    except ConfigurationError:  # credentials that are missing, which the bucket's findings name
        return []


def examine() -> list[Finding]:
    """All findings, in the order in which a person should act on them."""
    findings = [_python(), *(_package(name, BAD) for name in NEEDED), *(_package(name, WARN) for name in CODECS)]
    return [
        *findings,
        _accelerator(),
        *_workspace(),
        *_buckets(),
        *_site(),
        *_experiments(),
        *configurations(),
        _dagster_home(),
    ]
