"""Whether the tensors of a file are those of a network, and the two files of a checkpoint folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets.errors import CheckpointMismatch
from med_assets.experiments.configuration import Experiment, from_json
from med_assets.training.members import members_of
from med_assets.training.reading import open_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 5
"""Tensors named in an error message, of those that do not fit."""


@dataclass(frozen=True)
class Fit:
    """Names of the tensors that match in name and shape, and of those that do not, each sorted."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shape: tuple[str, ...]
    """With the shapes: `head.bias expected (1,) found (2,)`."""

    @property
    def whole(self) -> bool:
        """Whether every tensor that was expected is there, and no other."""
        return not (self.missing or self.unexpected or self.other_shape)

    def text(self) -> str:
        """What does not fit, for a message; empty when all does."""
        problems = {"missing": self.missing, "unexpected": self.unexpected, "other shape": self.other_shape}
        return "; ".join(f"{len(items)} {what}: {list(items[:SHOWN])}" for what, items in problems.items() if items)


def compare(expected: "Mapping[str, Tensor]", found: "Mapping[str, Tensor]") -> Fit:
    """Compare two state dicts by the names and shapes of their tensors."""
    both = sorted(expected.keys() & found.keys())
    return Fit(
        matched=tuple(name for name in both if expected[name].shape == found[name].shape),
        missing=tuple(sorted(expected.keys() - found.keys())),
        unexpected=tuple(sorted(found.keys() - expected.keys())),
        other_shape=tuple(
            f"{name} expected {tuple(expected[name].shape)} found {tuple(found[name].shape)}"
            for name in both
            if expected[name].shape != found[name].shape
        ),
    )


def demand_fit(expected: "Mapping[str, Tensor]", found: "Mapping[str, Tensor]", whose: str, advice: str) -> Fit:
    """Return the comparison. Raises CheckpointMismatch, naming `whose` weights they are, unless every tensor fits."""
    fit = compare(expected, found)
    if not fit.whole:
        wrong = len(fit.missing) + len(fit.unexpected) + len(fit.other_shape)
        raise CheckpointMismatch(
            f"expected {whose} to fit the network, took none: {len(fit.matched)} of {len(expected)} tensors fit, {wrong} "
            f"differ in name or shape: {fit.text()}; {advice}"
        )
    return fit


def load_weights(network: "nn.Module", weights: "Mapping[str, Tensor]") -> None:
    """Load the weights of a checkpoint into the network of its experiment. Raises CheckpointMismatch unless every tensor fits."""
    demand_fit(network.state_dict(), weights, "the weights of the checkpoint", "load it with its own experiment")
    network.load_state_dict(dict(weights), strict=True)


def demand_values(expected: "Mapping[str, Tensor]", found: "Mapping[str, Tensor]") -> None:
    """Raise CheckpointMismatch unless each tensor of a fit is of real numbers where one is expected, and all are finite."""
    for name, like in expected.items():
        tensor = found[name]
        if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
            raise CheckpointMismatch(
                f"expected a dense tensor {name}, got one that is sparse or quantised; take the weights in full precision"
            )
        if tensor.is_floating_point() != like.is_floating_point() or tensor.is_complex() != like.is_complex():
            raise CheckpointMismatch(
                f"expected the tensor {name} as {like.dtype}, got {tensor.dtype}; take the weights as floating-point numbers, "
                "not quantised"
            )
        if tensor.is_floating_point() and (wrong := int((~tensor.isfinite()).sum())):
            raise CheckpointMismatch(
                f"expected finite weights, got {wrong} of {tensor.numel()} numbers of {name} that are NaN or infinite; get the file "
                "again, or the weights of an earlier epoch"
            )


def read_checkpoint(program: str, folder: Path) -> "tuple[Experiment, dict[str, Tensor]]":
    """Read `experiment.json` and `weights.pt` of a checkpoint folder. Raises CheckpointMismatch when one is missing."""

    paths = {name: folder / name for name in ("experiment.json", "weights.pt")}
    if members := members_of(folder):
        named = ", ".join(member.experiment for member in members)
        raise CheckpointMismatch(
            f"expected a checkpoint with weights of its own, got an ensemble, whose members are {named}; do this with one of them"
        )
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise CheckpointMismatch(
            f"a checkpoint folder holds experiment.json and weights.pt; missing: {', '.join(missing)}"
        )
    experiment = from_json(program, paths["experiment.json"].read_text(encoding="utf-8"))
    content = open_weights(paths["weights.pt"], "weights.pt of a checkpoint")
    if not isinstance(content, dict) or not all(hasattr(value, "shape") for value in content.values()):
        raise CheckpointMismatch(
            f"expected weights.pt of a checkpoint to hold tensors by name, got {type(content).__name__}; train the experiment again"
        )
    return experiment, content
