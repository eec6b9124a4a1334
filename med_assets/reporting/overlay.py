"""A label over the image that it was sent with, for people to see why they do not fit."""

import tempfile
from pathlib import Path

import numpy as np

from med_assets.dicom.geometry import SAME_AXES_TOLERANCE, Geometry, Planes
from med_assets.reporting.style import COLOURS, INK, figure

WINDOW_HU = (-1000, 400)


def label_mismatch(ct_hu: np.ndarray, image: Geometry, mask: np.ndarray, label: Planes) -> bytes:
    """Return a PNG of the CT with a label (plane, row, column) on another grid where its own positions put it, axial and coronal.

    The label is filled, the edge of its grid dashed. Where both grids have one shape and orientation a third panel lays voxel on voxel:
    if that fits, the positions are wrong and not the label.
    """
    height = image.to_index(label.to_points(_centre(mask)))[0]
    z, y, _ = (int(np.clip(np.rint(value), 0, size - 1)) for value, size in zip(height, image.shape, strict=True))
    nz, ny, nx = image.shape
    dz, dy, dx = image.spacing_mm
    axial = np.stack(np.meshgrid([z], range(ny), range(nx), indexing="ij"), axis=-1).reshape(-1, 3)
    coronal = np.stack(np.meshgrid(range(nz), [y], range(nx), indexing="ij"), axis=-1).reshape(-1, 3)
    panels: list[tuple[str, np.ndarray, np.ndarray, np.ndarray | None, float, bool]] = [
        ("Axial, by position", ct_hu[z], *_sampled(axial, image, mask, label, (ny, nx)), dy / dx, False),
        ("Coronal, by position", ct_hu[:, y], *_sampled(coronal, image, mask, label, (nz, nx)), dz / dx, True),
    ]
    turned = np.abs(label.direction - np.asarray(image.direction)).max() > SAME_AXES_TOLERANCE
    if mask.shape == ct_hu.shape and not turned:
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        middle = int(slices[len(slices) // 2]) if len(slices) else z
        panels.append(("Axial, voxel on voxel", ct_hu[middle], mask[middle], None, dy / dx, False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overlay.png"
        with figure(path, 4.0 * len(panels), 4.2) as fig:
            for axis, (title, plane, drawn, inside, aspect, up) in zip(
                fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
            ):
                axis.imshow(
                    plane, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], aspect=aspect,
                    origin="lower" if up else "upper",
                )  # fmt: skip
                if drawn.any():
                    axis.contourf(drawn, levels=[0.5, 1.5], colors=[COLOURS[1]], alpha=0.6)
                if inside is not None and inside.any() and not inside.all():
                    axis.contour(inside, levels=[0.5], colors=[COLOURS[4]], linestyles="dashed", linewidths=1.2)
                axis.set_title(title if drawn.any() else f"{title}: no label here", color=INK)
                axis.set_axis_off()
        return path.read_bytes()


def _centre(mask: np.ndarray) -> np.ndarray:
    found = np.argwhere(mask)
    return found.mean(axis=0) if len(found) else (np.array(mask.shape) - 1) / 2


def _sampled(
    indices: np.ndarray, image: Geometry, mask: np.ndarray, label: Planes, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The label at voxels of the image, by nearest neighbour, and which of these voxels the label's grid covers."""
    gap_mm = label.least_gap_mm() or max(image.spacing_mm)
    where = np.rint(label.to_index(image.to_points(indices), gap_mm / 2)).astype(int)
    inside = ((where >= 0) & (where < np.array(label.shape))).all(axis=1)
    drawn = np.zeros(len(indices), bool)
    drawn[inside] = mask[tuple(where[inside].T)]
    return drawn.reshape(shape), inside.reshape(shape)
