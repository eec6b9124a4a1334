"""ROI names as senders wrote them, read from the original files when a person asks, and stored nowhere."""

import csv
import tempfile
from pathlib import Path

from med_assets.intake.original_files import original_files
from med_assets.intake.reader import Readers
from med_assets.intake.stage import files_table
from med_assets.settings import Workspace
from med_assets.storage.scratch import scratch


def original_roi_names(ws: Workspace, program_name: str, batch: str, case_id: str) -> list[str]:
    """Return the ROI names of the structure set of a case as it lies in the landing zone, folder or bucket, in its order.

    Empty where the files are gone, or the case has no structure set. Raises LandingUnreadable, ConfigurationError, and
    CaseRejected where reading them ends the process that reads.
    """
    ws.landing_zone(program_name).manifests.fetch(program_name, batch)
    table = files_table(ws, program_name, batch)
    if not table.is_file():
        return []
    with table.open(newline="", errors="surrogateescape") as stream:
        rows = [row for row in csv.DictReader(stream) if row["outcome"] == f"case {case_id}"]
    members: dict[str, list[str]] = {}
    for row in rows:
        members.setdefault(row["file"], []).append(row["member"])
    with tempfile.TemporaryDirectory(dir=scratch(ws.home)) as folder, Readers(ws) as readers:
        paths = original_files(ws, program_name, members, Path(folder))
        return next((list(row["roi_names"]) for row in readers.originals(paths) if row["roi_names"]), [])
