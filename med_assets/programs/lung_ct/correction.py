"""What a model predicts of one case, corrected by a person's points: the point branch of VISTA3D.

The prediction by class prompt comes first. Then each point, in its order, changes it around itself: MONAI's inferer asks for the
segmentation of the points in the window around the new one, and only the parts of the difference that hold a point are changed.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from med_assets.errors import ConfigurationError
from med_assets.evaluation.points import Point, Points, Space, Uncorrected, nifti_mm
from med_assets.experiments.configuration import RELEASED, from_json
from med_assets.programs.lung_ct.experiment import Inference, LungExperiment
from med_assets.programs.lung_ct.labels import name_of, table
from med_assets.programs.lung_ct.predict import Predictor
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.programs.lung_ct.transforms import forward, to_scanner_grid
from med_assets.settings import Settings
from med_assets.storage.files import read_json, write_json
from med_assets.training.inference import inferring

RECORD = "correction.json"
"""File that says what was corrected."""

POINTS, TUMOUR_POINTS = (0, 1), (2, 3)
"""Labels of points outside and inside of a class, and of one that is like a tumour."""


@dataclass(frozen=True)
class Corrected:
    """A corrected mask, bool (z, y, x) on the scanner's grid, its class, and the volumes before and after, ml."""

    mask: np.ndarray
    class_id: int
    before_ml: float
    after_ml: float

    @property
    def name(self) -> str:
        """The name of the class."""
        return name_of(self.class_id)


def demand_trained_points(ws: Settings, checkpoint: str) -> None:
    """Raise ConfigurationError unless the point branch of a checkpoint was trained: by itself, or in the weights that it started from."""
    key: str | None = checkpoint
    while key is not None:
        if key.startswith(RELEASED):
            return
        if not ws.store.has(key):
            raise ConfigurationError(
                f"expected the initial weights {key} in the store, which say whether points were trained; found nothing"
            )
        folder = ws.store.fetch(key)
        experiment = from_json("lung_ct", (folder / "experiment.json").read_text(encoding="utf-8"))
        assert isinstance(experiment, LungExperiment)
        if experiment.schedule.epochs and experiment.prompts.drop_points < 1:
            return
        key = read_json(folder / "provenance.json").get("initial")
    raise ConfigurationError(
        "expected a model whose point branch was trained, got one of class prompts alone from random weights; start from the released weights, "
        "or train with prompts.drop_points below 1"
    )


def correct(
    predictor: Predictor, case: PreparedCase, class_id: int, points: Sequence[Point], space: Space
) -> Corrected:
    """Predict a class of a case and correct it by points. Raises ConfigurationError for no points and for one outside of the image."""
    if not points:
        raise ConfigurationError("expected at least one point, got none")
    image = forward(np.asarray(case.ct), case.geometry, case.spacing_mm)
    voxels = [_voxel(image, nifti_mm(point, space, case.geometry), point) for point in points]
    before = predictor(image[0].numpy(), [class_id])
    after = corrected_logits(
        predictor.network, image[0].numpy(), before[0], class_id, voxels, points, predictor.experiment.inference
    )
    masks = [to_scanner_grid((logits > 0).astype(np.uint8), image).astype(bool) for logits in (before[0], after)]
    voxel_ml = float(np.prod(case.geometry.spacing_mm)) / 1000
    before_ml, after_ml = (int(np.count_nonzero(mask)) * voxel_ml for mask in masks)
    return Corrected(masks[1], class_id, before_ml, after_ml)


def _voxel(image: Any, world_mm: np.ndarray, point: Point) -> tuple[int, int, int]:
    """The voxel (x, y, z) of the network's grid that a point is in, one voxel from its border at least, as MONAI needs it."""
    affine, shape = np.asarray(image.affine, dtype=float), image.shape[1:]
    index = np.rint(np.linalg.solve(affine[:3, :3], world_mm - affine[:3, 3])).astype(int)
    if not all(-1 <= one <= side for one, side in zip(index, shape, strict=True)):
        raise ConfigurationError(
            f"expected a point in or near the patient, got {','.join(f'{n:g}' for n in point.position)}, which lies in the air that preparation "
            "cuts off"
        )
    x, y, z = (int(min(max(one, 1), side - 2)) for one, side in zip(index, shape, strict=True))
    return x, y, z


def corrected_logits(
    network: nn.Module,
    image: np.ndarray,
    logits: np.ndarray,
    class_id: int,
    voxels: Sequence[tuple[int, int, int]],
    points: Sequence[Point],
    inference: Inference,
) -> np.ndarray:
    """Return logits (x, y, z) of a class after each of the points has changed them, in their order; `voxels` are those of `points`."""
    from monai.apps.vista3d.inferer import point_based_window_inferer

    outside, inside = TUMOUR_POINTS if class_id in table().tumour_like else POINTS
    volume = torch.from_numpy(np.array(image, dtype=np.float32))[None, None]
    previous = torch.from_numpy(np.array(logits, dtype=np.float32))[None, None]
    with inferring(network) as device, warnings.catch_warnings():
        # Of MONAI and torch, about a mesh that torch will one day write otherwise, and about metadata that MONAI's inferer sets twice.
        warnings.filterwarnings("ignore", message="torch.meshgrid")
        warnings.filterwarnings("ignore", message="Setting affine, but the applied meta contains an affine")
        for last in range(len(points)):
            coordinates = torch.tensor([voxels[: last + 1]], dtype=torch.float32, device=device)
            labels = torch.tensor(
                [[inside if point.inside else outside for point in points[: last + 1]]], device=device
            )
            found = point_based_window_inferer(
                volume.to(device), inference.window, network, coordinates, labels,
                prompt_class=torch.tensor([[class_id]], device=device), prev_mask=previous.to(device), point_start=last, transpose=True,
            )  # fmt: skip
            previous = found.cpu().as_subclass(torch.Tensor).float()
    return np.ascontiguousarray(previous[0, 0].numpy())


def write_corrected(ws: Settings, prediction: Uncorrected, points: Points, class_id: int, out: Path) -> list[Path]:
    """Write the corrected mask as `export.write_mask` does, and `correction.json`: the points, the class and the volumes before and after."""
    from med_assets.programs.lung_ct.export import write_mask
    from med_assets.programs.lung_ct.predict import load_predictor
    from med_assets.training.accelerator import inference_device

    demand_trained_points(ws, prediction.checkpoint)
    case = PreparedCase.open(prediction.prepared)
    predictor = load_predictor(ws.store.fetch(prediction.checkpoint), inference_device())
    found = correct(predictor, case, class_id, points.points, points.space)
    paths = write_mask(prediction.raw, case, found.mask, found.name, out, prediction.checkpoint)
    record = {
        "case_id": case.case_id,
        "checkpoint": prediction.checkpoint,
        "class": class_id,
        "name": found.name,
        "space": str(points.space),
        "points": [asdict(point) for point in points.points],
        "volume_before_ml": found.before_ml,
        "volume_after_ml": found.after_ml,
    }
    write_json(out / RECORD, record)
    return [*paths, out / RECORD]
