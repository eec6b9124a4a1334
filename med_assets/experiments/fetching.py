"""Files that others published, fetched when a person asks for it: weights and data sets that `_program.yaml` names with their host."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from med_assets.errors import ConfigurationError
from med_assets.experiments import policies
from med_assets.experiments.policies import Hosted, Release
from med_assets.experiments.weights import FOLDER
from med_assets.settings import Settings
from med_assets.storage.downloads import Download, download, sha256_path

DATA_FOLDER = "downloads"
"""Folder of the home with fetched data; it is kept apart from the landing zone, since archives have to be unpacked and imported."""

KAGGLE, HUGGING_FACE = "https://www.kaggle.com", "https://huggingface.co"
ENDPOINTS = {
    "kaggle_dataset": ("KAGGLE_API_ENDPOINT", KAGGLE),
    "kaggle_competition": ("KAGGLE_API_ENDPOINT", KAGGLE),
    "hugging_face": ("HF_ENDPOINT", HUGGING_FACE),
}
"""By host: the variable with which its own client is pointed at a mirror, and the address where it is not."""

KAGGLE_CREDENTIALS = "KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY"


@dataclass(frozen=True)
class Source:
    """A published file that a program can use, and its place in the home."""

    name: str
    kind: str
    release: Release
    path: Path

    @property
    def state(self) -> str:
        """Whether it is there, in part, or not; its hash is checked when it is fetched or used."""
        if self.path.is_file():
            return "there"
        return "in part" if self.path.with_name(self.path.name + ".part").is_file() else "not there"

    @property
    def sha256(self) -> str | None:
        """The hash that its publisher states, else the one of the file as it came, else None."""
        recorded = sha256_path(self.path)
        if self.release.sha256 or not recorded.is_file():
            return self.release.sha256
        return recorded.read_text(encoding="utf-8").split()[0]


def sources(ws: Settings, program_name: str) -> dict[str, Source]:
    """What a program names, by name. Raises ConfigurationError where weights and data share a name."""
    named = policies.of(program_name)
    if both := sorted(named.released.keys() & named.data.keys()):
        raise ConfigurationError(
            f"conf/{program_name}/_program.yaml: expected one file of a name, got weights and data named {both[0]}"
        )
    found = {
        name: Source(name, kind, release, ws.home / folder / release.file)
        for kind, folder, releases in (("weights", FOLDER, named.released), ("data", DATA_FOLDER, named.data))
        for name, release in releases.items()
    }
    if escaping := [each.name for each in found.values() if not each.path.resolve().is_relative_to(ws.home.resolve())]:
        raise ConfigurationError(
            f"conf/{program_name}/_program.yaml: expected a file below its folder of the home for {escaping[0]}"
        )
    return found


def fetch(ws: Settings, program_name: str, name: str, environ: Mapping[str, str] = os.environ) -> Download:
    """Download a published file to its place in the home, going on where an earlier call stopped.

    Raises ConfigurationError for a name that is not known, a file that no command can get, missing credentials and a licence that was not
    accepted; RemoteFailed and DiskFull as `download`.
    """
    known = sources(ws, program_name)
    if name not in known:
        raise ConfigurationError(
            f"expected one of {', '.join(known) or 'no name'}, the files of {program_name}, got {name!r}"
        )
    release, path = known[name].release, known[name].path
    if release.hosted is None:
        raise ConfigurationError(f"no address is known of {name!r}: get it from {release.source}, and put it at {path}")
    return download(
        address(release.hosted, environ),
        path,
        {} if path.exists() else credentials(release.hosted, environ),
        f"open {page(release.hosted)}, signed in with the account of your credentials, accept its licence or rules, and give the same command again",
        release.sha256,
    )


def address(hosted: Hosted, environ: Mapping[str, str] = os.environ) -> str:
    """Address of a file in the public interface of its host."""
    variable, usual = ENDPOINTS[hosted.host]
    endpoint = (environ.get(variable) or usual).rstrip("/")
    match hosted.host:
        case "hugging_face":
            return f"{endpoint}/{hosted.repository}/resolve/main/{hosted.file}"
        case "kaggle_competition" if hosted.file is None:
            return f"{endpoint}/api/v1/competitions/data/download-all/{hosted.repository}"
        case "kaggle_competition":
            return f"{endpoint}/api/v1/competitions/data/download/{hosted.repository}/{hosted.file}"
        case _:
            return f"{endpoint}/api/v1/datasets/download/{hosted.repository}" + (
                f"/{hosted.file}" if hosted.file else ""
            )


def page(hosted: Hosted) -> str:
    """The page where a person reads and accepts the licence."""
    match hosted.host:
        case "hugging_face":
            return f"{HUGGING_FACE}/{hosted.repository}"
        case "kaggle_competition":
            return f"{KAGGLE}/competitions/{hosted.repository}/rules"
        case _:
            return f"{KAGGLE}/datasets/{hosted.repository}"


def credentials(hosted: Hosted, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Headers with the credentials of the environment. Raises ConfigurationError where Kaggle, which needs them, has none."""
    if hosted.host == "hugging_face":
        token = environ.get("HF_TOKEN", "")
        return {"Authorization": f"Bearer {token}"} if token else {}
    if token := environ.get("KAGGLE_API_TOKEN", ""):
        return {"Authorization": f"Bearer {token}"}
    user, key = environ.get("KAGGLE_USERNAME", ""), environ.get("KAGGLE_KEY", "")
    if not (user and key):
        raise ConfigurationError(
            f"expected {KAGGLE_CREDENTIALS} in the environment, got neither; make a token at {KAGGLE}/settings, accept the licence at "
            f"{page(hosted)}, and give the same command again"
        )
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}
