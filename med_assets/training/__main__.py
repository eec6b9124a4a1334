"""`python -m med_assets.training JOB [--resume auto|must|never]`."""

import argparse
import sys
from pathlib import Path

from med_assets.errors import MedAssetsError, OutOfMemory
from med_assets.training.job import RESUME, run

FAILED = 1
OUT_OF_MEMORY = 3


def main(arguments: list[str] | None = None) -> int:
    """Train one job folder; returns 0 when done, 3 when out of memory, 1 when it can't be run as given."""
    parser = argparse.ArgumentParser(
        prog="python -m med_assets.training", description="Train one job folder to its end."
    )
    parser.add_argument("job", type=Path, help="folder with program, experiment.json and cases.json")
    parser.add_argument(
        "--resume", choices=RESUME, default="auto", help="continue from checkpoints/last.ckpt (default: if there)"
    )
    options = parser.parse_args(arguments)
    try:
        result = run(options.job, options.resume)
    except OutOfMemory as error:
        print(f"out of memory: {error}", file=sys.stderr)
        return OUT_OF_MEMORY
    except MedAssetsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    print(f"{result['status']}: best {result['monitor']} {result['best_value']:.4f} at epoch {result['best_epoch']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
