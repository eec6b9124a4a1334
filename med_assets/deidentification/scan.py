"""The scan of stored cases for residual identity: of the same bytes once per version of the scanner."""

from functools import cached_property
from typing import TYPE_CHECKING

from med_assets import program
from med_assets.settings import Settings
from med_assets.storage.files import canonical_json, digest, read_json, write_json
from med_assets.storage.versions import version_of

if TYPE_CHECKING:
    from med_assets.dicom.structure_names import Vocabulary


class Scan:
    """The scan of one program's stored raw cases, with the scanner and the vocabulary of now: made once for many cases."""

    def __init__(self, ws: Settings, program_name: str) -> None:
        self.ws, self.program = ws, program_name

    @cached_property
    def vocabulary(self) -> "Vocabulary":
        """Names of ROIs that identify nobody."""
        return program.get(self.program).roi_vocabulary(self.ws)

    @cached_property
    def _made_with(self) -> tuple[str, bytes]:
        """Version of the scanner, and the vocabulary as `digest` writes it."""
        from med_assets.deidentification import residual

        names = canonical_json(sorted(self.vocabulary)).encode(errors="surrogateescape")
        return version_of(residual.residual_phi), names

    def key(self, artifact: str) -> str:
        """Key of the findings in a stored raw case: its content, the version of the scanner, and the program's vocabulary."""
        return f"scan/{digest(artifact, *self._made_with)}"

    def identity_left(self, artifact: str) -> list[str]:
        """What may identify a patient in a stored raw case, as `tag: reason` without the value; empty when nothing was found."""
        from med_assets.deidentification import residual

        key, store = self.key(artifact), self.ws.store
        if not store.has(key):
            files = sorted(store.fetch(artifact).glob("*.dcm"))
            findings = residual.residual_phi(files, roi_vocabulary=self.vocabulary)
            with store.create(key) as folder:
                write_json(folder / "findings.json", [f"{finding.tag}: {finding.reason}" for finding in findings])
        return list(read_json(store.fetch(key) / "findings.json"))
