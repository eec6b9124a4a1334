"""The kinds of object that are read here: modalities, and their SOP classes. It imports no pydicom, which training does without."""

from dataclasses import dataclass

STORAGE = "1.2.840.10008.5.1.4.1.1."
"""Prefix of the UIDs of the standard's storage classes."""

LABELMAP_STORAGE = f"{STORAGE}66.7"
"""Label Map Segmentation Storage, which pydicom 3.0 does not know yet."""


@dataclass(frozen=True)
class Kind:
    """The objects of a modality: their SOP classes, and what they are."""

    classes: tuple[str, ...]
    derived: bool = False
    """Whether they are about other objects, as a segmentation is, and no images of a patient."""
    stacked: bool = False
    """Whether their series are stacks of slices."""
    pixels: bool = True
    text_in_pixels: bool = False
    """Whether devices write names into the pixels: such objects need BurnedInAnnotation NO, not just its absence."""


MODALITIES = {
    # Single-frame, enhanced, and legacy converted enhanced.
    "CT": Kind((f"{STORAGE}2", f"{STORAGE}2.1", f"{STORAGE}2.2"), stacked=True),
    "MR": Kind((f"{STORAGE}4", f"{STORAGE}4.1", f"{STORAGE}4.4"), stacked=True),
    "US": Kind((f"{STORAGE}6.1", f"{STORAGE}3.1"), text_in_pixels=True),  # single and several frames
    "OPT": Kind((f"{STORAGE}77.1.5.4",)),
    "SEG": Kind((f"{STORAGE}66.4", LABELMAP_STORAGE), derived=True),
    "RTSTRUCT": Kind((f"{STORAGE}481.3",), derived=True, pixels=False),
    "RTPLAN": Kind((f"{STORAGE}481.5",), derived=True, pixels=False),
    "RTDOSE": Kind((f"{STORAGE}481.2",), derived=True),
}
"""Modalities that are read, and that the confidentiality profile was written for. Others (reports, screenshots, documents) can say
anything anywhere."""


def _classes(*kinds: Kind) -> frozenset[str]:
    return frozenset(one for kind in kinds for one in kind.classes)


SUPPORTED_CLASSES = _classes(*MODALITIES.values())
"""SOP classes that are read."""

PIXEL_CLASSES = _classes(*(kind for kind in MODALITIES.values() if kind.pixels))
"""Those of objects that have pixels."""

USUALLY_BURNED_IN = _classes(*(kind for kind in MODALITIES.values() if kind.text_in_pixels))
"""Those of objects whose devices write names into the pixels."""
