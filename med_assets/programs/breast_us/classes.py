"""What a pixel is for a network of several classes, and what such a network says of the pixels and the lesion of an image.

Classes are numbered as the experiment names them, from 1; 0 is the background. A network of one class gives one logit a pixel and has
no background of its own, see `of_lesion`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from med_assets.programs.breast_us.vocabulary import NORMAL

if TYPE_CHECKING:
    from med_assets.programs.breast_us.prepared import PreparedCase

KINDS_OF_LESION = ("benign", "malignant")
"""Classes of a lesion, which an image's label states for all of its mask."""


def why_not(case: "PreparedCase", classes: Sequence[str]) -> str:
    """Return why an image's pixels are not known by these classes; empty where they are. No classes are those of lesion or none.

    The pixels of an image of organs are known by the organs that its data set names, all or some of them. Raises NoTruth for a case to
    predict.
    """
    if case.organs:
        missing = [name for name in classes if name not in case.organs]
        if classes and not missing:
            return ""
        return f"its mask names organs, not {', '.join(missing) or 'lesions'}"
    if not classes or case.label in classes or (case.label == NORMAL and set(classes) <= set(KINDS_OF_LESION)):
        return ""
    return f"its label is {case.label}, none of {', '.join(classes)}"


def truth_of(case: "PreparedCase", classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return the class of each pixel, uint8 (rows, columns), of an image for which `why_not` has nothing to say."""
    mask = np.asarray(case.truth, np.uint8)
    if case.organs:
        numbers = [0, *(1 + classes.index(name) if name in classes else 0 for name in case.organs)]
        return np.array(numbers, np.uint8)[mask]
    return mask * np.uint8(classes.index(case.label) + 1) if case.label in classes else mask


def are_organs(classes: Sequence[str]) -> bool:
    """Whether classes are organs, which an image may have several of, and not kinds of a lesion."""
    return bool(classes) and not set(classes) <= set(KINDS_OF_LESION)


def of_lesion(chances: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the probability of any class but the background (rows, columns), of probabilities (1 + classes, rows, columns)."""
    return np.asarray(chances[1:].sum(axis=0))


def class_map(chances: NDArray[np.floating], threshold: float) -> NDArray[np.uint8]:
    """Return the class called at each pixel, uint8 (rows, columns), of probabilities (1 + classes, rows, columns).

    The most probable class where the probability of any is above the threshold, else 0.
    """
    called = 1 + chances[1:].argmax(axis=0)
    return np.where(of_lesion(chances) > threshold, called, 0).astype(np.uint8)


def class_of_image(chances: NDArray[np.floating], threshold: float) -> NDArray[np.float64]:
    """Return the probability of each class of an image's lesion, (classes,), of probabilities (1 + classes, rows, columns).

    The mean probability of each class inside the predicted lesion, where that of any class is above the threshold, divided by their
    sum. Where none is predicted, the mean over the image.
    """
    inside = of_lesion(chances) > threshold
    means = (
        chances[1:]
        .reshape(len(chances) - 1, -1)[:, inside.ravel() if inside.any() else slice(None)]
        .mean(axis=1, dtype=np.float64)
    )
    return np.asarray(means / max(float(means.sum()), np.finfo(np.float64).tiny))
