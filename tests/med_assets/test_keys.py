"""Pseudonym keys that can be guessed are refused, and not shown."""

import random
import re
from pathlib import Path

import pytest

from med_assets.deidentification.keys import key_weakness
from med_assets.errors import ConfigurationError
from med_assets.settings import Settings, Workspace
from tests.conftest import REPOSITORY, TEST_KEY


def _refused(key: str, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Workspace.from_env({"MED_ASSETS_PSEUDONYM_KEY": key, **environ})
    return str(refused.value)


@pytest.mark.parametrize(
    "key",
    [
        "a" * 40,
        "ab" * 20,
        "abcabcabc" * 5,
        "aaaabbbbccccddddeeeeffff",
        "1234567890123456",
        "8437265190482736",
        "4839201748392017",
        "abcdefghijklmnopqrst",
        "zyxwvutsrqponmlkjihg",
        "abcdefg-hijklmn-1234567",
        "qwertyuiopasdfgh",
        "zxcvbnmasdfghjklqwertyuiop",
        "1qaz2wsx3edc4rfv",
        "Password12345678!",
        "password-password1",
        "password-password1-password2-password3",
        "P@ssw0rdP@ssw0rd!",
        "thisisasecretkey",
        "MySecretKey123456",
        "changemechangeme!",
        "correcthorsebatterystaple",
        "Winter2024!Winter2025!",
        "hospital2024hospital",
        "radiology-key-2024",
        "2024-01-01-2024-02-02",
        "19800312-19810413",
        "01/02/1980 03/04/1990",
        "deadbeefdeadbeef",
    ],
)
@pytest.mark.parametrize("purpose", ["production", "demo"])
def test_a_key_that_can_be_guessed_is_refused_with_what_to_do_and_without_being_shown(key: str, purpose: str) -> None:
    message = _refused(key, MED_ASSETS_PURPOSE=purpose)
    assert "secrets.token_hex(32)" in message
    assert key not in message


def test_a_short_key_is_refused_without_being_shown() -> None:
    assert "tr0ub4dor&3" not in _refused("tr0ub4dor&3")


def test_random_keys_are_taken() -> None:
    draw = random.Random(20261129)
    for _ in range(200):
        assert key_weakness(draw.randbytes(32).hex()) is None
    assert sum(key_weakness(draw.randbytes(8).hex()) is not None for _ in range(2000)) < 20
    assert key_weakness(TEST_KEY) is None


def test_the_keys_of_the_demo_and_of_published_patients_are_for_the_demo_alone() -> None:
    found = re.findall(r"MED_ASSETS_PSEUDONYM_KEY \S*= (\S+)", (REPOSITORY / "Makefile").read_text())
    assert len(found) == 2
    for key in found:
        assert "everybody has" in _refused(key)
        assert Workspace.from_env({"MED_ASSETS_PSEUDONYM_KEY": key, "MED_ASSETS_PURPOSE": "demo"}).key == key.encode()


def test_the_key_is_in_no_text_of_a_workspace() -> None:
    ws = Workspace.from_env({"MED_ASSETS_PSEUDONYM_KEY": TEST_KEY})
    assert TEST_KEY not in f"{ws} {ws!r}"


def test_settings_have_no_key_and_a_workspace_is_not_made_without_one(tmp_path: Path) -> None:
    settings = Settings.from_env({"MED_ASSETS_HOME": str(tmp_path)})
    assert not hasattr(settings, "key")
    assert not isinstance(settings, Workspace)
    with pytest.raises(ConfigurationError, match="MED_ASSETS_PSEUDONYM_KEY"):
        Workspace.from_env({"MED_ASSETS_HOME": str(tmp_path)})
    with pytest.raises(TypeError, match="key"):
        Workspace(home=tmp_path, landing=tmp_path)  # type: ignore[call-arg]  # that is the point
