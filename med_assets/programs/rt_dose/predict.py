"""From a checkpoint folder to the dose of a whole case."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.experiments import from_json
from med_assets.programs.rt_dose import mean_dose
from med_assets.programs.rt_dose.experiment import DoseExperiment, Inference
from med_assets.programs.rt_dose.networks import BaselineUNet3D
from med_assets.programs.rt_dose.prepared import PreparedCase, pad_input

SHOWN = 5
"""Tensors named in an error message, of those that do not fit."""


def build_network(experiment: DoseExperiment) -> BaselineUNet3D:
    """Return the untrained U-Net of an experiment."""
    return BaselineUNet3D(experiment.site.channels, experiment.network.base_channels)


def predict_volume(network: nn.Module, case: PreparedCase, inference: Inference) -> np.ndarray:
    """Return dose / prescription, float32 (z, y, x), at least 0, from overlapping windows that cover every voxel.

    A volume smaller than the window is surrounded, as in training patches, by air far outside of every structure.
    """
    from monai.inferers.utils import sliding_window_inference

    parameter = next(network.parameters())
    missing = [max(side - size, 0) for side, size in zip(inference.window, case.shape, strict=True)]
    before = tuple(room // 2 for room in missing)
    pads = [(start, room - start) for start, room in zip(before, missing, strict=True)]
    image = torch.from_numpy(pad_input(case.input(), pads))[None].to(parameter.device)
    constraints = torch.tensor([case.constraints], dtype=torch.float32, device=parameter.device)

    def windows(batch: Tensor) -> Tensor:
        out: Tensor = network(batch, constraints.expand(len(batch), -1))
        return out.float()

    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            dose = sliding_window_inference(
                image,
                inference.window,
                1,
                windows,
                overlap=inference.overlap,
                mode="gaussian",
                sigma_scale=inference.sigma,
            )
    finally:
        network.train(was_training)
    assert isinstance(dose, Tensor)
    inside = tuple(slice(start, start + size) for start, size in zip(before, case.shape, strict=True))
    return np.ascontiguousarray(dose[0, 0].clamp(min=0).cpu().numpy()[inside], dtype=np.float32)


class Predictor:
    """A loaded checkpoint: called with a prepared case, returns its dose in Gy, float32 (z, y, x)."""

    def __init__(self, experiment: DoseExperiment, weights: Mapping[str, Tensor], device: str = "cpu") -> None:
        self.experiment = experiment
        self._weights = dict(weights)
        self._network: BaselineUNet3D | None = None
        if experiment.network.kind == "unet":
            self._network = build_network(experiment)
            _demand_fit(self._network.state_dict(), weights)
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
            dose = predict_volume(self._network, prepared, self.experiment.inference)
        return np.clip(dose, 0.0, None) * np.float32(prepared.prescription_gy)


def load_predictor(checkpoint_folder: Path, device: str = "cpu") -> Predictor:
    """Load `weights.pt` and `experiment.json` of a folder. Raises CheckpointMismatch unless every tensor fits."""
    paths = {name: checkpoint_folder / name for name in ("experiment.json", "weights.pt")}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise CheckpointMismatch(
            f"a checkpoint folder holds experiment.json and weights.pt; missing: {', '.join(missing)}"
        )
    experiment = from_json("rt_dose", paths["experiment.json"].read_text(encoding="utf-8"))
    assert isinstance(experiment, DoseExperiment)
    weights = torch.load(paths["weights.pt"], map_location="cpu", weights_only=True)
    return Predictor(experiment, weights, device)


def _demand_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    shapes = sorted(
        f"{name} expected {tuple(expected[name].shape)} found {tuple(found[name].shape)}"
        for name in set(expected) & set(found)
        if expected[name].shape != found[name].shape
    )
    problems = {"missing": missing, "unexpected": extra, "other shape": shapes}
    if any(problems.values()):
        said = "; ".join(f"{len(items)} {what}: {items[:SHOWN]}" for what, items in problems.items() if items)
        raise CheckpointMismatch(f"the weights do not fit the network of the experiment, nothing was loaded: {said}")
