"""`make demo`: synthetic prostate cases through the whole rt_dose graph, on the CPU, in minutes.

The runs are kept in the Dagster instance of the home, so that `make ui` shows them. Settings come from the Makefile;
they are written to `demo.env` beside the data, so that only a home made by the demo is ever opened with its public key.
"""

import os
import shlex
import sys
import time

from assets.run import materialize
from med_assets import batches, program
from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.files import write_text
from med_assets.settings import Workspace

PROGRAM = "rt_dose"
FIRST_SEED, CASES = 10, 16
"""Synthetic patients. With the demo's key, the draw puts nine in training, four in validation and three in test."""
ENV_FILE = "demo.env"


def _only_a_demo(ws: Workspace) -> None:
    """Refuse a home that holds anything but the demo: real patients never meet the demo's public key."""
    if ws.purpose != "demo":
        raise ConfigurationError("expected MED_ASSETS_PURPOSE=demo; run the demo with `make demo`")
    # `make ui` before the demo leaves Dagster's own folder, which holds no case.
    used = ws.home.exists() and any(path.name != "dagster" for path in ws.home.iterdir())
    if used and not (ws.home / ENV_FILE).is_file():
        raise ConfigurationError(
            f"expected an empty home or one made by the demo, got {ws.home}; set MED_ASSETS_HOME to a new folder"
        )
    names = ("MED_ASSETS_PSEUDONYM_KEY", "MED_ASSETS_PURPOSE", "MED_ASSETS_PROFILE", "MED_ASSETS_SETTLE_S")
    values = {name: os.environ[name] for name in names} | {"MED_ASSETS_HOME": str(ws.home)}
    write_text(ws.home / ENV_FILE, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items()))


def run() -> None:
    """Cases, batch, graph; each step with the seconds it took."""
    ws = Workspace.from_env()
    _only_a_demo(ws)
    landing = batches.landing_folder(ws, PROGRAM)
    if not landing.is_dir():
        program.get(PROGRAM).write_phantoms(landing, CASES, FIRST_SEED)
        print(f"wrote {CASES} synthetic cases to {landing}")
        time.sleep(ws.settle_s)
    materialize(ws, PROGRAM)
    _say_where(ws)


def _say_where(ws: Workspace) -> None:
    home, landing = os.path.relpath(ws.home), os.path.relpath(batches.landing_folder(ws, PROGRAM))
    seed = FIRST_SEED + CASES
    print(f"""
Next:
  make ui
      the graph, its checks, plots and tables in Dagster
  source {home}/demo.env && .venv/bin/med-assets cases {PROGRAM}
      every case, its split, and why some can't be used
  .venv/bin/med-assets phantoms {PROGRAM} {landing} --seed {seed}
      one more case: with `make ui` running, watch the graph follow""")


if __name__ == "__main__":
    try:
        run()
    except MedAssetsError as error:
        sys.exit(f"demo: {error}")
