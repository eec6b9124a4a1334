"""The file that describes the network of a site."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from med_assets.errors import ConfigurationError
from med_assets.network.configuration import load_network, plain_address
from med_assets.settings import Workspace
from tests.conftest import REPOSITORY
from tests.docs_blocks import blocks


def write(home: Path, content: Any) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "network.yaml").write_text(yaml.safe_dump(content))


def test_the_file_of_the_page_is_read(workspace: Workspace) -> None:
    (block,) = (each for each in blocks(REPOSITORY / "docs" / "dicom-network.md") if each.path)
    assert block.path == ".med_assets/network.yaml"
    write(workspace.home, yaml.safe_load(block.text))
    network = load_network(workspace)
    assert network.receiver is not None
    assert network.receiver.ae_titles == {"LUNG_CT": "lung_ct", "RT_DOSE": "rt_dose"}
    assert network.node("pacs").ae_title == "ORTHANC"
    assert "127.0.0.1" in network.node("pacs").addresses()


def test_without_a_file_the_message_names_it(workspace: Workspace) -> None:
    with pytest.raises(ConfigurationError, match=r"network\.yaml"):
        load_network(workspace)


RECEIVER = {"ae_titles": {"LUNG_CT": "lung_ct"}, "accept": ["pacs"]}
PACS = {"ae_title": "ORTHANC", "host": "127.0.0.1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"receiver": RECEIVER}, "receiver.accept: expected a name below nodes"),
        ({"receiver": {**RECEIVER, "ae_titles": {"LUNG_CT": "lung"}}, "nodes": {"pacs": PACS}}, "expected one of"),
        ({"receiver": {**RECEIVER, "ae_titles": {"LONGER_THAN_16_CHARS": "lung_ct"}}}, "1 to 16"),
        ({"receiver": {**RECEIVER, "prot": 1}, "nodes": {"pacs": PACS}}, "receiver.prot"),
        ({"nodes": {"../pacs": PACS}}, "node's name"),
        (
            {"receiver": {**RECEIVER, "tls": {"certificate": "no.pem", "key": "no.pem"}}, "nodes": {"pacs": PACS}},
            "receiver.tls: expected a file",
        ),
    ],
)
def test_what_can_not_be_meant_is_refused_with_the_field(workspace: Workspace, content: Any, message: str) -> None:
    write(workspace.home, content)
    with pytest.raises(ConfigurationError, match=message):
        load_network(workspace)


def test_an_ipv4_address_within_ipv6_is_that_of_ipv4() -> None:
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain_address("fe80::1%eth0") == "fe80::1"
