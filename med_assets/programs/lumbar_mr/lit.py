"""The Point Net training task: cross entropy on slices, and the localisation error of whole validation cases."""

from collections.abc import Sequence
from math import fsum

import torch
from torch import Tensor

from med_assets.errors import ConfigurationError
from med_assets.experiments.configuration import Experiment
from med_assets.programs.lumbar_mr import mean_position
from med_assets.programs.lumbar_mr.experiment import Loss, LumbarExperiment
from med_assets.programs.lumbar_mr.levels import LEVELS, UNKNOWN
from med_assets.programs.lumbar_mr.network import build_network, released
from med_assets.programs.lumbar_mr.predict import Prediction, Predictor, predict_case
from med_assets.programs.lumbar_mr.prepared import PreparedCase
from med_assets.programs.lumbar_mr.score import plane_error_mm
from med_assets.programs.lumbar_mr.slices import SliceDataset
from med_assets.training.module import PatchModule, case_loader, mean_metrics, patch_loader
from med_assets.training.task import ClosedForm, Task, TrainingCase

MONITOR = "val_error_mm"
"""Mean over the validation cases of the mean over their marked levels of the distance in the sagittal plane, mm; a level that
is not found counts as NOT_FOUND_MM. Lower is better, so it picks the best epoch."""

NOT_FOUND_MM = 50.0
"""What a level that is not found counts in MONITOR, mm: more than from one level to the next. In no score."""


def pixel_loss(logits: Tensor, target: Tensor, known: Tensor, weights: Loss) -> Tensor:
    """Return the weighted mean cross entropy over pixels: logits (b, 6, y, x), target (b, y, x), known bool (b, 6).

    Nobody knows where a level is that nobody marked, so background may be it: there the probability of the background is
    that of all classes that are not known together.
    """
    log_p = logits.float().log_softmax(dim=1)
    allowed = ~known
    allowed[:, 0] = True
    background = log_p.masked_fill(~allowed[:, :, None, None], -torch.inf).logsumexp(dim=1)
    found = torch.where(target == 0, background, log_p.gather(1, target[:, None])[:, 0])
    weight = torch.where(target == 0, weights.background_weight, weights.level_weight)
    return -(weight * found).sum() / weight.sum()


def case_metrics(case: PreparedCase, prediction: Prediction) -> dict[str, float]:
    """Return MONITOR of one case, the share of its marked levels that are found, and the share found within 5 mm."""
    marked = [level for level in LEVELS if case.levels[level] is not None]
    errors = [plane_error_mm(case, level, prediction.points[level]) for level in marked]
    return {
        MONITOR: fsum(NOT_FOUND_MM if error is None else error for error in errors) / len(marked),
        "val_found": sum(error is not None for error in errors) / len(marked),
        "val_within_5mm": sum(error is not None and error <= 5 for error in errors) / len(marked),
    }


class LumbarModule(PatchModule):
    """Learns the discs of the levels on slices, and locates the levels of whole validation cases."""

    def __init__(self, experiment: LumbarExperiment, n_val: int) -> None:
        super().__init__(experiment, build_network(experiment.network), n_val)
        self.experiment = experiment

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross entropy of a batch of slices."""
        return pixel_loss(self.network(batch["image"]), batch["target"], batch["known"], self.experiment.loss), {}

    def measured(self, case: PreparedCase) -> dict[str, float]:
        """Locate the levels of one whole case."""
        return case_metrics(case, predict_case(self.network, case, self.experiment, views=False))


def task(experiment: Experiment, cases: Sequence[TrainingCase]) -> Task | ClosedForm:
    """Return what the training process runs; cases without any marked level are left out, and by `anatomy` others.

    Raises ConfigurationError when no case is left for training, or none for validation, unless it is untrained.
    """
    assert isinstance(experiment, LumbarExperiment)
    train, val = (_usable(cases, split, experiment) for split in ("train", "val"))
    kept = {case.case_id for case in (*train, *val)}
    left_out = tuple(case.case_id for case in cases if case.case_id not in kept)
    if experiment.network.kind == "mean_position":
        return ClosedForm(MONITOR, lambda _: _mean_position(experiment, train, val), left_out)
    if not val:
        network = build_network(experiment.network)
        return Task(None, None, None, MONITOR, lambda: dict(network.state_dict()), released, left_out=left_out)
    # Where nothing is trained, only a step's memory is measured with them.
    dataset = SliceDataset(train or val, experiment)
    # The slices depend on no global random state, so the weights are the only thing this seed decides.
    torch.manual_seed(experiment.seed)
    module = LumbarModule(experiment, len(val))
    loader = patch_loader(dataset, len(dataset), experiment)
    return Task(
        module,
        loader,
        case_loader(val),
        MONITOR,
        lambda: dict(module.network.state_dict()),
        released,
        left_out=left_out,
    )


def _usable(cases: Sequence[TrainingCase], split: str, experiment: LumbarExperiment) -> list[PreparedCase]:
    opened = [PreparedCase.open(case.folder) for case in cases if case.split == split]
    found = [
        case
        for case in opened
        if any(point is not None for point in case.levels.values())
        and (experiment.anatomy == "all" or case.lstv in ("normal", UNKNOWN))
    ]
    if not found and not experiment.untrained:
        condition = "" if experiment.anatomy == "all" else " and an anatomy that is not known to be transitional"
        raise ConfigurationError(
            f"expected a case of split {split} with a marked level{condition}, got none among {len(opened)}; send an RTSTRUCT with "
            f"points for one, or assign a case that has some to {split}"
        )
    return found


def _mean_position(
    experiment: LumbarExperiment, train: Sequence[PreparedCase], val: Sequence[PreparedCase]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    weights = mean_position.fit(train, experiment.target.radius_px)
    predictor = Predictor(experiment, weights)
    return weights, mean_metrics([case_metrics(case, predictor(case)) for case in val])
