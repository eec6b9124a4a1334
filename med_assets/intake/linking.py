"""Links of the cases of a batch, where the site keeps them: what the original files say of their patients and studies."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from med_assets.deidentification.links import LinkTable
from med_assets.deidentification.relink import Header
from med_assets.intake.original_files import original_files
from med_assets.intake.reader import Readers
from med_assets.settings import Workspace
from med_assets.storage.scratch import scratch


def add_links(ws: Workspace, program: str, files: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Add the links of cases to the table of links; `files` are names and members of the original files by case.

    Raises ConfigurationError, LandingUnreadable.
    """
    links = LinkTable(ws)
    with Readers(ws) as readers:
        for case_id, members in files.items():
            with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as folder:
                paths = original_files(ws, program, members, Path(folder))
                links.add(program, case_id, (Header(**row) for row in readers.originals(paths)))
