"""What a series is as the network sees it."""

INPUT_PIXELS = 160
"""Rows and columns of a slice as the network sees it."""

PERCENTILES = (0.1, 99.9)
"""Intensities of the whole series that become 0 and 255."""
