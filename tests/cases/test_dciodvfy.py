"""What med_assets writes for other systems has no error for dciodvfy: each writer and importer, before and after de-identification,
and the predictions of all programs, also re-linked. Debian's dicom3tools brings dciodvfy; where it is absent these tests skip, and
fail instead where NEEDS_DCIODVFY is set, as in CI."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from med_assets import program
from med_assets.cli import stages
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.encoded import to_bytes
from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.opt import write_opt
from med_assets.dicom.write import write_mr, write_rtdose
from med_assets.settings import Settings, Workspace
from tests.cases.test_to_predict import EVERY, champion, files_of, phantoms, strip
from tests.med_assets.importers import test_lumbar_t2, test_openkbp, test_rsna_lumbar, test_volumes
from tests.shared_phantoms import write_phantoms

NEEDED = "NEEDS_DCIODVFY"
"""Set where a missing dciodvfy is a failure."""

CONTRADICTION = (
    "Error - </InConcatenationNumber(0020,9162)> - Attribute present when condition unsatisfied",
    "Error - </InConcatenationTotalNumber(0020,9163)> - Cannot be less than or equal to one since then not a Concatenation",
    "Error - </ConcatenationFrameOffsetNumber(0020,9228)> - Attribute present when condition unsatisfied",
)
"""Of every OPT object dciodvfy 2022 demands these with the values that PS3.3 C.8.17.7 enumerates (1 of 1, offset 0), and then refuses
them as those of no concatenation; without them it has three other errors. No OPT object passes, so these three lines are let through."""

LET_THROUGH = (
    "needed to build DICOMDIR",  # type 2 elements of which nothing is known
    "Retired Person Name form",  # a pseudonym has one component
    "Unrecognized defined term = <SYNTHETIC>",  # the mark of phantoms
    "is only permitted to be empty when actually unknown",  # Laterality, which it is
)
"""Parts of the warnings that there are."""


@pytest.fixture(scope="module")
def dciodvfy() -> str:
    """The path of the validator."""
    path = shutil.which("dciodvfy")
    if path is None and os.environ.get(NEEDED):
        pytest.fail(f"expected dciodvfy, since {NEEDED} is set; on Debian, `apt-get install dicom3tools` brings it")
    if path is None:
        pytest.skip("no dciodvfy here; on Debian, `apt-get install dicom3tools` brings it")
    return path


def complaints(dciodvfy: str, paths: list[Path]) -> dict[str, list[str]]:
    """Errors, unknown warnings and failures of the validator by file; one of the first and last ten slices stands for a series."""
    assert paths
    found = {}
    for path in paths:
        done = subprocess.run([dciodvfy, "-new", str(path)], capture_output=True, text=True, timeout=60, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith(("Error", "Warning", "Abort"))]
        wrong = [
            line
            for line in lines
            if not line.startswith(CONTRADICTION) and not any(part in line for part in LET_THROUGH)
        ]
        if done.returncode < 0 or "Assertion" in done.stderr:
            wrong.append(f"dciodvfy ended with {done.returncode}: {done.stderr[-200:]}")
        if wrong:
            found[path.name] = wrong
    return found


def chosen(folder: Path) -> list[Path]:
    """All DICOM files of a folder, of each series of single images its first and its last."""
    by_series: dict[tuple[str, str], list[Path]] = {}
    for path in files_of(folder):
        if path.suffix not in ("", ".dcm") or not pydicom.misc.is_dicom(path):
            continue
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        by_series.setdefault((str(ds.SeriesInstanceUID), str(ds.SOPClassUID)), []).append(path)
    return [path for paths in by_series.values() for path in {paths[0], paths[-1]}]


def without_identity(paths: list[Path], folder: Path, name: str) -> list[Path]:
    """The same objects as intake of a program stores them."""
    folder.mkdir()
    vocabulary = program.get(name).roi_vocabulary(Settings.from_env())
    keys, written = Deidentifier(b"a key that is long enough for it", vocabulary), []
    for number, path in enumerate(paths):
        written.append(folder / f"{number}.dcm")
        written[-1].write_bytes(to_bytes(keys.apply(pydicom.dcmread(path))))
    return written


def openkbp(folder: Path) -> None:
    from med_assets.programs.rt_dose.importer import import_patients

    source = folder.parent / "source"
    (source / "train-pats" / "pt_1").mkdir(parents=True)
    test_openkbp.write_boxes(source / "train-pats" / "pt_1")
    import_patients(source, folder, ["pt_1"])


def decathlon(folder: Path) -> None:
    from med_assets.landing.importing.volumes import import_pairs, msd_pairs

    task = test_volumes.decathlon(folder.parent / "Task06_Lung", ["001"])
    hu, labels = test_volumes.volumes()
    test_volumes.save(task / "imagesTr" / "lung_001.nii.gz", hu)
    test_volumes.save(task / "labelsTr" / "lung_001.nii.gz", labels)
    assert import_pairs(msd_pairs(task), folder, {1: "lung tumor", 3: "liver"}).imported


def busi(folder: Path) -> None:
    from med_assets.programs.breast_us.importer import import_images
    from med_assets.programs.breast_us.phantom import write_busi

    write_busi(folder.parent / "busi", 2, shape=(64, 80))
    import_images("busi", folder.parent / "busi", folder)


def lumbar_t2(folder: Path) -> None:
    from med_assets.programs.lumbar_mr.importer import import_cases

    label, _ = test_lumbar_t2.spine()
    (folder.parent / "npz").mkdir()
    np.savez(folder.parent / "npz" / "case_01.npz", image=test_lumbar_t2.image(label), label=label)
    assert import_cases(folder.parent / "npz", folder).imported


def rsna_lumbar(folder: Path) -> None:
    from med_assets.programs.lumbar_mr.importer_rsna import import_studies

    (folder.parent / "rsna").mkdir()
    test_rsna_lumbar.write_source(folder.parent / "rsna", (7,))
    assert import_studies(folder.parent / "rsna", folder).imported


def ai_readi(folder: Path) -> None:
    labels = {
        "ClinicalTrialProtocolID": "AI-READI", "ClinicalTrialSiteID": "train", "ClinicalTrialSiteName": "UW",
        "AdmittingDiagnosesDescription": "healthy", "ClinicalTrialSeriesID": "cirrus_macula",
    }  # fmt: skip
    identity = Identity("1001", derived_uid("s"), derived_uid("f"))
    array = np.random.default_rng(0).integers(0, 900, (9, 33, 35))
    write_opt(folder / "a.dcm", array, (0.1, 0.004, 0.01), identity, role="a", laterality="R", extra=labels)


def no_dose_and_constant_mr(folder: Path) -> None:
    """Values at the ends of their ranges."""
    identity = Identity("P1", derived_uid("s2"), derived_uid("f2"))
    volume = Volume(np.zeros((3, 5, 7), np.float32), Geometry((3, 5, 7), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    write_rtdose(folder / "dose.dcm", volume, identity, derived_uid("plan"))
    write_mr(folder, volume, identity, derived_uid("series"))


IMPORTS: dict[Callable[[Path], None], str] = {
    openkbp: "rt_dose", decathlon: "lung_ct", busi: "breast_us", lumbar_t2: "lumbar_mr", rsna_lumbar: "lumbar_mr",
    ai_readi: "retinal_oct", no_dose_and_constant_mr: "rt_dose",
}  # fmt: skip
"""What is imported, and the program that takes it in."""


@pytest.mark.parametrize("name", EVERY)
def test_phantoms_of_a_program_have_no_error_before_and_after_de_identification(
    name: str, dciodvfy: str, tmp_path: Path
) -> None:
    write_phantoms(name, tmp_path / "cases", 1, 5)
    paths = chosen(tmp_path / "cases")
    assert complaints(dciodvfy, paths) == {}
    assert complaints(dciodvfy, without_identity(paths, tmp_path / "clean", name)) == {}


@pytest.mark.parametrize(("write", "name"), IMPORTS.items(), ids=lambda one: getattr(one, "__name__", one))
def test_imported_cases_have_no_error_before_and_after_de_identification(
    write: Callable[[Path], None], name: str, dciodvfy: str, tmp_path: Path
) -> None:
    write(tmp_path / "imported")
    paths = chosen(tmp_path / "imported")
    assert complaints(dciodvfy, paths) == {}
    assert complaints(dciodvfy, without_identity(paths, tmp_path / "clean", name)) == {}


@pytest.mark.parametrize("name", [name for name in EVERY if name != "retinal_oct"])
def test_predictions_have_no_error_under_pseudonyms_and_re_linked(
    name: str, dciodvfy: str, workspace: Workspace, tmp_path: Path
) -> None:
    champion(workspace, name)
    source = strip(phantoms(tmp_path / "cases", name, 1, 5)[0], name)
    written = []
    for relink in (False, True):
        (one,) = stages.predict_folder(workspace, name, source, None, tmp_path / f"out-{relink}", relink=relink)
        assert one.reason == ""
        written += [path for path in one.paths if path.suffix == ".dcm"]
    if name == "rt_dose":  # a plan without beams is written where none came
        for path in files_of(source):
            if pydicom.dcmread(path, stop_before_pixels=True).Modality == "RTPLAN":
                path.unlink()
        (one,) = stages.predict_folder(workspace, name, source, None, tmp_path / "out-plan")
        written += [path for path in one.paths if path.suffix == ".dcm"]
        assert {path.name for path in written} == {"predicted_dose.dcm", "predicted_plan.dcm"}
    assert complaints(dciodvfy, written) == {}
    assert complaints(dciodvfy, without_identity(written, tmp_path / "clean", name)) == {}
