"""The scan of stored cases for residual identity: of the same bytes once per version of the scanner."""

from collections.abc import Collection, Hashable
from functools import cached_property, partial
from typing import TYPE_CHECKING

from med_assets import program
from med_assets.catalog import Catalog
from med_assets.records import IdentityScan
from med_assets.settings import Settings
from med_assets.storage.files import canonical_json, digest, read_json
from med_assets.storage.memo import Memo
from med_assets.storage.versions import version_of

if TYPE_CHECKING:
    from med_assets.dicom.structure_names import Vocabulary


_findings: Memo[dict[str, str]] = Memo()
"""Lines of findings by artifact, by home, program, scanner, batch and the stamp of its rows: sensors ask at each tick."""

FEW = 8
"""Batches whose rows are read file by file; more are read in one go."""


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

    @cached_property
    def scanner(self) -> str:
        """Hash of the version of the scanner and of the vocabulary: findings of another one do not count."""
        return digest(*self._made_with)

    def findings(self, stored: Collection[tuple[str, str]]) -> dict[str, list[str]]:
        """What may identify a patient in stored raw cases, as `tag: reason` without the value, by artifact where anything was found.

        Cases are given by batch and artifact. Those that were not scanned yet are, and the rows of their batches written.
        """
        if not stored:
            return {}
        catalog, batches = Catalog(self.ws, self.program), {batch for batch, _ in stored}
        known = self._known_of(catalog, batches)
        missing = sorted({(batch, artifact) for batch, artifact in stored if artifact not in known})
        if missing and len(batches) == 1:
            known = self._known(catalog) | known  # the same files may have come in another batch
        for _, artifact in missing:
            if artifact not in known:
                known[artifact] = "\n".join(self._scan(artifact))
        for batch in sorted({batch for batch, _ in missing}):
            fresh = {artifact: known[artifact] for of, artifact in missing if of == batch}
            texts = self._known(catalog, batch) | fresh
            rows = [
                IdentityScan(
                    program=self.program, batch=batch, artifact=artifact, scanner=self.scanner, findings=text or None
                )
                for artifact, text in sorted(texts.items())
            ]
            catalog.replace(IdentityScan, rows, batch)
            _findings.get(self._key(batch, catalog.stamp(IdentityScan, batch)), partial(dict, texts))
        return {artifact: text.splitlines() for _, artifact in stored if (text := known[artifact])}

    def _known_of(self, catalog: Catalog, batches: Collection[str]) -> dict[str, str]:
        """Lines of findings by artifact of some batches; rows that have not changed are not read again, many that have are read together."""
        if len(batches) > FEW:
            stamps = catalog.stamps(IdentityScan)
        else:
            stamps = {(batch,): found for batch in batches if (found := catalog.stamp(IdentityScan, batch))}
        keys = {batch: self._key(batch, stamps.get((batch,))) for batch in sorted(batches)}
        changed = [batch for batch, key in keys.items() if key not in _findings]
        if len(changed) > FEW:
            read = {batch: dict[str, str]() for batch in changed} | self._by_batch(catalog)
        else:
            read = {batch: self._known(catalog, batch) for batch in changed}
        known: dict[str, str] = {}
        for batch, key in keys.items():
            known |= _findings.get(key, partial(read.__getitem__, batch))
        return known

    def _key(self, batch: str, stamp: tuple[int, ...] | None) -> Hashable:
        return self.ws.home, self.program, self.scanner, batch, stamp

    def _known(self, catalog: Catalog, *batch: str) -> dict[str, str]:
        """Lines of findings by artifact, of all batches or one, that this scanner has made."""
        return {artifact: text for of in self._by_batch(catalog, *batch).values() for artifact, text in of.items()}

    def _by_batch(self, catalog: Catalog, *batch: str) -> dict[str, dict[str, str]]:
        """Lines of findings by batch and artifact, of all batches or one, that this scanner has made."""
        found = catalog.frame(IdentityScan, *batch, columns=("batch", "artifact", "scanner", "findings"))
        found = found[found["scanner"] == self.scanner].fillna({"findings": ""})
        known: dict[str, dict[str, str]] = {}
        for of, artifact, text in zip(found["batch"], found["artifact"], found["findings"], strict=True):
            known.setdefault(of, {})[artifact] = text
        return known

    def _scan(self, artifact: str) -> list[str]:
        """Scan the files of a case, unless an earlier version has, which kept its findings in the store."""
        from med_assets.deidentification import residual

        earlier, store = f"scan/{digest(artifact, *self._made_with)}", self.ws.store
        if store.has(earlier):
            return list(read_json(store.fetch(earlier) / "findings.json"))
        files = sorted(store.fetch(artifact).glob("*.dcm"))
        findings = residual.residual_phi(files, roi_vocabulary=self.vocabulary)
        return [f"{finding.tag}: {finding.reason}" for finding in findings]
