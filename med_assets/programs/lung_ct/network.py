"""VISTA3D as MONAI has it: the released architecture, and small ones like it. He et al., arXiv 2406.05285."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from med_assets.programs.lung_ct.experiment import Network, Prompts

CLASSES = 512
"""Class embeddings of the network, as released."""

LAST_SUPPORTED = 132
"""Highest class id that the released network knows."""


def build_network(network: Network) -> nn.Module:
    """Return the untrained network; called with `input_images` (b, 1, x, y, z) and `class_vector` (n, 1) it returns
    logits (n, b, x, y, z)."""
    from monai.networks.nets.segresnet_ds import SegResNetDS2
    from monai.networks.nets.vista3d import VISTA3D, ClassMappingClassify, PointMappingSAM, vista3d132

    if network.kind == "vista3d132":
        return vista3d132(encoder_embed_dim=48, in_channels=1)
    width = network.channels
    encoder = SegResNetDS2(
        in_channels=1,
        blocks_down=network.blocks_down,
        norm="instance",
        out_channels=width,
        init_filters=width,
        dsdepth=1,
    )
    return VISTA3D(
        image_encoder=encoder,
        class_head=ClassMappingClassify(n_classes=CLASSES, feature_size=width, use_mlp=True),
        point_head=PointMappingSAM(feature_size=width, n_classes=CLASSES, last_supported=LAST_SUPPORTED),
    )


RESEARCH_NAMES = (
    (r"^network\.", ""),
    (r"(point_head\.transformer\.layers\.\d+\.mlp)\.lin([12])\.", r"\1.linear\2."),
)
"""Parts of names in `model_monai1.3.pt`, which is of the classes in VISTA's research repository, and in MONAI since 1.4."""

NEVER_USED = "point_head.output_add_hypernetworks_mlps."
"""Tensors of the research classes whose layers no forward pass calls, and which MONAI's class does not have."""


def released(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a released file, of MONAI's or of the research classes, MONAI's names; those never used are left out."""
    named = {}
    for name, tensor in found.items():
        for old, new in RESEARCH_NAMES:
            name = re.sub(old, new, name)
        named[name] = tensor
    return {name: tensor for name, tensor in named.items() if not name.startswith(NEVER_USED)}


def freeze_unused(network: nn.Module, prompts: Prompts) -> list[str]:
    """Freeze what no training step uses, so that it stays as it was; return the names of the frozen parameters.

    Several processes that train together wait for the gradient of every parameter that is not frozen.
    """
    idle = ["image_encoder.up_layers.", "point_head."] if prompts.drop_points == 1 else []
    if prompts.drop_labels == 1:
        idle = ["image_encoder.up_layers_auto.", "class_head."]
    frozen = []
    for name, parameter in network.named_parameters():
        if name.startswith(tuple(idle)):
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def class_logits(network: nn.Module, images: Tensor, classes: list[int]) -> Tensor:
    """Return the logits of class prompts, (b, classes, x, y, z), of images (b, 1, x, y, z)."""
    vector = torch.tensor(classes, dtype=torch.long, device=images.device)[:, None]
    logits: Tensor = network(input_images=images, class_vector=vector, transpose=True)
    return logits
