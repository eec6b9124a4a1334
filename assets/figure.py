"""`python -m assets.figure docs/architecture.md`: the graph of a program as a Mermaid figure, made from the asset definitions."""

import sys
from pathlib import Path

import dagster as dg

from assets import build_program

BEGIN, END = "<!-- graph -->", "<!-- end of graph -->"
"""What stands around the figure in a page."""

PROGRAM = "rt_dose"


def figure(program: str = PROGRAM) -> str:
    """Mermaid text of the assets of a program, its experiments as one: nodes, edges, and the blocking checks on them."""
    graph = build_program(program)
    names = {key: _name(key) for asset in graph for key in asset.keys}
    edges = {
        (names[parent], names[key])
        for asset in graph
        for key, parents in asset.asset_deps.items()
        for parent in parents
        if parent in names and names[parent] != names[key]
    }
    blocking = {
        (names[spec.asset_key], spec.name)
        for asset in graph
        for spec in asset.check_specs
        if spec.blocking and spec.asset_key in names
    }
    lines = ["```mermaid", "graph LR"]
    lines += [f'  {_id(name)}["{name}"]' for name in sorted(set(names.values()))]
    lines += [f"  {_id(parent)} --> {_id(child)}" for parent, child in sorted(edges)]
    lines += [f"  {_id(name)}_{check}{{{{{check}}}}} -.- {_id(name)}" for name, check in sorted(blocking)]
    return "\n".join([*lines, "```"])


def _name(key: dg.AssetKey) -> str:
    return key.path[1] if len(key.path) == 2 else f"{key.path[1]}/experiment"


def _id(name: str) -> str:
    return name.replace("/", "_")


def with_figure(page: str) -> str:
    """The text of a page with the figure between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{figure()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_figure(path.read_text()))
