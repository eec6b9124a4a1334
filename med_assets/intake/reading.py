"""Reading one entry of the landing zone: from files of strangers to verified, de-identified cases.

This runs in a process of its own (`med_assets.intake.reader`), which a file may end: each step is announced before it begins,
so that whoever watches knows what was being read. What ended an earlier process is refused without being read again.
"""

import json
import os
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets import program as programs
from med_assets.dicom import archives
from med_assets.errors import CaseRejected, DiskFull
from med_assets.intake.contents import Content, store_objects
from med_assets.intake.grouping import group_by_patient
from med_assets.intake.parts import (
    CASES,
    FILE_S,
    FILES,
    FILES_PER_PART,
    HEADER_S,
    MEMBERS,
    S_PER_BYTE,
    Header,
    Orders,
    Part,
    all_parts,
    header_of,
    header_row,
    size_of,
)
from med_assets.intake.steps import Step
from med_assets.landing.batches import UNREADABLE
from med_assets.records import CaseVersion, Status
from med_assets.settings import Settings, Workspace
from med_assets.storage.files import digest, disk_full_guard, write_json
from med_assets.storage.versions import part_of

if TYPE_CHECKING:
    from med_assets.deidentification.deidentify import Deidentifier
    from med_assets.deidentification.tally import Counts
    from med_assets.dicom.discover import Instance
    from med_assets.dicom.parsing import Parsed
    from med_assets.intake.corrections import Corrected

OUT_OF_MEMORY = "out_of_memory"
"""Reason of a case that takes more memory than reading may use."""

PREPARATION_FAILED = "preparation_failed"
"""Reason of a case whose preparation raised what it should not."""

TRAILING = "trailing_bytes"
"""Reason of a note: files had bytes behind their dataset."""

UNPACKED = "unpacked, "
"""How the outcome of an archive begins whose members were read."""

FACTS_FILE = "facts.json"
"""What preparation measured, in the folder of a prepared case."""

BYTES_PER_S, PACKED_BYTES_PER_S = 10e6, 1e6
"""The slowest reading of a file, and unpacking of an archive, that is still expected."""

KEPT_SHARE = 0.125
"""Share of the memory that reading may take for files of an entry that are kept in memory until their case is written."""

FILES_PER_LIMIT = 50
"""Files of a case that are worked on together within the time limit of one file."""


@dataclass(frozen=True)
class Task:
    """One entry to read: its files, an empty folder to work in, and steps (by key) that are refused: code and message.

    Where it is `shared`, other processes can take parts of it: what they need for that lies in the folder to work in.
    """

    ws: Workspace
    program: str
    batch: str
    token: str
    folder: Path | None
    files: tuple[Path, ...]
    scratch: Path
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    shared: bool = False


@dataclass(frozen=True)
class Help:
    """Work on parts of an entry that another process reads, from its folder to work in."""

    task: Task


@dataclass(frozen=True)
class Preparation:
    """A stored case to prepare: `folder`, which is empty, gets the arrays and the facts."""

    ws: Workspace
    program: str
    case_id: str
    stored: Path
    folder: Path


@dataclass(frozen=True)
class Originals:
    """Original files whose headers are read for `Origin`; files in archives are not looked at. The rest is as in `Task`."""

    ws: Settings
    files: tuple[Path, ...]
    scratch: Path = Path()
    refused: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def read_originals(task: Originals, announce: Callable[[Step], None]) -> Iterator[dict[str, Any]]:
    """Yield the header of each DICOM file, but of those that are refused."""
    from med_assets.deidentification.relink import read_header

    for number, path in enumerate(task.files):
        n_bytes = path.stat().st_size if path.is_file() else 0
        step = Step(f"file {number}", task.ws.intake_file_s + n_bytes / BYTES_PER_S)
        announce(step)
        header = None if step.key in task.refused else read_header(path)
        if header is not None:
            yield asdict(header)


@part_of("prepare")
def prepare_case(task: Preparation) -> None:
    """Prepare one case. Raises CaseRejected, also "out_of_memory" and "preparation_failed", and DiskFull."""
    from med_assets.dicom.compression import loss_of

    try:
        with disk_full_guard(task.ws.home):
            facts = programs.get(task.program).prepare(task.ws, task.case_id, task.stored, task.folder)
            loss = loss_of(task.stored)
            write_json(task.folder / FACTS_FILE, {**facts, "lossy": loss.lossy, "lossy_ratio": loss.ratio})
    except (CaseRejected, DiskFull):
        raise
    except MemoryError:
        raise CaseRejected(OUT_OF_MEMORY, _beyond_memory(task.ws, "a case that can be prepared")) from None
    except Exception as error:  # one bad case never stops a batch; a foreign message may hold identity
        message = f"expected a case that can be prepared, got {where(error)}; please report this place in the code"
        raise CaseRejected(PREPARATION_FAILED, message) from None


def _beyond_memory(ws: Settings, expected: str) -> str:
    limit = f"{ws.intake_memory_gb:.1f} GB of memory (MED_ASSETS_INTAKE_MEMORY_GB)"
    return f"expected {expected} within {limit}, got one that takes more; allow more, or send it in parts"


@dataclass(frozen=True)
class StoredCase:
    """An accepted case, and the folder with its de-identified files, which is to become its artifact, SHA-256 by name, counts of a `Tally`."""

    case: CaseVersion
    folder: Path
    hashes: Mapping[str, str]
    counts: "Counts" = field(default_factory=dict)


@dataclass(frozen=True)
class FileOutcome:
    """What came of a file: a case id, a reason code, or what else it is; `member` is its number in an archive."""

    path: Path
    member: str
    outcome: str


def refusal(
    program: str,
    batch: str,
    case_id: str,
    code: str,
    message: str,
    n_instances: int,
    patient_id: str = "",
    status: Status = Status.QUARANTINED,
) -> CaseVersion:
    """What is refused, or of which a note is kept: no content."""
    return CaseVersion(
        program=program, batch=batch, case_id=case_id, patient_id=patient_id, n_instances=n_instances, status=status,
        reason_code=code, reason=message, deidentified_by=None, **asdict(Content()),
    )  # fmt: skip


def where(error: BaseException) -> str:
    """Type of a foreign error and the line of code where it arose; its text may hold identity and is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
        if frames
        else type(error).__name__
    )


def _below(path: Path, folder: Path) -> str | None:
    """Where a path is below a folder to which names were joined to make it; None where it is not. pathlib takes ten times as long."""
    text, root = os.fspath(path), f"{os.fspath(folder)}{os.sep}"
    return text[len(root) :] if text.startswith(root) else None


def _why(refusals: Sequence[programs.Refusal]) -> tuple[str, str]:
    """Code and message of why a corrected case can't be put together."""
    if refusals:
        return refusals[0].code, refusals[0].message
    return (
        "no_case_to_correct",
        "expected a label that makes one case with the stored images, got none; send it with its images",
    )


@part_of("intake")
@dataclass
class EntryReader:
    """One entry being read; `report` takes each step before it begins, and each file's outcome, `orders` says what is done here."""

    task: Task
    deidentifier: "Deidentifier"
    report: Callable[[Step | FileOutcome], None]
    orders: Orders = all_parts

    def __post_init__(self) -> None:
        from med_assets.dicom.discover import Shelf

        self.kept: dict[Path, Parsed] = {}

        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)  # of this process, which may be one of several
        most = self.task.ws.intake_memory_gb * 1e9
        self.shelf = Shelf(int(KEPT_SHARE * (most if limit == resource.RLIM_INFINITY else min(most, limit))))

    def messages(self) -> Iterator[CaseVersion | StoredCase]:
        """What is refused of the entry, and its accepted cases."""
        from med_assets.dicom.discover import files_of, without_repeats

        token, unpacked = self.task.token, self.task.scratch / "unpacked"
        refused: Counter[tuple[str, str]] = Counter()
        instances: list[Instance] = []
        paths = files_of(self.task.folder) if self.task.folder else list(self.task.files)
        headers = self._headers(FILES, paths)
        packed = [path for path, found in zip(paths, headers, strict=True) if found is None]
        sent = [found for found in headers if found is not None]
        members: list[Path] = []
        sizes = []
        for number, path in enumerate(packed):
            target = unpacked / str(number)
            try:
                self._step(f"archive {number}", path.stat().st_size / PACKED_BYTES_PER_S)
                archives.expand(path, target)
                members += (here := files_of(target))
                sizes.append(len(here))
                self.report(FileOutcome(path, "", f"{UNPACKED}{len(here)} files"))
            except CaseRejected as rejected:
                refused[(rejected.code, rejected.message)] += 1
                self.report(FileOutcome(path, "", rejected.code))
        of_members = iter(self._headers(MEMBERS, members))
        groups = [[found for found in islice(of_members, size) if found is not None] for size in sizes]
        for group in [sent, *groups] if self.task.folder else [*groups, *([one] for one in sent)]:
            found = without_repeats(group, self._before_file)
            instances += found.instances
            for rejection in found.rejected:
                refused[(rejection.code, rejection.message)] += 1
                self._outcome(rejection.path, packed, rejection.code)
        for (code, message), n in sorted(refused.items()):
            yield self._refuse(f"{token}-{code}", code, message, n)
        if not instances and not refused:
            yield self._refuse(token, "no_dicom", "expected DICOM instances, found none; check the export", 0)
        if trailing := [one.trailing_bytes for one in instances if one.trailing_bytes]:
            message = (
                f"expected files that end with their dataset, got {sum(trailing)} bytes behind it in {len(trailing)} of "
                f"{len(instances)} objects; they are stored nowhere. Nothing to do"
            )
            yield self._refuse(f"{token}-{TRAILING}", TRAILING, message, 0, status=Status.NOTE)
        corrected = self._corrections(instances)
        labels = [one for one in instances if one.path in corrected]
        others = [one for one in instances if one.path not in corrected]
        cases, refusals = self._grouped(others) if others or not labels else ([], [])
        in_case = {
            one.path: self._case_id(case.patient_id, case.identity_uid) for case in cases for one in case.instances
        }
        codes = " or ".join(sorted({one.code for one in refusals})) or "in no case"
        for one in others:
            if one.parsed is not None and one.path not in in_case:
                one.parsed.drop()
            self._outcome(one.path, packed, f"case {in_case[one.path]}" if one.path in in_case else codes)
        repeats = Counter(code for code, _ in refused)
        for refused_case in refusals:
            known = bool(refused_case.identity_uid and refused_case.patient_id)
            repeats[refused_case.code] += not known
            again = f"-{repeats[refused_case.code]}" if repeats[refused_case.code] > 1 else ""
            case_id = f"{token}-{refused_case.code}{again}"
            if known:
                case_id = self._case_id(refused_case.patient_id, refused_case.identity_uid)
            patient = self.deidentifier.pseudonym(refused_case.patient_id) if refused_case.patient_id else ""
            status = Status.NOTE if refused_case.note else Status.QUARANTINED
            n, code, message = refused_case.n_instances, refused_case.code, refused_case.message
            yield self._refuse(case_id, code, message, n, patient_id=patient, status=status)
        contents = (
            {
                "patient_id": case.patient_id,
                "identity_uid": case.identity_uid,
                "files": [one.row() for one in case.instances],
            }
            for case in cases
        )
        places = {one.path: place for place, one in enumerate(instances)}
        parts = [Part(self._key([one]), FILE_S, places[one.path]) for one in labels]
        parts += [self._part(case, min(places[one.path] for one in case.instances)) for case in cases]
        for number in self._parts(CASES, parts, chain(({"label": one.row()} for one in labels), contents)):
            if number >= len(labels):
                yield self._case(cases[number - len(labels)], number)
                continue
            made = self._correction(labels[number], corrected[labels[number].path])
            outcome = f"case {made.case.case_id}" if isinstance(made, StoredCase) else str(made.reason_code)
            self._outcome(labels[number].path, packed, outcome)
            yield made

    def help(self, orders: Iterable[tuple[str, int]]) -> Iterator[CaseVersion | StoredCase | None]:
        """Work on parts of an entry that another process reads; what the headers of files are lies in the folder to work in."""
        from med_assets.dicom.discover import Instance

        for kind, number in orders:
            content = json.loads(self._handed(kind, number).read_text())
            if kind == CASES and "label" in content:
                label = self._instance(content["label"])
                yield self._correction(label, self._corrections([label])[label.path])
                continue
            if kind == CASES:
                case = programs.RawCase(
                    content["patient_id"], content["identity_uid"], tuple(map(self._instance, content["files"]))
                )
                yield self._case(case, number)
                continue
            found = self._read_headers(kind, map(Path, content))
            self.kept |= {one.path: one.parsed for one in found if isinstance(one, Instance) and one.parsed is not None}
            self._hand(f"{kind} found", number, list(map(header_row, found)))
            yield None

    def _parts(self, kind: str, parts: Sequence[Part], contents: Iterable[Any]) -> Iterator[int]:
        """Numbers of the parts to work on here; the contents of all of them are handed to the processes that help."""
        if self.task.shared and len(parts) > 1:
            for number, content in enumerate(contents):
                self._hand(kind, number, content)
        return self.orders(kind, parts)

    def _handed(self, kind: str, number: int) -> Path:
        return self.task.scratch / "parts" / f"{kind}-{number}.json"

    def _hand(self, kind: str, number: int, content: Any) -> None:
        path = self._handed(kind, number)
        with disk_full_guard(self.task.ws.home):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))

    def _headers(self, kind: str, paths: Sequence[Path]) -> list[Header]:
        """What each file is; None is an archive."""
        chunks = [paths[at : at + FILES_PER_PART] for at in range(0, len(paths), FILES_PER_PART)]
        parts = [Part(kind, HEADER_S * len(chunk)) for chunk in chunks]
        contents = (list(map(str, chunk)) for chunk in chunks)
        found = {number: self._read_headers(kind, chunks[number]) for number in self._parts(kind, parts, contents)}
        for number in range(len(chunks)):
            if number not in found:
                rows = json.loads(self._handed(f"{kind} found", number).read_text())
                found[number] = list(map(header_of, rows))
        return [one for number in range(len(chunks)) for one in found[number]]

    def _read_headers(self, kind: str, paths: Iterable[Path]) -> list[Header]:
        from med_assets.dicom.discover import scan_file

        if kind != FILES:
            return [scan_file(path, self._before_file, self.shelf) for path in paths]
        return [None if self._is_archive(path) else scan_file(path, self._require_file, self.shelf) for path in paths]

    def _instance(self, row: dict[str, Any]) -> "Instance":
        """An instance of a case of another process, with what this one has read of its file, or reads of it now."""
        from med_assets.dicom.discover import Instance, scan_file

        instance = Instance.of(row)
        parsed = self.kept.pop(instance.path, None)
        if parsed is None:
            again = scan_file(instance.path, self._before_file, self.shelf)
            parsed = again.parsed if isinstance(again, Instance) else None
        return replace(instance, parsed=parsed)

    def _part(self, case: programs.RawCase, place: int) -> Part:
        """The part of the work on the entry that is a case."""
        key = digest(self._case_id(case.patient_id, case.identity_uid), self._key(case.instances))
        n_bytes = sum(size_of(one.path) for one in case.instances)
        return Part(key, FILE_S * len(case.instances) + S_PER_BYTE * n_bytes, place)

    def _key(self, instances: Iterable["Instance"]) -> str:
        """What is the same for the same files of the entry in each attempt."""
        scratch, folder, names = self.task.scratch, self.task.folder, []
        for path in (one.path for one in instances):
            below = _below(path, scratch)
            name = os.fspath(path.relative_to(folder or path.parent)) if below is None else below
            names.append(os.fsencode(name).hex())
        return digest(names)

    def _step(self, key: str, more_s: float) -> None:
        """Announce a step that may take the time limit of one file and `more_s` seconds; raises CaseRejected if it is refused."""
        self.report(Step(key, self.task.ws.intake_file_s + more_s))
        self._require(key)

    def _require(self, key: str) -> None:
        if key in self.task.refused:
            raise CaseRejected(*self.task.refused[key])

    def _file_key(self, path: Path) -> str:
        below = _below(path, self.task.scratch)
        return f"file {path if below is None else below}"

    def _before_file(self, path: Path) -> None:
        self._step(self._file_key(path), size_of(path) / BYTES_PER_S)

    def _require_file(self, path: Path) -> None:
        """The same within the step of a file that has begun."""
        self._require(self._file_key(path))

    def _is_archive(self, path: Path) -> bool:
        try:
            self._before_file(path)
            return archives.is_archive(path, self.shelf.start)
        except (CaseRejected, OSError):  # the scan refuses it
            return False

    def _outcome(self, path: Path, packed: list[Path], outcome: str) -> None:
        if (below := _below(path, self.task.scratch / "unpacked")) is not None:
            number, member = Path(below).parts[:2]
            self.report(FileOutcome(packed[int(number)], member, outcome))
        else:
            self.report(FileOutcome(path, "", outcome))

    def _refuse(
        self,
        case_id: str,
        code: str,
        message: str,
        n: int,
        patient_id: str = "",
        status: Status = Status.QUARANTINED,
    ) -> CaseVersion:
        return refusal(self.task.program, self.task.batch, case_id, code, message, n, patient_id, status)

    def _case_id(self, patient_id: str, identity_uid: str) -> str:
        return digest(self.deidentifier.pseudonym(patient_id), self.deidentifier.uid(identity_uid))[:12]

    def _grouped(self, instances: list["Instance"]) -> tuple[list[programs.RawCase], list[programs.Refusal]]:
        """Cases and refusals; objects that can't be grouped are one refusal."""
        limit_s = self.task.ws.intake_file_s
        try:
            self._step("grouping", limit_s * (len(instances) // FILES_PER_LIMIT))
            return group_by_patient(programs.get(self.task.program), instances)
        except CaseRejected as rejected:
            return [], [programs.Refusal(rejected.code, rejected.message, len(instances))]
        except Exception as error:
            message = (
                f"grouping {len(instances)} objects failed with {where(error)}; send each case in a folder of its own"
            )
            return [], [programs.Refusal(UNREADABLE, message, len(instances))]

    def _case(self, case: programs.RawCase, number: int) -> CaseVersion | StoredCase:
        """One case: verified, de-identified, scanned for residual identity, and written to a folder with its number."""
        folder = self.task.scratch / f"case-{number}"
        case_id, n = self._case_id(case.patient_id, case.identity_uid), len(case.instances)
        patient = self.deidentifier.pseudonym(case.patient_id)
        together_s = self.task.ws.intake_file_s * (n // FILES_PER_LIMIT)
        try:
            self._step(f"case {case_id}", together_s)
            labelled = programs.get(self.task.program).verify(case)
            with disk_full_guard(self.task.ws.home):
                content, hashes, counts = self._write(case, folder, f"case {case_id}", together_s)
        except Exception as error:
            return self._refused(error, case_id, n, patient)
        finally:
            for one in case.instances:
                if one.parsed is not None:
                    one.parsed.drop()
        accepted = CaseVersion(
            program=self.task.program, batch=self.task.batch, case_id=case_id, patient_id=patient, n_instances=n,
            status=Status.OK if labelled else Status.TO_PREDICT, reason_code=None, reason=None,
            deidentified_by=self.deidentifier.profile.label, **asdict(content),
        )  # fmt: skip
        return StoredCase(accepted, folder, hashes, counts)

    def _refused(self, error: Exception, case_id: str, n: int, patient: str) -> CaseVersion:
        """The refusal of a case that raised an error, since one bad case never stops a batch. Raises DiskFull, which is no fault of the case."""
        if isinstance(error, DiskFull):
            raise error
        if isinstance(error, CaseRejected):
            code, message = error.code, error.message
        elif isinstance(error, MemoryError):
            code, message = OUT_OF_MEMORY, _beyond_memory(self.task.ws, "a case that can be read")
        else:
            code = UNREADABLE
            message = f"reading this case failed with {where(error)}; please report this place in the code"
        return self._refuse(case_id, code, message, n, patient_id=patient)

    def _corrections(self, instances: list["Instance"]) -> "dict[Path, Corrected | CaseRejected]":
        """By path what labels that came alone correct."""
        from med_assets.intake import corrections

        if not corrections.are_labels_alone(instances):
            return {}
        self._step("grouping", self.task.ws.intake_file_s)
        return corrections.find(self.task.ws, self.task.program, self.task.batch, self.deidentifier, instances)

    def _correction(self, label: "Instance", corrected: "Corrected | CaseRejected") -> CaseVersion | StoredCase:
        """A new version of a stored case: the stored objects, and a label that came alone in the place of the old one."""
        from med_assets.deidentification.residual import identifying_values
        from med_assets.deidentification.tally import Tally
        from med_assets.dicom import discover
        from med_assets.dicom.encoded import to_parts
        from med_assets.dicom.repeated import Repeated
        from med_assets.intake import corrections

        if isinstance(corrected, CaseRejected):
            pseudonym = self.deidentifier.pseudonym(label.patient_id)
            token = f"{self.task.token}-{corrected.code}"
            return self._refuse(token, corrected.code, corrected.message, 1, patient_id=pseudonym)
        parent, chosen = corrected.parent, programs.get(self.task.program)
        key, tally = f"case {parent.case_id}", Tally(self.deidentifier.profile)
        folder = self.task.scratch / f"corrected-{digest(str(label.path))[:8]}"
        more_s = self.task.ws.intake_file_s * (len(corrected.kept) // FILES_PER_LIMIT)
        try:
            self._step(key, more_s)
            received = discover.load(label)
            keys = corrections.deidentifier_for(self.deidentifier, label, corrected)
            ds = keys.apply(received)
            tally.add(received, ds)
            known = set(identifying_values(received, Repeated[frozenset[str]]())) - keys.stand_ins
            self.deidentifier.without_identifiers(ds, known)
            corrections.take_the_place(ds, corrected)
            path = folder.with_suffix(".dcm")
            with disk_full_guard(self.task.ws.home), path.open("wb") as stream:
                for part in to_parts(ds):
                    stream.write(part)
            new = discover.scan_file(path)
            if isinstance(new, discover.Rejection):
                raise CaseRejected(new.code, new.message)
            cases, refusals = chosen.group(corrections.whole(corrected, new))
            if len(cases) != 1 or refusals:
                raise CaseRejected(*_why(refusals))
            labelled = chosen.verify(cases[0])
            datasets = [ds if one.path == path else discover.load(one) for one in cases[0].instances]
            with disk_full_guard(self.task.ws.home):
                content, hashes = store_objects(
                    datasets, known, folder, chosen.roi_vocabulary(self.task.ws), self.deidentifier.profile
                )
        except Exception as error:
            return self._refused(error, parent.case_id, 1, parent.patient_id)
        finally:
            if label.parsed is not None:
                label.parsed.drop()
        accepted = CaseVersion(
            program=self.task.program, batch=self.task.batch, case_id=parent.case_id, patient_id=parent.patient_id, n_instances=1,
            status=Status.OK if labelled else Status.TO_PREDICT, reason_code=None, reason=None,
            deidentified_by=self.deidentifier.profile.label, **asdict(replace(content, parent=parent.version)),
        )  # fmt: skip
        return StoredCase(accepted, folder, hashes, tally.counts())

    def _write(
        self, case: programs.RawCase, folder: Path, key: str, together_s: float
    ) -> "tuple[Content, dict[str, str], Counts]":
        """Write the de-identified files of a case to `folder`; what they are, SHA-256 of each by name, what was done to elements."""
        from med_assets.deidentification.residual import identifying_values
        from med_assets.deidentification.tally import Tally
        from med_assets.deidentification.text_in_pixels import TextInPixels
        from med_assets.dicom.discover import load
        from med_assets.dicom.repeated import Repeated

        search = TextInPixels.of(self.task.ws, self.task.program, self.task.batch, key.removeprefix("case "))
        tally, datasets, known, repeated = Tally(self.deidentifier.profile), [], set(), Repeated[frozenset[str]]()
        for position, instance in enumerate(case.instances):
            self._step(key, instance.path.stat().st_size / BYTES_PER_S)
            ds = load(instance)
            if instance.parsed is not None:
                instance.parsed.drop()
            known |= set(identifying_values(ds, repeated))
            received, n_boxes = ds, 0
            if search is not None:
                found = search.cleaned(ds, position, lambda: self._step(key, 0.0))
                ds, n_boxes = found.ds, found.boxes
            datasets.append(self.deidentifier.apply(ds, text_blanked=n_boxes > 0))
            tally.add(received, datasets[-1])
        self._step(key, together_s)
        for ds in datasets:
            self.deidentifier.without_identifiers(ds, known)  # those of the other objects of the case too
        vocabulary = programs.get(self.task.program).roi_vocabulary(self.task.ws)
        return *store_objects(datasets, known, folder, vocabulary, self.deidentifier.profile), tally.counts()
