"""The fields of a VISTA3D experiment, beyond those of every experiment. Axes are (x, y, z) in RAS at the training spacing."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from med_assets.experiments.configuration import MemoryPlan, PatchExperiment
from med_assets.experiments.parts import NO_EFFECT, Settings

Voxels = Annotated[tuple[int, int, int], Field(description="voxels along (x, y, z) of the training grid")]
Probability = Annotated[float, Field(ge=0, le=1)]

RELEASED_BLOCKS = (1, 2, 2, 4, 4)
"""Residual blocks of each level of the released network, which halves its input four times."""

PROBE_SIDE = 32
"""Longest side of the patch that memory is measured with, voxels."""


class Network(Settings):
    """The network: the released architecture, or one like it in small."""

    kind: Literal["vista3d132", "small"] = Field(
        description="vista3d132 is the released architecture (48 channels, 218 M parameters), small one like it"
    )
    channels: int = Field(ge=8, multiple_of=8, description="channels of the first level; small only, count")
    blocks_down: tuple[int, ...] = Field(
        min_length=2,
        description="residual blocks of each level; small only. Every level but the first halves the input",
    )

    @property
    def factor(self) -> int:
        """Number that every side of a patch and a window is a multiple of, voxels."""
        blocks = RELEASED_BLOCKS if self.kind == "vista3d132" else self.blocks_down
        return int(2 ** (len(blocks) - 1))


class Labels(Settings):
    """Which class each voxel of a training case counts as."""

    mode: Literal["target", "mapping", "auto"] = Field(
        description="target: the workspace's target class alone; mapping: as listed; auto: every labelled class"
    )
    mapping: tuple[tuple[int | str, int | str], ...] = Field(
        default=(),
        description="pairs of a label of the source (its value there, its name, or its coded concept such as SCT:108369006) and "
        "the class that it is trained as (id or name; ids from 133 to 254 are free for classes of your own); mapping only",
    )

    @model_validator(mode="after")
    def _mapping_is_given_with_its_mode(self) -> Self:
        if (self.mode == "mapping") != bool(self.mapping):
            raise ValueError(
                "labels.mapping is for labels.mode=mapping, and that mode needs one: e.g. mapping=[[1,23]]"
            )
        if len({source for source, _ in self.mapping}) < len(self.mapping):
            raise ValueError(f"each source value can be mapped once, got {[list(pair) for pair in self.mapping]}")
        for source, _ in self.mapping:
            if isinstance(source, str) and source.startswith("UNRECOGNISED_"):
                raise ValueError(
                    f"{source} counts names that intake does not know in the order of a file and names no label; map it by its value"
                )
        return self


class Patches(Settings):
    """Where the training patches come from."""

    size: Voxels = Field(description="patch, voxels along (x, y, z)")
    per_case: int = Field(ge=1, description="patches taken of each case in an epoch, count")
    per_epoch: int | None = Field(ge=1, description="patches in an epoch in place of per_case x cases, count")
    centres_per_class: int | None = Field(
        ge=1, description="voxels of a class that a patch can be centred at, evenly spread; null is 10 x epochs, count"
    )


class Spread(Settings):
    """A random transform whose strength is uniform within a range."""

    p: Probability = Field(description="probability")
    low: float = Field(gt=0, description="least strength")
    high: float = Field(gt=0, description="greatest strength")


class Amount(Settings):
    """A random transform with one largest strength."""

    p: Probability = Field(description="probability")
    by: float = Field(ge=0, description="largest strength, in units of the scaled intensity")


class Augment(Settings):
    """Random changes of a patch, in this order. Intensities are scaled to 0..1 before."""

    zoom: Spread = Field(description="zoom of image and labels, dimensionless")
    low_resolution: Spread = Field(description="image sampled down by this factor and up again, dimensionless")
    smooth: Spread = Field(description="Gaussian smoothing, standard deviation in voxels")
    scale: Amount = Field(description="intensity x (1 + u), u uniform within -by..by")
    shift: Amount = Field(description="intensity + u, u uniform within -by..by")
    noise: Amount = Field(description="Gaussian noise, standard deviation uniform within 0..by")


class Loss(Settings):
    """Dice and cross entropy of the sigmoid of each prompt's logits, MONAI's DiceCELoss."""

    dice: float = Field(ge=0, description="weight of the Dice term")
    ce: float = Field(ge=0, description="weight of the cross entropy")
    squared: bool = Field(description="square prediction and target in the denominator of the Dice")
    smooth_nr: float = Field(ge=0, description="added to the numerator of the Dice, voxels")
    smooth_dr: float = Field(gt=0, description="added to the denominator of the Dice, voxels")


class Prompts(Settings):
    """What the network is asked for in a training step."""

    max_absent: int | None = Field(
        ge=0,
        description="most classes asked for that the patch does not have; null is all that the case is labelled for",
    )
    max_points: int = Field(ge=1, description="most points of a class, positive and as many negative, count")
    drop_points: Probability = Field(description="probability that a step has no points; 1 trains classes alone")
    drop_labels: Probability = Field(description="probability that a step has points alone")

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if self.drop_labels and self.drop_points == 1:
            raise ValueError("without points (drop_points=1) the class prompts can't be dropped: set drop_labels to 0")
        return self


class Inference(Settings):
    """How a whole volume is predicted: overlapping windows. It changes scores, so it is stated and recorded."""

    window: Voxels = Field(description="window, voxels along (x, y, z)")
    overlap: float = Field(ge=0, lt=1, description="share of a window that its neighbour covers again, 0 to 1")
    mode: Literal["constant", "gaussian"] = Field(description="weight of a window's voxels where several overlap")
    padding: Literal["replicate", "constant"] = Field(
        description="what surrounds a volume smaller than the window: its border, or air"
    )
    batch: int = Field(ge=1, description="windows at a time, count", json_schema_extra=NO_EFFECT)

    def text(self) -> str:
        """What a score's convention says of it."""
        return (
            f"windows of {'x'.join(map(str, self.window))} voxels, overlap {self.overlap:g}, {self.mode} blending, "
            f"{self.padding} padding"
        )


class LungExperiment(PatchExperiment):
    """A VISTA3D experiment."""

    network: Network = Field(description="what segments")
    labels: Labels = Field(description="which class each labelled voxel counts as")
    patches: Patches = Field(description="training patches")
    augment: Augment = Field(description="random changes of a patch")
    loss: Loss = Field(description="what is minimised")
    prompts: Prompts = Field(description="what the network is asked for in training")
    inference: Inference = Field(description="prediction of whole volumes")

    @model_validator(mode="after")
    def _sides_can_be_halved(self) -> Self:
        factor = self.network.factor
        for name, sides in (("patches.size", self.patches.size), ("inference.window", self.inference.window)):
            if any(side < factor or side % factor for side in sides):
                raise ValueError(f"{name} must be multiples of {factor} for this network, found {sides}")
        return self

    @model_validator(mode="after")
    def _each_memory_plan_can_be_trained(self) -> Self:
        for plan in self.schedule.fallbacks:
            sides = self.at(plan).patches.size
            if any(side < self.network.factor or side % self.network.factor for side in sides):
                raise ValueError(f"schedule.fallbacks: patch must be multiples of {self.network.factor}, found {sides}")
        return self

    def objection_to_augmentation(self, augmentation: str) -> str | None:
        return (
            None
            if augmentation == "flip_x"
            else "the front is no back, and the head no foot; flip_x is the patient in a mirror"
        )

    def probe(self) -> Self:
        side = max(PROBE_SIDE, self.network.factor)
        return self.at(MemoryPlan(batch=1, patch=tuple(min(own, side) for own in self.patches.size)))


EXPERIMENT = LungExperiment
