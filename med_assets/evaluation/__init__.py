"""Predicting, scoring and aggregating; cross-validation, learning curves and analyses."""
