"""The fields of an experiment of retinal_oct, beyond those of every experiment."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from med_assets.errors import CheckpointMismatch
from med_assets.experiments.configuration import Experiment
from med_assets.experiments.parts import CAME_LATER, NO_EFFECT, Settings
from med_assets.programs.retinal_oct.vocabulary import CLASSES

INPUT_SCALING = "after_resize"
"""How volumes are prepared: see transforms.network_input."""

Extent = Annotated[tuple[int, int, int], Field(description="frames, depth and width, count")]


class Network(Settings):
    """The encoder: a vision transformer over blocks of a volume."""

    size: Extent = Field(description="input volume, voxels along frames, depth and width")
    patch: Extent = Field(description="one token, voxels along the same axes")
    hidden: int = Field(ge=8, description="width of a token, count")
    mlp: int = Field(ge=8, description="inner width of the MLP of a block, count")
    layers: int = Field(ge=1, description="transformer blocks, count")
    heads: int = Field(ge=1, description="attention heads, count; a divisor of hidden")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if any(n % step for n, step in zip(self.size, self.patch, strict=True)) or self.hidden % self.heads:
            raise ValueError(
                f"patch {self.patch} must divide size {self.size}, and heads {self.heads} hidden {self.hidden}"
            )
        return self

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along frames, depth and width."""
        frames, depth, width = (n // step for n, step in zip(self.size, self.patch, strict=True))
        return frames, depth, width


class Masks(Settings):
    """The blocks of tokens that are predicted from the rest."""

    blocks: int = Field(ge=1, description="blocks drawn for each step, count; they may overlap")
    low: float = Field(gt=0, lt=1, description="least side of a block, fraction of that axis")
    high: float = Field(gt=0, lt=1, description="greatest side of a block, fraction of that axis")
    least_context: float = Field(gt=0, lt=1, description="least share of all tokens that stays visible, 0 to 1")

    @model_validator(mode="after")
    def _leaves_a_context(self) -> Self:
        if self.low > self.high or self.high**3 > 1 - self.least_context:
            raise ValueError("low must not be above high, and one block of high**3 must leave least_context")
        return self


class Pretraining(Settings):
    """Joint-embedding prediction: the target encoder's output for hidden blocks, predicted from the visible rest."""

    masks: Masks = Field(description="what is hidden")
    predictor_hidden: int = Field(ge=8, description="width of the predictor, count")
    predictor_layers: int = Field(ge=1, description="transformer blocks of the predictor, count")
    predictor_heads: int = Field(ge=1, description="attention heads of the predictor, count")
    momentum: float = Field(gt=0, lt=1, description="decay per step of the target encoder's average, at the start")
    momentum_end: float = Field(gt=0, le=1, description="the same at the end; in between it rises linearly")


class Attention(Settings):
    """One learned query that attends to cells of a volume, in place of the mean over all tokens."""

    cells: Extent = Field(
        description="cells along frames, depth and width, each the mean of the tokens in it; divisors of the grid of tokens, count"
    )
    heads: int = Field(ge=1, description="attention heads, count; a divisor of network.hidden")


class Neighbours(Settings):
    """Classes by the votes of the training cases whose embeddings are most alike; nothing is trained by steps."""

    tried: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1,
        description="numbers of neighbours of which validation picks one, count; those above the number of training cases are left out",
    )
    temperature: float = Field(
        gt=0, description="a neighbour votes with exp(cosine similarity / temperature), times the weight of its class"
    )


class OfFacts(Settings):
    """Logistic regression on what is known of a case beside its volume: what a model of volumes must be better than."""

    facts: tuple[Literal["age", "sex", "site", "laterality"], ...] = Field(
        min_length=1, description="facts that it is given; one that a case does not state is a value of its own"
    )
    penalty: float = Field(
        gt=0, description="half the weight of the squared coefficients beside the mean loss of a case, dimensionless"
    )


class Head(Settings):
    """What makes classes of the tokens."""

    hidden: int = Field(ge=0, description="width of a hidden layer with GELU, count; 0 is a linear head")
    dropout: float = Field(ge=0, lt=1, description="dropout before each linear layer, 0 to 1")
    standardise: bool = Field(
        description="scale each feature to mean 0 and standard deviation 1 of the training cases, by the encoder as it begins"
    )
    attention: Attention | None = Field(
        default=None,
        description="pool the tokens by attention, an attentive probe; null takes their mean",
        json_schema_extra=CAME_LATER,
    )


class Learning(Settings):
    """How classes are learned."""

    unfreeze_at: int | None = Field(
        ge=0,
        description="epochs (from 0) that the encoder stays frozen; null is for ever, a probe on embeddings computed once",
    )
    encoder_lr: float = Field(
        gt=0, description="first learning rate of the encoder, per step; optimiser.lr is the head's"
    )
    label_smoothing: float = Field(ge=0, lt=1, description="share of the target spread over all classes, 0 to 1")
    class_weights: Literal["auto", "none"] | tuple[Annotated[float, Field(ge=0)], ...] = Field(
        description="auto weighs a case by n / (classes * cases of its class) of the training cases; or the weight of each class, a list"
    )

    neighbours: Neighbours | None = Field(
        default=None,
        description="classify by nearest neighbours on the frozen encoder in place of a head; null trains the head",
        json_schema_extra=CAME_LATER,
    )

    of_facts: OfFacts | None = Field(
        default=None,
        description="classify by logistic regression on facts of the case, without its volume; null learns from volumes",
        json_schema_extra=CAME_LATER,
    )

    @model_validator(mode="after")
    def _weighs_each_class(self) -> Self:
        given = self.class_weights
        if not isinstance(given, str) and (len(given) != len(CLASSES) or not any(given)):
            raise ValueError(
                f"expected auto, none, or a weight for each of {len(CLASSES)} classes ({', '.join(CLASSES)}) not all 0, got {list(given)}"
            )
        return self


class Augment(Settings):
    """Random changes of a training volume. Flips run along the width alone: depth has a front, and so have frames."""

    flip: float = Field(ge=0, le=1, description="probability of a flip along the width, 0 to 1")
    brightness: float = Field(ge=0, description="largest addition, standard deviations of the volume")
    contrast: float = Field(ge=0, lt=1, description="largest change of contrast, fraction")
    crop: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="largest share of each axis that a random crop leaves out, fraction; what it keeps is interpolated to the whole size and "
        "given mean 0 and standard deviation 1 again; 0 is the whole volume",
        json_schema_extra=CAME_LATER,
    )


class RetinalExperiment(Experiment):
    """An experiment on OCT volumes: an encoder pretrained without labels, or a classifier on one."""

    input_scaling: Literal["before_resize", "after_resize"] = Field(
        default="before_resize",
        description="where a volume is given mean 0 and standard deviation 1 last; checkpoints that don't state it saw inputs of "
        "standard deviation .7 to .96, before_resize, and are read as records alone",
    )
    mode: Literal["pretrain", "classify"] = Field(
        description="what is learned: an encoder without labels, or the classes"
    )
    network: Network = Field(description="the encoder")
    protocols: tuple[str, ...] = Field(
        min_length=1, description="protocols of the volumes that are trained on and scored"
    )
    pretraining: Pretraining = Field(description="how an encoder is pretrained")
    head: Head = Field(description="what makes classes of a volume")
    learning: Learning = Field(description="how classes are learned")
    augment: Augment = Field(description="random changes of a training volume")
    warmup_epochs: float = Field(ge=0, description="epochs in which the learning rates rise linearly from 0, count")
    embed_batch: int = Field(
        ge=1, description="volumes that are embedded at a time, count", json_schema_extra=NO_EFFECT
    )

    @model_validator(mode="after")
    def _pools_what_is_there(self) -> Self:
        attention = self.head.attention
        if attention is not None:
            if any(n % cells for n, cells in zip(self.network.grid, attention.cells, strict=True)):
                raise ValueError(
                    f"expected head.attention.cells that divide the grid of tokens {self.network.grid}, got {attention.cells}"
                )
            if self.network.hidden % attention.heads:
                raise ValueError(
                    f"expected head.attention.heads that divide network.hidden {self.network.hidden}, got {attention.heads}"
                )
        if self.learning.of_facts is not None and (self.learning.neighbours is not None or self.initial != "random"):
            raise ValueError(
                "expected learning.neighbours of null and initial of random with learning.of_facts, which looks at no volume"
            )
        if self.learning.neighbours is not None and (attention is not None or self.learning.unfreeze_at is not None):
            raise ValueError(
                "expected learning.unfreeze_at and head.attention of null with learning.neighbours, which trains nothing"
            )
        return self

    @property
    def probe_only(self) -> bool:
        """Whether the encoder is never trained, so that volumes are embedded once."""
        return self.mode == "classify" and self.learning.unfreeze_at is None

    def learns(self) -> bool:
        """Whether what is published depends on the learning cases: a head does without any epoch, by what it standardises with."""
        return self.mode == "classify" or super().learns()

    def objection_to(self, before: Experiment) -> str | None:
        if isinstance(before, RetinalExperiment) and before.input_scaling != self.input_scaling:
            return (
                f"its inputs were scaled {before.input_scaling}, and those of this experiment are {self.input_scaling}"
            )
        return None

    def objection_to_member(self, member: Experiment) -> str | None:
        assert isinstance(member, RetinalExperiment)
        if member.mode != "classify":
            return "it predicts no class"
        return (
            None
            if member.protocols == self.protocols
            else f"it is of the protocols {list(member.protocols)}, not {list(self.protocols)}"
        )

    def objection_to_augmentation(self, augmentation: str) -> str | None:
        if self.learning.of_facts is not None:
            return "learning.of_facts looks at no volume, and at the side of the eye"
        if augmentation == "flip_x":
            return None
        return "depth has a front, and so have frames; flip_x mirrors the width, as training does"

    def demand_known_inputs(self) -> None:
        """Raise CheckpointMismatch for a checkpoint of inputs that are no longer prepared."""
        if self.input_scaling != INPUT_SCALING:
            raise CheckpointMismatch(
                f"expected an experiment with input_scaling {INPUT_SCALING}, as volumes are prepared, got {self.input_scaling}: it saw "
                "volumes of another standard deviation; train it again"
            )


EXPERIMENT = RetinalExperiment
