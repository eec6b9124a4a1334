"""The fields of a dose-prediction experiment, beyond those of every experiment."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from med_assets.experiments.configuration import RELEASED, Experiment, MemoryPlan, PatchExperiment
from med_assets.experiments.parts import CAME_LATER, NO_EFFECT, Settings
from med_assets.programs.rt_dose.site import Site

Voxels = Annotated[tuple[int, int, int], Field(description="voxels along (z, y, x)")]

POOLINGS = 4
"""Times that every network halves its input, so that patch sides are multiples of 2 ** POOLINGS; `levels` may be more."""

SWIN_LEAST_SIDE = 32
"""The transformer halves its input five times."""

SWIN_HEADS = 12
"""Its widths are divided among heads of attention, the most of which are 24 on eight times the first width: 12 fits all its levels."""

PROBE_SIDE = 32
"""Longest side of the patch that memory is measured with, voxels: a step of it takes a second on a CPU."""


class Network(Settings):
    """What predicts the dose."""

    kind: Literal["unet", "residual", "cascade", "swin", "ddpm", "mean_dose"] = Field(
        description="unet, residual, cascade and swin (a transformer) predict the dose at once, ddpm by denoising; mean_dose is the mean of "
        "the training doses"
    )
    base_channels: int = Field(ge=8, multiple_of=8, description="channels of the first level of the network, count")
    levels: int = Field(
        default=POOLINGS,
        ge=POOLINGS,
        le=6,
        description="levels of the U-Net, each of half the side of the one before; from the fourth on they are equally wide",
        json_schema_extra=CAME_LATER,
    )
    attention: bool = Field(
        default=False,
        description="whether gates of attention weigh what the U-Net carries over between encoder and decoder",
        json_schema_extra=CAME_LATER,
    )
    beams: bool = Field(
        default=False,
        description="whether the network sees the crude plan of the case too",
        json_schema_extra=CAME_LATER,
    )
    widths: tuple[int, ...] = Field(
        default=(32, 64, 128, 256, 320), min_length=2, max_length=5, json_schema_extra=CAME_LATER,
        description="channels of each level; residual and cascade only",
    )  # fmt: skip
    blocks: tuple[int, ...] = Field(
        default=(1, 3, 4, 6, 6), json_schema_extra=CAME_LATER,
        description="residual blocks of each level on the way down, count; residual and cascade only",
    )  # fmt: skip
    stem: Literal[1, 2] = Field(
        default=1, json_schema_extra=CAME_LATER,
        description="voxels along each axis that the first convolution joins, count; residual and cascade only",
    )  # fmt: skip
    template_mm: float = Field(gt=0, description="voxel side of the mean dose, mm; mean_dose only")

    @property
    def least_side(self) -> int:
        """What the sides of a patch are multiples of, voxels."""
        if self.kind in ("residual", "cascade"):
            return self.stem * 2 ** (len(self.widths) - 1)
        if self.kind == "swin":
            return SWIN_LEAST_SIDE
        return int(2**self.levels)

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if len(self.blocks) != len(self.widths) or any(count < 1 for count in self.blocks):
            raise ValueError(
                f"blocks needs a count of at least 1 for each of {len(self.widths)} widths, found {self.blocks}"
            )
        if odd := [width for width in self.widths if width < 1 or width % 8]:
            raise ValueError(f"widths must be multiples of 8, found {odd}")
        if self.kind == "swin" and self.base_channels % SWIN_HEADS:
            raise ValueError(
                f"swin needs base_channels that are a multiple of {SWIN_HEADS}, found {self.base_channels}"
            )
        return self


class Patches(Settings):
    """Where the training patches come from."""

    size: Voxels = Field(description="patch, voxels along (z, y, x), multiples of 16")
    per_case: int = Field(ge=1, description="patches taken of each case in an epoch, count")
    per_epoch: int | None = Field(ge=1, description="patches in an epoch in place of per_case x cases, count")
    high_dose_share: float = Field(ge=0, le=1, description="share of patches whose centre gets dose, 0 to 1")
    high_dose_level: float = Field(ge=0, description="dose that counts as high, fraction of the prescription")
    within_body: bool = Field(
        default=False, json_schema_extra=CAME_LATER,
        description="place patches in the box around the body, not in the whole volume",
    )  # fmt: skip
    resident: bool = Field(
        default=False,
        description="keep all training cases on the accelerator and cut patches there",
        json_schema_extra=NO_EFFECT,
    )
    flip_x: bool = Field(description="mirror half of the patches left to right, swapping left and right structures")
    rotate_deg: float = Field(
        default=0.0, ge=0, le=45, json_schema_extra=CAME_LATER,
        description="turn each patch about the patient's long axis by an angle drawn evenly up to this to either side, degrees",
    )  # fmt: skip
    ct_offset_hu: float = Field(
        default=0.0, ge=0, json_schema_extra=CAME_LATER,
        description="add to the CT numbers of a patch a number drawn evenly up to this to either side, HU",
    )  # fmt: skip
    ct_noise_hu: float = Field(
        default=0.0, ge=0, json_schema_extra=CAME_LATER,
        description="standard deviation of the noise added to each CT number, HU",
    )  # fmt: skip

    @model_validator(mode="after")
    def _size_can_be_halved(self) -> Self:
        if any(side < 1 or side % 2**POOLINGS for side in self.size):
            raise ValueError(f"patch sides must be multiples of {2**POOLINGS}, found {self.size}")
        return self


class Losses(Settings):
    """Weights of the terms of the loss; a term of weight 0 is not computed. Doses are in units of the prescription."""

    mae: float = Field(default=0.0, ge=0, json_schema_extra=CAME_LATER, description="weight of the mean absolute error")
    mse: float = Field(ge=0, description="weight of the mean squared error")
    negative: float = Field(ge=0, description="weight of the mean of the negative part of the prediction")
    gradient: float = Field(ge=0, description="weight of the L1 error of the Sobel gradients")
    dvh: float = Field(ge=0, description="weight of the DVH term")
    dvh_curves: float = Field(
        default=0.0, ge=0, json_schema_extra=CAME_LATER,
        description="weight of the mean distance between planned and predicted DVH",
    )  # fmt: skip
    rough: float = Field(
        default=0.0, ge=0, json_schema_extra=CAME_LATER,
        description="weight of the same loss of the first network of a cascade",
    )  # fmt: skip
    body_only: bool = Field(
        default=False, json_schema_extra=CAME_LATER,
        description="whether mae and mse count in the body alone, where dose is scored",
    )  # fmt: skip
    structure: float = Field(ge=0, description="weight of the structure-weighted squared error")
    dvh_balanced: bool = Field(
        default=False,
        json_schema_extra=CAME_LATER,
        description="whether the DVH term counts too much D95 as too little, and is a mean over what is in the patch",
    )
    perceptual: float = Field(
        default=0.0, ge=0, json_schema_extra=CAME_LATER,
        description="weight of the squared error of VGG16 features of axial slices",
    )  # fmt: skip
    perceptual_stride: int = Field(
        default=8, ge=1, json_schema_extra=CAME_LATER, description="every so many axial slices is compared, count"
    )
    perceptual_weights: Literal["released/vgg16", "random"] = Field(
        default="released/vgg16", json_schema_extra=CAME_LATER,
        description="weights of VGG16: the released file, or random ones, which know nothing of images",
    )  # fmt: skip
    adversarial: float = Field(
        default=0.0, ge=0, json_schema_extra=CAME_LATER,
        description="weight of what the prediction lacks to pass for a planned dose with a discriminator trained beside it",
    )  # fmt: skip
    uncertainty: bool = Field(
        default=False, json_schema_extra=CAME_LATER,
        description="learn the weights of mse, gradient, structure and perceptual, starting at those given here",
    )  # fmt: skip
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


class Adversary(Settings):
    """The discriminator of the adversarial loss; it is trained beside the network and not published."""

    base_channels: int = Field(
        default=32, ge=8, multiple_of=8, description="channels of its first level, doubled in each, count"
    )
    levels: int = Field(default=3, ge=1, le=4, description="times that it halves its input, count")
    lr: float = Field(
        default=1e-4, gt=0, description="its first learning rate, per step; the schedule is the network's"
    )


class Ablation(Settings):
    """Which samplings the analysis of a diffusion model compares on the validation cases."""

    steps: tuple[int, ...] = Field(default=(5, 10, 50), min_length=1, description="steps of a sample, counts")
    ensembles: tuple[int, ...] = Field(default=(1, 2, 5), min_length=1, description="samples averaged, counts")


class Diffusion(Settings):
    """Denoising diffusion of the dose; ddpm only."""

    widths: tuple[int, ...] = Field(
        default=(1, 2, 4, 4), min_length=2, max_length=POOLINGS + 1,
        description="channels of each level in units of base_channels, which sets how often the network halves its input",
    )  # fmt: skip
    prediction: Literal["epsilon", "v_prediction", "flow"] = Field(
        default="epsilon",
        description="what the network estimates: the noise; the velocity, which tells the dose where there is only noise too; or the flow, "
        "noise minus dose along a straight line between them (rectified flow)",
    )
    far_noise: float = Field(
        default=1.0, ge=0, le=1, json_schema_extra=CAME_LATER,
        description="noise at 50 mm or more from all targets / that within them, linear in the distance between, 0 to 1",
    )  # fmt: skip
    bounded: bool = Field(
        default=False, json_schema_extra=CAME_LATER,
        description="hold the dose that each step of a sample estimates between 0 and 1.5 times the prescription, and no dose outside the body",
    )  # fmt: skip
    train_steps: int = Field(default=1000, ge=1, description="steps of the noise schedule (cosine), count")
    steps: int = Field(default=50, ge=1, description="steps of a sample, a divisor of train_steps, count")
    ensemble: int = Field(default=1, ge=1, description="samples averaged to a prediction, count")
    val_steps: int = Field(
        default=10, ge=1, description="steps of the one sample that validation while training takes of a case, count"
    )
    ablation: Ablation = Field(
        default=Ablation(), description="samplings that are compared", json_schema_extra=NO_EFFECT
    )

    @model_validator(mode="after")
    def _steps_divide_the_schedule(self) -> Self:
        asked = (self.steps, self.val_steps, *self.ablation.steps)
        if wrong := sorted({steps for steps in asked if self.train_steps % steps}):
            raise ValueError(f"expected steps of a sample that divide train_steps ({self.train_steps}), got {wrong}")
        return self


class Inference(Settings):
    """How a whole volume is predicted: overlapping windows, blended with a Gaussian."""

    window: Voxels = Field(description="window, voxels along (z, y, x), multiples of 16")
    overlap: float = Field(ge=0, lt=1, description="share of a window that its neighbour covers again, 0 to 1")
    sigma: float = Field(gt=0, description="standard deviation of the blending Gaussian, fraction of the window")
    flips: bool = Field(
        default=False, json_schema_extra=CAME_LATER,
        description="average with the prediction of the mirrored patient, mirrored back",
    )  # fmt: skip
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
    adversary: Adversary = Field(
        default=Adversary(), description="discriminator of the adversarial loss", json_schema_extra=CAME_LATER
    )
    diffusion: Diffusion = Field(default=Diffusion(), description="diffusion of the dose", json_schema_extra=CAME_LATER)
    inference: Inference = Field(description="prediction of whole volumes")

    @model_validator(mode="after")
    def _each_memory_plan_can_be_trained(self) -> Self:
        plans = [self, *(self.at(plan) for plan in self.schedule.fallbacks)]
        least = self.network.least_side
        for sides in (*(one.patches.size for one in plans), self.inference.window):
            if any(side % least for side in sides):
                raise ValueError(
                    f"the levels of the network take patches and windows with sides that are multiples of {least}, found {sides}"
                )
        changed = self.patches.rotate_deg or self.patches.ct_offset_hu or self.patches.ct_noise_hu
        if self.patches.resident and (changed or self.network.kind == "ddpm"):
            raise ValueError(
                "patches.resident cuts and mirrors patches on the accelerator and does nothing else: set rotate_deg, "
                "ct_offset_hu and ct_noise_hu to 0, and take no ddpm, or set patches.resident to false"
            )
        return self

    @model_validator(mode="after")
    def _a_diffusion_learns_noise(self) -> Self:
        others = ("gradient", "dvh", "structure", "perceptual", "adversarial", "uncertainty")
        if self.network.kind == "ddpm" and (wrong := [name for name in others if getattr(self.losses, name)]):
            raise ValueError(
                f"network.kind=ddpm learns the noise, with losses.mse and losses.negative; set to 0: {', '.join(wrong)}"
            )
        return self

    def objection_to(self, before: Experiment) -> str | None:
        """The weights are of channels that stand for structures by their place; tensors fit whatever they stand for."""
        assert isinstance(before, DoseExperiment)
        if self.site.structures == before.site.structures:
            return None
        return (
            f"its input channels are {', '.join(self.site.structures)} (site {self.site.name}), and those of the weights "
            f"{', '.join(before.site.structures)}"
        )

    def objection_to_member(self, member: Experiment) -> str | None:
        assert isinstance(member, DoseExperiment)
        if member.site.structures == self.site.structures:
            return None
        return f"it is of the site {member.site.name}, and this experiment of {self.site.name}"

    def objection_to_augmentation(self, augmentation: str) -> str | None:
        if augmentation != "flip_x":
            return "a patient lies on the back, and the head is no foot; flip_x is the patient in a mirror"
        if self.network.kind in ("ddpm", "mean_dose"):
            return f"network.kind {self.network.kind} does not predict the mirrored patient"
        return "inference.flips averages with the mirrored patient already" if self.inference.flips else None

    def released_files(self) -> tuple[str, ...]:
        wanted = self.losses.perceptual_weights
        return (wanted.removeprefix(RELEASED),) if self.losses.perceptual and wanted.startswith(RELEASED) else ()

    def probe(self) -> Self:
        return self.at(MemoryPlan(batch=1, patch=tuple(min(side, PROBE_SIDE) for side in self.patches.size)))


EXPERIMENT = DoseExperiment
