"""The table of docs/released-weights.md, made from what the code does and from the files that are in place."""

import os
from pathlib import Path

from med_assets.errors import CheckpointMismatch
from med_assets.experiments import policies
from med_assets.experiments.weights import FOLDER
from med_assets.training.reading import open_weights

BEGIN, END = "<!-- table: med-assets weights --table -->", "<!-- end of the table -->"
"""Lines of the page between which the table stands."""

HEAD = (
    "| weights | file | size, MB | licence | experiment | released file opened | keys expected | keys matched | digest of the release | preprocessing | "
    "tensors, and digest of the small network filled by the recipe |"
)  # fmt: skip


def page(text: str) -> str:
    """Return the page with its table made anew. The row of a released file that is not in MED_ASSETS_HOME/weights says that it was not opened."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n\n" + table() + "\n\n" + END + rest.partition(END)[2]


def table() -> str:
    """Return the rows of all families of released files as Markdown."""
    import torch

    from med_assets.experiments.configuration import load
    from med_assets.training import released

    lines = [HEAD, "|" + "---|" * HEAD.count(" | ") + "---|"]
    for family in released.FAMILIES:
        file = policies.of(family.program).released[family.release].file
        path = Path(os.environ.get("MED_ASSETS_HOME", ".med_assets")) / FOLDER / file
        opened, matched, digest = "no", "-", "-"
        chosen = load(family.program, family.experiment, family.given)
        with torch.device("meta"):
            empty = released.trial(family.program, chosen)
        expected = sum(not empty.begun_anew(name) for name in empty.weights)
        if path.is_file():
            whole = released.trial(family.program, chosen)
            try:
                taken = released.take(whole, open_weights(path))
                opened, matched, digest = "yes", str(taken.matched), taken.digest
            except CheckpointMismatch:
                opened = "yes, and refused"
        small = released.trial(
            family.program, load(family.program, family.experiment, ["profiles=demo", *family.given])
        )
        cells = (
            family.title, f"`weights/{file}`", str(family.size_mb), family.licence, f"`{family.program}/{family.experiment}`", opened, str(expected), matched,
            digest, empty.check, f"{len(small.weights)}; {released.filled(small)}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
