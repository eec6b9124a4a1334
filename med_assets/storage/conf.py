"""Where the configuration of programs lies."""

import os
from pathlib import Path

from med_assets.errors import ConfigurationError
from med_assets.storage.names import PROGRAM

CONF_VARIABLE = "MED_ASSETS_CONF"
"""Environment variable that names another folder than the `conf` beside the package."""

BESIDE_THE_PACKAGE = Path(__file__).resolve().parents[2] / "conf"


def conf_folder(program: str, conf_root: Path | None = None) -> Path:
    """Return a program's folder of configuration: under `conf_root`, MED_ASSETS_CONF, or `conf` beside the package."""
    root = conf_root or Path(os.environ.get(CONF_VARIABLE) or BESIDE_THE_PACKAGE)
    folder = root / PROGRAM.check(program)
    if not folder.is_dir():
        raise ConfigurationError(f"no folder conf/{program}; set {CONF_VARIABLE} to the folder that holds it")
    return folder.resolve()
