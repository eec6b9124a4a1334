"""The network of an experiment with released weights, without any case."""

import numpy as np
import torch
from torch import Tensor

from med_assets.experiments.configuration import Experiment
from med_assets.programs.lumbar_mr.experiment import LumbarExperiment
from med_assets.programs.lumbar_mr.network import build_network, released
from med_assets.programs.lumbar_mr.slices import as_images
from med_assets.training.initial import state_dict
from med_assets.training.released import Trial, ramp
from med_assets.training.tensors import demand_fit


def trial(experiment: Experiment) -> Trial:
    """Return Point Net on a slice of 160 x 160."""
    assert isinstance(experiment, LumbarExperiment)
    network = build_network(experiment.network).eval()
    own = network.state_dict()

    def take(content: object) -> dict[str, Tensor]:
        found = released(state_dict(content))
        demand_fit(own, found, "the file", "give the experiment the network that it is of")
        return found

    def forward() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(ramp(1, 1, 160, 160).expand(-1, 3, -1, -1))
            return logits

    ends = as_images(np.array([[[0, 255]]], np.uint8)).unique().tolist()
    return Trial(own, take, forward, f"8 bits are {ends[0]:g} to {ends[-1]:g}, in three equal channels")
