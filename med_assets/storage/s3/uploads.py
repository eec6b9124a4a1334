"""Several files sent to a bucket at once, each with its SHA-256."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med_assets.storage.progress import bar as progress_bar
from med_assets.storage.s3 import checksums
from med_assets.storage.s3.bucket import THREADS


def upload(client: Any, bucket: str, files: Mapping[str, tuple[Path, str]], *, shown: bool = True) -> None:
    """Write files, given with their SHA-256 by whole key; `shown` as a bar on a terminal. Raises what boto3 raises when one of them does not arrive."""
    from boto3.s3.transfer import TransferConfig
    from s3transfer.manager import TransferManager

    with (
        TransferManager(client, TransferConfig(max_concurrency=THREADS)) as manager,
        progress_bar("storing", "file", len(files), shown=shown) as bar,
    ):
        tasks = [
            manager.upload(str(path), bucket, key, {"Metadata": {checksums.SHA256: sha256}})
            for key, (path, sha256) in files.items()
        ]
        for task in tasks:
            task.result()
            bar.update()
