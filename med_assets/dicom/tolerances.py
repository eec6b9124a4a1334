"""How far slices and their directions may be from what they should be, and what to do with a tilted gantry."""

from dataclasses import dataclass

DIRECTION_TOLERANCE = 1e-3
"""How far orientation cosines may be from unit length and from a right angle."""

DUPLICATE_DISTANCE_MM = 0.01
"""Slices nearer than this are two pictures of one place."""

SPACING_TOLERANCE_MM = 0.12
"""How far a slice may lie from its place in an even stack: positions written with one decimal move it by 0.05, and a gap by 0.1."""

SLICE_NOISE_MM = 2 * SPACING_TOLERANCE_MM
"""How far a frame of a label may lie from its slice of the image: each may be off its even stack by the tolerance of the readers."""


@dataclass(frozen=True)
class TiltPolicy:
    """What to do with a CT of a tilted gantry: refuse it, or shift its slices onto an upright grid. `setting` says so in a message."""

    resample: bool = False
    setting: str = "the program's option gantry_tilt"
