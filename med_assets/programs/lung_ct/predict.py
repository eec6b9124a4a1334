"""From a checkpoint folder to the mask of a whole volume on the training grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.programs.lung_ct.experiment import Inference, LungExperiment
from med_assets.programs.lung_ct.network import build_network, class_logits
from med_assets.training.inference import inferring
from med_assets.training.tensors import load_weights, read_checkpoint

AT_ONCE = 8
"""Classes predicted in one pass over a volume: their logits of the whole volume are held on the host."""


def predict_logits(network: nn.Module, image: Any, classes: Sequence[int], inference: Inference) -> np.ndarray:
    """Return the logits of classes, float32 (class, x, y, z), of an image (x, y, z) in 0..1, from overlapping windows.

    Where windows overlap their logits are averaged, with equal or Gaussian weights. The network is in evaluation mode
    meanwhile.
    """
    from monai.inferers.utils import sliding_window_inference
    from monai.utils.enums import BlendMode, PytorchPadMode

    # A copy, since a memory map is read-only.
    volume = torch.from_numpy(np.array(image, dtype=np.float32))[None, None]
    with inferring(network) as device:
        parts = []
        for first in range(0, len(classes), AT_ONCE):
            asked = list(classes[first : first + AT_ONCE])
            found = sliding_window_inference(
                volume, inference.window, inference.batch, lambda windows, asked=asked: class_logits(network, windows, asked).float(),
                overlap=inference.overlap, mode=BlendMode(inference.mode), padding_mode=PytorchPadMode(inference.padding),
                sw_device=device, device=torch.device("cpu"),
            )  # fmt: skip
            assert isinstance(found, Tensor)
            parts.append(found[0])
        return np.ascontiguousarray(torch.cat(parts).numpy(), dtype=np.float32)


class Predictor:
    """A loaded checkpoint: called with an image (x, y, z) in 0..1 at the training spacing and class ids, returns logits."""

    def __init__(self, experiment: LungExperiment, weights: Mapping[str, Tensor], device: str = "cpu") -> None:
        self.experiment = experiment
        self.network = build_network(experiment.network)
        load_weights(self.network, weights)
        self.network.to(device)

    def __call__(self, image: Any, classes: Sequence[int]) -> np.ndarray:
        """Return the logits, float32 (class, x, y, z)."""
        return predict_logits(self.network, image, classes, self.experiment.inference)


def load_predictor(checkpoint_folder: Path, device: str = "cpu") -> Predictor:
    """Load `weights.pt` and `experiment.json` of a folder. Raises CheckpointMismatch unless every tensor fits."""
    experiment, weights = read_checkpoint("lung_ct", checkpoint_folder)
    assert isinstance(experiment, LungExperiment)
    return Predictor(experiment, weights, device)
