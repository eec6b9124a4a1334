"""What programs that read a CT share: facts of its grid, what they are held against, and the policy for a tilted gantry."""

from typing import TYPE_CHECKING

from med_assets.dicom.tolerances import TiltPolicy
from med_assets.errors import ConfigurationError
from med_assets.preparation.expectations import between
from med_assets.program import Fact

if TYPE_CHECKING:
    from med_assets.preparation.expectations import Expectation
    from med_assets.settings import Settings

CT_FACTS = {
    "gantry_tilt_deg": Fact(
        float, "degrees", "tilt of the gantry, whose slices were shifted onto an upright grid; 0 where none was"
    ),
    "oblique_deg": Fact(float, "degrees", "angle of the grid to the axes of the patient"),
}
"""Facts of each program that reads a CT."""

OBLIQUE_DEG = 1.0
"""Angle to the patient's axes from which the audit warns of an oblique CT; up to 45 degrees it counts as axial."""


def tilt_policy(ws: "Settings", program: str) -> TiltPolicy:
    """Return what a program does with a CT of a tilted gantry, as its setting MED_ASSETS_<PROGRAM>_GANTRY_TILT says.

    Raises ConfigurationError for a value other than refuse (which it is without one) and resample.
    """
    name = f"MED_ASSETS_{program}_GANTRY_TILT".upper()
    value = ws.option(program, "gantry_tilt", "refuse")
    if value not in ("refuse", "resample"):
        raise ConfigurationError(f"expected {name} to be refuse or resample, got {value!r}")
    return TiltPolicy(value == "resample", f"{name}=resample")


def ct_expectations() -> "tuple[Expectation, ...]":
    """Return what the facts of CT_FACTS are held against: warnings."""

    return (
        between("gantry_tilt_deg", None, 0, "a CT of an upright gantry, not resampled", "warn"),
        between("oblique_deg", None, OBLIQUE_DEG, "slices along the axes of the patient", "warn"),
    )
