"""What a volume is as the network sees it."""

SIZES = {"full": (64, 384, 384), "small": (32, 96, 96), "demo": (16, 64, 64)}
"""Frames, depth and width of the network's input by profile; full is that of the released encoders."""

TOLERANCE = 1e-3
"""Largest distance of a network input's mean from 0 and of its standard deviation from 1."""
