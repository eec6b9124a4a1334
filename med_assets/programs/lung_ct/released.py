"""The network of an experiment with released weights, without any case."""

import torch
from torch import Tensor

from med_assets.experiments.configuration import Experiment
from med_assets.programs.lung_ct.experiment import LungExperiment
from med_assets.programs.lung_ct.network import build_network, class_logits, released
from med_assets.programs.lung_ct.transforms import HU_RANGE
from med_assets.training.initial import state_dict
from med_assets.training.released import Trial, ramp
from med_assets.training.tensors import demand_fit

TUMOUR = 23
"""Class that is asked for."""


def trial(experiment: Experiment) -> Trial:
    """Return VISTA3D, asked for lung tumours in a cube of 32 voxels."""
    assert isinstance(experiment, LungExperiment)
    network = build_network(experiment.network).eval()
    own = network.state_dict()

    def take(content: object) -> dict[str, Tensor]:
        found = released(state_dict(content))
        demand_fit(own, found, "the file", "give the experiment the network that it is of")
        return found

    def forward() -> Tensor:
        with torch.inference_mode():
            return class_logits(network, ramp(1, 1, 32, 32, 32), [TUMOUR])

    return Trial(own, take, forward, f"{HU_RANGE[0]:.1f} to {HU_RANGE[1]:.1f} HU are 0 to 1")
