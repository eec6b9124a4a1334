"""The OCT encoder of the released size, 64 x 384 x 384 voxels. `python -m bench.oct_encoder [VOLUMES] [flash|explicit]`

Embeds volumes one at a time (no gradients), on a GPU in bfloat16 where there is one, else on the CPU in 32 bits (a minute each
and about 2 GiB). On a GPU fine-tuning steps of one volume are timed too. Then what a hit in the embedding cache costs. With
`explicit` attention is computed the plain way, which takes 4 GB for each layer. Data are random.
"""

import dataclasses
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.common import show
from med_assets.experiments.configuration import load
from med_assets.programs.retinal_oct.embeddings import EmbeddingCache
from med_assets.programs.retinal_oct.experiment import RetinalExperiment
from med_assets.programs.retinal_oct.network import Classifier, embed
from med_assets.programs.retinal_oct.prepared import PreparedCase


def peak_gib(device: torch.device) -> float:
    """Most memory so far, GiB: of the GPU, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated() / 2**30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def embedding(network: Classifier, volume: torch.Tensor, count: int, device: torch.device) -> tuple[object, ...]:
    """One row: seconds of the first volume, volumes per second of the others, memory before and at the peak."""
    before, seconds = peak_gib(device), []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for _ in range(count):
            started = time.perf_counter()
            found = embed(network.encoder, volume.to(device)).float().cpu()
            seconds.append(time.perf_counter() - started)
    assert torch.isfinite(found).all()
    later = (count - 1) / sum(seconds[1:]) if count > 1 else 1 / seconds[0]
    return ("embedding", seconds[0], later, before, peak_gib(device))


def finetuning(network: Classifier, volume: torch.Tensor, count: int, device: torch.device) -> tuple[object, ...]:
    """One row of the same for training steps of one volume, the whole encoder learning."""
    before, seconds = peak_gib(device), []
    adam = torch.optim.AdamW(network.parameters(), lr=1e-5)
    target = torch.zeros(1, dtype=torch.long, device=device)
    for _ in range(count):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(network(volume.to(device)).float(), target)
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        float(loss.detach())
        seconds.append(time.perf_counter() - started)
    return ("fine-tuning step", seconds[0], (count - 1) / sum(seconds[1:]), before, peak_gib(device))


def cache_hit(
    network: Classifier, experiment: RetinalExperiment, volume: torch.Tensor, folder: Path
) -> tuple[object, ...]:
    """One row: seconds of a hit for one volume; the hash of the encoder is most of it, once for all volumes of a call."""
    image = volume[0, 0].numpy()
    blank = np.zeros((1, 1), np.uint8)
    case = PreparedCase("bench", 0, experiment.protocols[0], "UW", "R", (0.1, 0.004, 0.01), True, image, blank)
    cases = [dataclasses.replace(case, image=image + np.float32(index)) for index in range(4)]
    cache = EmbeddingCache(folder)
    for row in cases:
        cache._write(folder / _place(network, experiment, row), np.zeros(experiment.network.hidden, np.float32))
    times = []
    for some in (cases[:1], cases):
        started = time.perf_counter()
        cache.of(network.encoder, experiment.network, some, 1)
        times.append(time.perf_counter() - started)
    assert cache.computed == 0
    return ("hit in the cache", times[0], 3 / (times[1] - times[0]), "-", "-")


def _place(network: Classifier, experiment: RetinalExperiment, case: PreparedCase) -> str:
    from med_assets.programs.retinal_oct.embeddings import encoder_key, image_key

    key = encoder_key(experiment.network, network.encoder.state_dict())
    return f"{key[:32]}/{image_key(case)[:32]}.npy"


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20 if gpu else 1
    experiment = load("retinal_oct", "scratch", profile="full")
    assert isinstance(experiment, RetinalExperiment)
    torch.manual_seed(0)
    network = Classifier(experiment.network, experiment.head).eval()
    if "explicit" in sys.argv:
        for block in network.encoder.blocks:  # type: ignore[union-attr]  # MONAI's list, which nn.Module hides
            block.attn.use_flash_attention = False
    volume = torch.randn(1, 1, *experiment.network.size)
    with tempfile.TemporaryDirectory() as folder:
        hit = cache_hit(network, experiment, volume, Path(folder))
    network.to(device)
    rows = [embedding(network, volume, count, device)]
    if gpu:
        rows.append(finetuning(network.train(), volume, count, device))
    rows.append(hit)
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    n = sum(parameter.numel() for parameter in network.encoder.parameters())
    title = f"OCT encoder of {n:,} parameters at {' x '.join(map(str, experiment.network.size))} on {where}, torch {torch.__version__}"
    show(title, ("what", "first, s", "then, volumes/s", "memory before, GiB", "peak, GiB"), rows)


if __name__ == "__main__":
    main()
