"""Denoising diffusion of the dose (Ho et al., arXiv 2006.11239), sampled by DDIM (Song et al., arXiv 2010.02502).

The network estimates the noise in a dose, the velocity (Salimans and Ho, arXiv 2202.00512), or a rectified flow (Liu et al., arXiv 2209.03003), given CT, signed distances and
constraints. A whole volume is sampled at once: at
each step its noise is estimated by overlapping windows and blended, and the next step starts from the one whole volume.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.errors import ConfigurationError
from med_assets.programs.rt_dose.experiment import Diffusion, DoseExperiment, Losses
from med_assets.programs.rt_dose.losses import mean_within
from med_assets.programs.rt_dose.networks import GROUPS
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.programs.rt_dose.site import CONSTRAINT_COUNT
from med_assets.training.inference import inferring

HEADS = 4
"""Heads of the attention at the coarsest level."""

CLAMP = (-1.0, 2.0)
"""Range that an estimated dose / prescription is held in while denoising."""

HIGHEST = 1.5
"""Highest dose / prescription of a sample, whose lowest is 0."""


class DoseDenoiser(nn.Module):
    """MONAI's DiffusionModelUNet with the input as further channels; the constraints join the embedding of the time.

    `forward(noisy, image, constraints, time)` maps (batch, 1, z, y, x), (batch, channels, z, y, x), (batch, 13) and int
    (batch,) to the noise (batch, 1, z, y, x).
    """

    def __init__(self, channels: int, base_channels: int, diffusion: Diffusion) -> None:
        super().__init__()
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        widths = tuple(base_channels * factor for factor in diffusion.widths)
        self.unet = DiffusionModelUNet(
            spatial_dims=3, in_channels=channels + 1, out_channels=1, channels=widths, num_res_blocks=1,
            attention_levels=(False,) * len(widths), norm_num_groups=GROUPS, num_head_channels=widths[-1] // HEADS,
            num_class_embeds=1, use_flash_attention=True,
        )  # fmt: skip
        # MONAI adds an embedding of a class to that of the time; ours embeds the constraints in its place.
        width = 4 * widths[0]
        embedding = nn.Sequential(nn.Linear(CONSTRAINT_COUNT, width), nn.SiLU(), nn.Linear(width, width))
        self.unet.add_module("class_embedding", embedding)

    def forward(self, noisy: Tensor, image: Tensor, constraints: Tensor, time: Tensor) -> Tensor:
        """Estimate the noise; see the class."""
        noise: Tensor = self.unet(torch.cat([noisy, image], dim=1), time, class_labels=constraints)
        return noise


class RectifiedFlow:
    """Straight lines from dose to noise (Liu et al., arXiv 2209.03003): at the share t of the way (1 - t) dose + t noise.

    The network estimates noise - dose, and a sample goes back in equal steps (Euler). Times are those of MONAI's schedulers: t is
    (time + 1) / train_steps, so that the last one is noise alone.
    """

    prediction_type = "flow"

    def __init__(self, train_steps: int, clamp: tuple[float, float]) -> None:
        self.num_train_timesteps, self.clamp, self.steps = train_steps, clamp, 1

    def set_timesteps(self, steps: int) -> None:
        """Sample in this many steps."""
        self.steps = steps

    def share(self, time: Tensor) -> Tensor:
        """Return how far on the way to noise the times (batch,) are, (batch, 1, 1, 1, 1)."""
        return ((time + 1) / self.num_train_timesteps).view(-1, 1, 1, 1, 1)

    def add_noise(self, dose: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return what is between dose and noise at the times (batch,)."""
        share = self.share(time)
        return (1 - share) * dose + share * noise

    def step(self, flow: Tensor, time: int, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sample one step nearer to the dose, and the dose that the flow leads to, held in the range of the schedule."""
        share = (time + 1) / self.num_train_timesteps
        dose = (noisy - share * flow).clamp(*self.clamp)
        return noisy - (noisy - dose) / share / self.steps, dose


def schedule(diffusion: Diffusion) -> Any:
    """Return MONAI's DDIM scheduler with the cosine schedule, or the straight lines of a flow; both add noise to training doses."""
    from monai.networks.schedulers import DDIMScheduler

    clamp = (0.0, HIGHEST) if diffusion.bounded else CLAMP
    if diffusion.prediction == "flow":
        return RectifiedFlow(diffusion.train_steps, clamp)
    return DDIMScheduler(
        diffusion.train_steps, schedule="cosine", prediction_type=diffusion.prediction,
        clip_sample_min=clamp[0], clip_sample_max=clamp[1],
    )  # fmt: skip


def noise_by_region(noise: Tensor, image: Tensor, experiment: DoseExperiment) -> Tensor:
    """Return noise (batch, 1, z, y, x) scaled by the distance to the nearest target, as `diffusion.far_noise` says.

    `image` is the input (batch, channels, z, y, x), whose channels from the second on are signed distances in units of 50 mm.
    """
    far = experiment.diffusion.far_noise
    if far == 1.0:
        return noise
    site = experiment.site
    channels = [1 + site.structures.index(name) for name in site.targets]
    nearest = image[:, channels].amin(dim=1, keepdim=True).clamp(0.0, 1.0)
    return noise * (1 - (1 - far) * nearest)


def noise_loss(
    network: nn.Module, batch: Mapping[str, Tensor], scheduler: Any, losses: Losses
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and its terms: the squared error of what is estimated, and the negative part of the clamped dose.

    The noise and its time come with each patch, so that how a batch is cut into pieces changes nothing.
    """
    dose, noise = batch["target"], batch["noise"]
    time = (batch["time"] * scheduler.num_train_timesteps).long().clamp(max=scheduler.num_train_timesteps - 1)
    noisy = scheduler.add_noise(dose, noise, time)
    found = network(noisy, batch["input"], batch["constraints"], time).float()
    if isinstance(scheduler, RectifiedFlow):
        return _loss(found, noise - dose, noisy - scheduler.share(time) * found, batch["valid"], losses)
    signal = scheduler.alphas_cumprod[time].view(-1, 1, 1, 1, 1)
    if scheduler.prediction_type == "epsilon":
        wanted, estimate = noise, (noisy - (1 - signal).sqrt() * found) / signal.sqrt()
    else:
        wanted, estimate = (
            scheduler.get_velocity(dose, noise, time), signal.sqrt() * noisy - (1 - signal).sqrt() * found
        )  # fmt: skip
    return _loss(found, wanted, estimate, batch["valid"], losses)


def _loss(
    found: Tensor, wanted: Tensor, estimate: Tensor, valid: Tensor, losses: Losses
) -> tuple[Tensor, dict[str, Tensor]]:
    terms = {"mse": mean_within((found - wanted) ** 2, valid)}
    if losses.negative:
        terms["negative"] = mean_within(nn.functional.relu(-estimate.clamp(*CLAMP)), valid)
    return torch.stack([getattr(losses, name) * value for name, value in terms.items()]).sum(), terms


def seed_of(case_id: str, sample: int) -> int:
    """Return the seed of the initial noise of a sample of a case."""
    return int.from_bytes(hashlib.blake2b(f"{case_id}|{sample}".encode(), digest_size=8).digest(), "little") >> 1


def denoise(start: Tensor, steps: int, scheduler: Any, estimate: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return the dose that `steps` steps of DDIM make of pure noise; `estimate` (noisy, time) says the noise in it.

    The times are T - 1, T - 1 - T / steps, ..., which is where each step of MONAI's scheduler leads; its own list of times
    is spread evenly over 0 to T - 1 instead, and with few steps a network would be given another time than the dose has.
    """
    stride = scheduler.num_train_timesteps // steps
    scheduler.set_timesteps(steps)
    dose = start
    for step in range(steps):
        time = scheduler.num_train_timesteps - 1 - step * stride
        dose, _ = scheduler.step(estimate(dose, time), time, dose)
    return dose.clamp(0.0, HIGHEST)


def samples(
    network: nn.Module, case: PreparedCase, experiment: DoseExperiment, steps: int, count: int
) -> list[np.ndarray]:
    """Return `count` samples of dose / prescription of a whole case, each float32 (z, y, x) from a seed of its own.

    The same case, sample number and steps give the same sample.
    """
    from med_assets.programs.rt_dose.predict import Volume

    volume, scheduler = Volume.of(case, experiment, next(network.parameters()).device), schedule(experiment.diffusion)
    if not isinstance(scheduler, RectifiedFlow):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(volume.image.device)

    def estimate(noisy: Tensor, time: int) -> Tensor:
        def window(stacked: Tensor) -> Tensor:
            times = torch.full((len(stacked),), time, device=stacked.device)
            out: Tensor = network(stacked[:, :1], stacked[:, 1:], volume.constraints.expand(len(stacked), -1), times)
            return out.float()

        return volume.blended(torch.cat([noisy, volume.image], dim=1), window)

    found = []
    with inferring(network):
        for number in range(count):
            # On the CPU, so that a sample is the same noise on every device.
            generator = torch.Generator().manual_seed(seed_of(case.case_id, number))
            start = torch.randn(volume.image[:, :1].shape, generator=generator).to(volume.image.device)
            start = noise_by_region(start, volume.image, experiment)
            sample = volume.cropped(denoise(start, steps, scheduler, estimate))
            found.append(np.where(case.body, sample, np.float32(0)) if experiment.diffusion.bounded else sample)
    return found


def predict_dose(
    network: nn.Module, case: PreparedCase, experiment: DoseExperiment, *, validating: bool = False
) -> np.ndarray:
    """Return the mean of the experiment's samples, dose / prescription; of one of `val_steps` while validating."""
    diffusion = experiment.diffusion
    steps, count = (diffusion.val_steps, 1) if validating else (diffusion.steps, diffusion.ensemble)
    if not isinstance(network, DoseDenoiser):
        raise ConfigurationError(
            f"expected a network that denoises, got {type(network).__name__}; use network.kind=ddpm"
        )
    found = samples(network, case, experiment, steps, count)
    return np.asarray(np.mean(found, axis=0), dtype=np.float32)
