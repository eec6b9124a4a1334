"""Mutated files of every program through the real intake."""
