"""The network of an experiment with released weights, without any case."""

from collections.abc import Callable

import torch
from torch import Tensor

from med_assets.experiments.configuration import Experiment
from med_assets.programs.breast_us.experiment import BreastExperiment, Sam
from med_assets.programs.breast_us.network import SCALING, Segmenter, begins_anew, released
from med_assets.programs.breast_us.samed import file_names, read_adapters
from med_assets.training.initial import state_dict
from med_assets.training.released import Trial, fill, ramp


def trial(experiment: Experiment) -> Trial:
    """Return the segmenter on one image of its size."""
    assert isinstance(experiment, BreastExperiment)
    network = Segmenter(experiment).eval()
    own = dict(network.state_dict())
    given = released(experiment, own)

    def forward() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(ramp(1, 1, experiment.input_px, experiment.input_px))
            return logits

    if experiment.adapters is not None:
        return _of_adapters(experiment, own, forward)
    mean, std = SCALING[experiment.scaling]
    black, white = ([round((grey - a) / b, 3) for a, b in zip(mean, std, strict=True)] for grey in (0, 1))
    return Trial(
        own, lambda content: given(state_dict(content)), forward, f"{experiment.scaling}: 0 is {black}, 1 is {white}",
        lambda name: begins_anew(experiment.network, name),
    )  # fmt: skip


def _of_adapters(experiment: BreastExperiment, own: dict[str, Tensor], forward: Callable[[], Tensor]) -> Trial:
    """The adapters and what SAMed trains beside them, on a SAM filled by the recipe: their digest needs no other file."""
    network = experiment.network
    assert isinstance(network, Sam)
    fill(own)
    kept = {name: own[name] for name in file_names(own)}

    def take(content: object) -> dict[str, Tensor]:
        return {
            name: tensor for name, tensor in read_adapters(state_dict(content), own, network).items() if name in kept
        }

    return Trial(kept, take, forward, "SAM under the adapters is filled by the recipe; images as those of SAM")
