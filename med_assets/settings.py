"""Where things are and under which key: read from the environment once, in one place."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from med_assets import program, records
from med_assets.deidentification.keys import MIN_KEY_CHARS, key_weakness, published
from med_assets.errors import ConfigurationError
from med_assets.landing.folder import Landing, LocalLanding
from med_assets.launch.names import IN_PROCESS, LAUNCHERS
from med_assets.storage.artifacts import ArtifactStore, LocalStore
from med_assets.storage.lake import Lake
from med_assets.storage.names import DEIDENTIFICATION
from med_assets.storage.s3 import bucket
from med_assets.storage.s3.bucket import Location, location

if TYPE_CHECKING:
    from med_assets.storage.s3.lease import Leases

PURPOSES = ("production", "demo")

OCR_POLICIES = ("off", "blank", "quarantine")
"""What intake does with text that is found in pixels: it is not looked for, blanked, or its case is quarantined."""

SERVE_TOKEN = "MED_ASSETS_SERVE_TOKEN"
"""Variable with the token that requests to `med-assets serve` need."""

FETCH_SECRETS = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "HF_TOKEN")
"""Variables with the credentials of `med-assets fetch`."""

SECRETS = ("MED_ASSETS_PSEUDONYM_KEY", SERVE_TOKEN, "PGPASSWORD", *bucket.SECRETS, *FETCH_SECRETS)
"""Variables that other processes are started without: they need none, and Slurm would keep them on disk."""


MEMORY_SHARE = 0.75
"""Share of the machine's memory that reading may take at intake unless the settings say otherwise."""


def memory_gb() -> float:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def without_secrets(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment that another process, such as a training, is started with."""
    return {name: text for name, text in environ.items() if name not in SECRETS}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One home of data and models as far as it goes without the key of pseudonyms: landing zone, store, lake, reports, scratch.

    What only reads configuration or what is stored takes these.
    """

    home: Path
    landing: Path
    purpose: str = "production"
    profile: str = "full"
    settle_s: float = 30.0
    ocr: str = "off"
    """One of OCR_POLICIES."""
    deidentification: str = "strict"
    """One of DEIDENTIFICATION, for programs that have no setting of their own."""
    launcher: str = "local"
    stage_launcher: str = IN_PROCESS
    """Launcher of the stages of the graph, for programs and stages that name none themselves."""
    landing_location: Location | None = None
    """Bucket and prefix of the landing zone, if it is not the folder `landing`."""
    store_location: Location | None = None
    """Bucket and prefix of the store, if it is not the folder `store` of the home, which then caches it."""
    staging_gb: float = 50.0
    quota_gb: float | None = None
    """Space that the bucket of a shared home may take; None for any."""
    intake_file_s: float = 60.0
    """Seconds within which a file must be read at intake; large files and cases have more."""
    intake_memory_gb: float = field(default_factory=lambda: MEMORY_SHARE * memory_gb())
    """Memory that reading may take at intake, by all processes together."""
    workers: int | None = None
    """Processes that take in, prepare and score cases side by side; None for as many as cores and memory allow."""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Settings described by MED_ASSETS_* variables; raises ConfigurationError that says which and why."""
        return cls(**_from_env(environ))

    def option(self, program: str, name: str, default: str) -> str:
        """A program's own setting, e.g. MED_ASSETS_RT_DOSE_SITE for ("rt_dose", "site")."""
        return self.options.get(f"MED_ASSETS_{program}_{name}".upper(), default)

    def deidentification_of(self, program: str) -> str:
        """The profile of de-identification of a program, one of DEIDENTIFICATION. Raises ConfigurationError."""
        chosen = self.option(program, "deidentification", self.deidentification)
        return _one_of(f"MED_ASSETS_{program}_DEIDENTIFICATION".upper(), chosen, DEIDENTIFICATION)

    def stage_launcher_of(self, program: str) -> str:
        """The launcher of a program's stages, or `in_process`. Raises ConfigurationError."""
        chosen = self.option(program, "stage_launcher", self.stage_launcher)
        return _one_of(f"MED_ASSETS_{program}_STAGE_LAUNCHER".upper(), chosen, (IN_PROCESS, *LAUNCHERS))

    @property
    def runs(self) -> Path:
        """Folder of the stages that run in another process; each has one named by its id."""
        return self.home / "tmp" / "runs"

    @cached_property
    def store(self) -> ArtifactStore:
        """Artifacts of this home, or those of the bucket that MED_ASSETS_STORE names, with this home's as their cache."""
        local = LocalStore(self.home / "store")
        if self.store_location is None:
            return local
        from med_assets.storage.s3.store import S3Store

        return S3Store(self.store_location, local)

    @cached_property
    def leases(self) -> "Leases | None":
        """The locks that the machines of a shared home have in common; None in the home of one machine."""
        if self.store_location is None:
            return None
        from med_assets.storage.s3.lease import Leases

        return Leases(self.store_location)

    def landing_zone(self, program: str) -> Landing:
        """Where cases of a program arrive: the folder `landing` or a bucket, as MED_ASSETS_LANDING or its own setting says."""
        if program not in self._landing_zones:
            own = self.option(program, "landing", "")
            location, folder = (
                self._landing(own, f"MED_ASSETS_{program}_LANDING".upper(), self.home)
                if own
                else (self.landing_location, self.landing)
            )
            if location is None:
                self._landing_zones[program] = LocalLanding(folder, self.home, self.store_location is not None)
            else:
                from med_assets.landing.bucket import S3Landing

                self._landing_zones[program] = S3Landing(
                    location, self.home, self.settle_s, self.staging_gb * 1e9, shared=self.store_location is not None
                )
        return self._landing_zones[program]

    @cached_property
    def _landing_zones(self) -> dict[str, Landing]:
        return {}

    @staticmethod
    def _landing(text: str, variable: str, home: Path) -> tuple[Location | None, Path]:
        """The bucket that a setting names, or None, and the folder: for a bucket one that keeps the manifests of batches."""
        found = location(text, variable)
        return found, home / "landing" if found else Path(text).absolute()

    @cached_property
    def lake(self) -> Lake:
        """Tables of this home, those of the programs' facts included; in a shared home those of the bucket."""
        folder, tables = self.home / "lake", {**records.tables(), **program.fact_tables()}
        if self.store_location is None:
            return Lake(folder, tables)
        from med_assets.storage.s3.lake import S3Lake

        return S3Lake(self.store_location, folder, tables)

    @property
    def links(self) -> Path | None:
        """Folder of the table of links, which MED_ASSETS_LINKS names; None where the site keeps none."""
        folder = self.options.get("MED_ASSETS_LINKS")
        return Path(folder).absolute() if folder else None

    @property
    def reports(self) -> Path:
        """Folder of HTML reports."""
        return self.home / "reports"

    @property
    def predictions(self) -> Path:
        """Folder of the files of predictions for cases without a label, by program and case."""
        return self.home / "predictions"

    @property
    def jobs(self) -> Path:
        """Folder of training jobs; each job's folder is named by its checkpoint's key."""
        return self.home / "tmp" / "jobs"


@dataclass(frozen=True, kw_only=True)
class Workspace(Settings):
    """A home that pseudonymises: it cannot be made from the environment without a key that is long and random."""

    key: bytes = field(repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Workspace described by MED_ASSETS_* variables; raises ConfigurationError that says which and why."""
        key = environ.get("MED_ASSETS_PSEUDONYM_KEY", "")
        if len(key) < MIN_KEY_CHARS:
            raise ConfigurationError(
                f"expected MED_ASSETS_PSEUDONYM_KEY with at least {MIN_KEY_CHARS} characters, got {len(key)}; make one with "
                "`python -c 'import secrets; print(secrets.token_hex(32))'`, keep it safe: the same key gives the same pseudonyms"
            )
        settings = _from_env(environ)
        is_example = published(key) and settings["purpose"] != "demo"
        if weakness := "is that of an example, which everybody has" if is_example else key_weakness(key):
            raise ConfigurationError(
                f"expected MED_ASSETS_PSEUDONYM_KEY to be random, got one that {weakness}; whoever guesses it knows all patients. Make "
                "one with `python -c 'import secrets; print(secrets.token_hex(32))'`"
            )
        return cls(**settings, key=key.encode())


def _one_of(variable: str, value: str, allowed: Collection[str]) -> str:
    """The value of a variable. Raises ConfigurationError for one that is not allowed."""
    if value not in allowed:
        raise ConfigurationError(f"expected {variable} to be one of {tuple(allowed)}, got {value!r}")
    return value


def _from_env(environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields of Settings that the environment describes. Raises ConfigurationError."""

    def choice(variable: str, default: str, allowed: Collection[str]) -> str:
        return _one_of(variable, environ.get(variable, default), allowed)

    home = Path(environ.get("MED_ASSETS_HOME", ".med_assets")).absolute()
    landing_location, landing = Settings._landing(
        environ.get("MED_ASSETS_LANDING", str(home / "landing")), "MED_ASSETS_LANDING", home
    )
    workers = environ.get("MED_ASSETS_WORKERS", "")
    if workers and not (workers.isdecimal() and int(workers)):
        raise ConfigurationError(f"expected MED_ASSETS_WORKERS to be a whole number of 1 or more, got {workers!r}")
    store = environ.get("MED_ASSETS_STORE", "")
    store_location = location(store, "MED_ASSETS_STORE")
    if store and store_location is None:
        raise ConfigurationError(
            "expected MED_ASSETS_STORE of the form s3://bucket/prefix, got a path; the local store is the folder store of "
            "MED_ASSETS_HOME"
        )
    return {
        "home": home,
        "landing": landing,
        "landing_location": landing_location,
        "store_location": store_location,
        "staging_gb": float(environ.get("MED_ASSETS_STAGING_GB", "50")),
        "quota_gb": float(environ["MED_ASSETS_QUOTA_GB"]) if environ.get("MED_ASSETS_QUOTA_GB") else None,
        "intake_file_s": float(environ.get("MED_ASSETS_INTAKE_FILE_S", "60")),
        "intake_memory_gb": float(environ.get("MED_ASSETS_INTAKE_MEMORY_GB", MEMORY_SHARE * memory_gb())),
        "workers": int(workers) if workers else None,
        "purpose": choice("MED_ASSETS_PURPOSE", "production", PURPOSES),
        "profile": environ.get("MED_ASSETS_PROFILE", "full"),
        "settle_s": float(environ.get("MED_ASSETS_SETTLE_S", "30")),
        "launcher": choice("MED_ASSETS_LAUNCHER", "local", LAUNCHERS),
        "stage_launcher": choice("MED_ASSETS_STAGE_LAUNCHER", IN_PROCESS, (IN_PROCESS, *LAUNCHERS)),
        "ocr": choice("MED_ASSETS_OCR", "off", OCR_POLICIES),
        "deidentification": choice("MED_ASSETS_DEIDENTIFICATION", "strict", DEIDENTIFICATION),
        "options": {
            name: value for name, value in environ.items() if name.startswith("MED_ASSETS_") and name not in SECRETS
        },
    }
