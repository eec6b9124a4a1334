"""A lesion outlined by SAM from a person's points and box on one image."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from med_assets.errors import ConfigurationError
from med_assets.evaluation.prompts import Prompts
from med_assets.programs.breast_us.evaluation_settings import EvaluationSettings
from med_assets.programs.breast_us.export import write_prediction
from med_assets.programs.breast_us.images import as_image
from med_assets.programs.breast_us.kept import PROBABILITY
from med_assets.programs.breast_us.predict import Predictor, load_predictor, on_pixels
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.sam import SamSeg
from med_assets.training.accelerator import inference_device
from med_assets.training.inference import inferring


def outline(checkpoint: Path, raw: Path, prepared: Path, prompts: Prompts, out: Path, model: str) -> list[Path]:
    """Write the files of a prediction, made under the prompts; returns their paths. Raises ConfigurationError as `probability_of`."""
    probability = probability_of(load_predictor(checkpoint, inference_device()), PreparedCase.open(prepared), prompts)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / PROBABILITY, probability)
        return write_prediction(raw, prepared, Path(folder), out, model, EvaluationSettings().threshold)


def probability_of(predictor: Predictor, case: PreparedCase, prompts: Prompts) -> np.ndarray:
    """Return the probability of a lesion at each pixel of the tissue, float32 (rows, columns).

    Raises ConfigurationError for a network that takes no prompts, and for points outside of the tissue.
    """
    network = predictor.network.net
    if not isinstance(network, SamSeg) or network.answer != "first":
        raise ConfigurationError(
            "expected a model of SAM whose answer is its first mask, which points and boxes can prompt, got another; name one with "
            "--model, such as sam_lora"
        )
    image, side = np.asarray(case.image), predictor.experiment.input_px
    points = _on_network([*prompts.inside, *prompts.outside], case, side)
    inside = torch.tensor([1] * len(prompts.inside) + [0] * len(prompts.outside))
    box = None if prompts.box is None else _on_network([prompts.box[:2], prompts.box[2:]], case, side).flatten()
    with inferring(predictor.network) as device:
        colours = predictor.network.scaled(as_image(image, side)[None].to(device))
        given = points.to(device), inside.to(device), None if box is None else box.to(device)
        logits = network.prompted(colours, *given)[0].float().cpu()
    return np.asarray(1 / (1 + np.exp(-on_pixels(logits, image.shape).astype(np.float64))), np.float32)


def _on_network(places: list[tuple[int, int]], case: PreparedCase, side: int) -> torch.Tensor:
    """Columns and rows of the whole picture as x and y of the network's image (n, 2), pixel middles on pixel middles."""
    (rows, columns), (top, left) = np.asarray(case.image).shape, case.corner
    found = []
    for column, row in places:
        x, y = column - left, row - top
        if not (0 <= x < columns and 0 <= y < rows):
            raise ConfigurationError(
                f"expected points within the tissue, columns {left} to {left + columns - 1} and rows {top} to {top + rows - 1} of the "
                f"picture, got {column},{row}"
            )
        found.append([(x + 0.5) * side / columns - 0.5, (y + 0.5) * side / rows - 0.5])
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 2)
