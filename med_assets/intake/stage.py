"""Intake: files of a batch become de-identified, content-hashed cases; what can't be used is quarantined with a reason."""

import csv
import hashlib
import hmac
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from med_assets import program as programs
from med_assets.catalog import Catalog, accepted, reasons, usable
from med_assets.errors import CaseRejected, DiskFull, LandingUnreadable, ReaderFailed, RemoteFailed
from med_assets.intake.division import worth_help
from med_assets.intake.parts import HEADER_S
from med_assets.intake.reader import NOT_FINAL, RetryAlone, start_ahead
from med_assets.intake.reading import UNPACKED, StoredCase, Task, refusal, where
from med_assets.intake.workers import Workers, side_by_side, workers_of
from med_assets.landing import batches, space
from med_assets.landing.batches import UNREADABLE
from med_assets.landing.folder import Files, LocalLanding
from med_assets.records import USABLE, CaseVersion, Status
from med_assets.settings import Settings, Workspace
from med_assets.storage.files import digest, disk_full_guard, read_json, replacing, write_json
from med_assets.storage.result import StageResult, tally
from med_assets.storage.scratch import remove_abandoned, scratch
from med_assets.storage.versions import version_of

if TYPE_CHECKING:
    from med_assets.deidentification.tally import Counts
    from med_assets.storage.s3.staging import Failure

WITHOUT_IMAGES = ("no_ct", "no_image", "no_case_to_correct", "other_profile", "several_cases_corrected")
"""Reasons of a label whose images are not beside it: once they are stored, the same label sent again corrects their case."""

NOT_FETCHED = "not_fetched"
"""Reason of an entry of a bucket of which an object is missing or did not come."""


def source_token(ws: Workspace, name: str) -> str:
    """Keyed token for an entry of the landing zone, whose name may identify a patient and so is never stored."""
    return "source-" + hmac.new(ws.key, name.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:8]


@dataclass(frozen=True)
class FileLine:
    """A line of the batch's table of files: name in the landing zone, member of an archive, outcome, and what the line is about.

    The rows of a batch count each line of kind "file" and "member" once; "archive" is one that was unpacked, and "entry" one
    that holds no file, or of which nothing could be read.
    """

    file: str
    member: str
    outcome: str
    kind: str = "file"

    @classmethod
    def read(cls, file: str, member: str, outcome: str) -> "FileLine":
        """The line of a file that was read."""
        return cls(file, member, outcome, "member" if member else "archive" if outcome.startswith(UNPACKED) else "file")


@dataclass(frozen=True)
class _Entry:
    """What came of one entry of the landing zone: rows, the outcome of its files, and what could not be fetched."""

    rows: list[CaseVersion] = field(default_factory=list)
    files: list[FileLine] = field(default_factory=list)
    failures: list["Failure"] = field(default_factory=list)
    counts: dict[str, "Counts"] = field(default_factory=dict)
    """What de-identification did to elements, by artifact."""


@dataclass(frozen=True)
class _Earlier:
    """Key of what intake makes of the files of an entry, None where they are not known, and what it made of them before."""

    key: str | None
    entry: _Entry | None = None


@dataclass(frozen=True)
class _Intake:
    """One batch being taken in; its entries are taken in by several threads."""

    ws: Workspace
    program: str
    batch: str
    is_new: bool = False
    """Whether it was never taken in, so that most of its files are new."""

    fetching: threading.Lock = field(default_factory=threading.Lock)
    """Held while an entry is fetched, which asks for many objects at once and needs space for them."""

    cases: dict[str, dict[str, CaseVersion]] = field(default_factory=dict)
    """By entry what came of its cases until a process ended, see `Workers.read`."""

    counts: dict[str, "Counts"] = field(default_factory=dict)
    """What de-identification did to elements of the cases that were read, by artifact."""

    def refuse(self, case_id: str, code: str, message: str, n: int) -> CaseVersion:
        return refusal(self.program, self.batch, case_id, code, message, n)

    def entry(self, workers: Workers, name: str) -> _Entry:
        """Take in one entry of the landing zone. Whatever happens while it is read is a refusal of its own, and the others go on."""
        try:
            return self._entry(workers, name)
        except (DiskFull, RemoteFailed, ReaderFailed, RetryAlone):  # no fault of the entry
            raise
        except CaseRejected as rejected:
            code, message = rejected.code, rejected.message
        except LandingUnreadable as error:
            code, message = UNREADABLE, str(error)
        except Exception as error:
            code = UNREADABLE
            message = (
                f"reading this entry failed with {where(error)}; it is tried again in every run, and the others go on"
            )
        return self.refused(name, code, message)

    def refused(self, name: str, code: str, message: str) -> _Entry:
        """An entry of which nothing is taken in."""
        row = self.refuse(source_token(self.ws, name), code, message, 0)
        return _Entry([row], [FileLine(name, "", code, "entry")])

    def _entry(self, workers: Workers, name: str) -> _Entry:
        """What came of an entry; the same files are never de-identified twice.

        Those of a folder in a batch that was never taken in are hashed while their headers are read: most are new.
        """
        landing = self.ws.landing_zone(self.program)
        with ThreadPoolExecutor(1, thread_name_prefix="hashes an entry") as beside:
            earlier = beside.submit(self._earlier, name)
            if not (self.is_new and isinstance(landing, LocalLanding)) and (kept := earlier.result().entry) is not None:
                return kept
            try:
                return self._read(workers, name, earlier)
            except (CaseRejected, LandingUnreadable):
                if (kept := earlier.result().entry) is not None:
                    return kept
                raise

    def _earlier(self, name: str) -> _Earlier:
        """The key of an entry, and what was kept of the same files."""
        store = self.ws.store
        hashes = self.ws.landing_zone(self.program).hashes(self.program, name)
        key = self._entry_key(hashes)
        if hashes is None or not key or not store.has(key):
            return _Earlier(key)
        folder = store.fetch(key)
        rows = read_json(folder / "rows.json")
        cases = [self._of_earlier_version(CaseVersion.of({**row, "batch": self.batch})) for row in rows]
        if not all(store.has(case.artifact) for case in usable(cases)):
            store.remove(key)
            return _Earlier(key)
        kept = read_json(folder / "files.json") if (folder / "files.json").is_file() else {}
        unknown = [["", "taken in by an earlier version"]]
        outcomes_of = {file: kept.get(self._file_token(file), unknown) for file, _ in hashes}
        lines = [FileLine.read(file, *outcome) for file, found in outcomes_of.items() for outcome in found]
        counts = read_json(folder / "counts.json") if (folder / "counts.json").is_file() else {}
        return _Earlier(key, _Entry(cases, lines, counts=counts))

    def _read(self, workers: Workers, name: str, earlier: "Future[_Earlier]") -> _Entry:
        """Read an entry, unless it turns out that the same files were read before."""
        landing, store = self.ws.landing_zone(self.program), self.ws.store
        with disk_full_guard(self.ws.home), tempfile.TemporaryDirectory(dir=scratch(self.ws.home)) as fetched:
            with self.fetching:
                if workers.stopped:
                    raise RetryAlone
                files = landing.fetch(self.program, name, Path(fetched))
            if files.failures:
                lines = [FileLine(files.names[path], "", NOT_FETCHED) for path in files.files]
                return _Entry([self._not_fetched(name, files)], lines, files.failures)
            task = Task(
                self.ws, self.program, self.batch, source_token(self.ws, name), files.folder, tuple(files.files), Path()
            )
            results = self.cases.setdefault(name, {})
            result = workers.read(task, self._keep, results, lambda: earlier.result().entry is not None)
            if (kept := earlier.result().entry) is not None:
                return kept
            found = [FileLine.read(files.names[file.path], file.member, file.outcome) for file in result.files]
            empty = [FileLine(name, "", str(case.reason_code), "entry") for case in result.cases]
            key = earlier.result().key or self._entry_key(landing.hashes(self.program, name))
        counts = {case.artifact: self.counts[case.artifact] for case in result.cases if case.artifact in self.counts}
        if key and not any(case.reason_code in (*NOT_FINAL, *WITHOUT_IMAGES) for case in result.cases):
            outcomes: dict[str, list[tuple[str, str]]] = {}
            for line in found:
                outcomes.setdefault(self._file_token(line.file), []).append((line.member, line.outcome))
            with store.create(key) as folder:
                write_json(folder / "rows.json", [replace(case, batch="").row() for case in result.cases])
                write_json(folder / "files.json", outcomes)
                write_json(folder / "counts.json", counts)
        return _Entry(result.cases, found or empty, counts=counts)

    def _of_earlier_version(self, case: CaseVersion) -> CaseVersion:
        """An accepted case that was kept before its profile was, which is the present one: it is part of the key."""
        from med_assets.deidentification.profiles import profile_of

        if case.deidentified_by is not None or case.status not in USABLE:
            return case
        return replace(case, deidentified_by=profile_of(self.ws, self.program).label)

    def _keep(self, stored: StoredCase) -> None:
        """Make the files of an accepted case an artifact."""
        key = stored.case.artifact
        self.counts[key] = stored.counts
        if not self.ws.store.has(key):
            hashes = stored.hashes if stored.hashes.keys() == set(os.listdir(stored.folder)) else None
            with disk_full_guard(self.ws.home), self.ws.store.create(key, hashes) as folder:
                stored.folder.chmod(folder.stat().st_mode & 0o777)
                stored.folder.rename(folder)  # in the place of an empty one

    def _file_token(self, name: str) -> str:
        """Keyed token for a file's name, which may identify a patient and so is never stored."""
        return hmac.new(self.ws.key, os.fsencode(name), hashlib.sha256).hexdigest()[:16]

    def _not_fetched(self, name: str, files: Files) -> CaseVersion:
        """Refusal of an entry of which a part did not come: what did may seem a whole case and is not one."""
        from med_assets.storage.s3.staging import counted

        message = (
            f"{len(files.failures)} of {len(files.files) + len(files.failures)} objects could not be fetched "
            f"({counted(files.failures)}); {failures_table(self.ws, self.program, self.batch)} names them. When they can be "
            f"read, `med-assets ingest {self.program} --batch {self.batch}` takes the entry in"
        )
        return self.refuse(source_token(self.ws, name), NOT_FETCHED, message, len(files.files))

    def _entry_key(self, found: list[tuple[str, str]] | None) -> str | None:
        """Key of what intake makes of files of these names and hashes; None when they are not known, or there are none."""
        from med_assets.deidentification.profile import profile

        if not found:
            return None
        chosen = programs.get(self.program)
        versions = (chosen.code_versions["intake"], version_of(profile))
        more = (*self._text_search(), *self._other_profile())
        made_of = digest(self.program, versions, sorted(chosen.roi_vocabulary(self.ws)), found, *more)
        # File names can identify patients and short ones can be guessed, so the key is keyed like every pseudonym.
        return f"intake/{hmac.new(self.ws.key, made_of.encode(), hashlib.sha256).hexdigest()[:16]}"

    def _other_profile(self) -> tuple[str, ...]:
        """The profile of de-identification, where it is not the strict one."""
        from med_assets.deidentification.profiles import STRICT, profile_of

        chosen = profile_of(self.ws, self.program)
        return () if chosen is STRICT else (chosen.label,)

    def _text_search(self) -> tuple[str, ...]:
        """What makes a difference where text is looked for in pixels; empty where it is not."""
        if self.ws.ocr == "off":
            return ()
        from med_assets.dicom.text_detection import find_text

        return self.ws.ocr, version_of(find_text)


def files_table(ws: Settings, program: str, batch: str) -> Path:
    """What came of each file of a batch, by its name, which can identify a patient: it lies with the batch's manifest."""
    return ws.landing_zone(program).manifests.beside(program) / f"{batch}.files.csv"


def _write_files(path: Path, files: Sequence[FileLine]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", errors="surrogateescape") as stream:
        table = csv.writer(stream)
        table.writerow(("file", "member", "outcome", "kind"))
        table.writerows((line.file, line.member, line.outcome, line.kind) for line in files)


def failures_table(ws: Settings, program: str, batch: str) -> Path:
    """The objects of a batch that could not be fetched: keys can identify patients, so it lies with the batch's manifest."""
    return ws.landing_zone(program).manifests.beside(program) / f"{batch}.failures.csv"


def _one_row_per_case(rows: Sequence[CaseVersion]) -> list[CaseVersion]:
    """One row per case id, and one beside it for each other reason: together they count each file of the batch once.

    At most one row of a case is accepted: one that lies twice in a batch, with different content, is ambiguous. One with a
    label counts before one without.
    """
    by_case: dict[str, list[CaseVersion]] = {}
    for row in rows:
        by_case.setdefault(row.case_id, []).append(row)
    out = []
    for case_id in sorted(by_case):
        good = accepted(by_case[case_id]) or usable(by_case[case_id])
        versions = {row.version for row in good}
        if len(versions) > 1:
            message = f"expected one version of a case per batch, got {len(versions)}; send the one that counts alone"
            out.append(_quarantined(replace(good[0], n_instances=_files(good)), "two_versions", message))
        elif good:
            out.append(good[0])
        unlabelled = [row for row in usable(by_case[case_id]) if row not in good]
        if (len(good) > 1 and len(versions) == 1) or unlabelled:
            message = f"this case lies {len(good)} times in the batch, with the same content; it is taken in once, and nothing is lost"
            if unlabelled:
                message = "this case also lies without its label in the batch; it is taken in once, with the label"
            first, again = good[0], [*(good[1:] if len(versions) == 1 else []), *unlabelled]
            code, other = "repeated_case", f"{case_id}-repeated_case"
            out.append(
                refusal(first.program, first.batch, other, code, message, _files(again), first.patient_id, Status.NOTE)
            )
        by_code: dict[str | None, list[CaseVersion]] = {}
        for row in by_case[case_id]:
            if row.status not in USABLE:
                by_code.setdefault(row.reason_code, []).append(row)
        for code_of, alike in by_code.items():
            row = next((row for row in alike if row.status == Status.QUARANTINED), alike[0])
            beside = bool(good) or code_of != next(iter(by_code))
            case = f"{case_id}-{code_of}" if beside else case_id
            out.append(replace(row, n_instances=_files(alike), case_id=case))
    return out


def _quarantined(case: CaseVersion, code: str, message: str) -> CaseVersion:
    return replace(case, status=Status.QUARANTINED, reason_code=code, reason=message, artifact="")


def _files(rows: Sequence[CaseVersion]) -> int:
    return sum(row.n_instances for row in rows)


def _without_duplicates(rows: list[CaseVersion], others: list[CaseVersion]) -> list[CaseVersion]:
    """Quarantine cases whose images are already there under another case id: else one patient could sit in two splits.

    Labels do not count: the same scan with the labels of two readers is the same scan.
    """
    owner = {row.images_hash or row.content_hash: row.case_id for row in others}
    out = []
    for row in rows:
        first = (
            owner.setdefault(row.images_hash or row.content_hash, row.case_id) if row.status in USABLE else row.case_id
        )
        if first != row.case_id:
            message = f"same images as case {first} under another patient or study; keep one, or correct the ids at the source"
            row = _quarantined(row, "duplicate_case", message)
        out.append(row)
    return out


def _keep_failures(path: Path, failures: list["Failure"]) -> None:
    if failures or path.exists():
        from med_assets.landing.bucket import write_failures

        write_failures(path, failures)


def _record(
    ws: Workspace, program_name: str, batch: str, rows: Sequence[CaseVersion], counts: Mapping[str, "Counts"]
) -> None:
    """Say in the audit trail what was removed, kept and changed of a batch."""
    from med_assets.deidentification import audit_trail
    from med_assets.deidentification.profiles import profile_of

    cases = {
        row.case_id: {
            "status": str(row.status), "reason": row.reason_code, "version": row.version, "elements": counts.get(row.artifact, {}),
        }
        for row in rows
    }  # fmt: skip
    content = {"profile": profile_of(ws, program_name).label, "ocr": ws.ocr, "cases": cases}
    audit_trail.record(ws, audit_trail.Kind.BATCH, program_name, batch, content)


def _files_by_case(rows: Sequence[CaseVersion], entries: Sequence[_Entry]) -> dict[str, dict[str, list[str]]]:
    """Names and members of the original files of each case that can be used."""
    found: dict[str, dict[str, list[str]]] = {row.case_id: {} for row in rows if row.status in USABLE}
    for line in (line for entry in entries for line in entry.files):
        case_id = line.outcome.removeprefix("case ")
        if line.outcome.startswith("case ") and case_id in found:
            found[case_id].setdefault(line.file, []).append(line.member)
    return found


def intake(ws: Workspace, program_name: str, batch: str) -> StageResult:
    """Take in one batch. Entries that changed or vanished since the batch was taken keep what was recorded of them.

    In a shared home a process that comes second waits, and finds what the first one stored. Raises ConfigurationError where text is to be looked
    for in pixels and the extra `ocr` is not installed.
    """
    with batches.alone_with(ws, program_name, batch):
        return _intake(ws, program_name, batch)


def _intake(ws: Workspace, program_name: str, batch: str) -> StageResult:
    if ws.ocr != "off":
        from med_assets.dicom.text_detection import require_detector

        require_detector()
    remove_abandoned(ws.home)
    catalog = Catalog(ws, program_name)
    listed = batches.manifest(ws, program_name, batch)
    is_new = not catalog.has(CaseVersion, batch)
    if is_new:
        start_ahead(ws, min(len(listed), workers_of(ws)))
    earlier = catalog.case_versions(batch)
    rows: list[CaseVersion] = []
    counts: dict[str, Counts] | None = None
    present = batches.presence(ws, program_name, listed)
    if is_new:
        if any(worth_help(one.n_files * HEADER_S) for one in present.values()):
            start_ahead(ws, workers_of(ws))
        space.demand(ws, program_name, batch, sum(one.n_bytes for one in present.values()))
    if all(one.unchanged for one in present.values()) or not earlier:
        taking, zone = _Intake(ws, program_name, batch, is_new), ws.landing_zone(program_name)
        there = [name for name, one in present.items() if one.unchanged]
        entries_taken = side_by_side(
            ws,
            there,
            taking.entry,
            "taking in",
            "entries",
            lambda name: present[name].n_files,
            zone.end_fetches,
            shared=True,
        )
        taken = dict(zip(there, entries_taken, strict=True))
        gone = "the files changed or vanished between being noticed and being read; what is there now comes in a later batch"
        entries = [taken.get(name) or taking.refused(name, "entry_changed", gone) for name in present]
        _keep_failures(failures_table(ws, program_name, batch), [row for entry in entries for row in entry.failures])
        _write_files(files_table(ws, program_name, batch), [line for entry in entries for line in entry.files])
        zone.manifests.keep(program_name, batch)
        rows = [row for entry in entries for row in entry.rows]
        rows = _one_row_per_case(rows)
        others = catalog.versions_like(rows, batch)
        rows = _without_duplicates(rows, usable(others))
        if ws.links is not None:
            from med_assets.intake.linking import add_links

            add_links(ws, program_name, _files_by_case(rows, entries))
        counts = {artifact: of for entry in entries for artifact, of in entry.counts.items()}
    else:
        rows, others = earlier, catalog.versions_like(earlier, batch)
    if (
        counts is not None
    ):  # before the rows: a batch whose rows are there has its entry, whenever the process is killed
        _record(ws, program_name, batch, rows, counts)
    catalog.replace(CaseVersion, rows, batch)
    space.begun_no_more(ws, program_name, batch)
    seen = {row.version for row in accepted([*earlier, *others])}
    older = {row.case_id: row.version for row in accepted(others)}
    labels = []
    for row in rows:
        if row.status != Status.OK:
            labels.append(row.status.replace(" ", "_"))
            continue
        labels.append("reused" if row.version in seen else "new")
        if older.get(row.case_id, row.version) != row.version:
            labels.append("superseded")
    return StageResult(
        data_version=digest([[row.case_id, row.version, row.status, row.reason_code] for row in rows]),
        counts=tally(labels),
        summary={"cases": sum(row.status != Status.NOTE for row in rows), "instances": _files(rows)},
        tables={"quarantine": reasons(rows)},
    )
