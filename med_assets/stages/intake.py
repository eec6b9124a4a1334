"""Intake: files of a batch become de-identified, content-hashed cases; what can't be used is quarantined with a reason."""

import hashlib
import hmac
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med_assets import batches
from med_assets import program as programs
from med_assets.batches import UNREADABLE
from med_assets.errors import CaseRejected, DiskFull, LandingUnreadable, RemoteFailed
from med_assets.files import digest, read_json, room, write_json
from med_assets.grouping import group_by_patient
from med_assets.landing import Files
from med_assets.scratch import remove_abandoned, scratch
from med_assets.settings import Workspace
from med_assets.stages.result import NOTE, OK, QUARANTINED, StageResult, accepted, reasons, tally

if TYPE_CHECKING:
    from pydicom import Dataset

    from med_assets.dicom.deidentify import Deidentifier
    from med_assets.dicom.discover import Instance
    from med_assets.s3.staging import Failure

IMAGES = ("CT", "MR", "US", "OPT")
"""Modalities of the images of cases; the other objects of a case are labels, plans and doses."""

NOT_FETCHED = "not_fetched"
"""Reason of an entry of a bucket of which an object is missing or did not come."""

EMPTY = {
    "patient_id": "",
    "version": "",
    "content_hash": "",
    "images_hash": "",
    "artifact": "",
    "given_split": None,
    "synthetic": False,
}


def source_token(ws: Workspace, name: str) -> str:
    """Keyed token for an entry of the landing zone, whose name may identify a patient and so is never stored."""
    return "source-" + hmac.new(ws.key, name.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:8]


def content_hash(datasets: list["Dataset"]) -> str:
    """Hash of pixels, positions and contours alone: equal for the same images under another name or other UIDs.

    Of an object with frames, each frame's position counts, and in a segmentation the number of its segment.
    """
    parts = []
    for ds in datasets:
        contours = [
            [list(map(float, contour.get("ContourData") or [])) for contour in getattr(roi, "ContourSequence", [])]
            for roi in getattr(ds, "ROIContourSequence", [])
        ]
        position = list(map(float, getattr(ds, "ImagePositionPatient", None) or []))
        frames = [
            _frame_place(one)
            for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
            for one in ds.get(keyword) or ()
        ]
        if "PixelData" in ds or contours:
            content = [ds.get("Modality", ""), bytes(ds.get("PixelData", b"")), position, contours]
            parts.append(digest(*content, frames) if frames else digest(*content))
    return digest(sorted(parts))


def _frame_place(groups: "Dataset") -> list[list[float]]:
    """Where a frame lies (or all of them, in the shared groups), and which segment it shows."""
    names = (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
        ("SegmentIdentificationSequence", "ReferencedSegmentNumber"),
    )
    found = []
    for sequence, keyword in names:
        values = [one.get(keyword) for one in groups.get(sequence) or ()]
        found.append([float(number) for value in values if value is not None for number in _several(value)])
    return found


def _several(value: Any) -> list[Any]:
    return [value] if isinstance(value, int | float) else list(value)


@dataclass(frozen=True)
class _Intake:
    """One batch being taken in."""

    ws: Workspace
    program: str
    batch: str
    deidentifier: "Deidentifier"
    failures: list["Failure"] = field(default_factory=list)

    def row(self, case_id: str, status: str, **values: Any) -> dict[str, Any]:
        base = {"program": self.program, "batch": self.batch, "case_id": case_id, "status": status}
        return base | EMPTY | {"n_instances": 0, "reason_code": None, "reason": None} | values

    def refuse(self, case_id: str, code: str, message: str, n: int, **values: Any) -> dict[str, Any]:
        return self.row(case_id, QUARANTINED, reason_code=code, reason=message, n_instances=n, **values)

    def case_id(self, patient_id: str, identity_uid: str) -> str:
        return digest(self.deidentifier.pseudonym(patient_id), self.deidentifier.uid(identity_uid))[:12]

    def entry(self, name: str) -> list[dict[str, Any]]:
        """Rows of one entry of the landing zone. Whatever happens while it is read is a row of its own, and the others go on."""
        try:
            return self._entry(name)
        except (DiskFull, RemoteFailed):  # no fault of the entry
            raise
        except LandingUnreadable as error:
            return [self.refuse(source_token(self.ws, name), UNREADABLE, str(error), 0)]
        except Exception as error:  # the text of a foreign error may hold identity
            message = f"reading this entry failed with {type(error).__name__}; it is tried again in every run, and the others go on"
            return [self.refuse(source_token(self.ws, name), UNREADABLE, message, 0)]

    def _entry(self, name: str) -> list[dict[str, Any]]:
        """Rows of one entry; the same files are never de-identified twice."""
        landing, store = self.ws.landing_zone(self.program), self.ws.store
        key = self._entry_key(landing.hashes(self.program, name))
        if key and store.has(key):
            rows = read_json(store.fetch(key) / "rows.json")
            if all(store.has(row["artifact"]) for row in accepted(rows)):
                return [row | {"batch": self.batch} for row in rows]
            store.remove(key)
        with room(self.ws.home), tempfile.TemporaryDirectory(dir=scratch(self.ws.home)) as brought:
            files = landing.bring(self.program, name, Path(brought))
            if files.failures:
                self.failures.extend(files.failures)
                return [self._not_fetched(name, files)]
            rows = list(self._read(name, files))
            key = key or self._entry_key(landing.hashes(self.program, name))
        if key and not any(row["reason_code"] == UNREADABLE for row in rows):
            with store.create(key) as folder:
                write_json(folder / "rows.json", [row | {"batch": ""} for row in rows])
        return rows

    def _not_fetched(self, name: str, files: Files) -> dict[str, Any]:
        """Row of an entry of which a part did not come: what did may look like a whole case and is not one."""
        from med_assets.s3.staging import counted

        message = (
            f"{len(files.failures)} of {len(files.files) + len(files.failures)} objects could not be fetched "
            f"({counted(files.failures)}); {failures_table(self.ws, self.program, self.batch)} names them. When they can be "
            f"read, `med-assets ingest {self.program} --batch {self.batch}` takes the entry in"
        )
        return self.refuse(source_token(self.ws, name), NOT_FETCHED, message, len(files.files))

    def _entry_key(self, found: list[tuple[str, str]] | None) -> str | None:
        """Key of what intake makes of files of these names and hashes; None when they are not known."""
        from med_assets.dicom.confidentiality import PROFILE_VERSION

        if found is None:
            return None
        chosen = programs.get(self.program)
        versions = (chosen.code_versions["intake"], PROFILE_VERSION)
        made_of = digest(self.program, versions, sorted(chosen.roi_vocabulary(self.ws)), found)
        # File names can identify patients and short ones can be guessed, so the key is keyed like every pseudonym.
        return f"intake/{hmac.new(self.ws.key, made_of.encode(), hashlib.sha256).hexdigest()[:16]}"

    def _read(self, name: str, brought: Files) -> Iterator[dict[str, Any]]:
        """Rows of one entry, archives unpacked into a scratch folder."""
        from med_assets.dicom import archives
        from med_assets.dicom.discover import scan

        token = source_token(self.ws, name)
        with tempfile.TemporaryDirectory(dir=scratch(self.ws.home)) as unpacked:
            refused: Counter[tuple[str, str]] = Counter()
            instances: list[Instance] = []
            folders = [brought.folder] if brought.folder else []
            packed = [path for path in brought.files if archives.is_archive(path)]
            for number, path in enumerate(packed):
                target = Path(unpacked) / str(number)
                try:
                    archives.expand(path, target)
                    folders.append(target)
                except CaseRejected as rejected:
                    refused[(rejected.code, rejected.message)] += 1
            if not brought.folder:
                folders += [path for path in brought.files if path not in packed]
            for folder in folders:
                found = scan(folder)
                instances += found.instances
                for rejection in found.rejected:
                    if rejection.path not in packed:
                        refused[(rejection.code, rejection.message)] += 1
            for (code, message), n in sorted(refused.items()):
                yield self.refuse(f"{token}-{code}", code, message, n)
            if not instances and not refused:
                yield self.refuse(token, "no_dicom", "expected DICOM instances, found none; check the export", 0)
            cases, refusals = self._grouped(instances)
            repeats = Counter(code for code, _ in refused)
            for refusal in refusals:
                known = bool(refusal.identity_uid and refusal.patient_id)
                repeats[refusal.code] += not known
                again = f"-{repeats[refusal.code]}" if repeats[refusal.code] > 1 else ""
                case_id = f"{token}-{refusal.code}{again}"
                if known:
                    case_id = self.case_id(refusal.patient_id, refusal.identity_uid)
                patient = self.deidentifier.pseudonym(refusal.patient_id) if refusal.patient_id else ""
                row = self.refuse(case_id, refusal.code, refusal.message, refusal.n_instances, patient_id=patient)
                yield row | {"status": NOTE if refusal.note else QUARANTINED}
            for case in cases:
                yield self.case(case)

    def _grouped(self, instances: list["Instance"]) -> tuple[list[programs.RawCase], list[programs.Refusal]]:
        """Cases and refusals; objects that can't be grouped are one refusal."""
        try:
            return group_by_patient(programs.get(self.program), instances)
        except Exception as error:
            message = f"grouping {len(instances)} objects failed with {type(error).__name__}; send each case in a folder of its own"
            return [], [programs.Refusal(UNREADABLE, message, len(instances))]

    def case(self, case: programs.RawCase) -> dict[str, Any]:
        """Row of one case: verified, de-identified, scanned for residual identity, and stored."""
        case_id = self.case_id(case.patient_id, case.identity_uid)
        patient = self.deidentifier.pseudonym(case.patient_id)
        try:
            programs.get(self.program).verify(case)
            with room(self.ws.home):
                values = self._store(case)
        except CaseRejected as rejected:
            return self.refuse(case_id, rejected.code, rejected.message, len(case.instances), patient_id=patient)
        except (DiskFull, RemoteFailed):  # no fault of the case
            raise
        except Exception as error:  # one bad case never stops a batch; the text of a foreign error may hold identity
            message = f"reading this case failed with {type(error).__name__}; run `med-assets --debug ingest` beside the files for more"
            return self.refuse(case_id, UNREADABLE, message, len(case.instances), patient_id=patient)
        return self.row(case_id, OK, patient_id=patient, n_instances=len(case.instances), **values)

    def _store(self, case: programs.RawCase) -> dict[str, Any]:
        from med_assets.dicom.deidentify import to_bytes, without_identifiers
        from med_assets.dicom.discover import load
        from med_assets.dicom.phi import identifying_values, residual_phi
        from med_assets.dicom.write import is_synthetic

        datasets, known = [], set()
        for instance in case.instances:
            ds = load(instance.path)
            known |= set(identifying_values(ds))
            datasets.append(self.deidentifier.apply(ds))
        for ds in datasets:
            without_identifiers(ds, known)  # those of the other objects of the case too
        datasets.sort(key=lambda ds: str(ds.SOPInstanceUID))
        vocabulary = programs.get(self.program).roi_vocabulary(self.ws)
        leaks = residual_phi(datasets, known=known, roi_vocabulary=vocabulary)
        if leaks:
            tags = sorted({str(leak.tag) for leak in leaks})
            raise CaseRejected(
                "residual_phi",
                f"expected no identity after de-identification, found it in {tags}; nothing was stored, report the tags",
            )
        with tempfile.TemporaryDirectory(dir=scratch(self.ws.home)) as written:
            hashes = []
            for number, ds in enumerate(datasets):
                path = Path(written) / f"{number:04d}.dcm"
                content = to_bytes(ds)
                path.write_bytes(content)
                hashes.append(hashlib.sha256(content).hexdigest())
            version = digest(hashes)
            key = f"raw/{version}"
            if not self.ws.store.has(key):
                with self.ws.store.create(key) as folder:
                    for path in sorted(Path(written).iterdir()):
                        path.rename(folder / path.name)
        given = {str(ds.get("ClinicalTrialSiteID", "") or "") for ds in datasets if ds.get("Modality") in IMAGES}
        return {
            "version": version,
            "content_hash": content_hash(datasets),
            "images_hash": content_hash([ds for ds in datasets if ds.get("Modality") in IMAGES]),
            "artifact": key,
            "given_split": next(iter(given - {""}), None) if len(given) == 1 else None,
            "synthetic": any(is_synthetic(ds) for ds in datasets),
        }


def failures_table(ws: Workspace, program: str, batch: str) -> Path:
    """The objects of a batch that could not be fetched: keys can identify patients, so it lies with the batch's manifest."""
    return ws.landing_zone(program).manifests / program / f"{batch}.failures.csv"


def _one_row_per_case(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most one accepted row per case id: a case that lies twice in a batch, with different content, is ambiguous."""
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case_id"], []).append(row)
    out = []
    for case_id in sorted(by_case):
        good = accepted(by_case[case_id])
        versions = sorted({row["version"] for row in good})
        if len(versions) > 1:
            message = f"expected one version of a case per batch, got {len(versions)}; send the one that counts alone"
            out.append(
                good[0] | {"status": QUARANTINED, "reason_code": "two_versions", "reason": message, "artifact": ""}
            )
        else:
            out.append(good[0] if good else by_case[case_id][0])
    return out


def _mark_duplicates(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Quarantine cases whose images are already there under another case id: else one patient could sit in two splits.

    Labels do not count: the same scan with the labels of two readers is the same scan.
    """
    owner = {row["images_hash"] or row["content_hash"]: row["case_id"] for row in others}
    for row in accepted(rows):
        first = owner.setdefault(row["images_hash"] or row["content_hash"], row["case_id"])
        if first != row["case_id"]:
            target = next(item for item in rows if item["case_id"] == row["case_id"])
            message = f"same images as case {first} under another patient or study; keep one, or correct the ids at the source"
            target |= {"status": QUARANTINED, "reason_code": "duplicate_case", "reason": message, "artifact": ""}


def _keep_failures(path: Path, failures: list["Failure"]) -> None:
    if failures or path.exists():
        from med_assets.s3.landing import write_failures

        write_failures(path, failures)


def intake(ws: Workspace, program_name: str, batch: str) -> StageResult:
    """Take in one batch. Entries that changed or vanished since the batch was taken keep what was recorded of them."""
    from med_assets.dicom.deidentify import Deidentifier
    from med_assets.dicom.frames import quietly

    remove_abandoned(ws.home)
    lake, partition = ws.lake, f"{program_name}/{batch}"
    earlier = lake.rows("raw_cases", partition)
    others = [row for row in lake.rows("raw_cases", program_name) if row["batch"] < batch]
    vocabulary = programs.get(program_name).roi_vocabulary(ws)
    taking = _Intake(ws, program_name, batch, Deidentifier(ws.key, vocabulary))
    rows: list[dict[str, Any]] = []
    present = {}
    for name, fingerprint in batches.manifest(ws, program_name, batch).items():
        try:
            entry = batches.read_entry(ws, program_name, name)
            present[name] = entry is not None and entry.fingerprint == fingerprint
        except LandingUnreadable:
            present[name] = True  # reading it says why not
    if all(present.values()) or not earlier:
        for name, there in present.items():
            if there:
                with quietly():  # warnings of pydicom quote values
                    rows += taking.entry(name)
            else:
                gone = "the files changed or vanished between being noticed and being read; what is there now comes in a later batch"
                rows.append(taking.refuse(source_token(ws, name), "entry_changed", gone, 0))
        _keep_failures(failures_table(ws, program_name, batch), taking.failures)
        rows = _one_row_per_case(rows)
        _mark_duplicates(rows, accepted(others))
    else:
        rows = earlier
    lake.write("raw_cases", partition, rows)
    seen = {row["version"] for row in [*earlier, *others] if row["status"] == OK}
    older = {row["case_id"]: row["version"] for row in others if row["status"] == OK}
    labels = []
    for row in rows:
        if row["status"] != OK:
            labels.append(row["status"])
            continue
        labels.append("reused" if row["version"] in seen else "new")
        if older.get(row["case_id"], row["version"]) != row["version"]:
            labels.append("superseded")
    return StageResult(
        data_version=digest([[row["case_id"], row["version"], row["status"], row["reason_code"]] for row in rows]),
        counts=tally(labels),
        summary={
            "cases": sum(row["status"] != NOTE for row in rows),
            "instances": sum(row["n_instances"] for row in rows),
        },
        tables={"quarantine": reasons(rows)},
    )
