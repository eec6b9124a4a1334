"""The scan of stored cases for residual identity: of the same bytes once per version of the scanner."""

from med_assets import program
from med_assets.settings import Settings
from med_assets.storage.files import digest, read_json, write_json
from med_assets.storage.versions import version_of


def scan_key(ws: Settings, program_name: str, artifact: str) -> str:
    """Key of the findings in a stored raw case: its content, the version of the scanner, and the program's vocabulary."""
    from med_assets.deidentification import residual

    vocabulary = program.get(program_name).roi_vocabulary(ws)
    return f"scan/{digest(artifact, version_of(residual.residual_phi), sorted(vocabulary))}"


def identity_left(ws: Settings, program_name: str, artifact: str) -> list[str]:
    """What may identify a patient in a stored raw case, as `tag: reason` without the value; empty when nothing was found."""
    from med_assets.deidentification import residual

    key = scan_key(ws, program_name, artifact)
    if not ws.store.has(key):
        files = sorted(ws.store.fetch(artifact).glob("*.dcm"))
        findings = residual.residual_phi(files, roi_vocabulary=program.get(program_name).roi_vocabulary(ws))
        with ws.store.create(key) as folder:
            write_json(folder / "findings.json", [f"{finding.tag}: {finding.reason}" for finding in findings])
    return list(read_json(ws.store.fetch(key) / "findings.json"))
