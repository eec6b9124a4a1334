"""From a checkpoint folder to the probability of a lesion at each pixel of an image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.breast_us.experiment import BreastExperiment
from med_assets.programs.breast_us.images import as_image
from med_assets.programs.breast_us.network import Segmenter
from med_assets.training.inference import inferring
from med_assets.training.tensors import load_weights, read_checkpoint


def both_of(network: nn.Module, grey: Any, side: int) -> tuple[Tensor, Tensor]:
    """Return logits (outputs, side, side) and features (channels, height, width) of grey values 0 to 255 (rows, columns), on the host.

    The network is in evaluation mode meanwhile.
    """
    with inferring(network) as device:
        assert isinstance(network, Segmenter)
        logits, features = network.both(as_image(grey, side)[None].to(device))
        return logits[0].float().cpu(), features[0].float().cpu()


def on_pixels(logits: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Return logits (1, side, side) at the image's own pixels by linear interpolation, float32 (rows, columns)."""
    rows, columns = shape
    return functional.interpolate(logits[None], (rows, columns), mode="bilinear")[0, 0].numpy()


def probabilities(logits: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Return probabilities at the image's own pixels, float64, of logits (outputs, side, side).

    Of one logit that of a lesion (1, rows, columns), of several those of the background and each class (outputs, rows, columns).
    """
    if len(logits) == 1:
        return 1 / (1 + np.exp(-on_pixels(logits, shape).astype(np.float64)))[None]
    rows, columns = shape
    taken = functional.interpolate(logits[None].double(), (rows, columns), mode="bilinear")[0]
    return np.asarray(taken.softmax(0).numpy())


class Predictor:
    """A loaded checkpoint."""

    def __init__(self, experiment: BreastExperiment, weights: Mapping[str, Tensor], device: str = "cpu") -> None:
        self.experiment = experiment
        self.network = Segmenter(experiment)
        load_weights(self.network, weights)
        self.network.to(device)

    def both(self, grey: Any) -> tuple[Tensor, Tensor]:
        """Return logits (outputs, side, side) and features (channels, height, width) of grey values (rows, columns)."""
        return both_of(self.network, grey, self.experiment.input_px)


def load_predictor(checkpoint_folder: Path, device: str = "cpu") -> Predictor:
    """Load `weights.pt` and `experiment.json` of a folder. Raises CheckpointMismatch unless every tensor fits."""
    experiment, weights = read_checkpoint("breast_us", checkpoint_folder)
    assert isinstance(experiment, BreastExperiment)
    return Predictor(experiment, weights, device)
