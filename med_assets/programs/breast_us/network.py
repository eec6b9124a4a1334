"""The networks of all families behind one face: grey images in, logits and a map of features out.

A pixel has one logit, that of a lesion, or for an experiment of several classes one for the background and one for each class.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from med_assets.errors import CheckpointMismatch
from med_assets.programs.breast_us.experiment import BreastExperiment, Sam, Sam3, SegFormer, TinyUsfm, Usfm
from med_assets.training.tensors import demand_fit

SCALING = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of each way of scaling."""


SEGFORMER_NAMES = (
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.", r"segformer.stages.\1.patch_embeddings."),
    (r"segformer\.encoder\.block\.(\d+)\.", r"segformer.stages.\1.blocks."),
    (r"segformer\.encoder\.layer_norm\.(\d+)", r"segformer.stages.\1.layer_norm"),
    (r"attention\.self\.query", "attention.q_proj"),
    (r"attention\.self\.key", "attention.k_proj"),
    (r"attention\.self\.value", "attention.v_proj"),
    (r"attention\.self\.sr", "attention.sequence_reduction.sequence_reduction"),
    (r"attention\.self\.layer_norm", "attention.sequence_reduction.layer_norm"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"mlp\.dense", "mlp.fc"),
    (r"layer_norm_1", "layernorm_before"),
    (r"layer_norm_2", "layernorm_after"),
    (r"decode_head\.linear_c", "decode_head.linear_projections"),
)
"""Names in the released SegFormer, and in transformers since version 5; both are taken."""


SEGFORMER_CLASSES = "net.segformer.decode_head.classifier."
"""First part of the names of what depends on the classes, which here are others than the release's."""


class Segmenter(nn.Module):
    """Grey images (b, 1, side, side) in 0..1 to logits (b, outputs, side, side); `both` returns the features too."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, experiment: BreastExperiment) -> None:
        super().__init__()
        mean, deviation = SCALING[experiment.scaling]
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)
        self.net = _net(experiment)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (b, outputs, side, side) and features (b, channels, height, width)."""
        found: tuple[Tensor, Tensor] = self.net(self.scaled(images))
        return found

    def outputs(self, images: Tensor) -> Any:
        """Return all outputs of transformers' Sam3Model, of a network that is one."""
        from med_assets.programs.breast_us.sam3 import Sam3Seg

        assert isinstance(self.net, Sam3Seg)
        return self.net.asked_of(self.scaled(images))[0]

    def scaled(self, images: Tensor) -> Tensor:
        """Return grey images (b, 1, side, side) in 0..1 as the family's own colours (b, 3, side, side)."""
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.deviation

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[0]


class SegFormerSeg(nn.Module):
    """SegFormer of transformers: logits at a quarter of the size, taken up; features of its last stage."""

    def __init__(self, network: SegFormer, outputs: int = 1) -> None:
        from transformers.models.segformer.configuration_segformer import SegformerConfig
        from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

        super().__init__()
        self.segformer = SegformerForSemanticSegmentation(
            SegformerConfig(
                depths=list(network.depths),
                hidden_sizes=list(network.dims),
                decoder_hidden_size=network.decoder,
                num_labels=outputs,
            )
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.segformer(images, output_hidden_states=True)
        return functional.interpolate(found.logits, images.shape[-2:], mode="bilinear"), found.hidden_states[-1]


def _net(experiment: BreastExperiment) -> nn.Module:
    match experiment.network:
        case Usfm() as network:
            from med_assets.programs.breast_us.tinyusfm import TinyUsfmSeg
            from med_assets.programs.breast_us.usfm import UsfmBackbone

            side = experiment.input_px
            return TinyUsfmSeg(network, side, experiment.outputs, UsfmBackbone(network, side))
        case TinyUsfm() as network:
            from med_assets.programs.breast_us.tinyusfm import TinyUsfmSeg

            return TinyUsfmSeg(network, experiment.input_px, experiment.outputs)
        case Sam() as network:
            from med_assets.programs.breast_us.sam import SamSeg

            return SamSeg(network, experiment.input_px, several=bool(experiment.classes))
        case SegFormer() as network:
            return SegFormerSeg(network, experiment.outputs)
        case Sam3() as network:
            from med_assets.programs.breast_us.sam3 import Sam3Seg

            return Sam3Seg(network, experiment.input_px)


def released(
    experiment: BreastExperiment, own: dict[str, Tensor], adapters: dict[str, Tensor] | None = None
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return what gives the tensors of a family's released file the names that they have in a Segmenter.

    What no release can have, such as a new head or adapters, is taken from `own`; every other tensor must be there and fit, and
    none may be left over, else the file is refused with CheckpointMismatch. `adapters` (an adapter-only file) are put onto it.
    """
    from med_assets.programs.breast_us import sam, sam3, sam_names, samed, tinyusfm, usfm

    def named(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[str], bool]]:
        match experiment.network:
            case TinyUsfm():
                return tinyusfm.from_release(found, own)
            case Usfm() as network:
                return usfm.from_release(found, network.depth), lambda name: not name.startswith("net.backbone.")
            case Sam():
                if samed.is_adapter_file(found):
                    raise CheckpointMismatch(
                        f"expected a whole SAM in {experiment.initial}, got an adapter-only file of SAMed; name it in adapters, and SAM "
                        "itself in initial"
                    )
                taken, anew = sam_names.from_release(found, own)
                return taken, lambda name: sam.is_new(name) or bool(anew and name.startswith(anew))
            case SegFormer():
                given = {f"net.segformer.{_segformer_name(name)}": tensor for name, tensor in found.items()}
                kept = {k: v for k, v in given.items() if not k.startswith(SEGFORMER_CLASSES)}
                return kept, lambda name: name.startswith(SEGFORMER_CLASSES)
            case Sam3():
                return sam3.from_release(found)

    def completed(found: dict[str, Tensor]) -> dict[str, Tensor]:
        given, is_new = named(found)
        expected = {name: tensor for name, tensor in own.items() if not is_new(name)}
        demand_fit(
            expected, given, f"the release {experiment.initial}", "give the experiment the network that it is of"
        )
        more = {}
        if adapters is not None:
            assert isinstance(experiment.network, Sam)
            more = samed.read_adapters(adapters, own, experiment.network)
        return own | given | more

    return completed


def begins_anew(network: object, name: str) -> bool:
    """Whether the release of a network's family has no tensor for that one of a Segmenter."""
    from med_assets.programs.breast_us import sam

    match network:
        case TinyUsfm() | Usfm():
            return not name.startswith("net.backbone.")
        case Sam():
            return sam.is_new(name)
        case SegFormer():
            return name.startswith(SEGFORMER_CLASSES)
    return False


def _segformer_name(name: str) -> str:
    for old, new in SEGFORMER_NAMES:
        name = re.sub(old, new, name)
    return name


def layer_of(name: str, experiment: BreastExperiment) -> int:
    """Return how many layers of the encoder lie between a parameter and the head: 0 for what is not in the encoder."""
    network = experiment.network
    if isinstance(network, SegFormer):
        encoders: tuple[str, ...] = ("net.segformer.segformer.",)
        depth, blocks = 4, "stages."
    else:
        encoders = ("net.backbone.", "net.sam.vision_encoder.", "net.sam3.vision_encoder.backbone.")
        depth, blocks = network.depth, "blocks." if isinstance(network, TinyUsfm | Usfm) else "layers."
    encoder = next((one for one in encoders if name.startswith(one)), None)
    if encoder is None or "neck." in name or name.removeprefix(encoder).startswith(("norm.", "layer_norm.")):
        return 0
    number = name.removeprefix(encoder).partition(blocks)[2].partition(".")[0]
    return depth - int(number) if number.isdecimal() else depth + 1
