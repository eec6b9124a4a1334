"""The artifact store as a bucket: `MED_ASSETS_STORE=s3://bucket/prefix`, shared by all machines that name it.

    PREFIX/manifests/KIND/HASH.json       folder and SHA-256 of each file; written last, so that what it names is whole
    PREFIX/files/KIND/HASH/TOKEN/...      the files of one writer

An artifact is there when its manifest is. Each writer has a folder of its own, so two that make the same artifact at once
never mix their files: the first manifest counts. The local store of the home is a cache: it holds only what the bucket has, and may be
deleted at any time.
"""

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from med_assets.errors import ArtifactCorrupt, ArtifactMissing, RemoteFailed
from med_assets.storage.artifacts import LocalStore, absent
from med_assets.storage.files import canonical_json, digest, folder_hashes
from med_assets.storage.s3 import bucket, conditional
from med_assets.storage.s3.body import body, head
from med_assets.storage.s3.bucket import Location, code_of, in_words
from med_assets.storage.s3.conditional import ABSENT, EXISTS
from med_assets.storage.s3.index import pages
from med_assets.storage.s3.staging import Staging, Wanted, counted
from med_assets.storage.s3.uploads import upload
from med_assets.storage.scratch import scratch


class S3Store:
    """Artifacts in a bucket, read through a local store."""

    def __init__(self, location: Location, local: LocalStore) -> None:
        self.location, self.local = location, local

    @cached_property
    def client(self) -> Any:
        """The client; raises ConfigurationError when the environment lacks something."""
        return bucket.client()

    def _manifest_key(self, key: str) -> str:
        return self.location.key(f"manifests/{key}.json")

    def _manifest(self, key: str) -> dict[str, Any]:
        """Folder and files of an artifact; raises ArtifactMissing when it is absent, RemoteFailed when nobody can say."""
        from botocore.exceptions import ClientError

        with in_words("reading the store"):
            try:
                found = head(self.client, self.location.bucket, self._manifest_key(key))
                _, content = body(self.client, self.location.bucket, found)
                return dict(json.loads(content))
            except ClientError as error:
                if code_of(error) not in ABSENT:
                    raise
            except ValueError:
                raise ArtifactCorrupt(f"artifact {key}: its manifest in the bucket is no JSON") from None
        raise ArtifactMissing(absent(key))

    def has(self, key: str) -> bool:
        return self.local.has(key) or self.is_published(key)

    def is_published(self, key: str) -> bool:
        """Whether the bucket has the artifact, whatever is on this machine."""
        from botocore.exceptions import ClientError

        with in_words("reading the store"):
            try:
                head(self.client, self.location.bucket, self._manifest_key(key))
            except ClientError as error:
                if code_of(error) not in ABSENT:
                    raise
                return False
        return True

    def fetch(self, key: str) -> Path:
        if not self.local.has(key):
            manifest = self._manifest(key)
            with self.local.create(key) as folder:
                self.download(f"artifact {key}", manifest, folder)
        return self.local.fetch(key)

    def download(self, what: str, manifest: Mapping[str, Any], folder: Path) -> None:
        """Fetch all files that a manifest names into `folder`; raises RemoteFailed or ArtifactCorrupt, which say `what` it is."""
        names = {f"{manifest['folder']}/{name}": name for name in manifest["files"]}
        with TemporaryDirectory(dir=folder.parent) as beside:
            staging = Staging(self.client, self.location.bucket, Path(beside), limit_bytes=0)
            wanted = [Wanted("", name) for name in names]
            paths, failures = staging.fetch(wanted, Path(beside) / "files", progress=False)
            if failures:
                raise RemoteFailed(f"{what}: {len(failures)} of {len(names)} files did not come ({counted(failures)})")
            for remote, path in paths.items():
                target = folder / names[remote]
                target.parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o600)
                path.rename(target)
        if folder_hashes(folder) != manifest["files"]:
            raise ArtifactCorrupt(f"{what}: the files in the bucket are not those that were written")

    @contextmanager
    def files(self, key: str) -> Iterator[Path]:
        if self.local.has(key):
            yield self.local.fetch(key)
            return
        with TemporaryDirectory(dir=scratch(self.local.root.parent)) as folder:
            self.download(f"artifact {key}", self._manifest(key), Path(folder))
            yield Path(folder)

    @contextmanager
    def create(self, key: str, hashes: Mapping[str, str] | None = None) -> Iterator[Path]:
        with self.local.create(key) as folder:  # which reads the files: they may be another writer's
            yield folder
            # Still inside: the local store, which `has` trusts, gets only what the bucket has.
            files = folder_hashes(folder) if hashes is None else dict(hashes)
            if not self._put(key, folder, files):
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                self.download(f"artifact {key}", self._manifest(key), folder)

    def publish(self, key: str) -> None:
        """Put an artifact of this machine's store into the bucket, unless it is there."""
        self._put(key, self.local.fetch(key), self.local.file_hashes(key))

    def _put(self, key: str, folder: Path, files: Mapping[str, str]) -> bool:
        """Write an artifact's files, then its manifest; False, and nothing is left, when another writer was first."""
        location = self.location.key(f"files/{key}/{secrets.token_hex(4)}")
        named = {f"{location}/{name}": (folder / name, sha256) for name, sha256 in files.items()}
        with in_words("writing to the store"):
            upload(self.client, self.location.bucket, named)
            first = self._publish(key, {"folder": location, "files": files})
        if not first:
            self.clear(location)
        return first

    def _publish(self, key: str, manifest: Mapping[str, Any]) -> bool:
        """Write the manifest unless there is one; False when another writer was first."""
        from botocore.exceptions import ClientError

        request = {
            "Bucket": self.location.bucket,
            "Key": self._manifest_key(key),
            "Body": canonical_json(manifest).encode(),
        }
        try:
            self.client.put_object(**request, IfNoneMatch="*")
        except ClientError as error:
            if (
                code_of(error) == "NotImplemented"
            ):  # a server without conditional writes: the last manifest counts, and is whole too
                self.client.put_object(**request)
            elif code_of(error) not in EXISTS:
                raise
            # Our own manifest, when the reply to a first try was lost.
            return bool(self._manifest(key)["folder"] == manifest["folder"])
        return True

    def folder_of(self, key: str) -> str:
        """Whole key of the folder whose files are the artifact's. Raises ArtifactMissing."""
        return str(self._manifest(key)["folder"])

    def texts(self, key: str, suffix: str) -> dict[str, str]:
        if self.local.has(key):
            return self.local.texts(key, suffix)
        manifest = self._manifest(key)
        wanted = [name for name in manifest["files"] if name.endswith(suffix)]
        folder = Location(self.location.bucket, manifest["folder"])
        found = {name: conditional.get(self.client, folder, name) for name in wanted}
        return {name: one.content.decode(errors="replace") for name, one in found.items() if one is not None}

    def content_hash(self, key: str) -> str:
        return digest(self.file_hashes(key))

    def file_hashes(self, key: str) -> dict[str, str]:
        return self.local.file_hashes(key) if self.local.has(key) else dict(self._manifest(key)["files"])

    def keys(self, kind: str) -> list[str]:
        return self._keys(f"manifests/{kind}/")

    def all_keys(self) -> list[str]:
        return self._keys("manifests/")

    def published(self, kind: str) -> dict[str, float]:
        return self._listed(f"manifests/{kind}/")

    def _keys(self, under: str) -> list[str]:
        return list(self._listed(under))

    def _listed(self, under: str) -> dict[str, float]:
        """When each manifest was written, by key."""
        first = self.location.key("manifests/")
        with in_words("listing the store"):
            found = {one.key: one.modified for one in pages(self.client, self.location, under)}
        return {key.removeprefix(first).removesuffix(".json"): found[key] for key in sorted(found)}

    def verify(self, key: str) -> None:
        if self.local.has(key):
            self.local.verify(key)
        with TemporaryDirectory() as folder:
            self.download(f"artifact {key}", self._manifest(key), Path(folder))

    def remove(self, key: str) -> None:
        self.local.remove(key)
        with in_words("removing from the store"):
            self.client.delete_object(Bucket=self.location.bucket, Key=self._manifest_key(key))
        self.clear(self.location.key(f"files/{key}"))

    def clear(self, prefix: str) -> None:
        """Remove all objects whose keys start with a prefix, as far as a listing shows them."""
        with in_words("removing from the store"):
            for one in list(pages(self.client, Location(self.location.bucket, prefix))):
                self.client.delete_object(Bucket=self.location.bucket, Key=one.key)
