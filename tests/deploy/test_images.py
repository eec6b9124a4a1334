"""The images: what the Dockerfile does, what enters it, and that its own commands work on what enters it.

No engine runs here. The commands are taken from the files and run on a copy of what an engine would be given.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

from tests.conftest import REPOSITORY

IMAGES = REPOSITORY / "deploy" / "images"
DEFINITION = IMAGES / "med_assets.def"
SECRET = re.compile(r"key|secret|token|passw|credential", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """One instruction of the Dockerfile, without its continuation lines."""

    name: str
    value: str

    @property
    def sources(self) -> list[str]:
        """What a COPY takes from the folder of the repository."""
        words = self.value.split()
        return [] if words[0].startswith("--from=") else words[:-1]


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    with (IMAGES / "Dockerfile").open("rb") as stream:
        parsed = DockerfileParser(fileobj=stream).structure
    return [Instruction(each["instruction"], each["value"]) for each in parsed if each["instruction"] != "COMMENT"]


def of(instructions: list[Instruction], name: str) -> list[Instruction]:
    return [each for each in instructions if each.name == name]


@pytest.fixture(scope="module")
def image(instructions: list[Instruction], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the image has in its own: what is copied of what `.dockerignore` lets in."""
    folder = tmp_path_factory.mktemp("image")
    let_in = context(REPOSITORY)
    for source in {source for copy in of(instructions, "COPY") for source in copy.sources}:
        for path in let_in:
            if (path == source or path.startswith(f"{source}/")) and (REPOSITORY / path).is_file():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / path, folder / path)
                compiled = Path(cache_from_source(str(REPOSITORY / path)))
                if path.endswith(".py") and compiled.is_file():  # so that no process need compile it
                    (folder / path).with_name("__pycache__").mkdir(exist_ok=True)
                    shutil.copy2(compiled, cache_from_source(str(folder / path)))
    yield folder
    shutil.rmtree(folder)


def context(root: Path) -> set[str]:
    """Paths that an engine is given of a folder, by Docker's own reading of `.dockerignore`."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    return exclude_paths(str(root), [line for line in lines if line and not line.startswith("#")])


@pytest.fixture(scope="module")
def environment(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the commands of the image run: its folder comes first, and nothing of this process is known but the interpreter.

    What one of them compiled is there for the next, and the tests' composed experiments for all.
    """
    folder = tmp_path_factory.mktemp("container")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return {
        "PATH": path, "PYTHONPATH": str(image), "HOME": str(folder), "TMPDIR": str(folder), "DAGSTER_HOME": str(folder),
        "MED_ASSETS_HOME": str(folder / "home"), "DAGSTER_DISABLE_TELEMETRY": "yes", "MED_ASSETS_CACHE": os.environ["MED_ASSETS_CACHE"],
    }  # fmt: skip


def test_the_image_runs_as_a_user_who_is_not_root(instructions: list[Instruction]) -> None:
    users = of(instructions, "USER")
    assert [user.value for user in users] == ["10001:10001"], "a number, so that Kubernetes knows that it is not root"
    later = instructions[instructions.index(users[0]) :]
    assert not {"COPY", "FROM"} & {each.name for each in later}
    assert any(each.name == "RUN" and each.value.endswith("med-assets doctor") for each in later)
    assert of(later, "HEALTHCHECK")


def test_nothing_is_fetched_but_the_base_image_and_packages(instructions: list[Instruction]) -> None:
    assert not of(instructions, "ADD")
    assert not [each for each in instructions if "://" in each.value]
    assert {each.value for each in of(instructions, "FROM")} == {"${BASE} AS build", "${BASE}"}
    installs = [each.value for each in of(instructions, "RUN") if "install.sh" in each.value]
    assert len(installs) == 2
    assert not [each for each in of(instructions, "RUN") if re.search(r"pip3? install|curl|wget|apt", each.value)]
    pip = [line for line in (REPOSITORY / "deploy" / "install.sh").read_text().splitlines() if "pip install" in line]
    assert pip
    assert all(line.endswith(" -c constraints.txt") for line in pip)


def test_the_base_image_has_the_python_of_the_pinned_versions(instructions: list[Instruction]) -> None:
    pinned = re.search(r"on Python (3\.\d+)\.", (REPOSITORY / "constraints.txt").read_text())
    base = next(each.value for each in of(instructions, "ARG") if each.value.startswith("BASE="))
    assert pinned is not None
    assert base == f"BASE=python:{pinned[1]}-slim-bookworm"


def test_no_layer_has_a_secret(instructions: list[Instruction]) -> None:
    named = " ".join(each.value for name in ("ARG", "ENV", "LABEL") for each in of(instructions, name))
    assert not SECRET.search(named)
    for run in of(instructions, "RUN"):
        assert not re.search(r"\w*KEY\w*=(?!\"\$\(python)", run.value), "a key is made where it is needed"


def test_all_that_is_copied_is_there_and_all_that_is_let_in_is_copied(instructions: list[Instruction]) -> None:
    copied = {source for copy in of(instructions, "COPY") for source in copy.sources}
    assert sorted(source for source in copied if not (REPOSITORY / source).exists()) == []
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert let_in == copied - {"med_assets/__init__.py"}


def test_homes_data_keys_and_history_stay_out(tmp_path: Path) -> None:
    wanted = {"med_assets/__init__.py", "conf/rt_dose/_base.yaml", "pyproject.toml", "deploy/install.sh"}
    unwanted = {
        ".git/config", ".med_assets/demo.env", ".env", "med_assets/.env", "conf/.med_assets/lake/x.parquet", "conf/rt_dose/1.dcm",
        "assets/weights.pt", "resources/best.ckpt", "med_assets/__pycache__/x.pyc", "tests/test_x.py", "deploy/compose/secrets/key",
        "deploy/images/Dockerfile", "shared/data/1.dcm", ".venv/bin/python",
    }  # fmt: skip
    for path in wanted | unwanted:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    assert {path for path in context(tmp_path) if (tmp_path / path).is_file()} == wanted


def test_doctor_passes_on_what_the_image_has(
    instructions: list[Instruction], image: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    command = of(instructions, "RUN")[-1].value
    done = subprocess.run(
        ["sh", "-c", command], cwd=image, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    experiments of rt_dose" in done.stdout
    assert "bad" not in done.stdout
    find = "from importlib.util import find_spec as find; print(find('med_assets').origin, find('definitions').origin)"
    asked = subprocess.run(
        [sys.executable, "-c", find], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert asked.stdout.split() == [str(image / "med_assets" / "__init__.py"), str(image / "definitions.py")]


@pytest.mark.slow
def test_the_command_of_the_image_serves_the_code_location_and_its_health_check_says_so(
    instructions: list[Instruction], image: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"4000": port, "0.0.0.0": "127.0.0.1", "/opt/med_assets": str(image)}
    serve = [here.get(word, word) for word in json.loads(of(instructions, "CMD")[0].value)]
    check = of(instructions, "HEALTHCHECK")[0].value.partition(" CMD ")[2]
    ask = [here.get(word, word) for word in json.loads(check)]
    env = environment | {"MED_ASSETS_PSEUDONYM_KEY": "a-key-that-only-the-tests-know"}
    assert subprocess.run(ask, cwd=image, env=env, capture_output=True, check=False).returncode != 0
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(serve, cwd=image, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 120
        while "Started Dagster code server for module definitions" not in (tmp_path / "log").read_text():
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        while subprocess.run(ask, cwd=image, env=env, capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < until
    finally:
        server.terminate()
        server.wait(30)


def sections() -> dict[str, list[str]]:
    """Sections of the Apptainer definition, by name, their lines without indentation."""
    found: dict[str, list[str]] = {"header": []}
    name = "header"
    for line in DEFINITION.read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def test_the_definition_for_apptainer_makes_the_same_image(instructions: list[Instruction]) -> None:
    made = sections()
    base = next(each.value for each in of(instructions, "ARG") if each.value.startswith("BASE="))
    assert made["header"] == ["Bootstrap: docker", f"From: {base.removeprefix('BASE=')}"]
    copied = {source for copy in of(instructions, "COPY") for source in copy.sources} - {"med_assets/__init__.py"}
    dagster = {path: f"/opt/dagster/{Path(path).name}" for path in copied if path.startswith("deploy/dagster/")}
    assert len(dagster) == 2
    assert (
        dict(line.split() for line in made["files"]) == {path: f"/opt/med_assets/{path}" for path in copied} | dagster
    )
    arguments = {each.value for each in of(instructions, "ARG")} - {base}
    assert set(made["arguments"]) == arguments
    assert made["test"] == [of(instructions, "RUN")[-1].value]
    post = " ; ".join(made["post"])
    for run in of(instructions, "RUN"):
        if "install.sh" in run.value or "torch.version" in run.value:
            words = re.sub(r'"\$(\w+)"', r'"{{ \1 }}"', run.value.split(" && ")[0])
            assert words in post or words.replace("sh deploy", 'TORCH_INDEX="{{ TORCH_INDEX }}" sh deploy') in post
    variables = dict(line.removeprefix("export ").split("=", 1) for line in made["environment"])
    of_image = dict(word.split("=", 1) for each in of(instructions, "ENV")[1:] for word in each.value.split())
    assert variables.items() <= of_image.items()
    assert set(of_image) - set(variables) <= {
        "MED_ASSETS_HOME",
        "DAGSTER_HOME",
        *(n for n in of_image if "NVIDIA" in n),
    }


def test_make_setup_installs_as_the_images_do() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "sh deploy/install.sh $(BIN)/python dev" in makefile
    assert "pip install" not in makefile


def test_install_chooses_torch_first_and_another_index_where_one_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s " "$@" >> {tmp_path}/calls; echo >> {tmp_path}/calls\n')
    python.chmod(0o700)
    torch = next(
        line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    )
    for index in ({}, {"TORCH_INDEX": "https://wheels.example.org/cpu"}):
        subprocess.run(
            ["sh", "deploy/install.sh", str(python), "cards,ocr"],
            cwd=REPOSITORY,
            env=dict(os.environ) | index,
            check=True,
        )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ["compileall.compile_dir(" in call for call in calls] == [False, False, True] * 2
    calls = [call for call in calls if not call.startswith("-c ")]
    pinned = "-c constraints.txt "
    assert calls == [
        f"-m pip install --quiet --no-compile {torch} {pinned}",
        f"-m pip install --quiet --no-compile --editable .[cards,ocr] {pinned}",
        f"-m pip install --quiet --no-compile --extra-index-url https://wheels.example.org/cpu {torch} {pinned}",
        f"-m pip install --quiet --no-compile --editable .[cards,ocr] {pinned}",
    ]


ENGINE = """#!/bin/sh
printf '%s\\n' "$*" >> "$CALLS"
case $1 in run) test ${#MED_ASSETS_PSEUDONYM_KEY} -eq 64 && exit "${FAIL:-0}" ;; esac
"""
"""An engine that notes what it is asked for; that it has a key where it runs the image is all that it looks at."""


def checkout(folder: Path) -> dict[str, str]:
    """A repository with what the script reads, and an engine; returns the environment of the script."""
    (folder / "med_assets").mkdir(parents=True)
    (folder / "med_assets" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "first")):
        subprocess.run(["git", *identity, *words], cwd=folder, check=True)
    engine = folder.parent / "engine"
    engine.write_text(ENGINE)
    engine.chmod(0o700)
    return dict(os.environ) | {"ENGINE": str(engine), "CALLS": str(folder.parent / "calls")}


def build(folder: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(IMAGES / "build.sh")
    return subprocess.run(["sh", script, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_script_builds_checks_and_pushes_what_passed(tmp_path: Path) -> None:
    env = checkout(tmp_path / "repository")
    done = build(tmp_path / "repository", env, "cuda", "registry.example.org/imaging/med-assets")
    assert done.returncode == 0, done.stderr
    built, ran, tagged, pushed = (tmp_path / "calls").read_text().splitlines()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path / "repository", capture_output=True, text=True, check=True
    ).stdout.strip()
    assert built.startswith("build --file deploy/images/Dockerfile --build-arg ACCELERATOR=cuda ")
    assert built.endswith(f"--build-arg COMMIT={commit} --tag med-assets:1.2.3-cuda .")
    assert {"--read-only", "--network", "--cap-drop", "--rm"} <= set(ran.split())
    assert ran.endswith("med-assets doctor")
    assert tagged == "tag med-assets:1.2.3-cuda registry.example.org/imaging/med-assets:1.2.3-cuda"
    assert pushed == "push registry.example.org/imaging/med-assets:1.2.3-cuda"


@pytest.mark.parametrize("reason", ["no accelerator", "the check fails", "local changes"])
def test_the_script_pushes_nothing_else(tmp_path: Path, reason: str) -> None:
    env = checkout(tmp_path / "repository")
    if reason == "the check fails":
        env["FAIL"] = "1"
    if reason == "local changes":
        (tmp_path / "repository" / "new").write_text("x")
    accelerator = "tpu" if reason == "no accelerator" else "cpu"
    done = build(tmp_path / "repository", env, accelerator, "registry.example.org/imaging/med-assets")
    assert done.returncode != 0
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert "push" not in calls
    assert (reason == "the check fails") == ("run" in calls)
