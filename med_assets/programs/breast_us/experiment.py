"""The fields of an ultrasound experiment, beyond those of every experiment. Images are square for a network, whatever their shape."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from med_assets.experiments.configuration import RELEASED, Experiment
from med_assets.experiments.parts import CAME_LATER, Settings

Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

SUM_TOLERANCE = 1e-6
"""How far weights that must sum to 1 may be off."""


class _Pyramid(Settings):
    """A vision transformer whose blocks feed a feature pyramid with a head, as in TinyUSFM_seg."""

    dim: int = Field(ge=4, description="channels of a token, count")
    depth: int = Field(ge=1, description="blocks, count")
    heads: int = Field(ge=1, description="attention heads, count")
    patch: int = Field(ge=1, description="side of a token, pixels")
    taps: tuple[int, int, int, int] = Field(
        description="blocks, from 0, whose outputs are the four levels of the pyramid"
    )
    neck: int = Field(ge=1, description="channels of each level, count")
    head: int = Field(ge=1, description="channels of the head, count")
    drop_path: Probability = Field(description="share of paths dropped in the last block, rising from 0 in the first")
    dropout: Probability = Field(description="share of channels dropped before the last convolution")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.heads or not all(0 <= tap < self.depth for tap in self.taps):
            raise ValueError(
                f"expected dim divisible by heads and taps below depth, got {self.dim}/{self.heads}, {self.taps}"
            )
        return self


class TinyUsfm(_Pyramid):
    """ViT with a feature pyramid head, as TinyUSFM_seg: the released size has 6 179 073 parameters."""

    kind: Literal["tinyusfm"] = Field(description="the family")
    top_down: bool = Field(
        default=False,
        description="whether each level of the head is added to the next finer one, as in TinyUSFM; checkpoints that don't state it "
        "were trained without",
    )


class Usfm(_Pyramid):
    """USFM's encoder, a vision transformer as BEiT's, with the neck and the head of TinyUSFM."""

    kind: Literal["usfm"] = Field(description="the family")
    top_down: bool = Field(default=True, description="whether each level of the head is added to the next finer one")
    layer_scale: float = Field(gt=0, description="initial scale of the channels of each branch")


class Sam(Settings):
    """SAM without prompts, adapted by LoRA."""

    kind: Literal["sam"] = Field(description="the family")
    dim: int = Field(ge=4, description="channels of the encoder, count")
    depth: int = Field(ge=1, description="blocks of the encoder, count")
    heads: int = Field(ge=1, description="attention heads of the encoder, count")
    patch: int = Field(ge=1, description="side of a token, pixels")
    window: int = Field(ge=0, description="side of an attention window, tokens")
    global_blocks: tuple[int, ...] = Field(description="blocks, from 0, that attend to the whole image")
    decoder_dim: int = Field(ge=8, multiple_of=8, description="channels of embeddings and decoder, count")
    decoder_heads: int = Field(ge=1, description="attention heads of the decoder, count")
    decoder_mlp: int = Field(ge=1, description="hidden channels of the decoder, count")
    lora: Literal["none", "encoder", "both"] = Field(
        description="where queries and values are adapted: nowhere, in the encoder, or in encoder and mask decoder"
    )
    rank: int = Field(ge=1, description="rank of the adapters, count")
    multimask_outputs: int = Field(
        default=3,
        ge=1,
        description="masks of the decoder beside the first, count; 3 in SAM's release, and in SAMed as many as it has classes",
        json_schema_extra=CAME_LATER,
    )
    answer: Literal["first", "classes"] = Field(
        default="first",
        description="the lesion's logit: the first mask, or, as in SAMed with several classes, all other masks against the first, "
        "which is the background",
        json_schema_extra=CAME_LATER,
    )
    trained: tuple[str, ...] = Field(
        description="first parts of names of parameters that are trained beside the adapters; '' is all of them"
    )
    frozen: tuple[str, ...] = Field(description="of these, first parts of names that stay as they are")


class SegFormer(Settings):
    """SegFormer, sizes as in Xie et al., NeurIPS 2021."""

    kind: Literal["segformer"] = Field(description="the family")
    depths: tuple[int, int, int, int] = Field(description="blocks of each stage, count")
    dims: tuple[int, int, int, int] = Field(description="channels of each stage, count")
    decoder: int = Field(ge=1, description="channels of the decoder, count")


class Sam3(Settings):
    """SAM3 asked by text: its semantic output alone, or its instances, with the losses of its authors."""

    kind: Literal["sam3"] = Field(description="the family")
    dim: int = Field(ge=8, description="channels of the image encoder, count")
    mlp: int = Field(ge=8, description="hidden channels of the image encoder, count")
    depth: int = Field(ge=1, description="blocks of the image encoder, count")
    heads: int = Field(ge=1, description="attention heads of the image encoder, count")
    patch: int = Field(ge=1, description="side of a token, pixels")
    window: int = Field(ge=1, description="side of an attention window, tokens")
    global_blocks: tuple[int, ...] = Field(description="blocks, from 0, that attend to the whole image")
    fusion_dim: int = Field(ge=8, multiple_of=8, description="channels of fusion and mask decoder, count")
    fusion_layers: int = Field(
        ge=1, description="layers of the fusion of image and text, and of the query decoder, count"
    )
    geometry_layers: int | None = Field(
        default=None,
        ge=1,
        description="layers of the geometry encoder, count; none is as many as fusion_layers, as in checkpoints that don't state it",
    )
    of: Literal["official", "transformers"] = Field(
        default="transformers",
        description="whose function it is: official appends the geometry encoder's own token to the text, as the released model "
        "always does; transformers leaves it out, as checkpoints that don't state it",
    )
    answer: Literal["semantic", "instances"] = Field(
        default="semantic",
        description="what is trained and used: the semantic output by `loss`, or boxes, scores and masks of queries by the losses of SAM3 itself, "
        "the lesion being the union of the instances",
        json_schema_extra=CAME_LATER,
    )
    text_dim: int = Field(ge=8, description="channels of the text encoder, count")
    text_layers: int = Field(ge=1, description="layers of the text encoder, count")
    text_heads: int = Field(ge=1, description="attention heads of the text encoder, count")
    vocabulary: int = Field(ge=2, description="tokens of the text encoder, count; the last two begin and end a text")
    prompt: tuple[int, ...] = Field(min_length=1, description="tokens of the text between them")
    frozen: tuple[str, ...] = Field(description="first parts of names of parameters that stay as they are")

    @model_validator(mode="after")
    def _knows_the_prompt(self) -> Self:
        if not all(0 <= token < self.vocabulary - 2 for token in self.prompt):
            raise ValueError(f"expected tokens of the prompt below {self.vocabulary - 2}, got {self.prompt}")
        return self


Network = Annotated[TinyUsfm | Usfm | Sam | SegFormer | Sam3, Field(discriminator="kind")]


class Part(Settings):
    """Which part of the training patients: a fixed, disjoint division, so that a teacher and its student see different ones."""

    take: Literal["all", "adaptation", "distillation"] = Field(description="all patients, or one of the two parts")
    share: float = Field(gt=0, lt=1, description="share of patients in the adaptation part, 0 to 1")
    salt: str = Field(description="changes who is in which part")


class Data(Settings):
    """Which training images are used; validation images are never left out."""

    datasets: tuple[str, ...] = Field(description="data sets to train on, such as [BUSI, BUSBRA]; none is all of them")
    normals: bool = Field(description="whether images without a lesion are trained on")
    balance: bool = Field(description="whether each data set is drawn equally often, however large it is")
    per_epoch: int | None = Field(ge=1, description="images in an epoch; none is as many as there are, count")
    part: Part = Field(description="which part of the patients")


class Augment(Settings):
    """Random changes of an image. Sizes are in the network's image, grey values 0 to 1."""

    flip: Probability = Field(description="probability of a mirror image, left to right")
    warp: Probability = Field(description="probability of a rotation, zoom and shift")
    rotate_deg: float = Field(ge=0, le=180, description="largest rotation, degrees")
    zoom: float = Field(ge=0, lt=1, description="largest zoom in or out, share")
    shift: float = Field(ge=0, lt=1, description="largest shift along each axis, share of the side")
    grey: Probability = Field(description="probability of other contrast, brightness and gamma")
    contrast: float = Field(ge=0, lt=1, description="largest change of contrast and of gamma, share")
    brightness: float = Field(ge=0, lt=1, description="largest change of brightness")
    noise: float = Field(ge=0, description="largest standard deviation of Gaussian noise, drawn with `grey`")


class Loss(Settings):
    """A mix of binary cross entropy and Dice, over a whole batch."""

    bce: Weight = Field(description="weight of the cross entropy")
    dice: Weight = Field(description="weight of 1 - Dice with squared denominator")
    pos_weight: float = Field(gt=0, description="weight of lesion pixels in the cross entropy")
    smooth: float = Field(gt=0, description="added above and below in the Dice, pixels")

    @model_validator(mode="after")
    def _is_a_mix(self) -> Self:
        if abs(self.bce + self.dice - 1) > SUM_TOLERANCE:
            raise ValueError(
                f"expected bce + dice = 1, got {self.bce:g} + {self.dice:g}; scale them, and optimiser.lr instead"
            )
        return self


class Rates(Settings):
    """How the learning rate goes: one factor for all parameters, times a fixed one for each group, so that neither undoes the other."""

    schedule: Literal["poly", "plateau", "constant"] = Field(
        description="poly: to min_lr by a power; plateau: smaller when validation gains nothing; constant"
    )
    warmup: float = Field(ge=0, description="epochs of linear rise at the start")
    power: float = Field(gt=0, description="exponent of poly")
    factor: float = Field(gt=0, lt=1, description="plateau: what the rate is multiplied by")
    patience: int = Field(ge=1, description="plateau: validations without gain before that, count")
    layer_decay: float = Field(
        gt=0, le=1, description="factor from each layer of an encoder to the one below it; 1 is none"
    )
    groups: dict[str, float] = Field(
        description="factor by first part of a parameter's name; the longest that fits counts"
    )


class Distil(Settings):
    """What the student is asked to match of its teacher: weights that sum to 1, so that the rate keeps its meaning."""

    task: Weight = Field(description="weight of the loss against the true mask")
    logit: Weight = Field(description="weight of the divergence (KL) from the teacher's softened prediction")
    feature: Weight = Field(description="weight of the distance to the teacher's image embeddings, through an adapter")
    attention: Weight = Field(
        description="weight of the distance between both attention maps, mean square over channels"
    )
    temperature: float = Field(
        gt=0, description="both logits are divided by it; the divergence is multiplied by its square"
    )

    @model_validator(mode="after")
    def _is_a_mix(self) -> Self:
        total = math.fsum((self.task, self.logit, self.feature, self.attention))
        if abs(total - 1) > SUM_TOLERANCE:
            raise ValueError(f"expected task + logit + feature + attention = 1, got {total:g}; divide each by it")
        if self.task == 1:
            raise ValueError(
                "expected something to learn from the teacher, got task = 1; train the student alone instead"
            )
        if not 0.5 <= self.temperature <= 20:
            raise ValueError(f"expected a temperature of 0.5 to 20, got {self.temperature:g}")
        return self


ClassName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9 _-]{0,31}$")]


class BreastExperiment(Experiment):
    """An ultrasound experiment."""

    network: Network = Field(description="what segments")
    classes: tuple[ClassName, ...] = Field(
        default=(),
        description="classes that pixels are distinguished by beside the background, such as [benign, malignant]; none is one class, the lesion. "
        "Images whose pixels are not known by these classes are left out of the training and have no score by class",
        json_schema_extra=CAME_LATER,
    )
    input_px: int = Field(ge=16, description="side of the network's image, pixels")
    scaling: Literal["unit", "half", "imagenet"] = Field(
        description="grey values: 0 to 1, -1 to 1, or by ImageNet's mean and standard deviation"
    )
    data: Data = Field(description="training images")
    augment: Augment = Field(description="random changes of an image")
    loss: Loss = Field(description="what is minimised")
    rates: Rates = Field(description="how the learning rate goes")
    distil: Distil | None = Field(default=None, description="what is learnt from the teacher; none without one")
    adapters: str | None = Field(
        default=None,
        description="released/NAME, an adapter-only file of SAMed that is put onto the released SAM in initial; none without one",
        json_schema_extra=CAME_LATER,
    )

    @model_validator(mode="after")
    def _adapts_a_release(self) -> Self:
        if self.adapters is None:
            return self
        released = self.adapters.startswith(RELEASED) and self.initial.startswith(RELEASED)
        if not (released and isinstance(self.network, Sam) and self.network.lora != "none"):
            raise ValueError(
                "expected adapters released/NAME of a SAM with network.lora, and its initial released/NAME too"
            )
        return self

    def released_files(self) -> tuple[str, ...]:
        return (self.adapters.removeprefix(RELEASED),) if self.adapters else ()

    @model_validator(mode="after")
    def _tells_classes_apart(self) -> Self:
        if not self.classes:
            return self
        if len(set(self.classes)) < len(self.classes) or {"normal", "background", "lesion"} & set(self.classes):
            raise ValueError(
                f"expected each class once, and none of normal, background and lesion, got {', '.join(self.classes)}"
            )
        if isinstance(self.network, Sam3):
            raise ValueError(
                "expected a network with an output for each class, got sam3, whose text asks for one thing"
            )
        if isinstance(self.network, Sam) and (self.network.answer, self.network.multimask_outputs) != (
            "classes",
            len(self.classes),
        ):
            raise ValueError(
                f"expected network.answer classes and network.multimask_outputs {len(self.classes)}, a mask for each class beside the "
                f"background, got {self.network.answer} and {self.network.multimask_outputs}"
            )
        return self

    @property
    def outputs(self) -> int:
        """Logits of a pixel: one for the lesion, or one for the background and one for each class."""
        return 1 + len(self.classes) if self.classes else 1

    @model_validator(mode="after")
    def _has_a_teacher_to_learn_from(self) -> Self:
        if (self.teacher is None) != (self.distil is None):
            raise ValueError("expected teacher and distil together, got one without the other")
        if self.distil is not None and isinstance(self.network, Sam3) and self.network.answer == "instances":
            raise ValueError(
                "expected a student that learns pixels, got sam3 with network.answer instances, which can teach one"
            )
        return self

    @model_validator(mode="after")
    def _tokens_fit_the_image(self) -> Self:
        if not isinstance(self.network, SegFormer) and self.input_px % self.network.patch:
            raise ValueError(
                f"expected input_px to be a multiple of the patch {self.network.patch}, got {self.input_px}"
            )
        return self

    def fixed_steps(self) -> bool:
        return self.data.per_epoch is not None

    def objection_to_member(self, member: Experiment) -> str | None:
        assert isinstance(member, BreastExperiment)
        return None if member.classes == self.classes else f"its classes are {member.classes}, not {self.classes}"

    def objection_to_augmentation(self, augmentation: str) -> str | None:
        return (
            None if augmentation == "flip_x" else "the probe is above, and shadows lie below; flip_x mirrors the image"
        )

    def objection_to(self, before: Experiment) -> str | None:
        if not isinstance(before, BreastExperiment) or before.network.kind != self.network.kind:
            return None
        if before.scaling != self.scaling:
            return f"its images were scaled as {before.scaling}, and those of this experiment are as {self.scaling}"
        if before.classes != self.classes:
            of, wanted = (", ".join(one.classes) or "lesion alone" for one in (before, self))
            return f"its classes are {of}, and those of this experiment are {wanted}"
        mine, other = self.network, before.network
        if isinstance(mine, TinyUsfm) and isinstance(other, TinyUsfm) and mine.top_down != other.top_down:
            return "one of the two adds the levels of its head top-down, and the other does not (network.top_down)"
        if isinstance(mine, Sam3) and isinstance(other, Sam3) and mine.of != other.of:
            return f"its SAM3 is the one of {other.of}, and that of this experiment of {mine.of} (network.of)"
        if isinstance(mine, Sam3) and isinstance(other, Sam3) and mine.answer != other.answer:
            return f"its SAM3 answers by {other.answer}, and that of this experiment by {mine.answer} (network.answer)"
        return None


EXPERIMENT = BreastExperiment
