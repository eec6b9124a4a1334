"""The scan of stored cases for residual identity: of the same bytes once per version of the scanner."""

from typing import TYPE_CHECKING

from med_assets import program
from med_assets.settings import Workspace
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.memo import Memo
from med_assets.storage.versions import version_of

if TYPE_CHECKING:
    from med_assets.dicom.structure_names import Vocabulary

_findings: Memo[list[str]] = Memo()
"""Findings by home and key, of which sensors ask at each look."""


def identity_left(ws: Workspace, program_name: str, artifact: str) -> list[str]:
    """What may identify a patient in a stored raw case, as `tag: reason` without the value; empty when nothing was found."""
    from med_assets.deidentification import residual as phi

    vocabulary = program.get(program_name).roi_vocabulary(ws)
    key = f"scan/{digest(artifact, version_of(phi.residual_phi), sorted(vocabulary))}"
    return list(_findings.get((ws.home, key), lambda: _scanned(ws, artifact, key, vocabulary)))


def _scanned(ws: Workspace, artifact: str, key: str, vocabulary: "Vocabulary") -> list[str]:
    from med_assets.deidentification import residual as phi

    if not ws.store.has(key):
        files = sorted(ws.store.fetch(artifact).glob("*.dcm"))
        findings = phi.residual_phi(files, roi_vocabulary=vocabulary)
        with ws.store.create(key) as folder:
            write_json(folder / "findings.json", [f"{finding.tag}: {finding.reason}" for finding in findings])
    return list(read_json(ws.store.fetch(key) / "findings.json"))
