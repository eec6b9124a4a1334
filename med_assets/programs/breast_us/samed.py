"""Adapter-only files of SAMed: some megabytes that make SAM's release the adapted network, and nothing without it.

Zhang and Liu 2023. Such a file has the thin matrices of queries and values by number, `w_a_000` to `w_b_023` of the encoder, `sa_`,
`cti_`, `cit_` and `fati_` of the decoder, and by SAM's original names all of the prompt encoder and what else is trained of the mask
decoder: all but its transformer, or, where the encoder alone is adapted, all of it.
"""

import re
from collections.abc import Iterable

from torch import Tensor

from med_assets.errors import CheckpointMismatch
from med_assets.programs.breast_us.experiment import Sam
from med_assets.programs.breast_us.sam import is_new
from med_assets.programs.breast_us.sam_names import IMAGE_PLACE, PLACE, TOKENS, original_name, without_prefixes
from med_assets.training.tensors import demand_fit, demand_values

START = "net.sam."
TRANSFORMER = "mask_decoder.transformer."

ENCODER = re.compile(r"vision_encoder\.layers\.(\d+)\.attn\.qkv\.(down|up)\.([01])\.weight")
DECODER = re.compile(r"mask_decoder\.transformer\.layers\.(\d+)\.(\w+)\.([qv])_proj\.(down|up)\.0\.weight")
FINAL = re.compile(r"mask_decoder\.transformer\.final_attn_token_to_image\.([qv])_proj\.(down|up)\.0\.weight")

ATTENTIONS = {"self_attn": "sa", "cross_attn_token_to_image": "cti", "cross_attn_image_to_token": "cit"}
SIDES = {"down": "a", "up": "b"}


def file_names(own: Iterable[str]) -> dict[str, str]:
    """Names in SAMed's file by the names in a SamSeg (prefix net.sam.) of the tensors that the file has."""
    names = [name.removeprefix(START) for name in own]
    both = any(DECODER.fullmatch(name) for name in names)
    found = {}
    for name in names:
        written = _adapter_name(name)
        trained = name.startswith(("prompt_encoder.", "mask_decoder.")) and not (both and name.startswith(TRANSFORMER))
        if written is None and trained:
            written = original_name(name)
        if written is not None:
            found[START + name] = written
    return found


def _adapter_name(name: str) -> str | None:
    """Queries have even numbers, values odd ones, block after block."""
    if match := ENCODER.fullmatch(name):
        block, side, third = match.groups()
        return f"w_{SIDES[side]}_{2 * int(block) + int(third):03d}"
    if match := DECODER.fullmatch(name):
        block, attention, projection, side = match.groups()
        return f"{ATTENTIONS[attention]}_{SIDES[side]}_{2 * int(block) + 'qv'.index(projection):03d}"
    if match := FINAL.fullmatch(name):
        return f"fati_{match[1]}{SIDES[match[2]]}"
    return None


def is_adapter_file(names: Iterable[str]) -> bool:
    """Whether the names of a file's tensors are those of an adapter-only file of SAMed."""
    return any(re.fullmatch(r"w_a_\d{3}", without_prefixes(name)) for name in names)


def write_adapters(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the content of SAMed's file from the tensors of a SamSeg."""
    return {written: weights[name].detach().clone() for name, written in file_names(weights).items()}


def holds_all_that_is_trained(network: Sam, weights: Iterable[str]) -> bool:
    """Whether an adapter-only file is all that a training changes of a SAM of these tensors, so that SAM's release and it are the network."""
    if network.lora == "none":
        return False
    kept = file_names(weights)
    return all(name in kept or is_new(name) or not _trained(network, name.removeprefix(START)) for name in weights)


def _trained(network: Sam, name: str) -> bool:
    return name.startswith(network.trained) and not (network.frozen and name.startswith(network.frozen))


def read_adapters(found: dict[str, Tensor], own: dict[str, Tensor], network: Sam) -> dict[str, Tensor]:
    """Return the tensors of SAMed's file by their names in a SamSeg. Raises CheckpointMismatch, naming what differs, unless all fit."""
    given = {without_prefixes(name): tensor for name, tensor in found.items()}
    if not is_adapter_file(given):
        raise CheckpointMismatch(
            "expected an adapter-only file of SAMed, with w_a_000 and so on, got "
            + (
                "a whole SAM; name it in initial, not in adapters"
                if any(name.startswith(("image_encoder.", "vision_encoder.")) for name in given)
                else "adapters of PEFT, which adapt the keys too; train with network.lora here instead"
                if any("lora_A" in name for name in given)
                else f"tensors such as {sorted(given)[:3]}"
            )
        )
    lora = "both" if "sa_a_000" in given else "encoder"
    wanted = {
        "network.lora": (lora, network.lora),
        "network.rank": (_rows(given, "w_a_000", network.rank), network.rank),
        "network.multimask_outputs": (
            _rows(given, TOKENS, network.multimask_outputs + 1) - 1,
            network.multimask_outputs,
        ),
    }
    if advice := [f"{field}={of_file}" for field, (of_file, here) in wanted.items() if of_file != here]:
        raise CheckpointMismatch(
            f"expected adapters of this experiment's network, the file's are of {' '.join(advice)}; set that"
        )
    kept = file_names(own)
    expected = {written: own[name] for name, written in kept.items()}
    fit = demand_fit(expected, given, "the adapters in this file", "give the experiment the network that they are of")
    demand_values(expected, given)
    print(f"adapters: {len(fit.matched)} tensors taken", flush=True)
    read = {name: given[written] for name, written in kept.items()}
    # SAM has it once, and transformers twice.
    read[START + IMAGE_PLACE] = read[START + PLACE]
    return read


def _rows(given: dict[str, Tensor], name: str, otherwise: int) -> int:
    """Rows of a tensor, where it is there and has some."""
    return len(given[name]) if name in given and given[name].ndim else otherwise
