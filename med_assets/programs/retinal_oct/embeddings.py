"""Mean tokens of volumes, or of cells of them, computed once for each encoder and volume and kept by their content."""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.programs.retinal_oct.experiment import Attention, Network
from med_assets.programs.retinal_oct.network import embed, embed_cells, features
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.storage.files import digest, replacing
from med_assets.storage.versions import version_of

FOLDER = "embeddings"
"""Folder beside the jobs of a home; what is in it can always be computed again."""


def encoder_key(network: Network, weights: Mapping[str, Tensor], attention: Attention | None = None) -> str:
    """Hash of an encoder: its sizes, names and values of all its tensors, and the cells whose tokens are kept apart."""
    how = [version_of(embed)] if attention is None else [version_of(embed_cells), attention.cells]
    found = hashlib.sha256(digest(*how, network.model_dump(mode="json")).encode())
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

    def of(
        self,
        encoder: nn.Module,
        network: Network,
        cases: Sequence[PreparedCase],
        batch: int,
        attention: Attention | None = None,
    ) -> Tensor:
        """Return float32 (case, hidden), or with `attention` (case, cells, hidden), on the host; only those that are in no file are computed,
        `batch` at a time."""
        key = encoder_key(network, encoder.state_dict(), attention)
        shape = (network.hidden,) if attention is None else (math.prod(attention.cells), network.hidden)
        paths = [self.folder / key[:32] / f"{image_key(case)[:32]}.npy" for case in cases]
        found: dict[Path, np.ndarray] = {}
        for path in paths:
            if path not in found and (kept := self._read(path, shape)) is not None:
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
                rows = features(encoder, volumes.to(device), network, attention).float().cpu().numpy()
            for (path, _), row in zip(some, rows, strict=True):
                self._write(path, row)
                found[path] = row
        encoder.train(was_training)
        self.computed += len(waiting)
        # A copy, since tensors made in inference mode can't be trained on.
        return torch.from_numpy(np.stack([found[path] for path in paths]))

    @staticmethod
    def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        try:
            row: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            return None
        return row if row.shape == shape and row.dtype == np.float32 else None

    @staticmethod
    def _write(path: Path, row: np.ndarray) -> None:
        content = io.BytesIO()
        np.save(content, row)
        with replacing(path, durable=False) as temporary:
            temporary.write_bytes(content.getvalue())
