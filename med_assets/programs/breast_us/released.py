"""The network of an experiment with released weights, without any case."""

import torch
from torch import Tensor

from med_assets.experiments import Experiment
from med_assets.programs.breast_us.experiment import BreastExperiment
from med_assets.programs.breast_us.network import SCALING, Segmenter, released
from med_assets.training.initial import state_dict
from med_assets.training.released import Trial, ramp


def trial(experiment: Experiment) -> Trial:
    """Return the segmenter on one image of its size."""
    assert isinstance(experiment, BreastExperiment)
    network = Segmenter(experiment).eval()
    own = dict(network.state_dict())
    fill = released(experiment, own)

    def forward() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(ramp(1, 1, experiment.input_px, experiment.input_px))
            return logits

    mean, std = SCALING[experiment.scaling]
    black, white = ([round((grey - a) / b, 3) for a, b in zip(mean, std, strict=True)] for grey in (0, 1))
    return Trial(
        own, lambda content: fill(state_dict(content)), forward, f"{experiment.scaling}: 0 is {black}, 1 is {white}"
    )
