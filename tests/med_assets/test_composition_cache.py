"""Compositions are kept on disk: read again by other processes, and made anew for other files, overrides, and models."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import Field

from med_assets.errors import ConfigurationError
from med_assets.experiments import composition
from med_assets.experiments import configuration as experiments
from med_assets.experiments.composition import CACHE_VARIABLE
from med_assets.experiments.configuration import Experiment
from med_assets.storage.conf import conf_folder


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of the configuration of one program, which a test may change."""
    shutil.copytree(conf_folder("lumbar_mr"), tmp_path / "conf" / "lumbar_mr")
    return tmp_path / "conf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of this test's own, and a process that remembers nothing."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    experiments._loaded.cache_clear()
    yield tmp_path / "cache"
    experiments._loaded.cache_clear()


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the experiments that Hydra composed."""
    names, hydra = [], composition._composed

    def counted(folder: Path, name: str, overrides: tuple[str, ...]) -> dict[str, object]:
        names.append(name)
        return hydra(folder, name, overrides)

    monkeypatch.setattr(composition, "_composed", counted)
    return names


def load(conf: Path, *overrides: str) -> Experiment:
    """The experiment as another process would load it."""
    experiments._loaded.cache_clear()
    return experiments.load("lumbar_mr", "point_net", overrides, profile="demo", conf_root=conf)


def files(cache: Path) -> list[Path]:
    """The files of a cache."""
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_composition_is_made_once_and_read_by_other_processes(conf: Path, cache: Path, composed: list[str]) -> None:
    cold = load(conf)
    warm = load(conf)
    assert composed == ["point_net"]
    assert (warm, warm.hash(), warm.to_json()) == (cold, cold.hash(), cold.to_json())
    assert [path.name.startswith(".") for path in files(cache)] == [False]


def test_a_changed_file_a_changed_override_and_a_changed_profile_are_seen(conf: Path, composed: list[str]) -> None:
    before = load(conf)
    assert load(conf, "schedule.epochs=7").schedule.epochs == 7
    path = conf / "lumbar_mr" / "_base.yaml"
    path.write_text(path.read_text() + "\n# the same\n")
    assert load(conf) == before
    path.write_text(path.read_text().replace(f"seed: {before.seed}", f"seed: {before.seed + 1}"))
    assert load(conf).seed == before.seed + 1
    assert len(composed) == 4


def test_a_file_that_no_experiment_reads_may_change_and_one_that_is_read_since_counts(
    conf: Path, composed: list[str]
) -> None:
    before, policies = load(conf), conf / "lumbar_mr" / "_program.yaml"
    policies.write_text(policies.read_text() + "\n# the same\n")
    (conf / "lumbar_mr" / "_site.yaml").write_text("seed: 77\n")
    assert load(conf) == before
    assert len(composed) == 1
    experiment = conf / "lumbar_mr" / "point_net.yaml"
    text = experiment.read_text()
    experiment.write_text(text.replace("  - _base\n", "  - _base\n  - _site\n"))
    assert load(conf).seed == 77
    (conf / "lumbar_mr" / "_site.yaml").write_text("seed: 78\n")
    assert load(conf).seed == 78
    experiment.write_text(text.replace("  - _base\n", '  - _base\n  - "\\x5fsite"\n') + "\n# not of another_site\n")
    with pytest.raises(ConfigurationError, match="got one with escapes"):
        load(conf)


def test_an_experiment_whose_file_changes_is_composed_anew_and_no_other(conf: Path, composed: list[str]) -> None:
    def load_each() -> dict[str, Experiment]:
        experiments._loaded.cache_clear()
        return {name: experiments.load("lumbar_mr", name, (), "demo", conf) for name in names}

    names = [*[name for name in experiments.names("lumbar_mr", conf) if name != "point_net"][:2], "point_net"]
    before = load_each()
    composed.clear()
    path = conf / "lumbar_mr" / "point_net.yaml"
    path.write_text(path.read_text().replace("title: Point Net", "title: Another"))
    after = load_each()
    assert composed == ["point_net"]
    assert {name for name in names if after[name] != before[name]} == {"point_net"}


def test_a_file_counts_that_is_named_by_one_that_the_experiment_names(conf: Path, composed: list[str]) -> None:
    folder = conf / "lumbar_mr"
    base = folder / "_base.yaml"
    (folder / "_further.yaml").write_text("seed: 5\n")
    base.write_text("defaults: [_further, _self_]\n" + re.sub(r"(?m)^seed: .*\n", "", base.read_text()))
    assert load(conf).seed == 5
    (folder / "_further.yaml").write_text("seed: 6\n")
    assert load(conf).seed == 6
    profile = folder / "profiles" / "demo.yaml"
    profile.write_text(profile.read_text() + "\ndescription: of the profile\n")
    load(conf)
    assert composed == ["point_net"] * 3


def test_a_name_after_an_empty_line_counts_with_the_line_ends_of_windows(conf: Path) -> None:
    folder = conf / "lumbar_mr"
    experiment = folder / "point_net.yaml"
    text = experiment.read_text().replace("  - _base\n", "  - _base\n\n# a site's\n  - _site\n")
    experiment.write_bytes(text.replace("\n", "\r\n").encode())
    for seed in (77, 78):
        (folder / "_site.yaml").write_text(f"seed: {seed}\n")
        assert load(conf).seed == seed


def test_a_file_that_an_override_reaches_by_a_linked_folder_counts(conf: Path) -> None:
    folder = conf / "lumbar_mr"
    (folder / "again").symlink_to(".")
    experiment = folder / "point_net.yaml"
    experiment.write_text(
        experiment.read_text().replace("  - profiles: full\n", "  - profiles: full\n  - again: one\n")
    )
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text("# @package _global_\nseed: 5\n")
    assert load(conf, "again=two").seed == 5
    (folder / "two.yaml").write_text("# @package _global_\nseed: 6\n")
    assert load(conf, "again=two").seed == 6


def test_a_changed_model_is_seen_though_the_composition_is_kept(
    conf: Path, composed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(conf)

    class Later(experiments.model_of("lumbar_mr")):  # type: ignore[misc]  # the model is found when the test runs
        dropout: float = Field(default=0.5, description="a field that the model has since")

    class Stricter(experiments.model_of("lumbar_mr")):  # type: ignore[misc]  # the model is found when the test runs
        dropout: float = Field(description="a field that every experiment must have since")

    monkeypatch.setattr(experiments, "model_of", lambda program: Later)
    assert load(conf).model_dump()["dropout"] == 0.5
    monkeypatch.setattr(experiments, "model_of", lambda program: Stricter)
    with pytest.raises(ConfigurationError, match="dropout"):
        load(conf)
    assert composed == ["point_net"]


def test_another_version_of_what_composes_makes_it_anew(
    conf: Path, composed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(conf)
    monkeypatch.setattr(composition, "_code", lambda: ("another",))
    load(conf)
    assert len(composed) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "binary", "foreign", "folder"])
def test_a_file_that_is_damaged_or_of_another_composition_is_made_anew(
    damage: str, conf: Path, cache: Path, composed: list[str]
) -> None:
    before = load(conf)
    [path] = files(cache)
    whole = path.read_bytes()
    if damage == "foreign":
        load(conf, "schedule.epochs=7")
        [other] = [file for file in files(cache) if file != path]
        path.write_bytes(other.read_bytes())
        other.unlink()
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {
                "cut": whole[:-9],
                "empty": b"",
                "changed": whole.replace(b'"seed": 0', b'"seed": 1'),
                "binary": b"\xff\x00",
            }[damage]
        )
        assert path.read_bytes() != whole
    made = len(composed)
    assert load(conf) == before
    assert len(composed) == made + 1
    if damage != "folder":
        assert path.read_bytes() == whole


def test_it_works_without_a_cache_that_can_be_written(
    conf: Path, tmp_path: Path, composed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert load(conf) == load(conf)
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert load(conf) == load(conf)
    assert len(composed) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_can_only_be_read_is_read(conf: Path, cache: Path, composed: list[str]) -> None:
    before = load(conf)
    for folder in (cache, *(path for path in cache.rglob("*") if path.is_dir())):
        folder.chmod(0o500)
    assert load(conf) == before
    assert load(conf, "schedule.epochs=7").schedule.epochs == 7
    assert composed == ["point_net", "point_net"]


def test_the_newest_compositions_of_an_experiment_are_kept(
    conf: Path, cache: Path, composed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "KEPT", kept := 3)
    for epochs in range(1, kept + 4):
        load(conf, f"schedule.epochs={epochs}", "schedule.val_every=1")
    assert len(files(cache)) == kept
    n = len(composed)
    for epochs in range(4, kept + 4):
        load(conf, f"schedule.epochs={epochs}", "schedule.val_every=1")
    assert len(composed) == n
    load(conf, "schedule.epochs=3", "schedule.val_every=1")
    assert len(composed) == n + 1


def test_a_value_that_json_would_change_is_not_kept(conf: Path, cache: Path) -> None:
    path = conf / "lumbar_mr" / "point_net.yaml"
    path.write_text(path.read_text() + "\nodd: {1: .nan}\n")
    with pytest.raises(ConfigurationError, match="odd"):
        load(conf)
    assert files(cache) == []


def test_what_an_override_may_not_do_is_refused_with_a_full_cache_too(conf: Path, cache: Path) -> None:
    load(conf)
    for override in ("title=${oc.env:HOME}", "hydra.searchpath=[/]", "title=/etc/passwd"):
        with pytest.raises(ConfigurationError):
            load(conf, override)
    assert len(files(cache)) == 1


def test_a_link_that_leads_out_is_refused_though_its_content_was_composed_before(conf: Path, tmp_path: Path) -> None:
    load(conf)
    path = conf / "lumbar_mr" / "_base.yaml"
    path.rename(tmp_path / "_base.yaml")
    path.symlink_to(tmp_path / "_base.yaml")
    with pytest.raises(ConfigurationError, match="leads out"):
        load(conf)
