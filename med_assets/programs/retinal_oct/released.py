"""The network of an experiment with released weights, without any case."""

import numpy as np
import torch
from torch import Tensor

from med_assets.experiments.configuration import Experiment
from med_assets.programs.retinal_oct.experiment import RetinalExperiment
from med_assets.programs.retinal_oct.network import build_encoder, embed, read_encoder
from med_assets.programs.retinal_oct.transforms import network_input
from med_assets.training.released import Trial, ramp


def trial(experiment: Experiment) -> Trial:
    """Return the encoder on a volume of its size."""
    assert isinstance(experiment, RetinalExperiment)
    network = experiment.network
    encoder = build_encoder(network).eval()

    def forward() -> Tensor:
        with torch.inference_mode():
            return embed(encoder, (ramp(1, 1, *network.size) - 0.5) * 12**0.5)

    own = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    seen = network_input(np.random.default_rng(0).gamma(2.0, 30.0, (16, 48, 64)).astype(np.float32), (16, 32, 32))[0]
    check = f"mean {abs(float(seen.mean())):.3f}, std {float(seen.std()):.3f} of speckle after the resize"
    return Trial(own, lambda content: read_encoder(content, network), forward, check)
