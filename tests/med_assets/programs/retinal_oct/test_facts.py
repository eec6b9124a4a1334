"""What is known of a participant beside the volume: the age that may stay, and a classifier of facts alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch

from med_assets.deidentification.ages import AGE_CAP, ages
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.profiles import PROFILES
from med_assets.deidentification.residual import residual_phi
from med_assets.dicom.encoded import to_bytes
from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.programs.retinal_oct.experiment import OfFacts
from med_assets.programs.retinal_oct.facts import columns, features_of, fit_facts, logits_of_facts
from med_assets.programs.retinal_oct.importer import age_text, import_participants
from med_assets.programs.retinal_oct.kept import PREDICTION
from med_assets.programs.retinal_oct.phantom import SCANNERS, people, write_dataset
from med_assets.programs.retinal_oct.prepare import prepare_case, read_age
from med_assets.programs.retinal_oct.prepared import PreparedCase
from med_assets.programs.retinal_oct.scorer import load_predictor
from med_assets.programs.retinal_oct.vocabulary import CLASSES, vocabulary
from med_assets.training.job import run
from tests.med_assets.programs.retinal_oct.builders import TINY, write_job, write_prepared
from tests.med_assets.programs.retinal_oct.experiments import tiny

torch.set_num_threads(1)

ALL = OfFacts(facts=("age", "site", "laterality"), penalty=0.01)
FACTS = (*(word for word in TINY if not word.startswith("learning.")), "learning.unfreeze_at=null")


def test_an_age_is_whole_years_of_an_adult_and_ninety_from_there_on() -> None:
    assert [age_text(text) for text in ("18", "64", "89", "90", "91", "104")] == [
        "018Y", "064Y", "089Y", "090Y", "090Y", "090Y",
    ]  # fmt: skip
    assert {age_text(text) for text in ("", "17", "-3", "64.5", "unknown", "\u0664\u0664")} == {""}
    assert max(ages(18)) == f"{AGE_CAP:03d}Y"
    assert (len(ages(18)), "091Y" in ages(18)) == (73, False)


def test_the_age_of_a_participant_gets_past_de_identification_and_one_above_the_cap_does_not(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", people(2, 0), SCANNERS[:1])
    table = pd.read_csv(tmp_path / "data" / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    table["age"] = ["97", ""]
    table.to_csv(tmp_path / "data" / "participants.tsv", sep="\t", index=False)
    import_participants(tmp_path / "data", tmp_path / "landing")
    found = []
    for name in table["participant_id"]:
        landed = pydicom.dcmread(tmp_path / "landing" / name / "labelled.dcm")
        clean = Deidentifier(b"key", vocabulary()).apply(landed)
        assert residual_phi([clean], roi_vocabulary=vocabulary()) == []
        found.append(read_age(clean))
    assert found == [90, None]
    landed.PatientAge = "097Y"  # as a clinic states it
    clean = Deidentifier(b"key", vocabulary()).apply(landed)
    assert "PatientAge" not in clean
    assert read_age(clean) is None
    landed.PatientAge = "074Y"
    assert "PatientAge" not in Deidentifier(b"key").apply(landed), "it stays in programs alone that have a use for it"
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "0.dcm").write_bytes(to_bytes(Deidentifier(b"key", vocabulary()).apply(landed)))
    (out := tmp_path / "out").mkdir()
    facts = prepare_case("c", tmp_path / "raw", out, (4, 16, 16))
    assert facts["age_years"] == 74
    case = PreparedCase.open(out)
    assert (case.age_years, case.clinical_site) == (74, facts["site"])


def test_a_case_that_was_prepared_before_ages_were_kept_has_none(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "case", 1)
    kept = json.loads((folder / "case.json").read_text())
    del kept["age_years"], kept["clinical_site"]
    (folder / "case.json").write_text(json.dumps(kept))
    case = PreparedCase.open(folder)
    assert (case.age_years, case.clinical_site) == (None, "")


def cases(folder: Path, n: int = 40, classes: int = 2) -> list[PreparedCase]:
    """Cases of some classes, of which each is older than the one before, a little mixed, on sites and eyes that say nothing."""
    rng = np.random.default_rng(0)
    first = PreparedCase.open(write_prepared(folder / "case", 0))
    found = []
    for number in range(n):
        label = number % classes
        age = int(55 + 16 * label / (classes - 1) + rng.normal(0, 6))
        place = {"clinical_site": ("UW", "UAB", "UCSD")[number % 3], "laterality": "LR"[number // 2 % 2]}
        found.append(replace(first, case_id=f"c{number}", stated_label=label, age_years=age, **place))  # type: ignore[arg-type]  # text, as both fields are
    return found


def test_the_regression_is_that_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    some = cases(tmp_path, classes=4)
    found = fit_facts(some, ALL, torch.ones(4))
    rows = features_of(some, ALL, found["age_mean"], found["age_std"]).numpy()
    labels = [case.label for case in some]
    expected = LogisticRegression(C=1 / (ALL.penalty * len(some)), tol=1e-8, max_iter=5000).fit(rows, labels)
    ours = logits_of_facts(some, ALL, found).softmax(dim=1).numpy()
    assert np.allclose(ours, expected.predict_proba(rows), atol=1e-4)


def test_age_that_tells_the_classes_is_used_and_what_is_not_stated_is_no_number(tmp_path: Path) -> None:
    some = cases(tmp_path)
    weights = fit_facts(some, ALL, torch.ones(4))
    right = [
        int(row.argmax()) == case.label for row, case in zip(logits_of_facts(some, ALL, weights), some, strict=True)
    ]
    assert np.mean(right) > 0.8
    age = weights["coefficients"][columns(ALL).index("age")]
    assert float(age[1] - age[0]) > 1
    unknown = replace(some[0], age_years=None, clinical_site="", laterality="")
    (row,) = features_of([unknown], ALL, weights["age_mean"], weights["age_std"]).tolist()
    assert dict(zip(columns(ALL), row, strict=True)) == {name: float(name == "age not stated") for name in columns(ALL)}
    assert torch.isfinite(logits_of_facts([unknown], ALL, weights)).all()
    without = OfFacts(facts=("site",), penalty=0.01)
    nothing = fit_facts([replace(case, age_years=None) for case in some], ALL, torch.ones(4))
    assert all(torch.isfinite(value).all() for value in nothing.values())
    assert columns(without) == ("site UAB", "site UCSD", "site UW")
    again = fit_facts(some, ALL, torch.ones(4))
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_sex_is_a_fact_of_the_baseline_where_the_profile_research_keeps_it(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", people(1, 0), SCANNERS[:1])
    import_participants(tmp_path / "data", tmp_path / "landing")
    (landed,) = map(pydicom.dcmread, sorted((tmp_path / "landing").rglob("labelled.dcm")))
    landed.PatientSex, landed.PatientAge = "F", "097Y"
    found = {}
    for profile in PROFILES.values():
        clean = Deidentifier(b"key", vocabulary(), profile).apply(landed)
        assert residual_phi([clean], roi_vocabulary=vocabulary(), profile=profile) == []
        raw, out = tmp_path / profile.name / "raw", tmp_path / profile.name / "out"
        raw.mkdir(parents=True)
        out.mkdir()
        (raw / "0.dcm").write_bytes(to_bytes(clean))
        prepare_case("c", raw, out, (4, 16, 16))
        found[profile.name] = PreparedCase.open(out)
        assert ("sex" in json.loads((out / "case.json").read_text())) == (profile.name == "research")
    assert (found["strict"].sex, found["strict"].age_years) == (None, None)
    assert (found["research"].sex, found["research"].age_years) == ("F", 90)
    both = OfFacts(facts=("age", "sex"), penalty=0.01)
    assert columns(both) == ("age", "age not stated", "sex F", "sex M")
    zero, one = torch.zeros(()), torch.ones(())
    rows = features_of([found["research"], found["strict"]], both, zero, one).tolist()
    assert rows == [[90.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]


def test_the_experiment_is_trained_and_predicts_without_a_volume(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", "facts_alone", FACTS, cases=9)
    result = run(job)
    assert result["parameters"] < 50
    assert 0 <= result["best_metrics"]["val_balanced_accuracy"] <= 1
    folder = job / "cases" / "case0"
    size = tiny().network.size
    image = np.load(folder / "image.npy")
    found = []
    for number, volume in enumerate((image, image[:, :, ::-1])):
        np.save(folder / "image.npy", volume)
        (out := tmp_path / f"out{number}").mkdir()
        load_predictor(job, tmp_path / "cache").predict(folder, out)
        found.append(json.loads((out / PREDICTION).read_text()))
    assert image.shape == size
    assert found[0] == found[1]
    assert set(found[0]["logits"]) == set(CLASSES)
    assert found[0]["how"] == "logistic regression on age, site, laterality; no volume"
    weights = torch.load(job / "weights.pt", weights_only=True)
    torch.save(weights | {"coefficients": weights["coefficients"][:3]}, job / "weights.pt")
    with pytest.raises(CheckpointMismatch, match="coefficients"):
        load_predictor(job, tmp_path / "cache")


def test_facts_start_from_no_weights() -> None:
    with pytest.raises(ConfigurationError, match="which looks at no volume"):
        tiny("facts_alone", "learning.unfreeze_at=null", "initial=pretrain_multi_domain")
