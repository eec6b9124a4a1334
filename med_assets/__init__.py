"""The imaging library of med_assets: everything the asset graph does, usable without Dagster."""

__version__ = "0.2.0"
