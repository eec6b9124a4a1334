"""A corrected label that a reader submits: it goes to the landing zone as an entry of its own, and intake makes a new version of the case."""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from med_assets import program as programs
from med_assets.catalog import Catalog, usable
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.profiles import profile_of
from med_assets.dicom.discover import Rejection, scan_file
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.intake.corrections import LABELS, Corrected, find
from med_assets.landing.folder import LocalLanding
from med_assets.records import ReaderDecision
from med_assets.review.decisions import record_correction
from med_assets.settings import Settings, Workspace
from med_assets.storage.files import sync

MAX_LABEL_BYTES = 512 * 2**20
"""Largest file of a corrected label, bytes: that of a segmentation of a thousand slices of 512 x 512 voxels, not packed, and as much again."""

ENTRY = "correction-"
"""How the name of an entry of a correction in the landing zone begins; a hash of its file follows."""

NEWEST = "~"
"""Sorts behind the name of every batch."""


@dataclass(frozen=True)
class Submitted:
    """A correction that lies in the landing zone: name of its entry, and the decision that was recorded, of the version that it corrects."""

    entry: str
    decision: ReaderDecision


def submit(ws: Workspace, program_name: str, case_id: str, label: Path, note: str = "", reader: str = "") -> Submitted:
    """Put a corrected SEG or RTSTRUCT of a case into the landing zone, and record who corrected it.

    Intake takes it in as any entry. `reader` is whoever runs this process unless given. The same file again is the same entry. Raises
    ConfigurationError for a file that is no label of this case, with what to do; nothing is written then.
    """
    zone = ws.landing_zone(program_name)
    if not isinstance(zone, LocalLanding):
        raise ConfigurationError(
            f"expected a folder as the landing zone of {program_name}, got {zone.title(program_name)}; put the file there as an object of its own"
        )
    if not label.is_file() or (size := label.stat().st_size) > MAX_LABEL_BYTES:
        got = f"one of {size / 2**20:.0f} MiB" if label.is_file() else "none"
        raise ConfigurationError(f"expected a file of at most {MAX_LABEL_BYTES / 2**20:.0f} MiB, got {got}")
    _require_label_of(ws, program_name, case_id, label)
    with label.open("rb") as stream:
        entry = f"{ENTRY}{hashlib.file_digest(stream, 'sha256').hexdigest()[:12]}"
    recorded = record_correction(ws, program_name, case_id, note, reader)
    target = zone.folder(program_name) / entry
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{entry}."
        ) as hidden:  # the landing zone passes over such
            whole = Path(hidden) / entry
            whole.mkdir()
            shutil.copyfile(label, whole / "label.dcm")
            sync(whole / "label.dcm")
            whole.rename(target)
        sync(target.parent)
    return Submitted(entry, recorded)


def _require_label_of(ws: Workspace, program_name: str, case_id: str, label: Path) -> None:
    found = scan_file(label)
    if isinstance(found, Rejection):
        raise ConfigurationError(f"expected a DICOM SEG or RTSTRUCT, got a file that can't be read: {found.message}")
    if found.modality not in LABELS:
        raise ConfigurationError(
            f"expected a DICOM object of {' or '.join(sorted(LABELS))}, got {found.modality or 'none'}"
        )
    if found.modality not in programs.get(program_name).modalities:
        raise ConfigurationError(f"expected a label that {program_name} reads, got {found.modality}")
    keys = Deidentifier(ws.key, programs.get(program_name).roi_vocabulary(ws), profile_of(ws, program_name))
    target = find(ws, program_name, NEWEST, keys, [found]).get(label)
    if isinstance(target, CaseRejected):
        raise ConfigurationError(target.message)
    if not isinstance(target, Corrected) or target.parent.case_id != case_id:
        got = f"case {target.parent.case_id}" if isinstance(target, Corrected) else "no stored case"
        raise ConfigurationError(
            f"expected a label that refers to the images of case {case_id}, got one of {got}; draw it on the images of that case, as they were "
            f"sent or as `med-assets export-case {program_name} {case_id}` writes them"
        )


def export_case(ws: Workspace, program_name: str, case_id: str, out: Path) -> list[Path]:
    """Copy the stored, de-identified DICOM files of the version of a case that counts to `out`, to be looked at or corrected elsewhere.

    Raises ConfigurationError for an unknown case, one that is quarantined, and a folder that holds something.
    """
    stored = stored_files(ws, program_name, case_id)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"expected a folder that is empty or not there, got {out.name}, which holds something")
    out.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(path, out / path.name)) for path in stored]


def stored_files(ws: Settings, program_name: str, case_id: str) -> list[Path]:
    """Return the stored, de-identified DICOM files of the newest version of a case that can be used. Raises ConfigurationError where there is none."""
    sent = [row for row in usable(Catalog(ws, program_name).case_versions()) if row.case_id == case_id]
    if not sent:
        raise ConfigurationError(
            f"expected the id of a case of {program_name} that can be used, got none; see `med-assets cases {program_name}`"
        )
    return sorted(ws.store.fetch(max(sent, key=lambda row: row.batch).artifact).glob("*.dcm"))
