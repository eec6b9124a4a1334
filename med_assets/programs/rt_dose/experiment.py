"""The fields of a dose-prediction experiment, beyond those of every experiment."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from med_assets.experiments import NO_EFFECT, PatchExperiment, Rung, Settings
from med_assets.programs.rt_dose.site import Site

Voxels = Annotated[tuple[int, int, int], Field(description="voxels along (z, y, x)")]

POOLINGS = 4
"""Times that the network halves its input, so that patch sides are multiples of 2 ** POOLINGS."""

PROBE_SIDE = 32
"""Longest side of the patch that memory is measured with, voxels: a step of it takes a second on a CPU."""


class Network(Settings):
    """What predicts the dose."""

    kind: Literal["unet", "residual", "cascade", "mean_dose"] = Field(
        description="unet, residual and cascade are trained; mean_dose is the mean of the training doses"
    )
    beams: bool = Field(description="whether the network sees the crude plan of the case too")
    widths: tuple[int, ...] = Field(
        min_length=2, max_length=5, description="channels of each level; residual and cascade only"
    )
    blocks: tuple[int, ...] = Field(description="residual blocks of each level on the way down, count")
    stem: Literal[1, 2] = Field(description="voxels along each axis that the first convolution joins, count")
    base_channels: int = Field(ge=8, multiple_of=8, description="channels of the first level of the U-Net, count")
    template_mm: float = Field(gt=0, description="voxel side of the mean dose, mm; mean_dose only")

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if len(self.blocks) != len(self.widths) or any(count < 1 for count in self.blocks):
            raise ValueError(f"blocks needs a count of at least 1 for each of {len(self.widths)} widths, found {self.blocks}")
        if odd := [width for width in self.widths if width < 1 or width % 8]:
            raise ValueError(f"widths must be multiples of 8, found {odd}")
        return self


class Patches(Settings):
    """Where the training patches come from."""

    size: Voxels = Field(description="patch, voxels along (z, y, x), multiples of 16")
    per_case: int = Field(ge=1, description="patches taken of each case in an epoch, count")
    per_epoch: int | None = Field(ge=1, description="patches in an epoch in place of per_case x cases, count")
    high_dose_share: float = Field(ge=0, le=1, description="share of patches whose centre gets dose, 0 to 1")
    high_dose_level: float = Field(ge=0, description="dose that counts as high, fraction of the prescription")
    within_body: bool = Field(description="place patches in the box around the body, not in the whole volume")
    resident: bool = Field(
        description="keep all training cases on the accelerator and cut patches there", json_schema_extra=NO_EFFECT
    )
    flip_x: bool = Field(description="mirror half of the patches left to right, swapping left and right structures")

    @model_validator(mode="after")
    def _size_can_be_halved(self) -> Self:
        if any(side < 1 or side % 2**POOLINGS for side in self.size):
            raise ValueError(f"patch sides must be multiples of {2**POOLINGS}, found {self.size}")
        return self


class Losses(Settings):
    """Weights of the terms of the loss; a term of weight 0 is not computed. Doses are in units of the prescription."""

    mae: float = Field(ge=0, description="weight of the mean absolute error")
    mse: float = Field(ge=0, description="weight of the mean squared error")
    negative: float = Field(ge=0, description="weight of the mean of the negative part of the prediction")
    gradient: float = Field(ge=0, description="weight of the L1 error of the Sobel gradients")
    dvh: float = Field(ge=0, description="weight of the DVH term")
    dvh_curves: float = Field(ge=0, description="weight of the mean distance between planned and predicted DVH")
    rough: float = Field(ge=0, description="weight of the same loss of the first network of a cascade")
    body_only: bool = Field(description="whether errors count in the body alone, where dose is scored")
    structure: float = Field(ge=0, description="weight of the structure-weighted squared error")
    dvh_temperature: float = Field(gt=0, description="width of the soft step of Vx, fraction of the prescription")
    dvh_min_voxels: int = Field(ge=1, description="structures with fewer voxels in the patch are left out, count")
    target_weight: float = Field(ge=0, description="weight of voxels in a target, of the structure-weighted error")
    boundary_weight: float = Field(ge=0, description="weight of voxels near the surface of an organ at risk")
    background_weight: float = Field(ge=0, description="weight of all other voxels")
    boundary_mm: float = Field(gt=0, le=50, description="distance from the surface that counts as near, mm")

    @model_validator(mode="after")
    def _something_is_minimised(self) -> Self:
        if self.mae + self.mse + self.structure == 0:
            raise ValueError("mae, mse or structure must be above 0: the other terms alone do not determine the dose")
        return self


class Inference(Settings):
    """How a whole volume is predicted: overlapping windows, blended with a Gaussian."""

    window: Voxels = Field(description="window, voxels along (z, y, x), multiples of 16")
    overlap: float = Field(ge=0, lt=1, description="share of a window that its neighbour covers again, 0 to 1")
    sigma: float = Field(gt=0, description="standard deviation of the blending Gaussian, fraction of the window")
    flips: bool = Field(description="average with the prediction of the mirrored patient, mirrored back")
    batch: int = Field(ge=1, description="windows at a time, count", json_schema_extra=NO_EFFECT)

    @model_validator(mode="after")
    def _window_can_be_halved(self) -> Self:
        if any(side < 1 or side % 2**POOLINGS for side in self.window):
            raise ValueError(f"window sides must be multiples of {2**POOLINGS}, found {self.window}")
        return self


class DoseExperiment(PatchExperiment):
    """A dose-prediction experiment, with its whole site."""

    site: Site = Field(description="treatment site: structures, levels and limits")
    network: Network = Field(description="what predicts the dose")
    patches: Patches = Field(description="training patches")
    losses: Losses = Field(description="weights of the loss")
    inference: Inference = Field(description="prediction of whole volumes")

    @model_validator(mode="after")
    def _each_rung_can_be_trained(self) -> Self:
        for rung in self.schedule.ladder:
            self.at(rung)
        return self

    def probe(self) -> Self:
        return self.at(Rung(batch=1, patch=tuple(min(side, PROBE_SIDE) for side in self.patches.size)))


EXPERIMENT = DoseExperiment
