"""What preparing a dose case costs, counted, and that the short way gives the same numbers."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.filereader
import pytest
import scipy.ndimage
from scipy.ndimage import distance_transform_edt

from med_assets.catalog import Case
from med_assets.experiments.configuration import load
from med_assets.programs.rt_dose import RtDose
from med_assets.programs.rt_dose.experiment import DoseExperiment
from med_assets.programs.rt_dose.patches import PatchDataset
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.programs.rt_dose.prepare import CONTROL_POINTS, prepare_case, signed_distance
from med_assets.programs.rt_dose.prepared import SDF_CLIP_MM, SDF_SCALE, PreparedCase
from med_assets.programs.rt_dose.site import load_site
from med_assets.programs.rt_dose.tables import beams as beams_table
from tests.med_assets.dicom.test_rtbeams import OPEN, arc, plan
from tests.med_assets.dicom.test_rtplan import organ


@pytest.mark.parametrize("spacing_mm", [(3.0, 2.5, 2.5), (2.5, 1.6, 1.6), (5.0, 5.0, 5.0)])
def test_signed_distances_near_a_structure_are_those_of_the_whole_volume(spacing_mm: tuple[float, ...]) -> None:
    rng = np.random.default_rng(7)
    for share in (0.002, 0.3, 0.98):
        mask = np.zeros((14, 40, 44), bool)
        mask[3:9, 5:30, 20:] = rng.uniform(size=(6, 25, 24)) < share  # it ends where the volume does
        outside, inside = (distance_transform_edt(part, sampling=spacing_mm) for part in (~mask, mask))
        scaled = np.rint(np.clip(outside - inside, -SDF_CLIP_MM, SDF_CLIP_MM) * (SDF_SCALE / SDF_CLIP_MM))
        np.testing.assert_array_equal(signed_distance(mask, spacing_mm), scaled.astype(np.int8))


def test_a_case_is_read_once_and_each_structure_it_has_costs_two_distance_transforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "sent", 1)
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    out.mkdir()
    for number, path in enumerate(sorted(path for path in (tmp_path / "sent").rglob("*") if path.is_file())):
        path.rename(raw / f"{number:04d}.dcm")
    opened: Counter[str] = Counter()
    sizes: list[int] = []
    read, transform = pydicom.filereader.read_partial, scipy.ndimage.distance_transform_edt

    def counted_read(file: Any, *given: Any, **named: Any) -> Any:
        opened[Path(file.name).name] += 1
        return read(file, *given, **named)

    def counted_transform(mask: np.ndarray, **named: Any) -> Any:
        sizes.append(mask.size)
        return transform(mask, **named)

    monkeypatch.setattr(pydicom.filereader, "read_partial", counted_read)
    monkeypatch.setattr(scipy.ndimage, "distance_transform_edt", counted_transform)
    site = load_site("prostate_sib")
    facts = prepare_case("case", raw, out, site)
    assert opened == Counter(path.name for path in raw.iterdir())
    assert len(sizes) == 2 * facts["structures_present"] <= 2 * len(site.structures)
    whole = np.load(out / "ct.npy", mmap_mode="r").size
    assert sum(sizes[1::2]) < whole  # those within structures take the boxes of the structures


def test_the_beams_of_a_plan_are_facts_and_its_control_points_an_array_that_no_network_reads(tmp_path: Path) -> None:
    write_case(tmp_path / "sent", 1, shape=(24, 40, 40), spacing_mm=(8.0, 8.0, 8.0))
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, path in enumerate(sorted(path for path in (tmp_path / "sent").rglob("*") if path.is_file())):
        ds = pydicom.dcmread(path)
        if ds.Modality == "RTPLAN":
            beams = plan(arc(1, 181, 179, "CW", [OPEN, OPEN]), metersets={1: 500})
            ds.BeamSequence = beams.BeamSequence
            ds.FractionGroupSequence[0].ReferencedBeamSequence = beams.FractionGroupSequence[0].ReferencedBeamSequence
        ds.save_as(raw / f"{number:04d}.dcm")
    with_beams, without = tmp_path / "with", tmp_path / "without"
    for out in (with_beams, without):
        out.mkdir()
    site = load_site("prostate_sib")
    facts = prepare_case("case", raw, with_beams, site)
    assert (facts["beams"], facts["arcs"], facts["meterset_mu"], facts["mlc_leaf_pairs"]) == (1, 1, 500, 3)
    assert facts["mu_per_gy"] == pytest.approx(500 / (70 / 28))
    assert facts["mean_aperture_cm2"] == pytest.approx(8)
    assert set(facts) <= set(RtDose.facts)
    assert np.load(with_beams / CONTROL_POINTS).shape == (2, 15)
    (plan_file,) = [
        path for path in raw.iterdir() if pydicom.dcmread(path, stop_before_pixels=True).Modality == "RTPLAN"
    ]
    ds = pydicom.dcmread(plan_file)
    del ds.BeamSequence
    ds.save_as(plan_file)
    assert "beams" not in prepare_case("case", raw, without, site), "of a plan without beams they are undefined"
    assert not (without / CONTROL_POINTS).exists()
    for name in RtDose.inputs:
        assert (with_beams / name).read_bytes() == (without / name).read_bytes()


def test_limits_that_a_plan_states_come_before_those_of_the_site_and_reach_the_network(tmp_path: Path) -> None:
    write_case(tmp_path / "sent", 1, shape=(24, 40, 40), spacing_mm=(8.0, 8.0, 8.0))
    raw, site = tmp_path / "raw", load_site("prostate_sib")
    raw.mkdir()
    sent = sorted(path for path in (tmp_path / "sent").rglob("*") if path.is_file())
    stored = [path.rename(raw / f"{number:04d}.dcm") for number, path in enumerate(sent)]
    files = {pydicom.dcmread(path, stop_before_pixels=True).Modality: path for path in stored}
    rois = pydicom.dcmread(files["RTSTRUCT"]).StructureSetROISequence
    match = site.match([str(one.ROIName) for one in rois])
    numbers = {name: int(rois[index].ROINumber) for name, index in match.found.items()}
    found = {}
    for name in ("site", "plan"):
        ds = pydicom.dcmread(files["RTPLAN"])
        if name == "plan":
            ds.DoseReferenceSequence += [
                organ(numbers["Rectum"], OrganAtRiskMaximumDose="50.0", OrganAtRiskOverdoseVolumeFraction="33"),
                organ(numbers["Rectum"], OrganAtRiskLimitDose="72.8"),
                organ(numbers["Femur_L"], OrganAtRiskMaximumDose="50", OrganAtRiskOverdoseVolumeFraction="5"),
                organ(numbers["Femur_R"], OrganAtRiskMaximumDose="50", OrganAtRiskOverdoseVolumeFraction="3"),
                organ(numbers["Bladder"], OrganAtRiskMaximumDose="55", OrganAtRiskOverdoseVolumeFraction="30"),
            ]
            ds.save_as(files["RTPLAN"])
        out = tmp_path / name
        out.mkdir()
        stated = prepare_case("case", raw, out, site)["constraints_stated"]
        found[name] = (stated, PreparedCase.open(out).constraints)
    own, of_site = found["plan"][1], found["site"][1]
    assert found["plan"][0] == found["site"][0] + 3, "a limit at 55 Gy has no place in the site's vector"
    changed = {place: own[place] for place in range(len(own)) if own[place] != of_site[place]}
    assert changed == pytest.approx({3: 0.33, 6: 72.8 / 70, 10: 0.03})
    experiment = load("rt_dose", "baseline", profile="demo")
    assert isinstance(experiment, DoseExperiment)
    patches = PatchDataset([PreparedCase.open(tmp_path / "plan")], site, experiment.patches, 0)
    assert patches[0, 0]["constraints"].tolist() == pytest.approx(own)


def test_the_table_of_beams_has_median_and_range_of_the_cases_that_state_them() -> None:
    facts = [{"beams": 2, "meterset_mu": 400.0}, {"beams": 4, "meterset_mu": None}, {}]
    cases = [Case("rt_dose", f"c{n}", "p", "v", "h", "a", None, False, facts=one) for n, one in enumerate(facts)]
    (table,) = beams_table(cases)
    assert table.rows.to_dict("records") == [
        {"measure": "treatment beams", "median": "3", "lowest": "2", "highest": "4", "cases": 2},
        {"measure": "monitor units of a fraction", "median": "400", "lowest": "400", "highest": "400", "cases": 1},
    ]
    assert beams_table(cases[2:]) == []
