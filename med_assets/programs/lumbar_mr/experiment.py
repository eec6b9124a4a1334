"""The fields of an experiment of lumbar_mr, beyond those of every experiment."""

from typing import Annotated, Literal

from pydantic import Field

from med_assets.experiments.configuration import Experiment
from med_assets.experiments.parts import NO_EFFECT, Settings

Widths = Annotated[tuple[int, int, int, int, int], Field(description="channels at five scales, count")]
Share = Annotated[float, Field(ge=0, lt=1)]


class Network(Settings):
    """What finds the levels."""

    kind: Literal["resnet50d", "small", "mean_position"] = Field(
        description="resnet50d is the released Point Net, small has an encoder of `widths`; mean_position has no network: "
        "where the levels of the training cases are on average"
    )
    widths: Widths = Field(description="channels of the small encoder at 1/2, 1/4, 1/8, 1/16 and 1/32, count")
    decoder: Widths = Field(description="channels of the decoder at 1/16, 1/8, 1/4, 1/2 and the full size, count")
    stem_pool: Literal["average", "maximum"] = Field(
        default="maximum",
        description="what halves the map after the stem of a resnet50d: the average of 2 x 2, as in the released Point Net, or the "
        "maximum of 3 x 3; checkpoints that don't state it were trained with the maximum",
    )


class Target(Settings):
    """What the network learns to predict."""

    radius_px: float = Field(gt=0, le=40, description="radius of the disc at a level, pixels of 160 x 160")


class Slices(Settings):
    """Which sagittal slices are learned from and which are combined."""

    train_mm: float = Field(ge=0, description="slices up to so far from the labelled middle are trained on, mm")
    combine: int = Field(
        ge=1, description="slices whose probabilities are averaged, spread evenly over `combine_mm`, count"
    )
    combine_mm: float = Field(ge=0, description="distance of the outermost of these slices from the middle, mm")
    middle: Literal["model", "series"] = Field(
        description="middle of a case when predicted: model is where the slices together hold the most level mass by the model "
        "itself, series is the middle slice of the series; never the labels"
    )
    search_mm: float = Field(gt=0, description="distance of the slices that the model looks for the middle in, mm")


class Augment(Settings):
    """Random changes of a training slice, each drawn evenly from its range. No mirroring: a spine has a front and a head."""

    rotate_deg: float = Field(ge=0, lt=90, description="largest rotation, degrees")
    scale: Share = Field(description="largest change of size, fraction")
    shift: Share = Field(description="largest shift along an axis, fraction of the side")
    brightness: float = Field(ge=0, description="largest addition, of intensities 0 to 1")
    contrast: Share = Field(description="largest change of contrast, fraction")
    gamma: Share = Field(description="largest change of the exponent of intensities, fraction")
    noise: float = Field(ge=0, description="largest standard deviation of added noise, of intensities 0 to 1")


class Loss(Settings):
    """Cross entropy of the background and the levels at each pixel."""

    background_weight: float = Field(gt=0, description="weight of a pixel of the background")
    level_weight: float = Field(gt=0, description="weight of a pixel of a level; unlike weights raise the confidence")


class Inference(Settings):
    """How a case is predicted. It changes scores, so it is stated and recorded."""

    found_above: float = Field(
        ge=0, lt=1, description="a level whose highest combined probability is not above it is not found, 0 to 1"
    )
    views: int = Field(ge=0, description="augmented views of the slices, for uncertainty alone, count; 0 is without")
    rotate_deg: float = Field(ge=0, lt=90, description="largest rotation of a view, degrees")
    scale: Share = Field(description="largest change of size of a view, fraction")
    shift: Share = Field(description="largest shift of a view along an axis, fraction of the side")
    batch: int = Field(ge=1, description="slices at a time, count", json_schema_extra=NO_EFFECT)
    decoding: Literal["peaks", "sequence"] = Field(
        default="peaks",
        description="peaks is the strongest connected peak of each level's map alone; sequence chooses a peak of each level so that "
        "their probabilities and the distances of neighbouring levels together are most probable",
    )
    gap_mm: float = Field(
        default=36.0, gt=0, description="expected distance of neighbouring levels, for the sequence alone, mm"
    )
    gap_sd_mm: float = Field(
        default=6.0, gt=0, description="standard deviation of this distance, for the sequence alone, mm"
    )


class LumbarExperiment(Experiment):
    """A Point Net experiment."""

    network: Network = Field(description="what finds the levels")
    target: Target = Field(description="what the network learns to predict")
    slices: Slices = Field(description="which slices are learned from and combined")
    anatomy: Literal["normal", "all"] = Field(
        description="normal leaves training cases out whose anatomy is known to be transitional, so that a model is unsure of it"
    )
    per_case: int = Field(ge=1, description="slices taken of each case in an epoch, count")
    augment: Augment = Field(description="random changes of a training slice")
    loss: Loss = Field(description="what is minimised")
    inference: Inference = Field(description="how a case is predicted")

    def objection_to(self, before: Experiment) -> str | None:
        if not isinstance(before, LumbarExperiment) or {before.network.kind, self.network.kind} != {"resnet50d"}:
            return None
        if before.network.stem_pool != self.network.stem_pool:
            return (
                f"its stem is pooled by the {before.network.stem_pool}, that of this experiment by the {self.network.stem_pool} "
                "(network.stem_pool)"
            )
        return None

    def objection_to_member(self, member: Experiment) -> str | None:
        assert isinstance(member, LumbarExperiment)
        return "it has no heat maps of slices" if member.network.kind == "mean_position" else None

    def objection_to_augmentation(self, augmentation: str) -> str | None:
        if augmentation == "flip_x":
            return "a network sees one sagittal slice at a time, which is the same in a patient's mirror image"
        return "levels are counted from one end, and a spine has a front; see inference.views for small changes"

    def text(self) -> str:
        """What a score's convention says of how a case was predicted."""
        if self.network.kind == "mean_position":
            return "mean position of the training cases"
        middle = "the model's own middle" if self.slices.middle == "model" else "the middle slice of the series"
        point = "strongest connected peak of its map"
        if self.inference.decoding == "sequence":
            point = f"peak chosen with those of the other levels, {self.inference.gap_mm:g} mm apart (SD {self.inference.gap_sd_mm:g} mm)"
        return (
            f"point of a level: {point}, centroid at or above half the peak's height; mean probability of {self.slices.combine} slices within {self.slices.combine_mm:g} mm of {middle}; a level is "
            f"found where it is above {self.inference.found_above:g}"
        )


EXPERIMENT = LumbarExperiment
