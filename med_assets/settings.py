"""Where things are and under which key: read from the environment once, in one place."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from med_assets.artifacts import ArtifactStore, LocalStore
from med_assets.errors import ConfigurationError
from med_assets.lake import TABLES, Lake

MIN_KEY_CHARS = 16
"""Shortest pseudonym key accepted: below it, patient ids could be recovered by trying keys."""

PURPOSES = ("production", "demo")
LAUNCHERS = ("local", "slurm")


@dataclass(frozen=True)
class Workspace:
    """One home of data and models: landing zone, store, lake, reports and scratch."""

    home: Path
    landing: Path
    key: bytes = field(repr=False)
    purpose: str = "production"
    profile: str = "full"
    settle_s: float = 30.0
    launcher: str = "local"
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Workspace":
        """Workspace described by MED_ASSETS_* variables; raises ConfigurationError that says which and why."""
        key = environ.get("MED_ASSETS_PSEUDONYM_KEY", "")
        if len(key) < MIN_KEY_CHARS:
            raise ConfigurationError(
                f"expected MED_ASSETS_PSEUDONYM_KEY with at least {MIN_KEY_CHARS} characters, got {len(key)}; make one with "
                "`python -c 'import secrets; print(secrets.token_hex(32))'`, keep it safe: the same key gives the same pseudonyms"
            )
        purpose = environ.get("MED_ASSETS_PURPOSE", "production")
        if purpose not in PURPOSES:
            raise ConfigurationError(f"expected MED_ASSETS_PURPOSE to be one of {PURPOSES}, got {purpose!r}")
        launcher = environ.get("MED_ASSETS_LAUNCHER", "local")
        if launcher not in LAUNCHERS:
            raise ConfigurationError(f"expected MED_ASSETS_LAUNCHER to be one of {LAUNCHERS}, got {launcher!r}")
        home = Path(environ.get("MED_ASSETS_HOME", ".med_assets")).absolute()
        return cls(
            home=home,
            landing=Path(environ.get("MED_ASSETS_LANDING", home / "landing")).absolute(),
            key=key.encode(),
            purpose=purpose,
            profile=environ.get("MED_ASSETS_PROFILE", "full"),
            settle_s=float(environ.get("MED_ASSETS_SETTLE_S", "30")),
            launcher=launcher,
            options={name: value for name, value in environ.items() if name.startswith("MED_ASSETS_")},
        )

    @classmethod
    def configuration(cls) -> "Workspace":
        """The workspace as far as configuration goes: it needs no pseudonym key, and must not be used to take in cases."""
        return cls.from_env({**os.environ, "MED_ASSETS_PSEUDONYM_KEY": "no key is needed to read configuration"})

    def option(self, program: str, name: str, default: str) -> str:
        """A program's own setting, e.g. MED_ASSETS_RT_DOSE_SITE for ("rt_dose", "site")."""
        return self.options.get(f"MED_ASSETS_{program}_{name}".upper(), default)

    @cached_property
    def store(self) -> ArtifactStore:
        """Artifacts of this home."""
        return LocalStore(self.home / "store")

    @cached_property
    def lake(self) -> Lake:
        """Tables of this home, those of the programs' facts included."""
        from med_assets import program

        return Lake(self.home / "lake", {**TABLES, **program.fact_tables()})

    @property
    def reports(self) -> Path:
        """Folder of HTML reports."""
        return self.home / "reports"

    @property
    def jobs(self) -> Path:
        """Folder of training jobs; each job's folder is named by its checkpoint's key."""
        return self.home / "tmp" / "jobs"
