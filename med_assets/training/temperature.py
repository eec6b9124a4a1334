"""The temperature of the GPUs that a training may use, read beside it every few seconds."""

import shutil
import sys
import threading

import torch

from med_assets.training.nvidia_smi import NoAnswer, ask

EVERY_S = 10.0
"""Time between two readings, s. One costs some tenths of a second of another core."""


class Thermometer:
    """Reads the hottest of the visible GPUs in a thread of its own; `hottest_c` is None until, and where, it is not known."""

    def __init__(self, program: str | None = None, every_s: float = EVERY_S) -> None:
        self.program, self.every_s = program or shutil.which("nvidia-smi"), every_s
        self.hottest_c: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read, name="thermometer", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End reading; a reading that is under way is not waited for."""
        self._end.set()

    def _read(self) -> None:
        known = True
        while True:
            try:
                self.hottest_c = hottest(ask(self.program, "uuid,temperature.gpu", header=False), visible())
                known = True
            except (NoAnswer, ValueError) as error:
                self.hottest_c = None
                if known:
                    print(
                        f"The temperature of the GPU is not known: {error}. No pause is made for it.", file=sys.stderr
                    )
                known = False
            if self._end.wait(self.every_s):
                return


def visible() -> frozenset[str]:
    """The UUIDs of the GPUs that this process may use, as nvidia-smi writes them."""
    devices = range(torch.cuda.device_count())
    return frozenset(f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in devices)


def hottest(lines: list[str], used: frozenset[str]) -> float:
    """Return the highest temperature of the used GPUs, deg C, from lines "UUID, temperature"; of all where none of them is named.

    Raises ValueError where no line holds a temperature.
    """
    read = [line.rpartition(",") for line in lines]
    found = {uuid.strip(): float(text) for uuid, _, text in read if text.strip().isdigit()}
    if not found:
        raise ValueError("expected lines of a UUID and a temperature, got none")
    return max((value for uuid, value in found.items() if uuid in used), default=max(found.values()))
