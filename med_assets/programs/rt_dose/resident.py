"""Training patches cut on the accelerator, from cases that are kept there: reading and copying then cost nothing.

A case is kept as it lies on disk (16-bit CT, 8-bit distances, mask bits), which takes less than half of what the
network's input would. Patches are the same, bit for bit, as those of `patches`.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from med_assets.programs.rt_dose.patches import PatchDataset
from med_assets.programs.rt_dose.prepared import CT_RANGE_HU, SDF_SCALE


class Keys(Dataset[dict[str, Tensor]]):
    """In place of the patches of a dataset, their keys (epoch, position), which cost nothing to send."""

    def __init__(self, patches: PatchDataset) -> None:
        self.patches, self.cases, self.order = patches, patches.cases, patches.order

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {"key": torch.tensor(key)}


class Resident:
    """Cases on a device, each copied there when first asked for, and the patches cut from them."""

    def __init__(self, patches: PatchDataset) -> None:
        self.patches = patches
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._mirrored = torch.tensor(patches.mirrored)

    def batch(self, keys: Tensor) -> dict[str, Tensor]:
        """Return the patches of `keys`, int (batch, 2) of epoch and position, as a batch of `PatchDataset` on their device."""
        items = [self._cut((int(epoch), int(position)), keys.device) for epoch, position in keys.tolist()]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def _case(self, number: int, device: torch.device) -> dict[str, Tensor]:
        if number not in self._kept:
            case = self.patches.cases[number]
            arrays = {name: getattr(case, name) for name in ("ct", "dose", "body", "valid", "sdf", "beams")}
            arrays["masks"] = case.masks.astype(np.int32)
            kept = {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
            kept["constraints"] = torch.tensor(case.constraints, dtype=torch.float32, device=device)
            kept["prescription_gy"] = torch.tensor(case.prescription_gy, dtype=torch.float32, device=device)
            self._kept[number] = kept
        return self._kept[number]

    def _cut(self, key: tuple[int, int], device: torch.device) -> Mapping[str, Tensor]:
        number, corner, flip, _ = self.patches.chosen(key)
        case, size = self._case(number, device), self.patches.patches.size
        shape = case["ct"].shape
        spans = [
            slice(max(at, 0), min(at + side, extent)) for at, side, extent in zip(corner, size, shape, strict=True)
        ]
        pads = [(span.start - at, at + side - span.stop) for span, at, side in zip(spans, corner, size, strict=True)]
        around = [width for pair in reversed(pads) for width in pair]

        def part(name: str, outside: float = 0.0) -> Tensor:
            z, y, x = spans
            found = case[name][..., z, y, x]
            return functional.pad(found, around, value=outside) if any(around) else found

        low, high = CT_RANGE_HU
        air = (part("ct", low).float().clamp(low, high) - low) / (high - low)
        distances = part("sdf", SDF_SCALE).float() / SDF_SCALE
        bits = 1 << torch.arange(len(self._mirrored), device=device, dtype=torch.int32)
        masks = (part("masks")[None] & bits[:, None, None, None]) != 0
        beams = part("beams").float() if self.patches.beams else air[:0][None].expand(0, *size)
        target = part("dose")[None] / case["prescription_gy"]
        body, valid = part("body")[None], part("valid", True)[None]
        if flip:
            swap = self._mirrored.to(device)
            distances, masks = distances[swap], masks[swap]
            air, distances, masks, beams, target, body, valid = (
                one.flip(-1) for one in (air, distances, masks, beams, target, body, valid)
            )
        return {
            "input": torch.cat([air[None], distances, beams]),
            "target": target,
            "masks": masks,
            "body": body,
            "valid": valid,
            "constraints": case["constraints"],
            "prescription_gy": case["prescription_gy"],
        }
