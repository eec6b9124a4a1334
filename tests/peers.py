"""Peers of a DICOM network for tests: our receiver as a process, DCMTK's tools, and senders that count what is acknowledged."""

import io
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.transport import AssociationSocket

from med_assets.network.association import keep_answers
from med_assets.network.inbox import CONFLICTS, RECEIVING
from med_assets.storage import preloaded
from tests.invented import Study, uid

PATIENCE_S = 60.0

NEEDED = "NEEDS_DICOM_PEERS"
"""Set where missing DCMTK or Orthanc is a failure."""

CALLED, CALLING = "MED_ASSETS", "SENDER"

CT_SOP = "1.2.840.10008.5.1.4.1.1.2"


SYSTEM = ("/usr/bin", "/usr/local/bin", "/bin")
"""Folders of programs of Debian, which may hold a Python too."""


def program_of(name: str, package: str) -> str:
    """Path of a program of Debian; pynetdicom's own scripts have the names of DCMTK's and are none of them."""
    folders = [p for p in os.environ["PATH"].split(os.pathsep) if not Path(p, "python").exists() or p in SYSTEM]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None and os.environ.get(NEEDED):
        pytest.fail(f"expected {name}, since {NEEDED} is set; on Debian, `apt-get install {package}` brings it")
    if path is None:
        pytest.skip(f"no {name} here; on Debian, `apt-get install {package}` brings it")
    return path


def run_dcmtk(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a tool of DCMTK to its end."""
    return subprocess.run(
        [program_of(name, "dcmtk"), *map(str, words)], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def describe_network(home: Path, *, nodes: Mapping[str, Mapping[str, Any]] | None = None, **receiver: Any) -> None:
    """Write network.yaml: a receiver of lung_ct that takes from SENDER and from these nodes on this machine."""
    nodes = {name: {key: value for key, value in of.items() if value is not None} for name, of in (nodes or {}).items()}
    known = {"sender": {"ae_title": CALLING, "host": "127.0.0.1"}, **nodes}
    settings = {
        "port": 0,
        "ae_titles": {CALLED: "lung_ct"},
        "accept": sorted(known),
        "min_free_gb": 0,
        "quiet_s": 1,
        **receiver,
    }
    home.mkdir(parents=True, exist_ok=True)
    (home / "network.yaml").write_text(yaml.safe_dump({"receiver": settings, "nodes": known}))


@dataclass
class Running:
    """A receiver that runs: its process, its port, and the file with its log."""

    process: preloaded.Process
    port: int
    log: Path


def start_receiver(home: Path) -> Running:
    """Start `med-assets receive` in the home that the environment names, and wait until it listens."""
    log = home.parent / f"receive-{time.monotonic_ns()}.log"
    with log.open("w") as stream:
        command = [sys.executable, "-P", "-m", "med_assets.cli", "receive"]
        process = preloaded.start(command, os.environ, stream.fileno(), stream.fileno(), tied=True)
    until = time.monotonic() + PATIENCE_S
    while not (found := re.search(r"receiving on [\w.]+:(\d+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.02)
    return Running(process, int(found[1]), log)


@contextmanager
def receiver_of(home: Path) -> Iterator[Running]:
    """A receiver for a block, ended by SIGTERM."""
    running = start_receiver(home)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.wait(PATIENCE_S)


def small_study(tag: str, n: int = 2, **elements: Any) -> list[Dataset]:
    """Instances of a study of CT, of a few hundred bytes each."""
    study = Study(tag)
    found = []
    for k in range(n):
        ds = study.base(CT_SOP, "CT", uid(tag, "series"), uid(tag, "sop", k), InstanceNumber=k + 1, **elements)
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CT_SOP, ds.SOPInstanceUID
        ds.Rows = ds.Columns = 4
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.PixelData = bytes([k % 256, 1] * 16)
        found.append(ds)
    return found


def entity(title: str = CALLING) -> AE:
    """A sender of CT."""
    ae = AE(ae_title=title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.add_requested_context(CT_SOP, ExplicitVRLittleEndian)
    return ae


def send(port: int, instances: Sequence[Dataset], title: str = CALLING, called: str = CALLED) -> list[int | None]:
    """Send instances in one association; the status of each, None for one that was not answered."""
    assoc = entity(title).associate("127.0.0.1", port, ae_title=called)
    if not assoc.is_established:
        return []
    keep_answers(assoc)
    found = [assoc.send_c_store(ds).get("Status") for ds in instances]
    assoc.release()
    return found


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def no_open_sockets() -> Iterator[None]:
    """Let pynetdicom 3.0.4 close the socket of a connection that its peer has ended: it leaves it open where `shutdown` fails."""
    shut_down = AssociationSocket._shutdown_socket

    def close(sock: AssociationSocket) -> None:
        shut_down(sock)
        if sock.socket is not None:
            sock.socket.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AssociationSocket, "_shutdown_socket", close)
        yield


def send_until_acknowledged(port: Sequence[int], studies: Sequence[list[Dataset]], acknowledged: list[str]) -> None:
    """Send each study in associations of its own until each of its instances is acknowledged, wherever the receiver is now."""
    for instances in studies:
        left = list(instances)
        until = time.monotonic() + PATIENCE_S
        while left:
            assert time.monotonic() < until, f"{len(left)} instances not acknowledged in {PATIENCE_S} s"
            if not listens(port[0]):
                time.sleep(0.05)
                continue
            assoc = keep_answers(entity().associate("127.0.0.1", port[0], ae_title=CALLED))
            while left and assoc.is_established:
                try:
                    status = assoc.send_c_store(left[0]).get("Status")
                except (RuntimeError, ValueError):  # the association has ended
                    break
                if status != 0:
                    break
                acknowledged.append(str(left.pop(0).SOPInstanceUID))
            if assoc.is_established:
                assoc.release()


def in_threads(n: int, ports: Sequence[int], studies: Sequence[list[Dataset]], acknowledged: list[str]) -> list[Any]:
    """Start this many senders that share the studies; returns their threads."""
    threads = [
        threading.Thread(target=send_until_acknowledged, args=(ports, studies[k::n], acknowledged)) for k in range(n)
    ]
    for thread in threads:
        thread.start()
    return threads


def landed(home: Path, program: str = "lung_ct") -> list[Path]:
    """Files in entries of the landing zone."""
    folder = home / "landing" / program
    return sorted(path for path in folder.glob("[!.]*/*") if path.is_file())


def unsettled(home: Path, program: str = "lung_ct") -> list[Path]:
    """Files that are acknowledged and in no entry yet."""
    return sorted((home / "landing" / program / RECEIVING).glob("[!.]*/*"))


def conflicts(home: Path, program: str = "lung_ct") -> list[Path]:
    """Files with another content under a known UID."""
    return sorted((home / "landing" / program / CONFLICTS).glob("*/*"))


def wait_for(what: Any, seconds: float = PATIENCE_S) -> Any:
    """The value of a function as soon as it is true."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Orthanc:
    """An Orthanc that runs: its ports, and its REST API."""

    dicom_port: int
    http_port: int

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST of JSON or bytes; the answer as JSON or bytes."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers.get("Content-Type", "") else content

    def upload(self, instances: Sequence[Dataset]) -> None:
        """Put instances into it by its REST API."""
        for ds in instances:
            stream = io.BytesIO()
            ds.save_as(stream, enforce_file_format=True)
            self.ask("/instances", stream.getvalue())

    def node(self, **more: Any) -> dict[str, Any]:
        """What network.yaml says of it."""
        web = f"http://127.0.0.1:{self.http_port}/dicom-web"
        return {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": self.dicom_port, "dicomweb": web, **more}


@contextmanager
def orthanc_of(folder: Path, modalities: Mapping[str, tuple[str, int]]) -> Iterator[Orthanc]:
    """An Orthanc with its DICOMweb plugin on free ports, which knows these peers of this machine by name, title and port."""
    found = Orthanc(free_port(), free_port())
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
        "DicomAet": "ORTHANC",
        "DicomPort": found.dicom_port,
        "HttpPort": found.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "DicomAlwaysAllowGet": True,
        "DicomModalities": {name: [title, "127.0.0.1", port] for name, (title, port) in modalities.items()},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "StorageCommitmentReportsSize": 10,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    command = [program_of("Orthanc", "orthanc orthanc-dicomweb"), str(folder / "orthanc.json")]
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: listens(found.http_port) and listens(found.dicom_port))
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def write_certificates(folder: Path) -> None:
    """Two self-signed certificates of 127.0.0.1 with their keys: own.pem and own.key, other.pem and other.key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("own", "other"):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
            .sign(key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
