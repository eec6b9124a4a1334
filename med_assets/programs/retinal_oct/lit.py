"""The training tasks: an encoder pretrained by joint-embedding prediction, and a classifier, as a probe or fine-tuned."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment
from med_assets.metrics.classification import class_scores, confusion
from med_assets.programs.retinal_oct.embeddings import FOLDER, EmbeddingCache
from med_assets.programs.retinal_oct.experiment import RetinalExperiment
from med_assets.programs.retinal_oct.facts import fit_facts, logits_of_facts
from med_assets.programs.retinal_oct.jepa import Jepa
from med_assets.programs.retinal_oct.neighbours import vote
from med_assets.programs.retinal_oct.network import ClassHead, Classifier, build_encoder, embed, read_encoder
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.vocabulary import CLASSES
from med_assets.programs.retinal_oct.volumes import VolumeDataset
from med_assets.training.accelerator import inference_device
from med_assets.training.module import PatchModule, case_loader, patch_loader
from med_assets.training.ranks import gathered
from med_assets.training.task import ClosedForm, Task, TrainingCase

BALANCED = "val_balanced_accuracy"
MONITOR = "val_balanced_error"
"""1 - BALANCED on the validation cases, so that lower is better: it picks the best epoch and stops early."""

EPOCHS_LEFT = "epochs_left"
"""What picks the epoch of a pretraining: the last. A lower prediction error is no better encoder, since its target moves."""

OVERFIT = "overfit_loss"
"""Cross entropy that the head reaches on the first OVERFIT_CASES training cases, without smoothing: near 0 unless labels or
embeddings are broken."""

OVERFIT_CASES, OVERFIT_STEPS = 8, 60


class RetinalModule(PatchModule):
    """What pretraining and classification share: learning rates with a warm-up, stepped per batch."""

    def __init__(self, experiment: RetinalExperiment, network: nn.Module, n_val: int) -> None:
        super().__init__(experiment, network, n_val)
        self.experiment = experiment

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, the first with the experiment's own learning rate."""
        return [{"params": [one for one in self.network.parameters() if one.requires_grad]}]

    def configure_optimizers(self) -> Any:
        """AdamW; all rates rise for `warmup_epochs`, then follow one cosine to the end, whatever is unfrozen when."""
        optimiser, epochs = self.settings.optimiser, max(1, self.settings.schedule.epochs)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warm = self.experiment.warmup_epochs * total / epochs
        floor = optimiser.min_lr / optimiser.lr

        def rate(step: int) -> float:
            return schedule(step, warm, total, floor)

        adam = torch.optim.AdamW(self.groups(), lr=optimiser.lr, weight_decay=optimiser.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(adam, rate)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def schedule(step: int, warm: float, total: int, floor: float) -> float:
    """Factor of the learning rates at a step: a straight rise over `warm` steps, then a cosine to `floor` at `total`."""
    if step + 1 < warm:
        return (step + 1) / warm
    along = min(1.0, max(0.0, (step - warm) / max(1.0, total - warm)))
    return floor + (1 - floor) * (1 + math.cos(math.pi * along)) / 2


class PretrainModule(RetinalModule):
    """Learns an encoder without labels."""

    network: Jepa
    going_on = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the target encoder with all other weights."""
        super().on_load_checkpoint(checkpoint)
        self.going_on = True

    def on_fit_start(self) -> None:
        """Start from a target encoder equal to the context encoder, whatever weights that has by now."""
        if not self.going_on:
            self.network.follow(0.0)

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the prediction error of a batch under masks of its own."""
        return self.network.loss(batch["image"]), {}

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Step, then let the target encoder follow; the moving average is of steps, not of the pieces of a batch."""
        super().optimizer_step(*arguments, **named)
        settings = self.experiment.pretraining
        along = min(1.0, self.trainer.global_step / max(1, int(self.trainer.estimated_stepping_batches)))
        self.network.follow(settings.momentum + (settings.momentum_end - settings.momentum) * along)

    def measured(self, case: PreparedCase) -> dict[str, Any]:
        """Return the prediction error of a case, and its embedding by the context encoder."""
        volume = torch.from_numpy(case.volume())[None, None].to(self.device)
        with torch.no_grad():
            return {
                "val_loss": float(self.network.loss(volume)),
                "embedding": embed(self.network.context_encoder, volume)[0].float().cpu().numpy(),
            }

    def on_validation_epoch_end(self) -> None:
        """Average the error; the spread of embeddings over cases tells a collapsed encoder, which has none."""
        found = gathered(self._cases, self.n_val)
        spread = np.stack([one["embedding"] for one in found]).std(axis=0).mean()
        self._validated = {
            "val_loss": math.fsum(one["val_loss"] for one in found) / len(found),
            "val_embedding_std": float(spread),
            EPOCHS_LEFT: float(self.experiment.schedule.epochs - self.trainer.current_epoch - 1),
        }
        self.log_dict(self._validated, batch_size=1)


class ClassModule(RetinalModule):
    """Learns the classes. Until the encoder is unfrozen, and in a probe for ever, only the head learns."""

    network: Classifier
    class_weights: Tensor

    def __init__(
        self, experiment: RetinalExperiment, train: Sequence[PreparedCase], val: Sequence[PreparedCase]
    ) -> None:
        super().__init__(experiment, Classifier(experiment.network, experiment.head), len(val))
        self.train_cases, self.val_cases = train, val
        self.register_buffer("class_weights", weights_of(train, experiment.learning.class_weights), persistent=False)
        attention = experiment.head.attention
        cells = [math.prod(attention.cells)] if attention else []
        self.embeddings = torch.zeros(len(train), *cells, experiment.network.hidden)
        self.overfit: float | None = None
        # The memory of a step is measured before training, and must be that of the unfrozen encoder.
        self._freeze(experiment.probe_only)

    def groups(self) -> list[dict[str, Any]]:
        """The head, and unless it is a probe the encoder with a rate of its own. Both are there from the start, so that the
        schedule is one."""
        head: dict[str, Any] = {"params": list(self.network.head.parameters())}
        if self.experiment.probe_only:
            return [head]
        return [head, {"params": list(self.network.encoder.parameters()), "lr": self.experiment.learning.encoder_lr}]

    def frozen(self, epoch: int) -> bool:
        """Whether the encoder is frozen in an epoch, counted from 0."""
        unfreeze_at = self.experiment.learning.unfreeze_at
        return unfreeze_at is None or epoch < unfreeze_at

    def _freeze(self, frozen: bool) -> None:
        self.network.encoder.requires_grad_(not frozen)

    def on_fit_start(self) -> None:
        """Embed the training cases with the encoder as it begins, from the cache where they are in it; scale and try the head."""
        if self.overfit is not None and not self.experiment.probe_only:  # a fine-tuning that goes on
            return
        experiment = self.experiment
        cache = EmbeddingCache(Path(self.trainer.default_root_dir).parent / FOLDER)
        given = (experiment.embed_batch, experiment.head.attention)
        self.embeddings = cache.of(self.network.encoder, experiment.network, self.train_cases, *given)
        print(f"embeddings: {cache.computed} computed, {cache.reused} reused", flush=True)
        if self.overfit is None:
            if experiment.head.standardise:
                rows = self.embeddings.flatten(0, -2)
                self.network.head.mean.copy_(rows.mean(dim=0))
                self.network.head.std.copy_(rows.std(dim=0).clamp_min(1e-6))
            self.overfit = overfit_loss(self.network.head, self.embeddings, [case.label for case in self.train_cases])
        if experiment.probe_only:
            of_val = cache.of(self.network.encoder, experiment.network, self.val_cases, *given)
            self.val_embeddings = dict(zip((case.case_id for case in self.val_cases), of_val, strict=True))
        self.embeddings = self.embeddings.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Freeze or unfreeze by the epoch alone, also in one that a resumed training goes on with."""
        self._freeze(self.frozen(self.trainer.current_epoch))

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted cross entropy of a batch: a mean over cases, so that pieces of a batch add up."""
        if self.experiment.probe_only:
            logits = self.network.head(self.embeddings[batch["case"]])
        else:
            logits = self.network(batch["image"])
        smoothing = self.experiment.learning.label_smoothing
        loss = nn.functional.cross_entropy(logits.float(), batch["label"], reduction="none", label_smoothing=smoothing)
        return (self.class_weights[batch["label"]] * loss).mean(), {}

    def measured(self, case: PreparedCase) -> dict[str, Any]:
        """Return class and logits of a validation case."""
        with torch.no_grad():
            if self.experiment.probe_only:
                logits = self.network.head(self.val_embeddings[case.case_id].to(self.device)[None])
            else:
                logits = self.network(torch.from_numpy(case.volume())[None, None].to(self.device))
        return {"label": case.label, "logits": logits[0].double().cpu().numpy()}

    def on_validation_epoch_end(self) -> None:
        """Measure all validation cases together."""
        found = gathered(self._cases, self.n_val)
        self._validated = validation_metrics(
            [one["label"] for one in found], np.stack([one["logits"] for one in found])
        )
        if self.overfit is not None:
            self._validated[OVERFIT] = self.overfit
        self.log_dict(self._validated, batch_size=1)

    @property
    def epoch_metrics(self) -> dict[str, float]:
        """As in every program, and in fine-tuning the encoder's rate, 0 while it is frozen."""
        found = super().epoch_metrics
        if self.experiment.probe_only or self.trainer.sanity_checking:
            return found
        # As `lr`, the rate at the start of the epoch; one schedule moves both.
        share = 0.0 if self.frozen(self.trainer.current_epoch) else 1.0
        return {
            **found,
            "encoder_lr": share * self._lr * self.experiment.learning.encoder_lr / self.settings.optimiser.lr,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was measured before the first step, which can't be measured again once the encoder moved."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[OVERFIT] = self.overfit

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it over."""
        super().on_load_checkpoint(checkpoint)
        self.overfit = checkpoint[OVERFIT]


def weights_of(cases: Sequence[PreparedCase], how: str | Sequence[float]) -> Tensor:
    """Return the weight of each class: auto is n / (classes * n of the class), of a class without cases 0; none is 1; else as given."""
    if not isinstance(how, str):
        return torch.tensor(how)
    counts = np.bincount([case.label for case in cases], minlength=len(CLASSES))
    if how == "none":
        return torch.ones(len(CLASSES))
    return torch.tensor([len(cases) / (len(CLASSES) * n) if n else 0.0 for n in counts.tolist()])


def overfit_loss(head: ClassHead, embeddings: Tensor, labels: Sequence[int]) -> float:
    """Return the cross entropy that a copy of the head reaches on OVERFIT_CASES cases, the classes in turn, by L-BFGS."""
    order = sorted(range(len(labels)), key=lambda index: (labels[:index].count(labels[index]), labels[index]))
    chosen = order[:OVERFIT_CASES]
    # In evaluation mode, without dropout: it is about data, not about the recipe.
    own = copy.deepcopy(head).cpu().eval().requires_grad_(True)
    some = embeddings[chosen].detach().cpu()
    # Scaled whether or not the experiment does it, or the number of steps would depend on the encoder's units.
    rows = some.flatten(0, -2)
    own.mean.copy_(rows.mean(dim=0))
    own.std.copy_(rows.std(dim=0).clamp_min(1e-6) if len(rows) > 1 else torch.ones_like(own.std))
    truth = torch.tensor([labels[index] for index in chosen])
    optimiser = torch.optim.LBFGS(own.parameters(), max_iter=OVERFIT_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(own(some), truth)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(own(some), truth))


def validation_metrics(labels: Sequence[int], logits: np.ndarray) -> dict[str, float]:
    """Return MONITOR, BALANCED, accuracy, macro F1, the loss and how many classes are predicted, of logits (case, class)."""
    predicted = logits.argmax(axis=1)
    found = class_scores(confusion(np.asarray(labels), predicted, len(CLASSES)))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    balanced = float(found["balanced_accuracy"])
    return {
        MONITOR: 1 - balanced,
        BALANCED: balanced,
        "val_accuracy": float(found["accuracy"]),
        "val_macro_f1": float(found["macro_f1"]),
        "val_loss": float(-log_p[np.arange(len(labels)), labels].mean()),
        "val_predicted_classes": float(len(set(predicted.tolist()))),
    }


def task(experiment: Experiment, cases: Sequence[TrainingCase]) -> Task | ClosedForm:
    """Return what the training process runs, on the cases of the experiment's protocols.

    Raises ConfigurationError where a split has none, unless it is a pretraining of no epoch.
    """
    assert isinstance(experiment, RetinalExperiment)
    experiment.demand_known_inputs()
    train, val = (_cases(experiment, cases, split) for split in ("train", "val"))
    kept = {case.case_id for case in (*train, *val)}
    left_out = tuple(case.case_id for case in cases if case.case_id not in kept)
    # Volumes depend on no global random state, so the weights are the only thing this seed decides.
    torch.manual_seed(experiment.seed)
    if experiment.mode == "pretrain":
        jepa = Jepa(experiment)

        def own() -> dict[str, Tensor]:
            return {f"encoder.{name}": tensor for name, tensor in jepa.context_encoder.state_dict().items()}

        loaders: tuple[Any, Any, Any] = None, None, None
        if val:
            # Where nothing is trained, only a step's memory is measured with them.
            unlabelled = VolumeDataset(train or val, experiment)
            pretrain = PretrainModule(experiment, jepa, len(val))
            loaders = pretrain, patch_loader(unlabelled, len(unlabelled), experiment), case_loader(val)
        return Task(
            *loaders, EPOCHS_LEFT, lambda: published(jepa, experiment),
            initial_tensors=own, reads=lambda content: read_encoder(content, experiment.network), left_out=left_out,
        )  # fmt: skip
    if experiment.learning.of_facts is not None:
        return ClosedForm(MONITOR, lambda _: regression(experiment, train, val), left_out)
    if experiment.learning.neighbours is not None:
        return neighbours_task(experiment, train, val, left_out)
    dataset = VolumeDataset(train, experiment)
    loader = patch_loader(dataset, len(dataset), experiment)
    module = ClassModule(experiment, train, val)
    weights = module.network.state_dict
    return Task(
        module,
        loader,
        case_loader(val),
        MONITOR,
        lambda: dict(weights()),
        initial_tensors=lambda: {name: tensor for name, tensor in weights().items() if name.startswith("encoder.")},
        reads=lambda content: read_encoder(content, experiment.network),
        left_out=left_out,
        rests=bool(experiment.learning.unfreeze_at),
    )


def neighbours_task(
    experiment: RetinalExperiment,
    train: Sequence[PreparedCase],
    val: Sequence[PreparedCase],
    left_out: tuple[str, ...],
) -> ClosedForm:
    """Return the classification by nearest neighbours: the embeddings of the training cases, and the number of neighbours that validation picks."""
    settings, encoder = experiment.learning.neighbours, build_encoder(experiment.network)
    assert settings is not None

    def compute(job: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
        encoder.to(device)
        cache = EmbeddingCache(job.parent / FOLDER)
        bank, asked = (cache.of(encoder, experiment.network, of, experiment.embed_batch) for of in (train, val))
        print(f"embeddings: {cache.computed} computed, {cache.reused} reused", flush=True)
        weights = {f"encoder.{name}": tensor.cpu() for name, tensor in encoder.state_dict().items()}
        weights |= {
            "bank": bank,
            "labels": torch.tensor([case.label for case in train]),
            "class_weights": weights_of(train, experiment.learning.class_weights).float(),
            "mean": bank.mean(dim=0) if experiment.head.standardise else torch.zeros(bank.shape[1]),
            "std": bank.std(dim=0).clamp_min(1e-6) if experiment.head.standardise else torch.ones(bank.shape[1]),
        }
        labels, found = [case.label for case in val], list[tuple[int, dict[str, float]]]()
        for k in sorted({k for k in settings.tried if k <= len(train)}):
            logits = vote(asked, weights | {"k": torch.tensor(k)}, settings.temperature).double().numpy()
            found.append((k, validation_metrics(labels, logits)))
            print(f"k = {k}: {BALANCED} {found[-1][1][BALANCED]:.4f}", flush=True)
        if not found:
            raise ConfigurationError(
                f"expected one of learning.neighbours.tried {settings.tried} of at most the {len(train)} training cases, got none"
            )
        # Of equally good numbers the one with the lower loss, then the smaller.
        k, metrics = min(found, key=lambda one: (one[1][MONITOR], one[1]["val_loss"], one[0]))
        return weights | {"k": torch.tensor(k)}, metrics | {"neighbours": float(k)}

    device = inference_device()
    return ClosedForm(
        MONITOR,
        compute,
        left_out,
        initial_tensors=lambda: {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()},
        reads=lambda content: read_encoder(content, experiment.network),
        selects=True,
        device=device,
    )


def regression(
    experiment: RetinalExperiment, train: Sequence[PreparedCase], val: Sequence[PreparedCase]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the logistic regression on facts of the training cases, and what validation measures of it."""
    settings = experiment.learning.of_facts
    assert settings is not None
    how = weights_of(train, experiment.learning.class_weights)
    weights = fit_facts(train, settings, how)
    logits = logits_of_facts(val, settings, weights).numpy()
    return weights, validation_metrics([case.label for case in val], logits)


def published(jepa: Jepa, experiment: RetinalExperiment) -> dict[str, Tensor]:
    """Return the tensors of a pretraining that are published: without any epoch the encoder alone, the rest being random."""
    found = jepa.weights()
    if experiment.schedule.epochs:
        return found
    return {name: tensor for name, tensor in found.items() if name.startswith("context_encoder.")}


def _cases(experiment: RetinalExperiment, cases: Sequence[TrainingCase], split: str) -> list[PreparedCase]:
    opened = [PreparedCase.open(case.folder, experiment.network.size) for case in cases if case.split == split]
    found = [case for case in opened if case.protocol in experiment.protocols]
    # A head is random: that of no epoch is published only with what validation says of it.
    if not found and not (experiment.untrained and experiment.mode == "pretrain"):
        raise ConfigurationError(
            f"expected a case of split {split} with a protocol of {list(experiment.protocols)}, got none among {len(opened)}; "
            "import such scans, or change protocols"
        )
    return found
