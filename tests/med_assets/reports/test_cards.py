"""Data cards and model cards: they say what the home holds and no more, and their own tools read them."""

import json
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlcroissant
import pytest
import yaml
from huggingface_hub import ModelCard as HubCard

from med_assets.catalog import Catalog
from med_assets.cli.doctor import configurations
from med_assets.cli.main import main
from med_assets.dicom.label_rows import LabelRow, write_rows
from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.evaluation.leaderboard import board
from med_assets.records import AggregateScore, Checkpoint
from med_assets.reporting.card_words import FILE, card_words
from med_assets.reporting.dataset_card import CARD, check_dataset_card, dataset_card, dataset_card_path
from med_assets.reporting.model_card import AS_JSON, README, check_readme, from_card_json, gather_card, model_card
from med_assets.reporting.report_facts import report_path
from med_assets.reporting.stage import report
from med_assets.settings import Workspace
from med_assets.storage.conf import CONF_VARIABLE
from med_assets.storage.files import digest, file_sha256
from tests.conftest import REPOSITORY, settings_of
from tests.docs_blocks import blocks
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import (
    GUARDED,
    PRIMARY,
    SUBJECTS,
    TRAIN,
    VAL,
    artifact,
    cases,
    constant,
    facts,
    model,
)

DECLARED = {
    "dataset": {
        "license": "https://creativecommons.org/licenses/by/4.0/",
        "creators": [{"name": "Our clinic", "email": "data@example.org"}, {"name": "A. Author", "kind": "person"}],
        "citation": "@misc{ours}",
        "published": "2026-01-31",
        "url": "https://example.org/data",
        "release": "1.2.0",
    },
    "model": {
        "license": "apache-2.0",
        "contacts": [{"name": "Our clinic", "url": "https://example.org"}],
        "citation": "@misc{ours}",
        "intended_use": "Teaching | of <b>students</b>.",
        "limitations": ["one scanner"],
    },
}


@pytest.fixture(scope="module")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases with arrays, labels and facts, an evaluated baseline that is the champion, and one that is worse; copy it, never change it."""
    home = tmp_path_factory.mktemp("cards")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings_of(home).items():
            environment.setenv(name, value)
        ws = Workspace.from_env()
        cases(ws, {"train": TRAIN, "val": VAL}, synthetic=("t0",))
        facts(ws, {name: {"slices": place} for place, name in enumerate(VAL)})
        for name in (*TRAIN, *VAL):
            prepare(ws, name)
        model(ws, "mean_dose", constant(5.5, step=0.02), history=(1.0, 0.5), trained_at="2026-01-02T03:04:05+00:00")
        model(ws, "baseline", constant(3.0, step=0.03), guarded=constant(1.0))
        assert main(["promote", P]) == 0
    return home


@pytest.fixture
def ws(workspace: Workspace, made_home: Path) -> Workspace:
    """A workspace with a copy of that home."""
    shutil.copytree(made_home, workspace.home)
    return workspace


def prepare(ws: Workspace, name: str) -> None:
    """The arrays of a case, with a label that half of the cases have and one that was not drawn."""
    with ws.store.create("raw/" + digest(name)) as folder:
        (folder / "case.txt").write_text(name)
    with ws.store.create(artifact(name)) as folder:
        for file in ("ct.npy", "dose.npy", "case.json"):
            (folder / file).write_text(f"{file} of {name}")
        drawn = [LabelRow(2, "RECTUM", 5, 0.5, "Rectum")] if name < "v15" else []
        write_rows(folder, [LabelRow(1, "PTV_70", 7, 0.7, "PTV70"), LabelRow(9, "EMPTY", 0, 0.0, "EMPTY"), *drawn])


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Write the site's words into a copy of conf/."""

    def write(words: dict[str, Any]) -> None:
        if not (tmp_path / "conf").exists():
            shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
            monkeypatch.setenv(CONF_VARIABLE, str(tmp_path / "conf"))
        (tmp_path / "conf" / P / FILE).write_text(yaml.safe_dump(words))

    return write


def card_of(ws: Workspace) -> Path:
    """Write the card of the present dataset."""
    dataset_card(ws, P)
    return dataset_card_path(ws, P, Catalog(ws, P).dataset().version)


def records(path: Path, name: str) -> list[dict[str, Any]]:
    """Records of a record set as mlcroissant yields them, text as str."""
    found = mlcroissant.Dataset(jsonld=str(path)).records(name)
    return [
        {key.partition("/")[2]: value.decode() if isinstance(value, bytes) else value for key, value in row.items()}
        for row in found
    ]


def all_text(path: Path) -> str:
    return "".join(each.read_text() for each in path.parent.iterdir())


def names_in(text: str) -> list[str]:
    """Pseudonyms of cases and patients in a text."""
    return re.findall(r"\b(?:p-)?[tv]\d{1,2}\b", text)


def test_the_records_of_a_data_card_are_what_the_home_holds(ws: Workspace) -> None:
    path = card_of(ws)
    splits = {row["split"]: (row["cases"], row["patients"], row["synthetic"]) for row in records(path, "splits")}
    assert splits == {"train": (3, 3, 1), "val": (30, 30, 0)}
    shown = records(path, "cases")
    assert {row["artifact"] for row in shown} == {artifact(name) for name in (*TRAIN, *VAL)}
    assert [set(row) for row in shown[:1]] == [{"artifact", "split", "fold", "synthetic"}]
    assert [(type(row["fold"]), row["synthetic"]) for row in shown if row["artifact"] == artifact("t0")] == [
        (int, True)
    ]
    labels = {row["label"]: (row["counts_as"], row["cases"]) for row in records(path, "labels")}
    assert labels == {"PTV_70": ("PTV70", 33), "RECTUM": ("Rectum", 18)}
    slices = next(row for row in records(path, "facts") if row["fact"] == "slices")
    assert (slices["cases"], slices["median"], slices["unit"]) == (30, 14.5, "count")
    files = records(path, "files")
    assert [row["file"] for row in files] == ["ct.npy"] * 33, "the hash of a label or a pseudonym would give it away"
    for row in files:
        assert row["sha256"] == file_sha256(ws.store.fetch(row["artifact"]) / row["file"])
    for one in mlcroissant.Dataset(jsonld=str(path)).metadata.distribution:
        assert one.sha256 == file_sha256(path.parent / one.content_url)


def test_a_data_card_has_pseudonyms_and_facts_of_cases_only_if_the_site_says_so(
    ws: Workspace, declare: Callable[[dict[str, Any]], None]
) -> None:
    path = card_of(ws)
    assert names_in(all_text(path)) == []
    before = {each.name for each in path.parent.glob("cases-*")}
    declare({"dataset": {"cases": "pseudonyms", "facts": ["slices"]}})
    shown = {row["case"]: (row["patient"], row["slices"]) for row in records(card_of(ws), "cases")}
    assert (shown["v07"], len(shown)) == (("p-v07", 7), 33)
    assert shown["t0"][1] is None, "undefined"
    assert before.isdisjoint({each.name for each in path.parent.glob("cases-*")}), "the former file is gone"
    declare({"dataset": {"files": "all"}})
    assert {row["file"] for row in records(card_of(ws), "files")} == {"ct.npy", "dose.npy", "case.json", "labels.json"}
    declare({"dataset": {"cases": "counts"}})
    assert {each.id for each in mlcroissant.Dataset(jsonld=str(card_of(ws))).metadata.record_sets} == {
        "splits", "facts", "labels",
    }  # fmt: skip
    assert "prepared/" not in all_text(path)


def test_quartiles_of_a_few_cases_are_not_published(ws: Workspace) -> None:
    facts(ws, {name: {"slices": place} for place, name in enumerate(VAL[:9])})
    slices = next(row for row in records(card_of(ws), "facts") if row["fact"] == "slices")
    assert (slices["cases"], slices["median"] in (None, "") or slices["median"] != slices["median"]) == (9, True)


def test_another_dataset_has_another_card_and_that_of_before_stays_true(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    first = card_of(ws)
    version = first.parent.name
    prepare(ws, "w0")
    cases(ws, {"val": ("w0",)}, batch="b2")
    second = card_of(ws)
    assert (first.parent, [len(records(path, "cases")) for path in (first, second)]) != (second.parent, [33, 34])
    assert [len(records(path, "cases")) for path in (first, second)] == [33, 34]
    versions = [mlcroissant.Dataset(jsonld=str(path)).metadata.version for path in (first, second)]
    assert versions == [f"0.0.0+{version}", f"0.0.0+{second.parent.name}"]
    capsys.readouterr()
    assert main(["card", "dataset", P, "--version", version[:6]]) == 0
    assert f"{version}/{CARD}" in capsys.readouterr().out
    next(first.parent.glob("splits-*")).write_text("split,cases\ntrain,999\n")
    assert main(["card", "dataset", P, "--version", version]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert main(["card", "dataset", P, "--version", "0123456789abcdef"]) == 1
    assert version in capsys.readouterr().err


def no_type(card: dict[str, Any]) -> None:
    del card["recordSet"][0]["field"][0]["dataType"]


def no_format(card: dict[str, Any]) -> None:
    del card["distribution"][0]["encodingFormat"]


def no_column(card: dict[str, Any]) -> None:
    card["recordSet"][0]["field"][0]["source"]["extract"]["column"] = "absent"


def no_file(card: dict[str, Any]) -> None:
    card["recordSet"][0]["field"][0]["source"]["fileObject"]["@id"] = "absent.csv"


def elsewhere(card: dict[str, Any]) -> None:
    card["distribution"][0]["contentUrl"] = "https://example.org/cases.csv"


def outside(card: dict[str, Any]) -> None:
    card["distribution"][0]["contentUrl"] = "../other.csv"


def test_a_broken_data_card_is_refused(ws: Workspace) -> None:
    path = card_of(ws)
    whole = path.read_text()
    for damage in (no_type, no_format, no_column, no_file, elsewhere, outside):
        card = json.loads(whole)
        damage(card)
        path.write_text(json.dumps(card))
        with pytest.raises(ConfigurationError):
            check_dataset_card(path)


def test_a_data_card_that_is_no_json_or_lost_a_file_is_refused(ws: Workspace) -> None:
    path = card_of(ws)
    next(path.parent.glob("facts-*")).unlink()
    with pytest.raises(ArtifactCorrupt):
        check_dataset_card(path)
    path.write_text("[]")
    with pytest.raises(ConfigurationError, match="an object"):
        check_dataset_card(path)
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="JSON"):
        check_dataset_card(path)


def test_a_card_that_can_not_be_written_leaves_the_former_one_whole(
    ws: Workspace, declare: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = card_of(ws)
    before = path.read_text()
    declare({"dataset": {"cases": "pseudonyms"}})

    def refuse(*_: Any, **__: Any) -> None:
        raise mlcroissant.ValidationError("refused")

    with monkeypatch.context() as patched:
        patched.setattr(mlcroissant, "Dataset", refuse)
        with pytest.raises(ConfigurationError, match="refused"):
            dataset_card(ws, P)
    assert path.read_text() == before
    assert check_dataset_card(path).records["cases"] == 33
    assert not list(path.parent.glob(".*"))
    dataset_card(ws, P)
    assert len(list(path.parent.glob("cases-*"))) == 1


def test_what_the_site_declares_is_in_the_cards_and_what_it_does_not_is_called_absent(
    ws: Workspace, declare: Callable[[dict[str, Any]], None]
) -> None:
    silent = json.loads(card_of(ws).read_text())
    assert "license" not in silent
    assert "Not declared by the site: license, creators, citation, published, url, release." in silent["description"]
    model_card(ws, P)
    assert "| Licence | not declared |" in readme_of(ws).read_text()
    declare(DECLARED)
    found = mlcroissant.Dataset(jsonld=str(card_of(ws))).metadata
    assert (found.license, found.cite_as, found.url) == (
        [DECLARED["dataset"]["license"]], "@misc{ours}", "https://example.org/data",
    )  # fmt: skip
    assert [(type(one).__name__, one.name) for one in found.creators] == [
        ("Organization", "Our clinic"), ("Person", "A. Author"),
    ]  # fmt: skip
    assert found.version == f"1.2.0+{Catalog(ws, P).dataset().version}"
    assert (str(found.date_published)[:10], "Not declared" in str(found.description)) == ("2026-01-31", False)
    model_card(ws, P)
    text = readme_of(ws).read_text()
    assert HubCard.load(readme_of(ws)).data.license == "apache-2.0"
    for words in (r"Teaching \| of &lt;b&gt;students&lt;/b&gt;.", "- one scanner", "Our clinic, https://example.org"):
        assert words in text
    assert "ot declared" not in text


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"dataset": {"licence": "CC"}}, "dataset.licence"),
        ({"dataset": {"license": ""}}, "dataset.license"),
        ({"dataset": {"release": "1"}}, "dataset.release"),
        ({"dataset": {"url": "example"}}, "dataset.url"),
        ({"dataset": {"cases": "names"}}, "dataset.cases"),
        ({"dataset": {"cases": "counts", "facts": ["slices"]}}, "facts"),
        ({"dataset": {"facts": ["patient_name"]}}, "dataset.facts"),
        ({"dataset": {"creators": [{"name": "A", "email": "none"}]}}, "email"),
        ({"model": {"license": "other"}}, "license_name"),
        ({"model": {"license": "mit", "license_name": "mine"}}, "license: other"),
        ({"model": {"license": "The MIT licence"}}, "model.license"),
        ({"modell": {}}, "modell"),
    ],
)
def test_words_that_can_not_be_used_are_refused_by_the_field_and_doctor_says_so(
    workspace: Workspace, declare: Callable[[dict[str, Any]], None], words: dict[str, Any], field: str
) -> None:
    declare(words)
    with pytest.raises(ConfigurationError, match=re.escape(field)) as refused:
        card_words(P)
    assert f"conf/{P}/{FILE}" in str(refused.value)
    assert [one.found for one in configurations() if one.subject == f"cards of {P}"] == [str(refused.value)]


def readme_of(ws: Workspace, name: str = "baseline") -> Path:
    (path,) = (ws.reports / P / "cards" / "model" / name).glob(f"*/{README}")
    return path


def results(path: Path) -> dict[tuple[str, str], tuple[float, float | None, float | None, int]]:
    """Mean, interval and n by split and metric, as huggingface_hub reads them."""
    return {
        (one.dataset_split, one.metric_type): (
            one.metric_value, one.metric_args.get("low"), one.metric_args.get("high"), one.metric_args["n"],
        )
        for one in HubCard.load(path).data.eval_results
    }  # fmt: skip


def test_the_numbers_of_a_model_card_are_those_of_the_leaderboard(ws: Workspace) -> None:
    for name in ("baseline", "mean_dose"):
        model_card(ws, P, name)
        line = next(row for row in board(ws, P).rows if row["experiment"] == name)
        found = results(readme_of(ws, name))
        assert found == {
            ("val", metric): tuple(line[f"val {metric} {value}"] for value in ("mean", "low", "high", "n"))
            for metric in (PRIMARY, GUARDED)
        }
        cells = board(ws, P).tables["leaderboard"].set_index("experiment").loc[name]
        text = readme_of(ws, name).read_text().replace("\\", "")
        for metric in (PRIMARY, GUARDED):
            assert f"| {metric} | {SUBJECTS[metric]} | Gy | {cells[f'val {metric} (Gy)']} |" in text
        kept = from_card_json((readme_of(ws, name).parent / AS_JSON).read_text())
        assert {(one.split, one.metric): (one.mean, one.low, one.high, one.n) for one in kept.scores if one.n} == found
        row = Catalog(ws, P).rows(Checkpoint, name)[0]
        assert (kept.checkpoint, kept.files["weights.pt"]) == (row.checkpoint, row.weights_sha256)
        assert row.weights_sha256 in text
    assert names_in(readme_of(ws).read_text() + (readme_of(ws).parent / AS_JSON).read_text()) == []


def test_the_card_of_a_champion_that_was_trained_again_since_is_that_of_the_champion(ws: Workspace) -> None:
    champion = Catalog(ws, P).champion()
    assert champion is not None
    newest = model(ws, "baseline", constant(4.0))
    line = next(row for row in board(ws, P, champion).rows if row["experiment"] == "baseline (champion)")
    card = gather_card(ws, P, None)
    found = next(one for one in card.scores if one.metric == PRIMARY)
    assert (card.checkpoint, found.mean) == (champion.checkpoint, line[f"val {PRIMARY} mean"])
    assert gather_card(ws, P, "baseline").checkpoint == newest != champion.checkpoint
    model_card(ws, P)
    model_card(ws, P, "baseline")
    assert len(list((ws.reports / P / "cards" / "model" / "baseline").glob(f"*/{README}"))) == 2


def test_a_model_without_an_evaluation_says_so(ws: Workspace) -> None:
    shutil.rmtree(ws.home / "store" / "score")
    ws.lake.remove(AggregateScore.TABLE, f"{P}/mean_dose")
    model_card(ws, P, "mean_dose")
    text = readme_of(ws, "mean_dose").read_text()
    assert "It was not evaluated." in text
    assert "model-index" not in text
    assert gather_card(ws, P, "mean_dose").not_evaluated == len(VAL)


def test_a_broken_model_card_is_refused(ws: Workspace) -> None:
    model_card(ws, P)
    path, card = readme_of(ws), gather_card(ws, P, None)
    text = path.read_text()
    damages = {
        "another number": text.replace("value: ", "value: 1", 1),
        "no value": re.sub(r"\n +value: .*", "", text, count=1),
        "no task": re.sub(r"\n  - task:\n.*\n.*\n", "\n  - ", text, count=1),
        "no metadata": text.split("---\n", 2)[2],
        "no YAML": text.replace("library_name:", "library_name: [", 1),
        "a licence": text.replace("library_name:", "license: mit\nlibrary_name:", 1),
    }
    check_readme(path, card)
    for title, damaged in damages.items():
        assert damaged != text, title
        path.write_text(damaged)
        with pytest.raises(ConfigurationError):
            check_readme(path, card)
    whole = json.loads((path.parent / AS_JSON).read_text())
    for change in ({"intended_use": None}, {"scores": [{}]}, {"stars": 5}, {"not_evaluated": "some"}):
        with pytest.raises(ConfigurationError, match=next(iter(change))):
            from_card_json(json.dumps(whole | change))
    with pytest.raises(ConfigurationError, match="checkpoint"):
        from_card_json(json.dumps({key: value for key, value in whole.items() if key != "checkpoint"}))


def test_cards_are_written_and_read_back_without_the_network(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert main(["card", "dataset", P]) == 0
    assert main(["card", "model", f"{P}/mean_dose"]) == 0


def test_cards_say_what_is_missing(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, expected in (
        (["dataset", P], "a dataset with cases"),
        (["model", P], "a champion"),
        (["model", f"{P}/baseline"], "med-assets train"),
        (["dataset", f"{P}/baseline"], "a program"),
        (["model", P, "--version", "abcd"], "--version"),
    ):
        assert main(["card", *words]) == 1
        assert expected in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "mlcroissant", None)
    assert main(["card", "dataset", P]) == 1
    assert "med-assets[cards]" in capsys.readouterr().err


def test_the_report_names_the_commands_and_links_the_cards_that_are_there(ws: Workspace) -> None:
    report(ws, P)
    page = report_path(ws, P)
    assert f"med-assets card dataset {P}" in page.read_text()
    assert f"med-assets card model {P}" in page.read_text()
    card_of(ws)
    model_card(ws, P)
    report(ws, P)
    links = [link for link in re.findall(r'href="([^"]+)"', page.read_text()) if link.startswith("cards/")]
    assert sorted(Path(link).name for link in links) == sorted([README, AS_JSON, CARD])
    assert all((page.parent / link).is_file() for link in links)
    assert "med-assets card" not in page.read_text()


def test_the_file_of_the_page_can_be_used(ws: Workspace, declare: Callable[[dict[str, Any]], None]) -> None:
    (block,) = [block for block in blocks(REPOSITORY / "docs" / "cards.md") if block.path]
    assert block.path == f"conf/{P}/{FILE}"
    declare(yaml.safe_load(block.text))
    words = card_words(P)
    assert words.absent_of_dataset == words.absent_of_model == ()
    card_of(ws)
    model_card(ws, P)
