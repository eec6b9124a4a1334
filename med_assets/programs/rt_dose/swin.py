"""A transformer of shifted windows that predicts the dose: MONAI's Swin UNETR, with the planning constraints as further channels."""

import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from med_assets.programs.rt_dose.networks import GROUPS
from med_assets.programs.rt_dose.site import CONSTRAINT_COUNT


class SwinDose(nn.Module):
    """Swin UNETR (Hatamizadeh et al., 2022, arXiv 2201.01266); its first level has `base_channels`, a multiple of 12 and of 8.

    `forward(x, constraints)` maps (batch, channels, z, y, x) with sides that are multiples of 32 and (batch, 13) to dose /
    prescription (batch, 1, z, y, x), unbounded. Each constraint is a channel that is constant over the patch.
    """

    def __init__(self, channels: int, base_channels: int) -> None:
        super().__init__()
        # Groups as in the other families: MONAI's instance norm refuses the single voxel that the deepest level has of a patch of 32.
        self.unet = SwinUNETR(
            in_channels=channels + CONSTRAINT_COUNT,
            out_channels=1,
            feature_size=base_channels,
            norm_name=("group", {"num_groups": GROUPS}),
        )

    def forward(self, x: Tensor, constraints: Tensor) -> Tensor:
        """Predict dose / prescription; see the class."""
        spread = constraints.to(x.dtype)[:, :, None, None, None].expand(-1, -1, *x.shape[2:])
        out: Tensor = self.unet(torch.cat([x, spread], dim=1))
        return out
