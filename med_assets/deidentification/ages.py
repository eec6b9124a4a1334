"""The ages that may stay in a de-identified object; without pydicom, which the training process does not have."""

AGE_CAP = 90
"""Years from which on all ages are one category, as 45 CFR 164.514(b)(2)(i)(C) (HIPAA, Safe Harbor) demands of what is not to identify anyone."""


def ages(least: int) -> frozenset[str]:
    """The ages that may stay, as DICOM writes them, from `least` years to AGE_CAP, which stands for all ages from there on."""
    return frozenset(f"{years:03d}Y" for years in range(least, AGE_CAP + 1))
