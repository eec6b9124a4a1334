"""The Compose file: valid by the Compose specification, and every command, variable and file in it is there.

No engine runs here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click
import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from dagster._daemon.cli import liveness_check_command, run_command
from dagster_webserver.cli import dagster_webserver

from med_assets import __version__
from med_assets.cli.command_line import cli
from med_assets.network.configuration import load_network
from med_assets.settings import SECRETS, Settings
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "compose"
OPERATOR = {
    "MED_ASSETS_PSEUDONYM_KEY": "a-key-that-only-the-tests-know", "PGPASSWORD": "of-the-tests", "AWS_ACCESS_KEY_ID": "of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "also-of-the-tests",
}  # fmt: skip
"""What the file of the operator must have."""

VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<how>[-?])(?P<text>[^}]*))?\}")
COMMANDS: Mapping[tuple[str, ...], click.Command] = {
    ("dagster-webserver",): dagster_webserver,
    ("dagster-daemon", "run"): run_command,
    ("dagster-daemon", "liveness-check"): liveness_check_command,
    **{("med-assets", name): command for name, command in cli.commands.items()},
}


class Missing(Exception):
    """A variable without a default is not set."""


def interpolated(value: Any, environ: Mapping[str, str]) -> Any:
    """A value with its variables replaced, as the specification says for ${X}, ${X:-default} and ${X:?message}."""
    if isinstance(value, dict):
        return {key: interpolated(each, environ) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, environ) for each in value]

    def replaced(found: re.Match[str]) -> str:
        text = environ.get(found["name"], "")
        if not text and found["how"] == "?":
            raise Missing(found["name"])
        return text or (found["text"] if found["how"] == "-" else "")

    return VARIABLE.sub(replaced, value) if isinstance(value, str) else value


def content() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = interpolated(content(), OPERATOR)["services"]
    return found


def ours(services: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services.items() if service["image"].startswith("med-assets:")}


def test_the_file_is_valid_by_the_compose_specification() -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(interpolated(content(), OPERATOR))) == []
    wrong = content()
    wrong["services"]["code"]["volume"] = []
    assert not validator.is_valid(wrong), "an unknown key is no part of it"


@pytest.mark.parametrize("name", sorted(OPERATOR))
def test_without_a_secret_nothing_starts(name: str) -> None:
    with pytest.raises(Missing, match=name):
        interpolated(content(), {key: text for key, text in OPERATOR.items() if key != name})


def test_no_secret_is_in_the_files() -> None:
    texts = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert set(texts) == {"compose.yaml", "network.yaml"}
    for secret in {*SECRETS, "POSTGRES_PASSWORD", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "PGPASSWORD"}:
        for text in texts.values():
            assert all(found.startswith("${") for found in re.findall(rf"^\s*{secret}: *(.*)$", text, re.MULTILINE))


def test_each_service_has_the_secrets_that_it_needs_alone(services: dict[str, dict[str, Any]]) -> None:
    def has(name: str) -> set[str]:
        return {key for key in services[name].get("environment", {}) if key in (*SECRETS, "PGPASSWORD")}

    bucket = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert has("webserver") == has("daemon") == {"PGPASSWORD"}
    assert has("code") == {"PGPASSWORD", "MED_ASSETS_PSEUDONYM_KEY", *bucket}
    assert has("review") == has("receiver") == has("bucket") == {"MED_ASSETS_PSEUDONYM_KEY", *bucket}
    assert has("s3-volume") == set()


def test_nobody_is_root_and_nothing_is_writable_but_volumes(services: dict[str, dict[str, Any]]) -> None:
    dockerfile = (REPOSITORY / "deploy" / "images" / "Dockerfile").read_text()
    assert "USER 10001:10001" in dockerfile
    for name, service in services.items():
        user = service.get("user", "10001" if name in ours(services) else "")
        assert user.partition(":")[0] not in ("", "0", "root"), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service), name


def test_only_pages_and_the_receiver_are_published_and_on_this_machine_alone(
    services: dict[str, dict[str, Any]],
) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {
        "webserver": ["127.0.0.1:3000:3000"], "review": ["127.0.0.1:3001:3001"], "receiver": ["127.0.0.1:11112:11112"],
    }  # fmt: skip
    assert services["receiver"]["profiles"] == ["receiver"]
    outside = {name for name, service in services.items() if "pages" in service.get("networks", [])}
    assert outside == set(published)
    assert content()["networks"]["inside"]["internal"] is True


def words(services: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Commands of our image, and what its services are asked for their health."""
    for service in ours(services).values():
        if "command" in service:
            yield service["command"]
        test = service.get("healthcheck", {}).get("test")
        if test:
            assert test[0] == "CMD"
            yield test[1:]


def test_every_command_is_one_and_takes_its_options(services: dict[str, dict[str, Any]]) -> None:
    checked = set()
    for command in words(services):
        if command[0] == "python":
            compile(command[2], "<command>", "exec")
            assert command[1] == "-c"
        elif command != ["true"]:
            name = next(name for name in COMMANDS if tuple(command[: len(name)]) == name)
            here = str(REPOSITORY / "deploy" / "dagster")
            arguments = [word.replace("/opt/dagster", here) for word in command[len(name) :]]
            COMMANDS[name].make_context(name[-1], arguments)
            checked.add(name)
    assert checked == {
        ("dagster-webserver",), ("dagster-daemon", "run"), ("dagster-daemon", "liveness-check"), ("med-assets", "review"), ("med-assets", "receive"),
    }  # fmt: skip


def test_every_variable_and_file_is_there(services: dict[str, dict[str, Any]]) -> None:
    settings = (REPOSITORY / "docs" / "settings.md").read_text()
    named = {key for service in ours(services).values() for key in service.get("environment", {}) if key.startswith("MED_ASSETS_")}  # fmt: skip
    assert sorted(name for name in named if f"`{name}`" not in settings) == []
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (FOLDER / source).is_file() if source.startswith("./") else source in content()["volumes"]
        for needed in service.get("depends_on", {}):
            assert needed in services
    dagster = {key for key in services["daemon"]["environment"] if key.startswith(("PG", "DAGSTER_CODE"))} - {
        "PGPASSWORD"
    }
    files = " ".join(path.read_text() for path in (REPOSITORY / "deploy" / "dagster").iterdir())
    assert sorted(name for name in dagster if f"env: {name}" not in files) == []
    dockerfile = (REPOSITORY / "deploy" / "images" / "Dockerfile").read_text()
    assert "deploy/dagster/dagster.yaml deploy/dagster/workspace.yaml /opt/dagster/" in dockerfile


def test_the_image_is_of_this_version(services: dict[str, dict[str, Any]]) -> None:
    assert {service["image"] for service in ours(services).values()} == {f"med-assets:{__version__}-cpu"}


def test_the_receiver_takes_its_example(services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED_ASSETS_NETWORK", str(FOLDER / "network.yaml"))
    network = load_network(Settings.from_env())
    assert network.receiver is not None
    target = services["receiver"]["ports"][0].rpartition(":")[2]
    assert (network.receiver.host, str(network.receiver.port)) == ("0.0.0.0", target)
