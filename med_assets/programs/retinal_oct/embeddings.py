"""Mean tokens of volumes, computed once for each encoder and volume and kept by their content."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.programs.retinal_oct.experiment import Network
from med_assets.programs.retinal_oct.network import embed
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.storage.files import digest, replacing
from med_assets.storage.versions import version_of

FOLDER = "embeddings"
"""Folder beside the jobs of a home; what is in it can always be computed again."""


def encoder_key(network: Network, weights: Mapping[str, Tensor]) -> str:
    """Hash of an encoder: its sizes, and names and values of all its tensors."""
    found = hashlib.sha256(digest(version_of(embed), network.model_dump(mode="json")).encode())
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def image_key(case: PreparedCase) -> str:
    """Hash of what the network sees of a case."""
    return hashlib.sha256(np.ascontiguousarray(case.image).tobytes()).hexdigest()


class EmbeddingCache:
    """Embeddings by encoder and volume, each in a file of its own that appears whole. `computed` and `reused` count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.computed = self.reused = 0

    def of(self, encoder: nn.Module, network: Network, cases: Sequence[PreparedCase], batch: int) -> Tensor:
        """Return float32 (case, hidden) on the host; only those that are in no file are computed, `batch` at a time."""
        key = encoder_key(network, encoder.state_dict())
        paths = [self.folder / key[:32] / f"{image_key(case)[:32]}.npy" for case in cases]
        found: dict[Path, np.ndarray] = {}
        for path in paths:
            if path not in found and (kept := self._read(path, network.hidden)) is not None:
                found[path] = kept
        self.reused += len(found)
        absent = {path: case for path, case in zip(paths, cases, strict=True) if path not in found}
        device = next(encoder.parameters()).device
        was_training = encoder.training
        encoder.eval()
        waiting = list(absent.items())
        for first in range(0, len(waiting), batch):
            some = waiting[first : first + batch]
            volumes = torch.from_numpy(np.stack([case.volume() for _, case in some]))[:, None]
            with torch.inference_mode():
                rows = embed(encoder, volumes.to(device)).float().cpu().numpy()
            for (path, _), row in zip(some, rows, strict=True):
                self._write(path, row)
                found[path] = row
        encoder.train(was_training)
        self.computed += len(waiting)
        # A copy, since tensors made in inference mode can't be trained on.
        return torch.from_numpy(np.stack([found[path] for path in paths]))

    @staticmethod
    def _read(path: Path, width: int) -> np.ndarray | None:
        try:
            row: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            return None
        return row if row.shape == (width,) and row.dtype == np.float32 else None

    @staticmethod
    def _write(path: Path, row: np.ndarray) -> None:
        content = io.BytesIO()
        np.save(content, row)
        with replacing(path, durable=False) as temporary:
            temporary.write_bytes(content.getvalue())
