"""Released weights: found by name, known by content, and a message for a person where they are not in place."""

import hashlib
from pathlib import Path

import pytest

from med_assets.errors import ConfigurationError, MedAssetsError
from med_assets.experiments import weights
from med_assets.launch import training
from med_assets.settings import Workspace
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import artifact, cases, configure


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    entry = {"file": "net/model.pt", "source": "the publisher's page, licence X"}
    configure(tmp_path, monkeypatch, released={"net": entry})
    return entry


def put(ws: Workspace, content: bytes) -> Path:
    path = ws.home / "weights" / "net" / "model.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_other_bytes_are_other_weights(workspace: Workspace, release: dict[str, str]) -> None:
    path = put(workspace, b"first")
    first = weights.released(workspace, P, "net")
    assert first.path == path
    put(workspace, b"second")
    assert weights.released(workspace, P, "net").key != first.key


def test_where_to_get_a_missing_file_is_said(workspace: Workspace, release: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.pt, found nothing there. Get them from the publisher's page"):
        weights.released(workspace, P, "net")


def test_a_file_that_is_not_the_release_is_refused(
    workspace: Workspace, release: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, released={"net": release | {"sha256": hashlib.sha256(b"right").hexdigest()}})
    put(workspace, b"wrong")
    with pytest.raises(ConfigurationError, match="get it again"):
        weights.released(workspace, P, "net")
    put(workspace, b"right")
    assert weights.released(workspace, P, "net").key.startswith("released/net-")


def test_an_unknown_name_lists_those_there_are(workspace: Workspace, release: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"among \['net', 'vgg16'\], got 'other'"):
        weights.released(workspace, P, "other")


def test_a_file_that_training_reads_is_part_of_the_checkpoint_and_comes_with_the_job(workspace: Workspace) -> None:
    chosen = training.experiment(workspace, P, "grad_vgg", ["losses.perceptual_weights=released/vgg16"])
    assert chosen.released_files() == ("vgg16",)
    cases(workspace, {"train": ["t0"], "val": ["v0"]})
    for name in ("t0", "v0"):
        with workspace.store.create(artifact(name)) as folder:
            (folder / "ct.npy").write_bytes(b"")
    rows = training.learning_cases(workspace, P)
    with pytest.raises(ConfigurationError, match=r"vgg16.pth, found nothing there. Get them from torchvision"):
        training.trained(workspace, P, chosen, rows)

    jobs = []

    def launch(job: Path) -> None:
        jobs.append((job, (job / "released" / "vgg16").read_bytes()))

    path = workspace.home / "weights" / "vgg" / "vgg16.pth"
    path.parent.mkdir(parents=True)
    for content in (b"first", b"second"):
        path.write_bytes(content)
        with pytest.raises(MedAssetsError, match="ended without a result"):
            training.trained(workspace, P, chosen, rows, launch)
    assert [content for _, content in jobs] == [b"first", b"second"]
    assert jobs[0][0] != jobs[1][0]
