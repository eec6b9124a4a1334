"""From DICOM to arrays: what is read, what is refused and why, and pictures that are there twice."""

import shutil
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest

from med_assets import program
from med_assets.catalog import Case
from med_assets.cli import stages
from med_assets.dataset.checks import between_cases
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.segmentation_2d import write_segmentation_2d
from med_assets.dicom.ultrasound import write_us
from med_assets.errors import CaseRejected
from med_assets.landing import batches
from med_assets.programs.breast_us.audit import duplicates
from med_assets.programs.breast_us.phantom import phantom, write_case
from med_assets.programs.breast_us.prepare import prepare_case
from med_assets.programs.breast_us.prepared import PreparedCase
from med_assets.programs.breast_us.similarity import CORRELATION, correlation, dhash, groups
from med_assets.settings import Workspace
from tests.invented import case_with
from tests.med_assets.programs.breast_us.builders import P, write_prepared


def prepared(folder: Path, out: Path) -> tuple[dict[str, object], PreparedCase]:
    out.mkdir()
    facts = prepare_case("case", folder, out, {})
    return facts, PreparedCase.open(out)


def refusal(folder: Path, out: Path) -> str:
    out.mkdir()
    with pytest.raises(CaseRejected) as refused:
        prepare_case("case", folder, out, {})
    return refused.value.code


def relabelled(folder: Path, label: str, mask: np.ndarray | None = None, name: str = "seg.dcm") -> None:
    source = pydicom.dcmread(folder / "us.dcm")
    found = mask if mask is not None else np.zeros((source.Rows, source.Columns), bool)
    write_segmentation_2d(folder / name, found, label, source)


@pytest.mark.parametrize("kind", ["benign", "malignant", "normal"])
def test_a_case_is_what_lies_in_the_region_of_tissue_with_its_mask_and_pixel_size(tmp_path: Path, kind: str) -> None:
    facts, case = prepared(write_case(tmp_path / "case", 3, kind=kind), tmp_path / "out")
    made = phantom(3, kind=kind)
    assert np.array_equal(case.image, made.pixels[made.region])
    assert np.array_equal(case.truth, made.mask[made.region])
    assert case.corner == (made.region[0].start, made.region[1].start)
    assert case.pixel_mm == pytest.approx(made.pixel_mm)
    assert (case.label, case.synthetic) == (kind, True)
    assert facts["lesion_pixels"] == made.mask.sum()
    assert set(facts) == set(program.get(P).facts) - set(program.COMMON_FACTS)


def test_all_masks_of_an_image_are_united(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case", 0, kind="benign")
    more = np.zeros(phantom(0).mask.shape, bool)
    more[20:24, 20:24] = True
    relabelled(folder, "benign", more, "seg2.dcm")
    facts, case = prepared(folder, tmp_path / "out")
    made = phantom(0, kind="benign")
    assert np.array_equal(case.truth > 0, (made.mask | more)[made.region])
    assert facts["lesion_components"] == 2


def test_an_empty_mask_is_refused_unless_the_image_was_read_as_normal(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case", 0, kind="benign")
    relabelled(folder, "benign")
    assert refusal(folder, tmp_path / "out") == "empty_mask"
    relabelled(folder, "normal", phantom(0, kind="benign").mask)
    assert refusal(folder, tmp_path / "out2") == "lesion_in_normal"


def test_two_labels_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case", 0, kind="benign")
    relabelled(folder, "malignant", phantom(0, kind="benign").mask, "seg2.dcm")
    assert refusal(folder, tmp_path / "out") == "two_labels"
    (folder / "seg2.dcm").unlink()
    relabelled(folder, "something", phantom(0, kind="benign").mask)
    assert refusal(folder, tmp_path / "out2") == "unknown_label"


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    folder, other = (
        write_case(tmp_path / name, 0, shape=shape) for name, shape in (("a", (96, 120)), ("b", (96, 100)))
    )
    shutil.copyfile(other / "seg.dcm", folder / "seg.dcm")
    assert refusal(folder, tmp_path / "out") == "mask_size_mismatch"


def test_a_mask_outside_of_the_tissue_is_refused(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case", 0, kind="benign")
    mask = phantom(0, kind="benign").mask.copy()
    mask[:8, :8] = True
    relabelled(folder, "benign", mask)
    assert refusal(folder, tmp_path / "out") == "mask_outside_tissue"


def altered(image: np.ndarray, how: str) -> np.ndarray:
    from PIL import Image

    if how == "copy":
        return image.copy()
    if how == "darker":
        return (image * 0.8).astype(np.uint8)
    if how == "cropped":
        return image[2:-2, 3:-3]
    return np.asarray(Image.fromarray(image).resize((image.shape[1] * 3 // 2, image.shape[0] * 3 // 2)))


@pytest.mark.parametrize("how", ["copy", "darker", "larger"])
def test_the_same_picture_saved_again_is_found(how: str) -> None:
    made = phantom(1, (200, 260))
    image = made.pixels[made.region]
    other = altered(image, how)
    assert groups([phantom(2).pixels, image, other, phantom(3).pixels]) == [0, 1, 1, 3]
    assert dhash(image) == dhash(image.copy())


def test_two_pictures_are_not_one() -> None:
    images = [phantom(seed, (96, 120)).pixels for seed in range(25)]
    assert groups(images) == list(range(25))
    assert correlation(images[0], np.zeros((50, 50), np.uint8)) == 0.0
    assert correlation(images[0], images[1]) < CORRELATION


def described_case(folder: Path, label: str, split: str | None, patient: str) -> Case:
    found = dhash(PreparedCase.open(folder).image)
    return case_with(folder.name, patient_id=patient, artifact=str(folder), split=split, label=label, dhash=found)


@pytest.mark.parametrize(
    ("labels", "splits", "blocks"),
    [
        (("benign", "benign"), ("train", "test"), True),
        (("benign", "malignant"), ("train", "train"), True),
        (("benign", "benign"), ("train", "train"), False),
        (("benign", "benign"), (None, "train"), False),
    ],
)
def test_a_picture_twice_blocks_where_it_has_two_labels_or_two_splits(
    tmp_path: Path, labels: tuple[str, str], splits: tuple[str | None, str], blocks: bool
) -> None:
    folders = [write_prepared(tmp_path / name, 1) for name in ("a", "b")]
    other = write_prepared(tmp_path / "c", 2)
    rows = [described_case(*each, f"p{index}") for index, each in enumerate(zip(folders, labels, splits, strict=True))]
    (finding,) = duplicates([*rows, described_case(other, "benign", "train", "p9")], Path)
    assert finding.blocking is blocks
    assert finding.cases == ("a", "b")
    assert finding.plot is not None
    assert finding.plot(tmp_path / "pair.png").stat().st_size > 1000


def test_planted_duplicates_are_found_by_the_check_of_the_splits_and_settled_by_withdrawing_one(
    workspace: Workspace,
) -> None:
    landing = workspace.landing / P
    write_case(landing / "a", 1, kind="malignant")
    made = phantom(1, kind="malignant")
    again = Identity("OTHER", derived_uid("again"), "", synthetic=True)
    pixels = made.pixels.copy()
    pixels[tuple(np.argwhere(made.mask)[0])] ^= 1  # another image, so that it is no exact duplicate
    image = write_us(landing / "b" / "us.dcm", pixels, again, region=made.region)
    write_segmentation_2d(landing / "b" / "seg.dcm", made.mask, "benign", image, synthetic=True)
    time.sleep(0.01)
    batch = batches.take(workspace, P, batches.untaken(workspace, P), time.time())
    stages.intake(workspace, P, batch)
    stages.prepare(workspace, P, batch)
    assert stages.dataset(workspace, P).summary["cases"] == 2
    stages.splits(workspace, P)
    outcome = between_cases(workspace, P)
    assert not outcome.passed
    assert outcome.severity == "error"
    assert "with two labels" in outcome.reason
    assert all(path.is_file() for path in outcome.images.values())
    assert len(outcome.images) == 1
    stages.withdraw(workspace, P, workspace.lake.rows("dataset", P)[0]["case_id"], "twice")
    stages.dataset(workspace, P)
    assert between_cases(workspace, P).passed
