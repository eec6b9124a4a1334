"""The levels of the lumbar spine that are located, the anatomies that are distinguished, and what both are called in DICOM."""

from med_assets.dicom.structure_names import Vocabulary

LEVELS = ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")
"""The five discs from head to feet, in the order of the network's channels 1 to 5."""

ROI_NAMES = {"l1_l2": "L1/L2", "l2_l3": "L2/L3", "l3_l4": "L3/L4", "l4_l5": "L4/L5", "l5_s1": "L5/S1"}
"""Name of the point of each level in an RTSTRUCT."""

ANATOMIES = ("normal", "sacralised", "lumbarised")
"""What is known of the lumbosacral transition: five lumbar vertebrae, L5 that has grown to the sacrum, S1 that is free of it."""

UNKNOWN = "unknown"
"""Anatomy of a case without a reader label."""

ANATOMY_ROIS = {anatomy: f"LSTV {anatomy}" for anatomy in ANATOMIES}
"""Name of the point that states the anatomy; LSTV is a lumbosacral transitional vertebra."""

VERTEBRAE = ("L1", "L2", "L3", "L4", "L5", "S1")
"""The vertebrae whose endplates can be marked, from head to feet."""

ENDPLATES, CORNERS = ("upper", "lower"), ("front", "back")


def corner(vertebra: str, endplate: str, end: str) -> str:
    """Name of the point at one end of an endplate, such as "L5 upper front"."""
    return f"{vertebra} {endplate} {end}"


CORNER_ROIS = tuple(corner(v, plate, end) for v in VERTEBRAE for plate in ENDPLATES for end in CORNERS)
"""Names of the points at the ends of endplates in the middle sagittal slice, which only `morphometrics` reads."""


def vocabulary() -> Vocabulary:
    """Every ROI name that means something here, and so may pass de-identification."""
    return Vocabulary(frozenset((*ROI_NAMES.values(), *ANATOMY_ROIS.values(), *CORNER_ROIS)))
