"""An image in the browser: grey values, the labelled and the predicted lesion, and the probability at each pixel."""

from pathlib import Path

import numpy as np

from med_assets.programs.breast_us.kept import read_probability
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.review.viewing.contract import (
    IMAGE,
    Grid,
    Kind,
    Layer,
    Level,
    Mask,
    Role,
    View,
    Window,
    centre_of,
    middle_of,
)
from med_assets.review.viewing.style import LABEL_COLOUR, PREDICTION_COLOUR

WINDOWS = (Window("full", 0, 255), Window("dark tissue", 0, 128), Window("bright tissue", 96, 255))

LABEL_BIT, PREDICTION_BIT = 0, 1

STEPS = 255
"""A probability is sent in steps of one part of these."""


def views(prepared: Path, predicted: Path | None, threshold: float) -> list[View]:
    """The image with the masks that there are; a pixel is predicted above `threshold`."""
    case = PreparedCase.open(prepared)
    shape = (1, *case.image.shape)
    probability = None if predicted is None else read_probability(predicted)
    truth = case.stated_truth
    masks = []
    if truth is not None:
        masks.append(Mask(LABEL_BIT, f"{case.label}, label", LABEL_COLOUR, Role.LABEL))
    if probability is not None:
        masks.append(Mask(PREDICTION_BIT, "lesion, prediction", PREDICTION_COLOUR, Role.PREDICTION))

    def bits() -> np.ndarray:
        found = np.zeros(shape, np.uint8)
        if truth is not None:
            found[0] |= (np.asarray(truth) != 0).astype(np.uint8) << LABEL_BIT
        if probability is not None:
            found[0] |= (probability > threshold).astype(np.uint8) << PREDICTION_BIT
        return found

    layers = [
        Layer("image", "grey value", Kind.IMAGE, "uint8", lambda: np.asarray(case.image)[None], windows=WINDOWS),
    ]
    if masks:
        layers.append(Layer("masks", "masks", Kind.MASKS, "uint8", bits, masks=tuple(masks)))
    if probability is not None:
        layers.append(
            Layer(
                "probability", "probability", Kind.SCALAR, "uint8", lambda: np.rint(probability * STEPS).astype(np.uint8)[None],
                slope=1 / STEPS, levels=(Level(threshold, f"{threshold:g}", PREDICTION_COLOUR),), shown=False,
            )
        )  # fmt: skip
    start = None if truth is None else middle_of(np.asarray(truth)[None] != 0)
    if start is None and probability is not None:
        start = middle_of(probability[None] > threshold)
    spacing_mm = None if case.pixel_mm is None else (None, *case.pixel_mm)
    note = "" if case.pixel_mm else "Nobody calibrated the pixels: there is no scale."
    return [
        View(
            "image",
            "Ultrasound image",
            Grid(shape, spacing_mm),
            tuple(layers),
            start or centre_of(shape),
            (IMAGE,),
            note=note,
        )
    ]
