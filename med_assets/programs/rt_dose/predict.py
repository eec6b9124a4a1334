"""From a checkpoint folder to the dose of a whole case."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.programs.rt_dose import diffusion, mean_dose
from med_assets.programs.rt_dose.beams import CHANNELS
from med_assets.programs.rt_dose.experiment import DoseExperiment, Inference
from med_assets.programs.rt_dose.networks import BaselineUNet3D
from med_assets.programs.rt_dose.patches import mirrored_input
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.resenc import Cascade, ResidualUNet3D
from med_assets.training.inference import inferring
from med_assets.training.tensors import SHOWN, load_weights, read_checkpoint


def build_network(experiment: DoseExperiment) -> nn.Module:
    """Return the untrained network of an experiment."""
    network, channels = experiment.network, input_channels(experiment)
    if network.kind == "ddpm":
        return diffusion.DoseDenoiser(channels, network.base_channels, experiment.diffusion)
    if network.kind == "unet":
        return BaselineUNet3D(channels, network.base_channels, network.levels, attention=network.attention)
    if network.kind == "swin":
        from med_assets.programs.rt_dose.swin import SwinDose  # all of MONAI, seconds that no other network needs

        return SwinDose(channels, network.base_channels)
    family = {"residual": ResidualUNet3D, "cascade": Cascade}[network.kind]
    return family(channels, network.widths, network.blocks, network.stem)


def input_channels(experiment: DoseExperiment) -> int:
    """Return the channels of the network input: CT, a signed distance per structure, and the crude plan if it is seen."""
    return experiment.site.channels + (len(CHANNELS) if experiment.network.beams else 0)


@dataclass(frozen=True)
class Volume:
    """A whole case as the input of a network on its device: (1, channels, z, y, x), and its constraints (1, 13).

    It is the case itself, or the box around its body. What is smaller than the window is surrounded, as in training
    patches, by air far outside of every structure.
    """

    image: Tensor
    constraints: Tensor
    inference: Inference
    inside: tuple[slice, ...]
    box: tuple[slice, ...]
    whole: tuple[int, ...]

    @classmethod
    def of(
        cls, case: PreparedCase, experiment: DoseExperiment, device: torch.device, *, mirrored: bool = False
    ) -> Self:
        """Read a case, or its mirror image, in which left and right structures are swapped."""
        inference = experiment.inference
        box = case.body_box() if experiment.patches.within_body else tuple(slice(0, size) for size in case.shape)
        image = case.input(box, beams=experiment.network.beams)
        if mirrored:
            image = np.ascontiguousarray(mirrored_input(image, experiment.site.mirrored()))
        missing = [max(side - size, 0) for side, size in zip(inference.window, image.shape[1:], strict=True)]
        before = tuple(spare // 2 for spare in missing)
        pads = [(start, spare - start) for start, spare in zip(before, missing, strict=True)]
        return cls(
            torch.from_numpy(case.pad(image, pads))[None].to(device),
            torch.tensor([case.constraints], dtype=torch.float32, device=device),
            inference,
            tuple(slice(start, start + size) for start, size in zip(before, image.shape[1:], strict=True)),
            box,
            case.shape,
        )

    def blended(self, image: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (1, 1, z, y, x) of overlapping windows of `image` that cover every voxel, blended by a Gaussian."""
        from monai.inferers.utils import sliding_window_inference

        dose = sliding_window_inference(
            image,
            self.inference.window,
            self.inference.batch,
            network,
            overlap=self.inference.overlap,
            mode="gaussian",
            sigma_scale=self.inference.sigma,
        )
        assert isinstance(dose, Tensor)
        return dose

    def cropped(self, dose: Tensor) -> np.ndarray:
        """Return (1, 1, z, y, x) as float32 (z, y, x) of the whole case, at least 0, and 0 outside the box."""
        whole = np.zeros(self.whole, dtype=np.float32)
        whole[self.box] = dose[0, 0].clamp(min=0).cpu().numpy()[self.inside]
        return whole


def predict_volume(network: nn.Module, volume: Volume) -> np.ndarray:
    """Return dose / prescription, float32 (z, y, x), at least 0, from overlapping windows that cover every voxel."""

    def windows(batch: Tensor) -> Tensor:
        out: Tensor = network(batch, volume.constraints.expand(len(batch), -1))
        return out.float()

    with inferring(network):
        return volume.cropped(volume.blended(volume.image, windows))


def predict_case(
    network: nn.Module,
    case: PreparedCase,
    experiment: DoseExperiment,
    *,
    validating: bool = False,
    mirrored: bool = False,
) -> np.ndarray:
    """Return dose / prescription, float32 (z, y, x), at least 0, as the experiment's kind of network predicts it.

    With `inference.flips` it is the mean with the prediction of the mirrored patient; a network that was trained on the
    error in the body gives no dose outside it. While `validating` in training, a diffusion model takes fewer steps. `mirrored` is the dose
    of the mirrored patient alone, mirrored back, which a diffusion model does not give.
    """
    if experiment.network.kind == "ddpm":
        return diffusion.predict_dose(network, case, experiment, validating=validating)
    device = next(network.parameters()).device
    seen = Volume.of(case, experiment, device, mirrored=mirrored)
    dose = predict_volume(network, seen)
    if experiment.inference.flips:
        # The box around the body is mirrored with the patient, not about the middle of the volume.
        other = Volume.of(case, experiment, device, mirrored=not mirrored)
        box = other.box
        dose[box] = (dose[box] + predict_volume(network, other)[box][..., ::-1]) / 2
    if mirrored:
        dose[seen.box] = dose[seen.box][..., ::-1].copy()
    if experiment.losses.body_only:
        # Nothing was learned of what lies outside.
        dose[~np.asarray(case.body)] = 0.0
    return dose


class Predictor:
    """A loaded checkpoint: called with a prepared case, returns its dose in Gy, float32 (z, y, x)."""

    def __init__(self, experiment: DoseExperiment, weights: Mapping[str, Tensor], device: str = "cpu") -> None:
        self.experiment = experiment
        self._weights = dict(weights)
        self.network: nn.Module | None = None
        if experiment.network.kind != "mean_dose":
            self.network = build_network(experiment)
            load_weights(self.network, weights)
            self.network.to(device)
        elif set(weights) != set(mean_dose.KEYS):
            raise CheckpointMismatch(
                f"a mean dose has the tensors {', '.join(mean_dose.KEYS)}; found {sorted(weights)[:SHOWN]}"
            )

    def __call__(self, prepared: PreparedCase, *, mirrored: bool = False) -> np.ndarray:
        """Predict the dose of a case in Gy, or that of the mirrored patient mirrored back. Raises ConfigurationError when its structures are not those of training."""
        site = self.experiment.site
        if prepared.structures != site.structures:
            raise ConfigurationError(
                f"case {prepared.case_id} of site {prepared.site} has structures {list(prepared.structures)}; the "
                f"checkpoint was trained for {site.name} with {list(site.structures)}; use one of the case's own site"
            )
        if self.network is None:
            dose = mean_dose.predict(self._weights, prepared, site)
        else:
            dose = predict_case(self.network, prepared, self.experiment, mirrored=mirrored)
        return np.clip(dose, 0.0, None) * np.float32(prepared.prescription_gy)


def load_predictor(checkpoint_folder: Path, device: str = "cpu") -> Predictor:
    """Load `weights.pt` and `experiment.json` of a folder. Raises CheckpointMismatch unless every tensor fits."""
    experiment, weights = read_checkpoint("rt_dose", checkpoint_folder)
    assert isinstance(experiment, DoseExperiment)
    return Predictor(experiment, weights, device)
