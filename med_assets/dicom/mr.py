"""What the headers of an MR image say of its weighting."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from med_assets.dicom.discover import Instance

T2_ECHO_MS, T2_REPETITION_MS = 60.0, 1500.0
"""Least echo and repetition time of a series that counts as T2-weighted where its description does not say."""


def t2_weighted(one: "Instance") -> bool:
    """Whether echo and repetition time are those of a T2-weighted spin echo."""
    return (one.echo_time_ms or 0) >= T2_ECHO_MS and (one.repetition_time_ms or 0) >= T2_REPETITION_MS
