"""The network of an experiment with released weights, without any case."""

import torch
from torch import Tensor

from med_assets.experiments.configuration import Experiment
from med_assets.programs.rt_dose.perceptual import MEAN, STD, Perceptual, expected, needed
from med_assets.training.released import Trial, ramp


def trial(experiment: Experiment) -> Trial:
    """Return the features of VGG16 that a perceptual loss compares, on one slice of 32 x 32."""
    own = {name: torch.zeros(like.shape) for name, like in expected().items()}

    def forward() -> Tensor:
        with torch.inference_mode():
            return Perceptual(own, 1).features(ramp(1, 1, 1, 32, 32))[-1]

    return Trial(own, needed, forward, f"ImageNet: mean {list(MEAN)}, std {list(STD)}")
