"""The state of a job that other machines can go on with: files in the bucket, seen whole or not at all, of one writer at a time.

    PREFIX/jobs/NAME/state.json      folder and SHA-256 of each file of the newest state, and who writes it; written with conditional PUT
    PREFIX/jobs/NAME/TOKEN/...       the files of one state

Whoever takes a job over claims its state by writing its own name into it. A writer before it, which was paused or without the network, then
can't write any more: its next state is refused.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from med_assets.errors import ArtifactCorrupt, LockLost
from med_assets.storage.files import canonical_json
from med_assets.storage.s3 import conditional
from med_assets.storage.s3.bucket import in_words
from med_assets.storage.s3.index import pages
from med_assets.storage.s3.lease import this_process
from med_assets.storage.s3.store import S3Store
from med_assets.storage.s3.uploads import upload

FOLDER, MANIFEST = "jobs", "state.json"
"""Where the states of jobs lie, and the object that names the files of one."""


@dataclass(frozen=True)
class State:
    """What `state.json` holds. `step` orders the states of a job, `title` names it for people; without files there is none yet."""

    step: int = 0
    title: str = ""
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    by: str = ""
    at: str = ""
    token: str = ""

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The reverse of `content`. Raises ValueError or TypeError for other bytes."""
        return cls(**json.loads(content))

    def content(self) -> bytes:
        """The bytes of the object."""
        return canonical_json(asdict(self)).encode()

    def signed(self) -> "State":
        """The same, written by this process now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self, by=this_process(), at=now, token=secrets.token_hex(8))


def states(store: S3Store) -> dict[str, State]:
    """The states of jobs that have one, by the name of the job, as far as a listing shows them."""
    start = store.location.key(f"{FOLDER}/")
    with in_words("listing the states of jobs"):
        keys = [one.key for one in pages(store.client, store.location, f"{FOLDER}/")]
    names = sorted(
        {key.removeprefix(start).removesuffix(f"/{MANIFEST}") for key in keys if key.endswith(f"/{MANIFEST}")}
    )
    found = {name: JobState(store, name).read() for name in names}
    return {name: state for name, state in found.items() if state.files}


class JobState:
    """The state of one job in the bucket of a store."""

    def __init__(self, store: S3Store, name: str) -> None:
        self.store, self.name = store, name
        self.state = State()
        """The state as this process found or wrote it last."""
        self._etag: str | None = None

    @property
    def _manifest(self) -> str:
        return f"{FOLDER}/{self.name}/{MANIFEST}"

    def read(self) -> State:
        """The newest state; an empty one where nobody wrote any. Raises RemoteFailed, ArtifactCorrupt."""
        found = conditional.get(self.store.client, self.store.location, self._manifest)
        self._etag = found.etag if found else None
        if found is None:
            self.state = State()
            return self.state
        try:
            self.state = State.parse(found.content)
        except (ValueError, TypeError):
            raise ArtifactCorrupt(
                f"expected the state of a job in {self.store.location}/{self._manifest}, got something else; remove that object"
            ) from None
        return self.state

    def claim(self) -> State:
        """Become the one writer of this job's state; returns the state that is there. The caller holds the job's lock."""
        while True:
            found = self.read()
            if self._written(found):
                return found

    def fetch(self, folder: Path) -> None:
        """Fetch the files of the state that was claimed. Raises RemoteFailed, ArtifactCorrupt."""
        manifest = {"folder": self.state.folder, "files": self.state.files}
        self.store.download(f"state of job {self.name}", manifest, folder)

    def save(self, folder: Path, files: Mapping[str, str], step: int, title: str) -> None:
        """Write the files of a folder, by name and SHA-256, as the newest state, and remove those of the one before.

        Raises RemoteFailed, and LockLost when another process has claimed the state since; what it has is as it was.
        """
        before = self.state
        key = self.store.location.key(f"{FOLDER}/{self.name}/{secrets.token_hex(4)}")
        with in_words("saving the state of a job"):
            contents = {f"{key}/{name}": (folder / name, sha256) for name, sha256 in files.items()}
            upload(self.store.client, self.store.location.bucket, contents, shown=False)
        if not self._written(State(step=step, title=title, folder=key, files=dict(files))):
            self.store.clear(key)
            raise LockLost(
                f"expected to be the one process that runs job {self.name}, got that another took it over; this one saves its state no longer"
            )
        if before.folder:
            self.store.clear(before.folder)

    def discard(self) -> None:
        """Claim the state and leave an empty one, so that the job starts anew."""
        while True:
            before = self.read()
            if self._written(State()):
                break
        if before.folder:
            self.store.clear(before.folder)

    def remove(self) -> None:
        """Remove all of the state, of a job whose result is in the store."""
        with in_words("removing the state of a job"):
            self.store.client.delete_object(
                Bucket=self.store.location.bucket, Key=self.store.location.key(self._manifest)
            )
        self.store.clear(self.store.location.key(f"{FOLDER}/{self.name}"))

    def _written(self, state: State) -> bool:
        """Write the manifest over the version that was read or written last; whether nobody was faster."""
        signed, client, location = state.signed(), self.store.client, self.store.location
        if self._etag is None:
            if conditional.put_new(client, location, self._manifest, signed.content()) is not None:
                return False
            found = conditional.get(client, location, self._manifest)
            etag = found.etag if found is not None and found.content == signed.content() else None
        else:
            etag = conditional.put_over(client, location, self._manifest, signed.content(), self._etag)
        if etag is not None:
            self.state, self._etag = signed, etag
        return etag is not None
