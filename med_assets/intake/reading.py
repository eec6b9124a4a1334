"""Reading one entry of the landing zone: from files of strangers to verified, de-identified cases.

This runs in a process of its own (`med_assets.intake.reader`), which a file may end: each step is announced before it begins,
so that whoever watches knows what was being read. What ended an earlier process is refused without being read again.
"""

import hashlib
import json
import os
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets import program as programs
from med_assets.dicom import archives
from med_assets.dicom.sop_classes import MODALITIES
from med_assets.errors import CaseRejected, DiskFull
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
from med_assets.landing.batches import UNREADABLE
from med_assets.records import CaseVersion, Status
from med_assets.settings import Settings, Workspace
from med_assets.storage.files import digest, disk_full_guard, write_json
from med_assets.storage.versions import part_of

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.deidentification.deidentify import Deidentifier
    from med_assets.deidentification.tally import Counts
    from med_assets.dicom.discover import Instance
    from med_assets.dicom.parsing import Parsed

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

IMAGES = frozenset(name for name, kind in MODALITIES.items() if not kind.derived)
"""Modalities of the images of cases; the other objects of a case are labels, plans and doses."""

BYTES_PER_S, PACKED_BYTES_PER_S = 10e6, 1e6
"""The slowest reading of a file, and unpacking of an archive, that is still expected."""

KEPT_SHARE = 0.125
"""Share of the memory that reading may take for files of an entry that are kept in memory until their case is written."""

FILES_PER_LIMIT = 50
"""Files of a case that are worked on together within the time limit of one file."""


@dataclass(frozen=True)
class Content:
    """What the stored files of a case are: hashes, key of the artifact, and what their headers say of the whole case."""

    version: str = ""
    content_hash: str = ""
    images_hash: str = ""
    artifact: str = ""
    given_split: str | None = None
    synthetic: bool = False


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


def read_originals(task: Originals, announce: Callable[["Step"], None]) -> Iterator[dict[str, Any]]:
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
class Step:
    """What is about to be read: a key that is the same in each attempt, and the seconds that it may take."""

    key: str
    limit_s: float


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


def content_hash(datasets: list["Dataset"]) -> str:
    """Hash of pixels, positions and contours alone: equal for the same images under another name or other UIDs.

    Of an object with frames, each frame's position counts, and in a segmentation the number of its segment.
    """
    return digest(sorted(filter(None, map(_object_hash, datasets))))


def _object_hash(ds: "Dataset") -> str | None:
    """What an object adds to the content hash; None where it has neither pixels nor contours."""
    contours = [
        [_numbers(contour, "ContourData") for contour in getattr(roi, "ContourSequence", [])]
        for roi in getattr(ds, "ROIContourSequence", [])
    ]
    position = _numbers(ds, "ImagePositionPatient")
    frames = [
        _frame_place(one)
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
        for one in ds.get(keyword) or ()
    ]
    if "PixelData" not in ds and not contours:
        return None
    content = [ds.get("Modality", ""), bytes(ds.get("PixelData", b"")), position, contours]
    return digest(*content, frames) if frames else digest(*content)


def _frame_place(groups: "Dataset") -> list[list[float]]:
    """Where a frame lies (or all of them, in the shared groups), and which segment it shows."""
    names = (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
        ("SegmentIdentificationSequence", "ReferencedSegmentNumber"),
    )
    return [
        [number for one in groups.get(sequence) or () for number in _numbers(one, keyword)]
        for sequence, keyword in names
    ]


def _numbers(ds: "Dataset", keyword: str) -> list[float]:
    """The numbers of an element, none where it is absent or empty. Raises CaseRejected("malformed_element") for other text."""
    from med_assets.dicom.element_values import decimals

    if keyword in ds and (text := decimals(ds.get_item(keyword))) is not None:
        return [float(number) for number in text.split(b"\\")]
    value = ds.get(keyword)
    if value is None or value == "":
        return []
    try:
        return [float(number) for number in ([value] if isinstance(value, int | float | str) else value)]
    except (TypeError, ValueError):
        raise CaseRejected(
            "malformed_element", f"expected numbers in {keyword}, got text that is none; export the object again"
        ) from None


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
        cases, refusals = self._grouped(instances)
        in_case = {
            one.path: self._case_id(case.patient_id, case.identity_uid) for case in cases for one in case.instances
        }
        codes = " or ".join(sorted({one.code for one in refusals})) or "in no case"
        for one in instances:
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
        for number in self._parts(CASES, [self._part(case) for case in cases], contents):
            yield self._case(cases[number], number)

    def help(self, orders: Iterable[tuple[str, int]]) -> Iterator[CaseVersion | StoredCase | None]:
        """Work on parts of an entry that another process reads; what the headers of files are lies in the folder to work in."""
        from med_assets.dicom.discover import Instance

        for kind, number in orders:
            content = json.loads(self._handed(kind, number).read_text())
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

        return [
            None if kind == FILES and self._is_archive(path) else scan_file(path, self._before_file, self.shelf)
            for path in paths
        ]

    def _instance(self, row: dict[str, Any]) -> "Instance":
        """An instance of a case of another process, with what this one has read of its file, or reads of it now."""
        from med_assets.dicom.discover import Instance, scan_file

        instance = Instance.of(row)
        parsed = self.kept.pop(instance.path, None)
        if parsed is None:
            again = scan_file(instance.path, self._before_file, self.shelf)
            parsed = again.parsed if isinstance(again, Instance) else None
        return replace(instance, parsed=parsed)

    def _part(self, case: programs.RawCase) -> Part:
        """The part of the work on the entry that is a case."""
        scratch, folder, names, n_bytes = self.task.scratch, self.task.folder, [], 0
        for path in (one.path for one in case.instances):
            root = scratch if path.is_relative_to(scratch) else folder or path.parent
            names.append(os.fsencode(path.relative_to(root)).hex())
            n_bytes += size_of(path)
        key = digest(self._case_id(case.patient_id, case.identity_uid), names)
        return Part(key, FILE_S * len(names) + S_PER_BYTE * n_bytes)

    def _step(self, key: str, more_s: float) -> None:
        """Announce a step that may take the time limit of one file and `more_s` seconds; raises CaseRejected if it is refused."""
        self.report(Step(key, self.task.ws.intake_file_s + more_s))
        if key in self.task.refused:
            raise CaseRejected(*self.task.refused[key])

    def _before_file(self, path: Path) -> None:
        scratch = self.task.scratch
        key = path.relative_to(scratch).as_posix() if path.is_relative_to(scratch) else str(path)
        self._step(f"file {key}", size_of(path) / BYTES_PER_S)

    def _is_archive(self, path: Path) -> bool:
        try:
            self._before_file(path)
            return archives.is_archive(path, self.shelf.start)
        except (CaseRejected, OSError):  # the scan refuses it
            return False

    def _outcome(self, path: Path, packed: list[Path], outcome: str) -> None:
        unpacked = self.task.scratch / "unpacked"
        if path.is_relative_to(unpacked):
            number, member = path.relative_to(unpacked).parts[:2]
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
        except CaseRejected as rejected:
            return self._refuse(case_id, rejected.code, rejected.message, n, patient_id=patient)
        except DiskFull:  # no fault of the case
            raise
        except MemoryError:
            message = _beyond_memory(self.task.ws, "a case that can be read")
            return self._refuse(case_id, OUT_OF_MEMORY, message, n, patient_id=patient)
        except Exception as error:  # one bad case never stops a batch
            message = f"reading this case failed with {where(error)}; please report this place in the code"
            return self._refuse(case_id, UNREADABLE, message, n, patient_id=patient)
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

    def _write(
        self, case: programs.RawCase, folder: Path, key: str, together_s: float
    ) -> "tuple[Content, dict[str, str], Counts]":
        """Write the de-identified files of a case to `folder`; what they are, SHA-256 of each by name, what was done to elements."""
        from med_assets.deidentification.residual import identifying_values, residual_phi
        from med_assets.deidentification.tally import Tally
        from med_assets.deidentification.text_in_pixels import TextInPixels
        from med_assets.dicom.discover import load
        from med_assets.dicom.elements import text
        from med_assets.dicom.encoded import to_parts
        from med_assets.dicom.repeated import Repeated
        from med_assets.dicom.write import is_synthetic

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
        datasets.sort(key=lambda ds: text(ds, "SOPInstanceUID"))
        vocabulary = programs.get(self.task.program).roi_vocabulary(self.task.ws)
        leaks = residual_phi(datasets, known=known, roi_vocabulary=vocabulary, profile=tally.profile)
        if leaks:
            tags = sorted({str(leak.tag) for leak in leaks})
            raise CaseRejected(
                "residual_phi",
                f"expected no identity after de-identification, got some in {tags}; nothing was stored, report the tags",
            )
        folder.mkdir(parents=True)
        hashes = {}
        for number, ds in enumerate(datasets):
            name, sha256 = f"{number:04d}.dcm", hashlib.sha256()
            with (folder / name).open("wb") as stream:
                for part in to_parts(ds):
                    sha256.update(part)
                    stream.write(part)
            hashes[name] = sha256.hexdigest()
        version, parts = digest(list(hashes.values())), list(map(_object_hash, datasets))
        images = [text(ds, "Modality") in IMAGES for ds in datasets]
        given = {text(ds, "ClinicalTrialSiteID") for ds, image in zip(datasets, images, strict=True) if image}
        written = Content(
            version,
            digest(sorted(filter(None, parts))),
            digest(sorted(part for part, image in zip(parts, images, strict=True) if part and image)),
            f"raw/{version}",
            next(iter(given - {""}), None) if len(given) == 1 else None,
            any(is_synthetic(ds) for ds in datasets),
        )
        return written, hashes, tally.counts()
