"""stub for now"""
from dataclasses import dataclass
@dataclass(frozen=True)
class Plan:
    accelerator: str = "cpu"
    devices: "int | list[int]" = 1
    processes: int = 1
    accumulate: int = 1
