"""Which of the processes of one training this is, and which positions of an epoch each reads.

A training on several devices has one process per device. Rank 0 alone writes files; all hold the same weights.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch.utils.data import Sampler


def rank() -> int:
    """Return the number of this process, 0 for the first and for a training of one process; known before torch is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank_and_size() -> tuple[int, int]:
    """Return (rank, number of processes) of the running training."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, position) for the training patches, so that an item is a pure function of what the sampler yields.

    Every process takes each size-th position, so positions are disjoint, and a step over all processes has the items
    that one process would have had in it. The last `length % size` positions are left out, since all processes must
    take equally many steps. Lightning calls `set_epoch` before each epoch, also after a resume.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0
        self._start = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose items come next."""
        self.epoch = epoch

    def start_at(self, epoch: int, items: int) -> None:
        """Go on within an epoch after so many items of this process: an interrupted training has seen them."""
        self.epoch, self._start = epoch, (epoch, items)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, step = rank_and_size()
        # The epoch is read when the iterator starts, which a resumed loader with workers does before any `set_epoch`.
        epoch = self.epoch
        done = self._start[1] if epoch == self._start[0] else 0
        return ((epoch, first + step * number) for number in range(done, len(self)))

    def __len__(self) -> int:
        return self.length // rank_and_size()[1]


class ValidationSampler(Sampler[int]):
    """Yields the validation cases of this process; processes get equally many, so the first cases may come twice."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        first, step = rank_and_size()
        return ((first + step * number) % self.length for number in range(len(self)))

    def __len__(self) -> int:
        return math.ceil(self.length / rank_and_size()[1])


def gathered(mine: list[Any], length: int) -> list[Any]:
    """Return what all processes found for their cases of a ValidationSampler, in the order of the cases, each once."""
    step = rank_and_size()[1]
    if step == 1:
        return mine[:length]
    parts: list[Any] = [None] * step
    dist.all_gather_object(parts, mine)
    return [parts[index % step][index // step] for index in range(length)]
