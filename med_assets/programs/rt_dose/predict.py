"""From a checkpoint folder to the dose of a whole case."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.programs.rt_dose import mean_dose
from med_assets.programs.rt_dose.beams import CHANNELS
from med_assets.programs.rt_dose.experiment import DoseExperiment, Inference
from med_assets.programs.rt_dose.networks import BaselineUNet3D
from med_assets.programs.rt_dose.patches import mirrored_input
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.resenc import Cascade, ResidualUNet3D
from med_assets.training.tensors import SHOWN, demand_fit, read_checkpoint


def build_network(experiment: DoseExperiment) -> nn.Module:
    """Return the untrained network of an experiment."""
    network = experiment.network
    channels = 1 + len(experiment.site.structures) + (len(CHANNELS) if network.beams else 0)
    if network.kind == "unet":
        return BaselineUNet3D(channels, network.base_channels)
    family = {"residual": ResidualUNet3D, "cascade": Cascade}[network.kind]
    return family(channels, network.widths, network.blocks, network.stem)


def predict_case(network: nn.Module, case: PreparedCase, experiment: DoseExperiment) -> np.ndarray:
    """Return dose / prescription of a whole case, float32 (z, y, x), at least 0.

    With `patches.within_body` only the box around the body is predicted, and there is no dose outside it. With
    `inference.flips` it is the mean with the prediction of the mirrored patient.
    """
    box = case.body_box() if experiment.patches.within_body else tuple(slice(0, size) for size in case.shape)
    image = case.input(box, beams=experiment.network.beams)
    mirrored = experiment.site.mirrored()
    dose = predict_volume(network, case, image, experiment.inference)
    if experiment.inference.flips:
        other = predict_volume(network, case, np.ascontiguousarray(mirrored_input(image, mirrored)), experiment.inference)
        dose = (dose + other[..., ::-1]) / 2
    whole = np.zeros(case.shape, dtype=np.float32)
    whole[box] = dose
    return whole


def predict_volume(network: nn.Module, case: PreparedCase, image: np.ndarray, inference: Inference) -> np.ndarray:
    """Return dose / prescription, float32 (z, y, x), at least 0, of a network input (channels, z, y, x) of a case.

    Overlapping windows cover every voxel. What is smaller than the window is surrounded, as in training patches, by air
    far outside of every structure.
    """
    from monai.inferers.utils import sliding_window_inference

    parameter, shape = next(network.parameters()), image.shape[1:]
    missing = [max(side - size, 0) for side, size in zip(inference.window, shape, strict=True)]
    before = tuple(room // 2 for room in missing)
    pads = [(start, room - start) for start, room in zip(before, missing, strict=True)]
    batched = torch.from_numpy(case.pad(image, pads))[None].to(parameter.device)
    constraints = torch.tensor([case.constraints], dtype=torch.float32, device=parameter.device)

    def windows(batch: Tensor) -> Tensor:
        out: Tensor = network(batch, constraints.expand(len(batch), -1))
        return out.float()

    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            dose = sliding_window_inference(
                batched,
                inference.window,
                inference.batch,
                windows,
                overlap=inference.overlap,
                mode="gaussian",
                sigma_scale=inference.sigma,
            )
    finally:
        network.train(was_training)
    assert isinstance(dose, Tensor)
    inside = tuple(slice(start, start + size) for start, size in zip(before, shape, strict=True))
    return np.ascontiguousarray(dose[0, 0].clamp(min=0).cpu().numpy()[inside], dtype=np.float32)


class Predictor:
    """A loaded checkpoint: called with a prepared case, returns its dose in Gy, float32 (z, y, x)."""

    def __init__(self, experiment: DoseExperiment, weights: Mapping[str, Tensor], device: str = "cpu") -> None:
        self.experiment = experiment
        self._weights = dict(weights)
        self._network: nn.Module | None = None
        if experiment.network.kind != "mean_dose":
            self._network = build_network(experiment)
            demand_fit(
                self._network.state_dict(), weights, "the weights of the checkpoint", "load it with its own experiment"
            )
            self._network.load_state_dict(self._weights, strict=True)
            self._network.to(device)
        elif set(weights) != set(mean_dose.KEYS):
            raise CheckpointMismatch(
                f"a mean dose has the tensors {', '.join(mean_dose.KEYS)}; found {sorted(weights)[:SHOWN]}"
            )

    def __call__(self, prepared: PreparedCase) -> np.ndarray:
        """Predict the dose of a case in Gy. Raises ConfigurationError when its structures are not those of training."""
        site = self.experiment.site
        if prepared.structures != site.structures:
            raise ConfigurationError(
                f"case {prepared.case_id} of site {prepared.site} has structures {list(prepared.structures)}; the "
                f"checkpoint was trained for {site.name} with {list(site.structures)}; use one of the case's own site"
            )
        if self._network is None:
            dose = mean_dose.predict(self._weights, prepared, site)
        else:
            dose = predict_case(self._network, prepared, self.experiment)
        return np.clip(dose, 0.0, None) * np.float32(prepared.prescription_gy)


def load_predictor(checkpoint_folder: Path, device: str = "cpu") -> Predictor:
    """Load `weights.pt` and `experiment.json` of a folder. Raises CheckpointMismatch unless every tensor fits."""
    experiment, weights = read_checkpoint("rt_dose", checkpoint_folder)
    assert isinstance(experiment, DoseExperiment)
    return Predictor(experiment, weights, device)
