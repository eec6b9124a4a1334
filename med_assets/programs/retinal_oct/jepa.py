"""Joint-embedding prediction (Assran et al., arXiv 2301.08243; V-JEPA 2, arXiv 2506.09985): masks, predictor, target average."""

import copy

import torch
from torch import Tensor, nn

from med_assets.programs.retinal_oct.experiment import Masks, RetinalExperiment
from med_assets.programs.retinal_oct.network import build_encoder, plain, to_released, tokens


def draw_masks(grid: tuple[int, int, int], masks: Masks) -> tuple[Tensor, Tensor]:
    """Return places of the visible and of the hidden tokens, each ascending, drawn from torch's global random state.

    The hidden ones are the union of blocks with sides drawn evenly from low to high; a block that would leave less than
    `least_context` visible is left out, never the first.
    """
    total = grid[0] * grid[1] * grid[2]
    hidden = torch.zeros(grid, dtype=torch.bool)
    for _ in range(masks.blocks):
        sides, starts = [], []
        for n in grid:
            share = masks.low + (masks.high - masks.low) * float(torch.rand(()))
            sides.append(min(max(1, round(share * n)), max(1, int(masks.high * n))))
            starts.append(int(torch.randint(n - sides[-1] + 1, ())))
        (a, b, c), (i, j, k) = starts, sides
        block = hidden.clone()
        block[a : a + i, b : b + j, c : c + k] = True
        if not hidden.any() or int(block.sum()) <= (1 - masks.least_context) * total:
            hidden = block
    flat = hidden.flatten()
    return (~flat).nonzero()[:, 0], flat.nonzero()[:, 0]


class Predictor(nn.Module):
    """From the visible tokens and the places of the hidden ones to what the target encoder says of these."""

    def __init__(self, experiment: RetinalExperiment) -> None:
        super().__init__()
        from monai.networks.blocks.transformerblock import TransformerBlock

        settings, network = experiment.pretraining, experiment.network
        width, (frames, depth, across) = settings.predictor_hidden, network.grid
        self.embed = nn.Linear(network.hidden, width)
        self.mask = nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(torch.empty(frames * depth * across, width))
        nn.init.trunc_normal_(self.places, std=0.02)
        blocks = (
            TransformerBlock(width, 4 * width, settings.predictor_heads, 0.0, True)
            for _ in range(settings.predictor_layers)
        )
        self.blocks = nn.ModuleList(plain(block) for block in blocks)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, network.hidden)

    def forward(self, seen: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """`seen` (b, v, hidden) at the places `visible` (v,); returns (b, h, hidden) at the places `hidden` (h,)."""
        asked = (self.mask + self.places[hidden]).expand(len(seen), -1, -1)
        x = torch.cat([self.embed(seen) + self.places[visible], asked], dim=1)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.out(self.norm(x[:, -len(hidden) :]))
        return found


class Jepa(nn.Module):
    """Context encoder, its moving average as target encoder, and the predictor."""

    def __init__(self, experiment: RetinalExperiment) -> None:
        super().__init__()
        self.context_encoder = build_encoder(experiment.network)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)
        self.predictor = Predictor(experiment)
        self.grid, self.masks = experiment.network.grid, experiment.pretraining.masks

    def loss(self, volumes: Tensor) -> Tensor:
        """Return the mean absolute difference of predicted and target tokens, the latter normalised, under new masks."""
        visible, hidden = (places.to(volumes.device) for places in draw_masks(self.grid, self.masks))
        with torch.no_grad():
            wanted = tokens(self.target_encoder, volumes)[:, hidden]
            wanted = nn.functional.layer_norm(wanted, wanted.shape[-1:])
        seen = tokens(self.context_encoder, volumes, visible)
        return (self.predictor(seen, visible, hidden) - wanted).abs().mean()

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder: target = momentum * target + (1 - momentum) * context."""
        target = dict(self.target_encoder.named_parameters())
        for name, value in self.context_encoder.named_parameters():
            target[name].lerp_(value.detach(), 1 - momentum)

    def weights(self) -> dict[str, Tensor]:
        """The tensors by the names that a released pretraining has."""
        found = {f"context_encoder.{to_released(k)}": v for k, v in self.context_encoder.state_dict().items()}
        found |= {f"target_encoder.encoder.{to_released(k)}": v for k, v in self.target_encoder.state_dict().items()}
        return found | {f"predictor.{k}": v for k, v in self.predictor.state_dict().items()}
