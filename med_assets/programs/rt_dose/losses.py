"""Terms of the training loss. Doses are divided by the prescription; tensors are (batch, channel, z, y, x)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.programs.rt_dose.adversary import PatchDiscriminator, adversarial_errors
from med_assets.programs.rt_dose.experiment import Adversary, Losses
from med_assets.programs.rt_dose.perceptual import Perceptual
from med_assets.programs.rt_dose.prepared import SDF_CLIP_MM
from med_assets.programs.rt_dose.site import Site

COVERAGE_WEIGHTS = (10.0, 5.0)
"""Weight of missing D95 in the target with the highest level, and in every other target."""

VOLUME_WEIGHT = 2.0
"""Weight of the volume of an organ above its dose level."""

WORSE_THAN_TRUTH = 0.5
"""Weight, within the volume term, of exceeding the volume of the true dose."""

MEAN_WEIGHT = 1.0
"""Weight of a mean organ dose above that of the true dose."""


UNCERTAIN = ("mse", "gradient", "structure", "perceptual")
"""Terms that uncertainty weighting weighs: errors that no prediction brings to 0. The others reach it, in patches without a
structure or without negative dose, where their variance would be estimated as 0 and their weight have no bound."""


def negative_dose(predicted: Tensor) -> Tensor:
    """Return the mean of relu(-predicted): a dose below zero is impossible."""
    return functional.relu(-predicted).mean()


def sobel_kernels() -> Tensor:
    """Return the Sobel kernels along z, y and x, (3, 1, 3, 3, 3); the absolute values of each sum to one."""
    smooth, step = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    kernels = [
        torch.einsum("i,j,k->ijk", *(step if axis == along else smooth for axis in range(3))) for along in range(3)
    ]
    return torch.stack([kernel / kernel.abs().sum() for kernel in kernels])[:, None]


def gradient_error(predicted: Tensor, truth: Tensor) -> Tensor:
    """Return the mean absolute error of the Sobel gradients of (batch, 1, z, y, x); the outermost voxels have none."""
    return functional.conv3d(predicted - truth, sobel_kernels().to(predicted)).abs().mean()


def mean_within(error: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of an error over the voxels that count; 0 where none does."""
    return (error * counted).sum() / counted.sum().clamp(min=1)


def dvh_distance(predicted: Tensor, truth: Tensor, masks: Tensor, least: int) -> Tensor:
    """Return the mean area between the DVHs of prediction and truth, in units of the prescription.

    Of each structure (`masks` bool (batch, structure, z, y, x)) with at least `least` voxels: the mean of |difference| of
    the sorted doses, which is the Wasserstein-1 distance of the two. Averaged over the structures of the batch.
    """
    found = [
        (dose[inside].sort().values - true[inside].sort().values).abs().mean()
        for dose, true, inside_of in zip(predicted[:, 0], truth[:, 0], masks, strict=True)
        for inside, enough in zip(inside_of, (inside_of.flatten(1).sum(1) >= least).tolist(), strict=True)
        if enough
    ]
    return torch.stack(found).mean() if found else predicted.sum() * 0.0


def d95(dose: Tensor) -> Tensor:
    """Return the dose that 95 % of the voxels (n,) reach: the lower 5th percentile, differentiable in its voxel."""
    rank = (dose.numel() - 1) * 5 // 100
    value: Tensor = torch.kthvalue(dose, rank + 1).values
    return value


def soft_volume(dose: Tensor, level: Tensor, temperature: float) -> Tensor:
    """Return the fraction of voxels (n,) at `level` or above, a sigmoid of width `temperature` being the step."""
    return torch.sigmoid((dose - level) / temperature).mean()


def dvh_error(
    predicted: Tensor, truth: Tensor, masks: Tensor, prescription_gy: Tensor, site: Site, losses: Losses
) -> Tensor:
    """Return how much worse than the truth and the objectives of the site the dose-volume histograms are.

    `masks` is bool (batch, structure, z, y, x), `prescription_gy` (batch,). Sum of the missing D95 of each target, the
    volume of organs above their level, and the mean dose of organs above the true mean; averaged over the batch. A
    structure with fewer than `dvh_min_voxels` in the patch is left out. With `dvh_balanced` too much D95 counts as too
    little, and the sum is divided by the weights of what is in the patch: a mean, of the order of the errors of the dose.
    """
    total = predicted.new_zeros(())
    index = {name: position for position, name in enumerate(site.structures)}
    coverage = {name: COVERAGE_WEIGHTS[0 if name == site.main_target else 1] for name in site.targets}
    for dose, true, inside, rx in zip(predicted[:, 0], truth[:, 0], masks, prescription_gy, strict=True):
        enough = (inside.flatten(1).sum(1) >= losses.dvh_min_voxels).tolist()

        def of(name: str, inside: Tensor = inside, dose: Tensor = dose, true: Tensor = true) -> tuple[Tensor, Tensor]:
            return dose[inside[index[name]]], true[inside[index[name]]]

        targets = [name for name in site.targets if enough[index[name]]]
        volumes = [objective for objective in site.dvh_volumes if enough[index[objective.structure]]]
        means = [name for name in site.dvh_means if enough[index[name]]]
        weights = sum(coverage[name] for name in targets) + MEAN_WEIGHT * len(means)
        weights += VOLUME_WEIGHT * (1 + WORSE_THAN_TRUTH) * len(volumes)
        share = 1 / weights if losses.dvh_balanced and weights else 1.0
        for name in targets:
            mine, theirs = of(name)
            missing = d95(theirs) - d95(mine)
            missing = missing.abs() if losses.dvh_balanced else functional.relu(missing)
            total = total + share * coverage[name] * missing
        for objective in volumes:
            mine, theirs = of(objective.structure)
            level = objective.dose_gy / rx
            volume = soft_volume(mine, level, losses.dvh_temperature)
            true_volume = soft_volume(theirs, level, losses.dvh_temperature)
            excess = functional.relu(volume - objective.fraction)
            excess = excess + WORSE_THAN_TRUTH * functional.relu(volume - true_volume)
            total = total + share * VOLUME_WEIGHT * excess
        for name in means:
            mine, theirs = of(name)
            total = total + share * MEAN_WEIGHT * functional.relu(mine.mean() - theirs.mean())
    return total / len(predicted)


def structure_weights(sdf: Tensor, masks: Tensor, site: Site, losses: Losses) -> Tensor:
    """Return the weight of each voxel, (batch, 1, z, y, x): in a target, near the surface of an organ, or elsewhere.

    `sdf` is in units of 50 mm, (batch, structure, z, y, x); a target's weight wins over that of a surface.
    """
    index = {name: position for position, name in enumerate(site.structures)}
    near = sdf[:, [index[name] for name in site.oars]].abs() <= losses.boundary_mm / SDF_CLIP_MM
    in_target = masks[:, [index[name] for name in site.targets]].any(dim=1, keepdim=True)
    weights = torch.full_like(sdf[:, :1], losses.background_weight)
    weights = weights.masked_fill(near.any(dim=1, keepdim=True), losses.boundary_weight)
    return weights.masked_fill(in_target, losses.target_weight)


def weighted_error(predicted: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean squared error: its scale does not depend on how much of a patch is target."""
    return (weights * (predicted - truth) ** 2).sum() / weights.sum().clamp(min=1e-12)


class DoseLoss(nn.Module):
    """The sum of the terms that an experiment gives a weight; holds what is trained beside the network.

    That is the `discriminator` of the adversarial term, and with uncertainty weighting (Kendall et al., arXiv 1705.07115) the
    logarithm s of the variance of each of the terms of UNCERTAIN that are on: exp(-s) / 2 is its weight and s / 2 is
    added, starting at the weight of the experiment.
    """

    def __init__(
        self,
        losses: Losses,
        site: Site,
        adversary: Adversary | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        super().__init__()
        self.losses, self.site, self.perceptual = losses, site, perceptual
        self.discriminator = None
        if losses.adversarial:
            assert adversary is not None
            self.discriminator = PatchDiscriminator(site.channels, adversary)
        learned = [name for name in UNCERTAIN if losses.uncertainty and getattr(losses, name)]
        self.log_variances = nn.ParameterDict(
            {name: nn.Parameter(-torch.log(torch.tensor(2 * getattr(losses, name)))) for name in learned}
        )

    def forward(self, predicted: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, its unweighted terms, and the weights that are learned, for a batch of `patches.PatchDataset`.

        With an adversarial term the loss has that of the discriminator in it.
        """
        losses, site, valid = self.losses, self.site, batch["valid"]
        truth, masks = batch["target"], batch["masks"]
        # Where no dose was calculated there is nothing to learn: no term sees an error or a slope there.
        predicted = torch.where(valid, predicted.float(), truth)
        counted = batch["body"] if losses.body_only else valid
        terms: dict[str, Tensor] = {}
        if losses.mae:
            terms["mae"] = mean_within((predicted - truth).abs(), counted)
        if losses.mse:
            terms["mse"] = mean_within((predicted - truth) ** 2, counted)
        if losses.negative:
            terms["negative"] = negative_dose(predicted)
        if losses.gradient:
            terms["gradient"] = gradient_error(predicted, truth)
        if losses.dvh:
            terms["dvh"] = dvh_error(predicted, truth, masks, batch["prescription_gy"], site, losses)
        if losses.dvh_curves:
            terms["dvh_curves"] = dvh_distance(predicted, truth, masks, losses.dvh_min_voxels)
        if losses.structure:
            weights = structure_weights(batch["input"][:, 1 : site.channels], masks, site, losses)
            terms["structure"] = weighted_error(predicted, truth, weights * valid)
        if losses.perceptual:
            assert self.perceptual is not None
            terms["perceptual"] = self.perceptual(predicted, truth).float()
        also: dict[str, Tensor] = {}
        if self.discriminator is not None:
            terms["adversarial"], also["discriminator"] = adversarial_errors(
                self.discriminator, batch["input"][:, : site.channels], predicted, truth
            )
        parts = [self._weighted(name, value) for name, value in terms.items()]
        total = torch.stack([*parts, *also.values()]).sum()
        also |= {f"weight_{name}": torch.exp(-s.detach()) / 2 for name, s in self.log_variances.items()}
        return total, terms | also

    def _weighted(self, name: str, value: Tensor) -> Tensor:
        if name not in self.log_variances:
            fixed: Tensor = getattr(self.losses, name) * value
            return fixed
        s = self.log_variances[name]
        learned: Tensor = (torch.exp(-s) * value + s) / 2
        return learned
