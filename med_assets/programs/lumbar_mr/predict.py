"""From a checkpoint folder to the maps and points of the levels of a whole case; its labels are never looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from med_assets.errors import CheckpointMismatch
from med_assets.programs.lumbar_mr import mean_position
from med_assets.programs.lumbar_mr.experiment import Inference, LumbarExperiment, Slices
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.maps import Change, map_pixel_mm
from med_assets.programs.lumbar_mr.network import build_network
from med_assets.programs.lumbar_mr.peaks import Peak, peaks, strongest
from med_assets.programs.lumbar_mr.prepared import Point, PreparedCase
from med_assets.programs.lumbar_mr.sequence import Gaps, decode
from med_assets.programs.lumbar_mr.slices import as_images
from med_assets.programs.lumbar_mr.transforms import from_input
from med_assets.programs.lumbar_mr.uncertainty import confidence
from med_assets.training.inference import inferring
from med_assets.training.tensors import SHOWN, load_weights, read_checkpoint


@dataclass(frozen=True)
class Prediction:
    """What a model says of one case.

    `heats` (level, 160, 160) are the combined probabilities; `slice_heats` (slice, level, 160, 160) those of each of
    `slices`; `view_heats` (view, level, 160, 160) the combined ones of augmented views. `points` are (s, y, x) in voxels
    of the volume by level, None where it is not found. `middle` is the slice that the others lie around.
    """

    heats: np.ndarray
    slice_heats: np.ndarray
    slices: tuple[int, ...]
    view_heats: np.ndarray
    points: Mapping[str, Point | None]
    middle: int


def probabilities(network: nn.Module, images: Tensor, batch: int) -> Tensor:
    """Return the probabilities of the levels, float32 (k, level, y, x) on the host, of images (k, 3, y, x)."""
    device = next(network.parameters()).device
    parts = [
        network(images[first : first + batch].to(device)).float().softmax(dim=1)[:, 1:].cpu()
        for first in range(0, len(images), batch)
    ]
    return torch.cat(parts)


def spread(case: PreparedCase, middle: int, slices: Slices) -> tuple[int, ...]:
    """Return the slices that are combined: `combine` of them evenly over `combine_mm` on both sides of the middle.

    Where slices are thick several fall together, and beyond the series there are none, so there may be fewer.
    """
    offsets_mm = np.linspace(-slices.combine_mm, slices.combine_mm, slices.combine) if slices.combine > 1 else [0.0]
    found = {middle + round(float(offset) / case.slice_mm) for offset in offsets_mm}
    return tuple(sorted(one for one in found if 0 <= one < case.shape[0]))


def richest(masses: np.ndarray, places_mm: np.ndarray, reach_mm: float) -> int:
    """Return the index of the slice with the most level mass within `reach_mm` of it; of equal ones the middle one."""
    near = np.abs(places_mm[:, None] - places_mm[None, :]) <= reach_mm + 1e-6
    totals = near @ masses
    best = np.flatnonzero(np.isclose(totals, totals.max(), rtol=1e-9, atol=0))
    return int(best[len(best) // 2])


def predict_case(
    network: nn.Module,
    case: PreparedCase,
    experiment: LumbarExperiment,
    *,
    views: bool,
    like: Prediction | None = None,
) -> Prediction:
    """Predict a case; `views` says whether augmented views are predicted too. The network is in evaluation mode meanwhile.

    The slices are those of `like`, the prediction of another network, where it is given.
    The middle is the experiment's `slices.middle`. The model's own: of the slices each `search_mm`, the one around which,
    within `combine_mm`, the probabilities of all levels and pixels have the largest sum.
    """
    with inferring(network):
        return _predict(network, case, experiment, views, like)


def _predict(
    network: nn.Module, case: PreparedCase, experiment: LumbarExperiment, views: bool, like: Prediction | None
) -> Prediction:
    settings, batch = experiment.slices, experiment.inference.batch
    middle = case.shape[0] // 2 if like is None else like.middle
    if settings.middle == "model" and like is None:
        looked_at, masses = _masses(network, case, experiment)
        middle = int(looked_at[richest(masses, looked_at * case.slice_mm, settings.combine_mm)])
    chosen = spread(case, middle, settings) if like is None else like.slices
    images = as_images(case.input[list(chosen)])
    single = probabilities(network, images, batch)
    heats = single.mean(dim=0).numpy()
    seen = [_view(network, images, experiment, number) for number in range(experiment.inference.views if views else 0)]
    view_heats = np.stack([heats, *seen]) if seen else np.zeros((0, *heats.shape), np.float32)
    points = level_points(heats, single.numpy(), chosen, case, experiment.inference)
    return Prediction(heats, single.numpy(), chosen, view_heats, points, middle)


def _masses(network: nn.Module, case: PreparedCase, experiment: LumbarExperiment) -> tuple[np.ndarray, np.ndarray]:
    step = max(1, round(experiment.slices.search_mm / case.slice_mm))
    looked_at = np.arange((case.shape[0] // 2) % step, case.shape[0], step)
    found = probabilities(network, as_images(case.input[looked_at]), experiment.inference.batch)
    return looked_at, found.sum(dim=(1, 2, 3)).double().numpy()


def _view(network: nn.Module, images: Tensor, experiment: LumbarExperiment, number: int) -> np.ndarray:
    """The combined maps of the slices changed together, mapped back to the image; the same for the same number."""
    settings = experiment.inference
    rng = np.random.default_rng([experiment.seed, number])
    change = Change.drawn(rng, settings.rotate_deg, settings.scale, settings.shift)
    found = probabilities(network, change.maps(images.contiguous()), settings.batch)
    view: np.ndarray = change.inverse().maps(found, "zeros").mean(dim=0).numpy()
    return view


def level_points(
    heats: np.ndarray, slice_heats: np.ndarray, slices: Sequence[int], case: PreparedCase, settings: Inference
) -> dict[str, Point | None]:
    """Return the point (s, y, x) of each level in voxels of the volume, decoded as `settings` say; None where it is not found.

    `heats` (level, y, x) are the combined maps, `slice_heats` (slice, level, y, x) those of each of `slices`. In the plane it is the
    centroid of a peak. Across it, it is the centroid of the strongest peak of the level's mass in each slice, of the mass that lies
    within the peak in the plane.
    """
    found = [peaks(heat) if confidence(heat) > settings.found_above else [] for heat in heats]
    chosen: list[Peak | None] = [own[0] if own else None for own in found]
    if settings.decoding == "sequence":
        chosen = decode(found, map_pixel_mm(case), Gaps(settings.gap_mm, settings.gap_sd_mm))
    return {
        level: None if peak is None else _place(peak, slice_heats[:, index], slices, case)
        for index, (level, peak) in enumerate(zip(LEVELS, chosen, strict=True))
    }


def _place(peak: Peak, single: np.ndarray, slices: Sequence[int], case: PreparedCase) -> Point:
    """The peak of a level as (s, y, x) in voxels of the volume; `single` are the level's maps (slice, y, x)."""
    y, x = from_input(np.array(peak.point), *case.shape[1:])
    across = strongest(single[:, peak.inside].sum(axis=1, dtype=np.float64))
    assert across is not None, "a peak of the mean of slices has mass in one of them"
    s = np.interp(across.centre[0], np.arange(len(slices)), slices)
    return (float(s), float(y), float(x))


class Predictor:
    """A loaded checkpoint: called with a prepared case, returns its Prediction."""

    def __init__(self, experiment: LumbarExperiment, weights: Mapping[str, Tensor], device: str = "cpu") -> None:
        self.experiment = experiment
        self._weights = dict(weights)
        self.network: nn.Module | None = None
        if experiment.network.kind != "mean_position":
            self.network = build_network(experiment.network)
            load_weights(self.network, weights)
            self.network.to(device)
        elif set(weights) != set(mean_position.KEYS):
            raise CheckpointMismatch(
                f"a mean position has the tensors {', '.join(mean_position.KEYS)}; found {sorted(weights)[:SHOWN]}"
            )

    def __call__(
        self, case: PreparedCase, like: Prediction | None = None, experiment: LumbarExperiment | None = None
    ) -> Prediction:
        """Predict one case, with its augmented views: on the slices of `like`, and as another `experiment` says, where they are given."""
        if self.network is not None:
            return predict_case(self.network, case, experiment or self.experiment, views=True, like=like)
        heats, points = mean_position.place(self._weights, case)
        none = np.zeros((0, *heats.shape), np.float32)
        return Prediction(heats, none, (), none, points, case.shape[0] // 2)


def level_masses(predictor: Predictor, case: PreparedCase) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the slices that a middle is looked for in, and the level mass of each; None for a model that looks for none."""
    network, experiment = predictor.network, predictor.experiment
    if network is None or experiment.slices.middle == "series":
        return None
    network.eval()
    with torch.inference_mode():
        return _masses(network, case, experiment)


def load_predictor(checkpoint_folder: Path, device: str = "cpu") -> Predictor:
    """Load `weights.pt` and `experiment.json` of a folder. Raises CheckpointMismatch unless every tensor fits."""
    experiment, weights = read_checkpoint("lumbar_mr", checkpoint_folder)
    assert isinstance(experiment, LumbarExperiment)
    return Predictor(experiment, weights, device)
