"""Training steps of the released architecture, vista3d132 at full size. `python -m bench.vista3d_step [SIDE] [STEPS]`

Steps of the full profile of target_anatomy from random weights, on a GPU in 16-bit mixed precision (patches of 128
voxels a side unless given), else on the CPU in 32 bits (64 a side: a minute and 4 GiB). Data are synthetic.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.common import show
from med_assets.experiments.configuration import load
from med_assets.programs.lung_ct.lit import task
from med_assets.training.task import TrainingCase
from tests.med_assets.programs.lung_ct.prepared_builders import write_prepared


def steps(folder: Path, side: int, count: int, device: torch.device) -> list[tuple[object, ...]]:
    """One row: parameters, those trained, the first step and the mean of the others in s, peak memory in GiB, losses."""
    cases = [
        TrainingCase(name, name, split, write_prepared(folder / name, seed, training_mm=(2.0, 2.0, 2.0)))
        for seed, (name, split) in enumerate((("a", "train"), ("b", "val")))
    ]
    experiment = load("lung_ct", "target_anatomy", [f"patches.size=[{side},{side},{side}]", "runtime.workers=0"])
    built = task(experiment, cases)
    module = built.module.to(device)
    trained = [parameter for parameter in module.network.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=experiment.optimiser.lr, weight_decay=experiment.optimiser.weight_decay)
    gpu = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=gpu)
    seconds, losses = [], []
    for index in range(count):
        item = built.train.dataset[(index, 0)]
        batch = {name: tensor[None].to(device) for name, tensor in item.items()}
        started = time.perf_counter()
        with torch.autocast(device.type, torch.float16, enabled=gpu):
            loss, _ = module.losses(batch)
        scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        adam.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
    peak = (
        torch.cuda.max_memory_allocated() / 2**30 if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    everything = sum(parameter.numel() for parameter in module.network.parameters())
    later = sum(seconds[1:]) / (count - 1) if count > 1 else "-"
    losses_text = ", ".join(f"{loss:.3f}" for loss in losses[:: max(1, count // 4)])
    return [(f"{side}^3", everything, sum(p.numel() for p in trained), seconds[0], later, peak, losses_text)]


def main() -> None:
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    given = [int(argument) for argument in sys.argv[1:3]]
    side, count = (*given, *((128, 20) if gpu else (64, 1))[len(given) :])
    with tempfile.TemporaryDirectory() as folder:
        rows = steps(Path(folder), side, count, device)
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    header = ("patch", "parameters", "trained", "first step, s", "later steps, s", "peak, GiB", "losses")
    show(f"One training step of vista3d132 on {where}, torch {torch.__version__}", header, rows)


if __name__ == "__main__":
    main()
