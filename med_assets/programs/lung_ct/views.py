"""A case in the browser: the CT on the scanner's grid, the labelled and the predicted target, and the other classes."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

from med_assets.programs.lung_ct.kept import read_prediction
from med_assets.programs.lung_ct.prepared import PreparedCase
from med_assets.review.viewing.contract import Grid, Kind, Layer, Mask, Role, View, Window, centre_of, middle_of
from med_assets.review.viewing.style import LABEL_COLOUR, PREDICTION_COLOUR, structure_colour

WINDOWS = (
    Window("lung", -1350, 150),
    Window("mediastinum", -160, 240),
    Window("bone", -450, 1050),
)
"""Level -600 and width 1500 HU, 40 and 400, 300 and 1500."""

LABEL_BIT, PREDICTION_BIT, FIRST_CLASS_BIT, BITS = 0, 1, 2, 8
"""Bits of the layer of masks; classes after the sixth share no bit, and are not displayed."""


def views(prepared: Path, predicted: Path | None) -> list[View]:
    """The CT with the masks that there are."""
    case = PreparedCase.open(prepared)
    truth = case.truths.get("truth")
    prediction = None if predicted is None else cache(partial(read_prediction, predicted, case.ct.shape))
    others = [number for number in sorted(case.names) if number != case.target_id] if truth is not None else []
    drawn, left_out = others[: BITS - FIRST_CLASS_BIT], others[BITS - FIRST_CLASS_BIT :]
    masks = []
    if truth is not None:
        masks.append(Mask(LABEL_BIT, f"{case.target}, label", LABEL_COLOUR, Role.LABEL))
    if prediction is not None:
        masks.append(Mask(PREDICTION_BIT, f"{case.target}, prediction", PREDICTION_COLOUR, Role.PREDICTION))
    masks += [
        Mask(
            FIRST_CLASS_BIT + place,
            case.names[number],
            structure_colour(place + 1),
            Role.STRUCTURE,
            filled=False,
            shown=False,
        )
        for place, number in enumerate(drawn)
    ]

    def bits(part: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        found = np.zeros(part(case.ct).shape, np.uint8)
        if truth is not None:
            classes = part(truth)
            found |= (classes == case.target_id).view(np.uint8)
            for place, number in enumerate(drawn):
                found |= (classes == number).view(np.uint8) << np.uint8(FIRST_CLASS_BIT + place)
        if prediction is not None:
            found |= part(prediction()).view(np.uint8) << np.uint8(PREDICTION_BIT)
        return found

    ct = Layer("ct", "CT", Kind.IMAGE, "int16", lambda: case.ct, unit="HU", windows=WINDOWS)
    layers = [ct]
    if masks:
        layers.append(
            Layer(
                "masks", "masks", Kind.MASKS, "uint8", lambda: bits(lambda whole: whole), masks=tuple(masks),
                cut=lambda axis, index: bits(lambda whole: whole.take(index, axis)),
            )
        )  # fmt: skip
    start = None if truth is None else middle_of(truth == case.target_id)
    if start is None and prediction is not None:
        start = middle_of(prediction())
    grid = Grid.of(case.geometry)
    note = f"Not displayed: {', '.join(case.names[number] for number in left_out)}." if left_out else ""
    return [View("ct", "CT", grid, tuple(layers), start or centre_of(grid.shape), note=note)]
