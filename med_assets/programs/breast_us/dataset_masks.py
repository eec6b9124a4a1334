"""The masks of an image of a data set in folders, from the grey values of its files."""

from collections.abc import Iterator

import numpy as np

from med_assets.errors import CaseRejected
from med_assets.programs.breast_us.datasets import FolderDataset, FolderImage, Label


def organs_of(described: FolderDataset, greys: Iterator[np.ndarray]) -> np.ndarray:
    """Return the number of each pixel's organ, from 1 in the order of `organs`, uint8 (rows, columns).

    `greys` are as for `mask_and_label`. Raises CaseRejected: unclear_mask, empty_mask.
    """
    assert described.organs is not None
    numbered: np.ndarray | None = None
    for grey in greys:
        if unknown := set(np.unique(grey).tolist()) - {0, *described.organs}:
            raise CaseRejected(
                "unclear_mask",
                f"expected a mask with the values of `organs`, got {len(unknown)} other(s), such as {min(unknown)}; name each, and "
                "save masks in a format without loss",
            )
        found = np.zeros(grey.shape, np.uint8)
        for number, value in enumerate(described.organs, start=1):
            found[grey == value] = number
        if numbered is not None and ((numbered > 0) & (found > 0) & (numbered != found)).any():
            raise CaseRejected("unclear_mask", "expected masks that agree, got pixels of two organs; say which counts")
        numbered = found if numbered is None else np.maximum(numbered, found)
    if numbered is None or not numbered.any():
        raise CaseRejected("empty_mask", "expected an organ in the mask, got none; outline it, or leave the image out")
    return numbered


def mask_and_label(described: FolderDataset, image: FolderImage, greys: Iterator[np.ndarray]) -> tuple[np.ndarray, str]:
    """Return the union of the masks of an image, bool (rows, columns), and the image's label.

    `greys` are the masks' grey values, uint8 (rows, columns), all of one size. Raises CaseRejected: unclear_mask, two_labels,
    empty_mask, lesion_in_normal.
    """
    masks: list[np.ndarray] = []
    labels: set[Label] = set()
    for grey in greys:
        values = set(np.unique(grey).tolist()) - {0}
        unknown = (
            values - set(described.values) if described.values is not None else values if len(values) > 1 else set()
        )
        if unknown:
            wanted = "the values of `values`" if described.values is not None else "one value above 0"
            raise CaseRejected(
                "unclear_mask",
                f"expected a mask with {wanted}, got {len(unknown)} other(s), such as {min(unknown)}; say in `values` what each "
                "is, and save masks in a format without loss",
            )
        masks.append(grey > 0)
        labels |= {described.values[value] for value in values} if described.values is not None else set()
    mask = np.logical_or.reduce(masks)
    if len(labels) > 1:
        raise CaseRejected(
            "two_labels", f"expected lesions of one kind in an image, got {' and '.join(sorted(labels))}"
        )
    label = image.label or (labels.pop() if labels else described.lesion if mask.any() else "normal")
    if label == "normal" and mask.any():
        raise CaseRejected(
            "lesion_in_normal",
            f"expected an empty mask of a normal image, got {int(mask.sum())} pixels; which is right?",
        )
    if not mask.any() and (label != "normal" or (image.label is None and described.empty == "refused")):
        raise CaseRejected(
            "empty_mask",
            "expected a lesion in the mask, got none; outline it, or say `empty: normal` in the data set's file where an empty "
            "mask means that there is none",
        )
    return mask, label
