"""A case as the viewer's script reads it: JSON with the address of each layer."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from med_assets.review.viewing.cases import Model, OpenCase
from med_assets.review.viewing.contract import Layer, View
from med_assets.review.viewing.planes import oblique_deg, planes_of


def address(program_name: str, case_id: str) -> str:
    """Path below which the routes of a case lie."""
    return f"/{quote(program_name)}/cases/{quote(case_id)}"


def describe(opened: OpenCase, models: Sequence[Model]) -> dict[str, Any]:
    """All that the viewer needs to know of an open case before it asks for voxels."""
    return {
        "program": opened.program,
        "case": opened.case.case_id,
        "synthetic": opened.case.synthetic,
        "model": opened.model.experiment if opened.model else "",
        "models": [model.experiment for model in models],
        "key": opened.key,
        "views": [_view(opened, view) for view in opened.views],
    }


def _view(opened: OpenCase, view: View) -> dict[str, Any]:
    return {
        "name": view.name,
        "title": view.title,
        "shape": list(view.grid.shape),
        "spacing_mm": list(view.grid.spacing_mm) if view.grid.spacing_mm else None,
        "oblique_deg": round(oblique_deg(view.grid), 1),
        "start": list(view.start),
        "planes": [asdict(plane) for plane in planes_of(view.grid, view.planes)],
        "layers": [_layer(opened, layer) for layer in view.layers],
        "markers": [asdict(marker) for marker in view.markers],
        "charts": [
            asdict(chart) | {"lines": [asdict(line) | {"x": list(line.x), "y": list(line.y)} for line in chart.lines]}
            for chart in view.charts
        ],
        "tables": [asdict(table) for table in view.tables],
        "note": view.note,
    }


def _layer(opened: OpenCase, layer: Layer) -> dict[str, Any]:
    base = f"{address(opened.program, opened.case.case_id)}/layers/{quote(layer.name)}"
    model = quote(opened.model.experiment if opened.model else "none")
    query = f"?model={model}&key={opened.key}"
    kept = ("name", "title", "kind", "dtype", "unit", "slope", "intercept", "low", "high", "palette", "shown", "smooth")
    return {name: getattr(layer, name) for name in kept} | {
        "windows": [asdict(window) for window in layer.windows],
        "masks": [asdict(mask) for mask in layer.masks],
        "levels": [asdict(level) for level in layer.levels],
        "volume": f"{base}.nii{query}",
        "address": f"{base}/AXIS/INDEX{query}",
    }
