"""What a model costs: parameters, operations, time and bytes, measured on one image on one CPU thread."""

import statistics
import time
from pathlib import Path

REPEATS = 7
"""Images that the latency is the median of, after one that warms up."""


def costs(checkpoint: Path) -> dict[str, float]:
    """Return parameters in millions, GFLOPs of one image (an addition and a multiplication are two), latency and size.

    The latency is the median on one CPU thread of this machine, so it compares models measured on the same one only.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from med_assets.programs.breast_us.predict import load_predictor

    predictor = load_predictor(checkpoint)
    network = predictor.network.eval()
    image = torch.zeros(1, 1, predictor.experiment.input_px, predictor.experiment.input_px)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            counter = FlopCounterMode(display=False)
            with counter:
                network(image)
            taken = []
            for _ in range(REPEATS):
                begun = time.perf_counter()
                network(image)
                taken.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return {
        "parameters (M)": round(sum(one.numel() for one in network.parameters()) / 1e6, 4),
        "GFLOPs": round(counter.get_total_flops() / 1e9, 4),
        "latency (ms)": round(1000 * statistics.median(taken), 2),
        "size (MB)": round((checkpoint / "weights.pt").stat().st_size / 1e6, 3),
    }
