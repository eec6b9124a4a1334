"""The DICOM network of a site: this machine's receiver and the nodes it talks to, from one YAML file."""

import ipaddress
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from med_assets.errors import ConfigurationError
from med_assets.program import registered
from med_assets.settings import Settings
from med_assets.storage.files import read_yaml

NETWORK_FILE = "network.yaml"
"""Name of the file in the home, unless MED_ASSETS_NETWORK names another."""

INSTALL = "pip install 'med-assets[dicom-network]'"

OWN_TITLE = "MED_ASSETS"
"""AE title of this machine where the receiver has none for a program."""

AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")
"""One to sixteen characters of ASCII without backslash and control characters. DICOM PS3.5 6.2, AE."""

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def _ae_title(title: str) -> str:
    if not AE_TITLE.fullmatch(title) or title != title.strip():
        raise ValueError(
            f"expected an AE title of 1 to 16 printable ASCII characters without a backslash, got {title!r}"
        )
    return title


AeTitle = Annotated[str, AfterValidator(_ae_title)]


class Part(BaseModel):
    """Base of every part of the file: frozen, and refusing keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(Part):
    """Files in PEM form; relative paths are relative to the configuration file."""

    certificate: Path = Field(description="certificate of this machine, with its chain")
    key: Path = Field(description="its private key")
    ca: Path | None = Field(
        default=None,
        description="certificates of the authorities that peers must have one from; without, peers need no certificate",
    )


class Receiver(Part):
    """What `med-assets receive` listens to, and what it takes."""

    host: str = Field(default="127.0.0.1", description="address to bind to")
    port: int = Field(default=11112, ge=0, le=65535, description="port to bind to, 0 for any that is free")
    ae_titles: dict[AeTitle, str] = Field(min_length=1, description="program by the AE title that peers call")
    accept: tuple[str, ...] = Field(min_length=1, description="names of the nodes that may send")
    quiet_s: float = Field(
        default=60.0,
        ge=0,
        description="seconds without a new instance after which a study settles although its association did not end properly",
    )
    min_free_gb: float = Field(
        default=5.0, ge=0, description="free space of the landing zone below which instances are refused for now, GB"
    )
    max_associations: int = Field(default=10, ge=1, le=1000, description="associations at a time, count")
    idle_s: float = Field(default=60.0, gt=0, description="seconds after which an association without a message ends")
    tls: Tls | None = Field(default=None, description="TLS; without, the network is trusted")

    @field_validator("ae_titles")
    @classmethod
    def _programs_exist(cls, titles: dict[str, str]) -> dict[str, str]:
        for title, name in titles.items():
            if name not in registered():
                raise ValueError(f"expected one of {', '.join(registered())} for {title}, got {name!r}")
        return titles


class NodeTls(Part):
    """TLS towards a node: files in PEM form; relative paths are relative to the configuration file."""

    ca: Path = Field(description="certificates of the authorities that its certificate must be of")
    certificate: Path | None = Field(
        default=None, description="certificate of this machine, where the node asks for one"
    )
    key: Path | None = Field(default=None, description="its private key")


class Node(Part):
    """A peer: its AE title, and its address, which an association from it must come from."""

    ae_title: AeTitle
    host: str = Field(description="name or address; associations that come from another one are rejected")
    port: int | None = Field(default=None, ge=1, le=65535, description="port that it listens to, where it is called")
    dicomweb: str | None = Field(
        default=None, description="address of its DICOMweb services, such as https://pacs/dicom-web"
    )
    authorization: Path | None = Field(
        default=None,
        description="file with the value of the header Authorization for DICOMweb, which its owner alone can read",
    )
    tls: NodeTls | None = Field(
        default=None, description="TLS of associations with it; without, the network is trusted"
    )

    research: bool = Field(default=False, description="whether it may get results, under pseudonyms")
    relinked: bool = Field(
        default=False,
        description="whether it gets results under the original patient and study, through the table of links",
    )

    @field_validator("dicomweb")
    @classmethod
    def _is_http(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", address):
            raise ValueError(f"expected http(s)://host/path without user, query and fragment, got {address!r}")
        return address.rstrip("/") if address else None

    def addresses(self) -> frozenset[str]:
        """All addresses of the host, empty where its name has none now."""
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except OSError:
            return frozenset()
        return frozenset(plain_address(str(address[0])) for *_, address in found)


class Network(Part):
    """The whole file."""

    receiver: Receiver | None = None
    nodes: dict[str, Node] = Field(default_factory=dict, description="peers by the name that this file gives them")

    @model_validator(mode="after")
    def _nodes_are_named(self) -> Self:
        for name in self.nodes:
            if not NODE_NAME.fullmatch(name):
                raise ValueError(
                    f"expected a node's name of letters, digits, _ and -, at most 32 characters, got {name!r}"
                )
        for name in self.receiver.accept if self.receiver else ():
            if name not in self.nodes:
                raise ValueError(f"receiver.accept: expected a name below nodes, got {name!r}")
        return self

    def node(self, name: str) -> Node:
        """The node of a name. Raises ConfigurationError."""
        if name not in self.nodes:
            known = ", ".join(sorted(self.nodes)) or "none"
            raise ConfigurationError(
                f"expected one of the nodes of {NETWORK_FILE}, which are: {known}; got another name"
            )
        return self.nodes[name]

    def own_title(self, program: str) -> str:
        """The AE title of this machine for a program."""
        titles = self.receiver.ae_titles if self.receiver else {}
        return next((title for title, name in titles.items() if name == program), OWN_TITLE)


def plain_address(text: str) -> str:
    """An address in its one form: an IPv4 address within IPv6 is that of IPv4."""
    address = ipaddress.ip_address(text.split("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def network_file(ws: Settings) -> Path:
    """Where the network of a home is described."""
    return Path(ws.options.get("MED_ASSETS_NETWORK") or ws.home / NETWORK_FILE)


def load_network(ws: Settings) -> Network:
    """The network that the home's file describes. Raises ConfigurationError that names the field."""
    path = network_file(ws)
    if not path.is_file():
        raise ConfigurationError(
            f"expected the file {path.name} with the receiver and the nodes of this site, got none; write it to the home, or name it "
            "with MED_ASSETS_NETWORK; docs/dicom-network.md has an example"
        )
    content = read_yaml(path)
    try:
        network = Network.model_validate({} if content is None else content)
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: {_first_fault(error)}") from None
    for where, file in _files(network):
        if not (path.parent / file).is_file():
            raise ConfigurationError(f"{path.name}: {where}: expected a file, got {file.name}, which is not there")
    return network


def _files(network: Network) -> Iterator[tuple[str, Path]]:
    """Files that the configuration names, each with the field."""
    parts: dict[str, Tls | NodeTls | None] = {"receiver.tls": network.receiver.tls if network.receiver else None}
    parts |= {f"nodes.{name}.tls": node.tls for name, node in network.nodes.items()}
    for where, tls in parts.items():
        yield from ((where, file) for file in (tls.certificate, tls.key, tls.ca) if file) if tls else ()
    yield from (
        (f"nodes.{name}.authorization", node.authorization)
        for name, node in network.nodes.items()
        if node.authorization
    )


def _first_fault(error: ValidationError) -> str:
    fault: Any = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])


def require_pynetdicom() -> None:
    """Raise ConfigurationError that names the extra where pynetdicom is missing."""
    try:
        import pynetdicom  # noqa: F401  # whether it can be imported is the question
    except ImportError:
        raise ConfigurationError(
            f"DICOM networking needs pynetdicom, which the extra dicom-network brings: {INSTALL}"
        ) from None
