"""Content-addressed artifacts: folders of files that are written once, whole, and never changed.

An artifact's key is `kind/hash`, where the hash is made of what made it (inputs, configuration, code version). Its
`manifest.json` lists the SHA-256 of every file. `ArtifactStore` is the whole interface that another backend (S3) fills in.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from med_assets.errors import ArtifactCorrupt
from med_assets.files import digest, folder_hashes, read_json, sync, write_json

MANIFEST = "manifest.json"


class ArtifactStore(Protocol):
    """Where artifacts live. Readers only ever see whole artifacts."""

    def has(self, key: str) -> bool:
        """Whether the artifact is there, whole."""
        ...

    def fetch(self, key: str) -> Path:
        """A local, read-only folder with the artifact's files; raises KeyError when absent."""
        ...

    def create(self, key: str) -> AbstractContextManager[Path]:
        """A context that yields a folder to fill; leaving it without an error publishes the artifact."""
        ...

    def content_hash(self, key: str) -> str:
        """Hash of the artifact's file names and bytes, from its manifest."""
        ...

    def keys(self, kind: str) -> list[str]:
        """Keys of one kind, sorted."""
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
        kind, name = key.split("/")
        return self.root / kind / name[:2] / name

    def has(self, key: str) -> bool:
        return (self._folder(key) / MANIFEST).is_file()

    def fetch(self, key: str) -> Path:
        if not self.has(key):
            raise KeyError(f"artifact {key} is not in the store; materialize the asset that makes it")
        return self._folder(key)

    @contextmanager
    def create(self, key: str) -> Iterator[Path]:
        target = self._folder(key)
        scratch = self.root / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{target.name}-"))
        try:
            yield temporary
            if self.has(key):
                return
            write_json(temporary / MANIFEST, folder_hashes(temporary))
            for path in temporary.rglob("*"):
                sync(path)
            sync(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.rename(target)
            except OSError:
                if not self.has(key):
                    raise
            sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def content_hash(self, key: str) -> str:
        return digest(read_json(self.fetch(key) / MANIFEST))

    def keys(self, kind: str) -> list[str]:
        return sorted(f"{kind}/{path.parent.name}" for path in (self.root / kind).glob(f"*/*/{MANIFEST}"))

    def verify(self, key: str) -> None:
        folder = self.fetch(key)
        expected = read_json(folder / MANIFEST)
        found = {name: value for name, value in folder_hashes(folder).items() if name != MANIFEST}
        changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if changed:
            raise ArtifactCorrupt(
                f"artifact {key}: {len(changed)} of {len(expected)} files differ from the manifest (first: {changed[0]}); "
                f"remove the artifact and materialize its asset again"
            )

    def remove(self, key: str) -> None:
        folder = self._folder(key)
        if folder.exists():
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
