"""What a released file is: which experiment takes it, which of its tensors fit, and what the network computes with them.

Each program that takes released files has `med_assets.programs.<program>.released` with `trial(experiment)`. A family of files is
one row of FAMILIES; a layout that no program takes is a row of OTHERS, so that a refusal can name it.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from med_assets.errors import CheckpointMismatch
from med_assets.experiments.configuration import Experiment
from med_assets.training.initial import state_dict
from med_assets.training.tensors import demand_values


@dataclass(frozen=True)
class Family:
    """Released files of one layout. `names` is found in the name of a tensor of each; `release` is their name in _program.yaml."""

    title: str
    program: str
    experiment: str
    release: str
    names: str
    size_mb: int
    """Of the released file, as stated at its source or computed from its tensors; rounded."""
    licence: str
    given: tuple[str, ...] = ()
    """What an experiment is asked for on top, in every profile, to take such a file."""
    base: str = ""
    """Name in _program.yaml of the release that the file is put onto, where it is nothing alone."""


FAMILIES = (
    Family("VISTA3D", "lung_ct", "foundation", "vista3d132", r"class_head\.class_embeddings", 872, "NVIDIA's own, at the source"),
    Family("Point Net", "lumbar_mr", "zero_shot", "point_net", r"^decoder\.block\.\d+\.conv1", 130, "of the Kaggle data set, at the source"),
    Family("OCT encoder", "retinal_oct", "finetune_multi_domain", "multi_domain", r"context_encoder|target_encoder", 1501, "none: ask the authors"),
    Family("USFM", "breast_us", "usfm", "usfm", r"(?:^|\.)blocks\.\d+\.gamma_1$", 343, "CC BY-NC 4.0"),
    Family("TinyUSFM", "breast_us", "tinyusfm", "tinyusfm", r"(?:^|\.)cls_token$", 22, "Apache-2.0"),
    Family("SAM3", "breast_us", "sam3", "sam3", r"^detector(?:_model)?\.|^vision_encoder\.backbone\.|vision_backbone", 3440, "SAM License, at the source"),
    Family("SAM adapters (SAMed)", "breast_us", "sam_adapters", "samed", r"^w_a_\d{3}$", 3, "Apache-2.0", (
        "adapters=released/samed", "initial=released/sam_vit_b"), "sam_vit_b"),
    Family("SAM", "breast_us", "sam_lora", "sam_vit_b", r"^image_encoder\.neck|^vision_encoder\.neck|iou_prediction_head", 375, "Apache-2.0"),
    Family("SegFormer", "breast_us", "segformer", "segformer_b2", r"^segformer\.", 110, "NVIDIA's own, at the source"),
    Family("VGG16", "rt_dose", "grad_vgg", "vgg16", r"^features\.28\.|^features\.0\.weight", 528, "BSD-3-Clause"),
)  # fmt: skip
"""The first whose `names` fit is what a file is of."""

OTHERS = (
    ("SAM 2", r"sam_mask_decoder|image_encoder\.trunk", "this project takes SAM (sam_vit_b) and SAM3"),
    ("an adapter of PEFT", r"lora_[AB]\.", "merge it into its base model first (merge_and_unload), and save the state dict"),
    ("the official V-JEPA 2", r"^backbone\.blocks|predictor_blocks", "it has three colour channels and rotary positions; get the OCT encoder"),
    ("transformers' ViT, DINOv2 or V-JEPA 2", r"encoder\.layer\.\d+\.(?:attention|layernorm)", "no experiment has such a network"),
    ("Swin UNETR", r"swinViT", "no experiment has such a network"),
    ("nnU-Net", r"encoder\.stages\.\d+\.0\.convs", "no experiment has such a network"),
    ("MONAI's ViT", r"patch_embedding\.position_embeddings", "an OCT encoder by MONAI's names: experiments of retinal_oct"),
    ("a ResNet", r"^layer1\.0\.conv1", "an encoder alone: Point Net needs its decoder too"),
    ("a checkpoint of this project", r"^net\.|^encoder\.blocks", "name its experiment in `initial`, not its file"),
)  # fmt: skip
"""Layouts that are known and taken by none, with what to do."""


@dataclass(frozen=True)
class Trial:
    """A network of an experiment without any case. `weights` are its tensors; `take` gives those of a file's content by the same
    names, for all or some, and raises CheckpointMismatch; `forward` is the output for a fixed input; `check` is what was
    measured of the preprocessing."""

    weights: Mapping[str, Tensor]
    take: Callable[[Any], Mapping[str, Tensor]]
    forward: Callable[[], Tensor]
    check: str
    begun_anew: Callable[[str], bool] = lambda name: False
    """Whether the release has no tensor for one of `weights`, such as a new head or an adapter."""


@dataclass(frozen=True)
class Taken:
    """How many tensors of the network came from the file, of how many, and a digest of what it then computes."""

    matched: int
    tensors: int
    digest: str
    check: str


def names_of(content: Any) -> list[str]:
    """Return the names of all tensors within a file's content, at most two dictionaries deep, without wrappers."""
    try:
        return list(state_dict(content))
    except CheckpointMismatch:
        return [f"{key}.{name}" for key, value in _items(content) for name, _ in _items(value)] + [
            str(key) for key, _ in _items(content)
        ]


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def family_of(content: Any) -> Family | None:
    """Return the family whose layout a file has, None for another."""
    names = names_of(content)
    return next((one for one in FAMILIES if any(re.search(one.names, name) for name in names)), None)


def described(content: Any) -> str:
    """Return what a file is of and what to do with it, for a message."""
    names = names_of(content)
    for title, pattern, advice in OTHERS:
        if any(re.search(pattern, name) for name in names):
            return f"the file has the layout of {title}: {advice}"
    family = family_of(content)
    if family is None:
        return "the file has a layout that is not known here"
    if family.base:
        blocks = sum(bool(re.search(family.names, name)) for name in names) // 2
        return (
            f"the file has the layout of {family.title}, of {blocks} blocks, and is nothing alone: {family.program}/{family.experiment} takes it "
            f"as adapters=released/{family.release}, onto the SAM that it was trained on (12 blocks sam_vit_b, 24 sam_vit_l, 32 sam_vit_h) "
            f"as initial=released/{family.base}"
        )
    return f"the file has the layout of {family.title}, which {family.program}/{family.experiment} takes as initial=released/{family.release}"


def trial(program: str, experiment: Experiment) -> Trial:
    """Return the network of an experiment, without any case."""
    torch.manual_seed(experiment.seed)  # parts that no release has, such as a head, are the same each time
    found: Trial = importlib.import_module(f"med_assets.programs.{program}.released").trial(experiment)
    return found


def take(on: Trial, content: Any) -> Taken:
    """Put the content of a file into a trial's network. Raises CheckpointMismatch unless the file is taken as a training would."""
    found = {name: tensor for name, tensor in on.take(content).items() if on.weights.get(name) is not tensor}
    demand_values({name: on.weights[name] for name in found}, found)
    with torch.no_grad():
        for name, tensor in found.items():
            on.weights[name].copy_(tensor)
    return Taken(len(found), len(on.weights), digest(on.forward()), on.check)


def filled(on: Trial) -> str:
    """Fill a trial's network by a recipe, and return its digest: what this version of the code computes, without any file."""
    fill(on.weights)
    return digest(on.forward())


def fill(weights: Mapping[str, Tensor]) -> None:
    """Fill tensors in place by a recipe.

    NumPy's default_rng(0), the names sorted, each tensor from N(0, 0.05) in the order of memory; weights of norms are that plus 1,
    running variances its square plus 0.5, counters 0.
    """
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name in sorted(weights):
            tensor = weights[name]
            drawn = rng.normal(0, 0.05, tuple(tensor.shape))
            if not tensor.is_floating_point():
                drawn = np.zeros(tuple(tensor.shape))
            elif name.endswith("running_var"):
                drawn = drawn**2 + 0.5
            elif name.endswith("weight") and tensor.ndim == 1:
                drawn = drawn + 1
            tensor.copy_(torch.from_numpy(np.asarray(drawn)))


def ramp(*shape: int) -> Tensor:
    """Return the fixed input: 0 to 1 in equal steps, in the order of memory."""
    count = torch.Size(shape).numel()
    return torch.linspace(0, 1, count, dtype=torch.float64).reshape(shape).float()


def digest(output: Tensor) -> str:
    """Return mean, standard deviation and three values (first, middle, last) of an output, with its shape, to five digits."""
    flat = output.detach().double().flatten()
    values = [float(flat.mean()), float(flat.std()), *(float(flat[index]) for index in (0, len(flat) // 2, -1))]
    return f"{'x'.join(map(str, output.shape))}: " + " ".join(f"{value:.5g}" for value in values)
