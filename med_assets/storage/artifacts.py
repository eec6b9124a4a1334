"""Content-addressed artifacts: folders of files that are written once, whole, and never changed.

An artifact's key is `kind/hash`, where the hash is made of what made it (inputs, configuration, code version). Its
`manifest.json` lists the SHA-256 of every file. `ArtifactStore` is the whole interface that another backend (S3) fills in.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from med_assets.errors import ArtifactCorrupt, ArtifactMissing
from med_assets.storage import names
from med_assets.storage.files import digest, disk_full_guard, folder_hashes, read_json, sync, sync_all, write_json

MANIFEST = "manifest.json"


def absent(key: str) -> str:
    """Message for a missing artifact."""
    return (
        f"expected {key} in the store, found nothing; restore it from a backup of the home, or make it again: "
        "`med-assets verify` names the command"
    )


class ArtifactStore(Protocol):
    """Where artifacts live. Readers only ever see whole artifacts."""

    def has(self, key: str) -> bool:
        """Whether the artifact is there, whole."""
        ...

    def fetch(self, key: str) -> Path:
        """A local, read-only folder with the artifact's files; raises ArtifactMissing when absent."""
        ...

    def files(self, key: str) -> AbstractContextManager[Path]:
        """A context with a folder that has the artifact's files and is kept no longer: nothing is cached for it."""
        ...

    def create(self, key: str, hashes: Mapping[str, str] | None = None) -> AbstractContextManager[Path]:
        """A context that yields a folder to fill; leaving it without an error publishes the artifact.

        `hashes` are the SHA-256 of its files by name, where they are known; else all are read.
        """
        ...

    def texts(self, key: str, suffix: str) -> dict[str, str]:
        """Contents by name of the artifact's files with an ending; no other file of it is fetched. Raises ArtifactMissing."""
        ...

    def content_hash(self, key: str) -> str:
        """Hash of the artifact's file names and bytes, from its manifest."""
        ...

    def file_hashes(self, key: str) -> dict[str, str]:
        """SHA-256 of each file by name, from the artifact's manifest; raises KeyError when it is absent."""
        ...

    def keys(self, kind: str) -> list[str]:
        """Keys of one kind, sorted."""
        ...

    def all_keys(self) -> list[str]:
        """Keys of all kinds, sorted."""
        ...

    def published(self, kind: str) -> dict[str, float]:
        """When each artifact of a kind was published here, seconds since the epoch, by key, sorted."""
        ...

    def verify(self, key: str) -> None:
        """Read everything back; raises ArtifactCorrupt when a byte differs from the manifest."""
        ...

    def remove(self, key: str) -> None:
        """Take an artifact out, so that it is made again; nothing happens when it is absent."""
        ...


class LocalStore:
    """Artifacts as folders under `root/kind/ab/hash`; published by one rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _folder(self, key: str) -> Path:
        kind, name = names.ARTIFACT.check(key).split("/")
        return self.root / kind / name[:2] / name

    def has(self, key: str) -> bool:
        return (self._folder(key) / MANIFEST).is_file()

    def fetch(self, key: str) -> Path:
        if not self.has(key):
            raise ArtifactMissing(absent(key))
        return self._folder(key)

    @contextmanager
    def files(self, key: str) -> Iterator[Path]:
        yield self.fetch(key)

    def _scratch(self, name: str) -> Path:
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder, prefix=f"{name}-"))

    @contextmanager
    def create(self, key: str, hashes: Mapping[str, str] | None = None) -> Iterator[Path]:
        target = self._folder(key)
        with disk_full_guard(self.root):
            temporary = self._scratch(target.name)
            try:
                yield temporary
                if self.has(key):
                    return
                files = folder_hashes(temporary) if hashes is None else dict(sorted(hashes.items()))
                write_json(temporary / MANIFEST, files, durable=False)  # all files are synced once, here
                sync_all([*temporary.rglob("*"), temporary])
                target.parent.mkdir(parents=True, exist_ok=True)
                self._publish(key, temporary, target)
                sync(target.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _publish(self, key: str, temporary: Path, target: Path) -> None:
        try:
            temporary.rename(target)
        except OSError:
            if self.has(key):
                return
            # A folder that lost its manifest counts as absent; it must not stand in the way for ever.
            self.remove(key)
            temporary.rename(target)

    def texts(self, key: str, suffix: str) -> dict[str, str]:
        folder = self.fetch(key)
        paths = sorted(path for path in folder.rglob(f"*{suffix}") if path != folder / MANIFEST)
        return {path.relative_to(folder).as_posix(): path.read_text(errors="replace") for path in paths}

    def content_hash(self, key: str) -> str:
        return digest(self.file_hashes(key))

    def file_hashes(self, key: str) -> dict[str, str]:
        return dict(read_json(self.fetch(key) / MANIFEST))

    def keys(self, kind: str) -> list[str]:
        return sorted(f"{kind}/{path.parent.name}" for path in (self.root / kind).glob(f"*/*/{MANIFEST}"))

    def all_keys(self) -> list[str]:
        kinds = sorted(path.name for path in self.root.glob("*") if path.is_dir() and path.name != "tmp")
        return [key for kind in kinds for key in self.keys(kind)]

    def published(self, kind: str) -> dict[str, float]:
        return {key: (self._folder(key) / MANIFEST).stat().st_mtime for key in self.keys(kind)}

    def verify(self, key: str) -> None:
        folder = self.fetch(key)
        try:
            expected = dict(read_json(folder / MANIFEST))
        except (ValueError, TypeError):
            expected = {MANIFEST: ""}
        found = {name: value for name, value in folder_hashes(folder).items() if name != MANIFEST}
        changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if changed:
            raise ArtifactCorrupt(
                f"artifact {key}: {len(changed)} of {max(len(expected), len(found))} files differ from the manifest "
                f"(first: {changed[0]}); `med-assets verify --repair` says how to get it back"
            )

    def remove(self, key: str) -> None:
        folder = self._folder(key)
        if folder.exists():
            # By one rename, so that a kill in the middle leaves no half artifact where a whole one is looked for.
            aside = self._scratch(folder.name)
            folder.rename(aside / folder.name)
            shutil.rmtree(aside)
