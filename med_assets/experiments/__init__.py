"""Configurations of experiments and policies, from `conf/`."""
