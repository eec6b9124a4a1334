"""Names of SAM's tensors in the original release, in transformers and here, and positions for another image size."""

from torch import Tensor
from torch.nn import functional

RENAMED = (
    ("iou_prediction_head.layers.0", "iou_prediction_head.proj_in"),
    ("iou_prediction_head.layers.1", "iou_prediction_head.layers.0"),
    ("iou_prediction_head.layers.2", "iou_prediction_head.proj_out"),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("point_embeddings", "point_embed"),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("image_encoder", "vision_encoder"),
    ("neck.0", "neck.conv1"),
    ("neck.1", "neck.layer_norm1"),
    ("neck.2", "neck.conv2"),
    ("neck.3", "neck.layer_norm2"),
    ("patch_embed.proj", "patch_embed.projection"),
    (".norm", ".layer_norm"),
    ("blocks", "layers"),
)
"""Parts of names in the original release and in transformers, replaced in this order."""

HYPERNETWORKS = "mask_decoder.output_hypernetworks_mlps."
MLP_LAYERS = {"layers.0": "proj_in", "layers.1": "layers.0", "layers.2": "proj_out"}

BACK = (
    ("vision_encoder.layers.", "image_encoder.blocks."),
    ("vision_encoder.", "image_encoder."),
    ("patch_embed.projection", "patch_embed.proj"),
    ("neck.conv1", "neck.0"),
    ("neck.layer_norm1", "neck.1"),
    ("neck.conv2", "neck.2"),
    ("neck.layer_norm2", "neck.3"),
    (".mask_embed.conv1", ".mask_downscaling.0"),
    (".mask_embed.layer_norm1", ".mask_downscaling.1"),
    (".mask_embed.conv2", ".mask_downscaling.3"),
    (".mask_embed.layer_norm2", ".mask_downscaling.4"),
    (".mask_embed.conv3", ".mask_downscaling.6"),
    (".point_embed.", ".point_embeddings."),
    ("upscale_conv1", "output_upscaling.0"),
    ("upscale_layer_norm", "output_upscaling.1"),
    ("upscale_conv2", "output_upscaling.3"),
    ("shared_embedding.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (".layer_norm", ".norm"),
)
"""The same the other way round; what is replaced once is not met again."""

PERCEPTRONS = ("mask_decoder.iou_prediction_head.", HYPERNETWORKS)

PREFIXES = ("module.", "_orig_mod.", "sam.")
"""What wrappers put before all names, in any order."""

PLACE, IMAGE_PLACE = (
    "prompt_encoder.shared_embedding.positional_embedding",
    "shared_image_embedding.positional_embedding",
)
"""One tensor under two names; a file may have either."""

MASKS = ("mask_decoder.mask_tokens.", HYPERNETWORKS, "mask_decoder.iou_prediction_head.")
"""First parts of names of tensors whose number or shape follows from the number of masks."""

TOKENS = "mask_decoder.mask_tokens.weight"

RELEASED_MASKS = 4
"""Masks that the release answers, count: the first, and three for a choice."""


def without_prefixes(name: str) -> str:
    """A tensor's name without what wrappers put before it."""
    while name.startswith(PREFIXES):
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name


def original_names(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of SAM's original release the names of transformers' SamModel; those of transformers' file stay."""
    plain = {without_prefixes(name): tensor for name, tensor in found.items()}
    transformers = any(name.startswith("vision_encoder.") for name in plain)
    named = plain if transformers else {_transformers_name(name): tensor for name, tensor in plain.items()}
    for one, other in ((PLACE, IMAGE_PLACE), (IMAGE_PLACE, PLACE)):
        if one in named:
            named.setdefault(other, named[one])
    return named


def _transformers_name(name: str) -> str:
    for old, new in RENAMED:
        name = name.replace(old, new)
    if name.startswith(HYPERNETWORKS):
        number, _, rest = name.removeprefix(HYPERNETWORKS).partition(".")
        layer = next((old for old in MLP_LAYERS if rest.startswith(old)), None)
        rest = rest if layer is None else MLP_LAYERS[layer] + rest.removeprefix(layer)
        name = f"{HYPERNETWORKS}{number}.{rest}"
    return name


def original_name(name: str) -> str:
    """The name in SAM's original release of a tensor of transformers' SamModel."""
    if name.startswith(PERCEPTRONS):
        start, _, last = name.rpartition(".")
        layer = next(new for new in ("proj_in", "layers.0", "proj_out") if start.endswith(new))
        back = {new: old for old, new in MLP_LAYERS.items()}
        return f"{start.removesuffix(layer)}{back[layer]}.{last}"
    for old, new in BACK:
        name = name.replace(old, new)
    return name


def from_release(found: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Give SAM's tensors, original or of transformers, the names of SamSeg (prefix net.sam.), with positions resized to its image.

    Returned too are first parts of names that begin anew: where the experiment asks for another number of masks than the release
    answers, the parts that depend on it are left out, as SAMed does, and that is printed.
    """
    named, left = {}, []
    given = original_names(found)
    tokens = own[f"net.sam.{TOKENS}"]
    anew = len(tokens) != RELEASED_MASKS and TOKENS in given and given[TOKENS].shape[:1] == (RELEASED_MASKS,)
    begins_anew = MASKS if anew else ()
    for plain, tensor in given.items():
        name = f"net.sam.{plain}"
        first, _, last = name.rpartition(".")
        name = name if name in own else f"{first}.base.{last}"
        if plain.startswith(begins_anew):
            left.append(plain)
            continue
        if name in own and own[name].shape != tensor.shape and tensor.ndim == own[name].ndim:
            tensor = resized(name, tensor, own[name].shape)
        named[name] = tensor
    if left:
        print(
            f"sam: the decoder has {len(tokens)} masks and the release {RELEASED_MASKS}, so that {len(left)} tensors of {', '.join(MASKS)} "
            "are left out and begin at random",
            flush=True,
        )
    return named, tuple(f"net.sam.{part}" for part in begins_anew)


def resized(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Positions for another image as SAMed has them, or its files would belong to another network; all else stays as it is.

    The grid is resized bilinearly, the tables of differences along an axis linearly, both without a filter and with aligned edges.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    tensor = tensor.float()
    if name.endswith("pos_embed"):
        grid = functional.interpolate(tensor.permute(0, 3, 1, 2), tuple(shape[1:3]), mode="bilinear")
        return grid.permute(0, 2, 3, 1)
    if name.endswith(("rel_pos_h", "rel_pos_w")):
        return functional.interpolate(tensor.T[None], shape[0], mode="linear")[0].T
    return tensor
