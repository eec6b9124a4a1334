"""What a released file is, and what a network computes with it."""

from pathlib import Path

import pytest
import torch

from med_assets.cli import main as cli
from med_assets.cli.weights_page import table
from med_assets.errors import CheckpointMismatch
from med_assets.experiments import policies
from med_assets.experiments.configuration import load, names
from med_assets.programs.breast_us.samed import file_names
from med_assets.programs.rt_dose.perceptual import expected, random_weights
from med_assets.training.initial import INITIAL, start_from
from med_assets.training.released import FAMILIES, described, digest, family_of, filled, ramp, take, trial
from med_assets.training.task import Task

torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_every_family_is_of_a_release_and_an_experiment(family: object) -> None:
    assert family.release in policies.of(family.program).released  # type: ignore[attr-defined]  # a Family
    assert family.experiment in names(family.program)  # type: ignore[attr-defined]  # a Family


def test_a_digest_is_of_known_numbers() -> None:
    assert ramp(2, 3).tolist()[0] == pytest.approx([0, 0.2, 0.4])
    assert digest(torch.tensor([[1.0, 2.0, 6.0]])) == "1x3: 3 2.6458 1 2 6"


@pytest.mark.parametrize("title", ["VGG16", "OCT encoder", "USFM", "SegFormer", "SAM3", "SAM", "SAM adapters (SAMed)"])
def test_a_network_filled_by_the_recipe_computes_the_same_again(title: str) -> None:
    family = next(one for one in FAMILIES if one.title == title)
    found = [
        filled(trial(family.program, load(family.program, family.experiment, ["profiles=demo", *family.given])))
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert "nan" not in found[0]


LAYOUTS = {
    "VISTA3D": "class_head.class_embeddings.weight",
    "Point Net": "decoder.block.0.conv1.0.weight",
    "USFM": "blocks.0.gamma_1",
    "TinyUSFM": "model.cls_token",
    "SAM3": "detector.backbone.vision_backbone.trunk.pos_embed",
    "SAM adapters (SAMed)": "w_a_000",
    "SAM": "mask_decoder.iou_prediction_head.layers.0.weight",
    "SegFormer": "segformer.encoder.patch_embeddings.0.proj.weight",
    "VGG16": "features.0.weight",
}


@pytest.mark.parametrize("title", LAYOUTS)
def test_a_layout_is_known_by_its_names(title: str) -> None:
    family = family_of({"model": {LAYOUTS[title]: torch.ones(1)}})
    assert family is not None
    assert family.title == title
    oct_file = {"model_state_dict": {"context_encoder.pos_embed": torch.ones(1)}, "epoch": 1}
    assert family_of(oct_file) == next(one for one in FAMILIES if one.title == "OCT encoder")
    assert family_of({"other": torch.ones(1)}) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w_a_000", "adapters=released/samed, onto the SAM"),
        ("sam_mask_decoder.x", "SAM 2"),
        ("base_model.model.q.lora_A.weight", "PEFT"),
        ("vision_encoder.neck.conv1.weight", "SAM, which breast_us/sam_lora"),
        ("encoder.layer.0.attention.query.weight", "DINOv2"),
        ("a.b", "not known"),
    ],
)
def test_a_refusal_names_the_layout(tmp_path: Path, name: str, words: str) -> None:
    assert words in described({name: torch.ones(1)})
    torch.save({name: torch.ones(1)}, tmp_path / INITIAL)
    chosen = load("lung_ct", "foundation").model_copy(update={"initial": "released/vista3d132"})
    with pytest.raises(CheckpointMismatch, match=words):
        start_from(tmp_path, chosen, Task(None, None, None, "", lambda: {"w": torch.zeros(1)}))


def test_the_command_says_what_fits_and_what_is_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights: `random_weights(0)` of VGG16, with a later layer beside."""
    content = random_weights(0) | {"classifier.0.bias": torch.ones(3)}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in content.items()}}, tmp_path / "vgg.pth")
    assert cli.main(["weights", str(tmp_path / "vgg.pth")]) == 0
    output = capsys.readouterr().out
    on = trial("rt_dose", load("rt_dose", "grad_vgg"))
    taken = take(on, content)
    assert (taken.matched, taken.tensors) == (len(expected()), len(expected()))
    assert "rt_dose/grad_vgg: 14 of the network's 14 tensors" in output
    assert taken.digest in output


def test_the_command_refuses_a_page_and_a_foreign_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page").write_text("<!DOCTYPE html>")
    assert cli.main(["weights", str(tmp_path / "page")]) != 0
    torch.save(random_weights(0), tmp_path / "vgg.pth")
    options = ["--experiment", "breast_us/segformer", "--set", "profiles=demo"]
    assert cli.main(["weights", str(tmp_path / "vgg.pth"), *options]) != 0
    output = capsys.readouterr().err
    assert "web page" in output
    assert "0 of" in output


def test_tokens_of_a_prompt_come_from_the_tokenizer_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"breast": 4, "lesion": 7, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert cli.main(["weights", str(tmp_path / "tokenizer.json"), "--prompt", "breast lesion"]) == 0
    assert capsys.readouterr().out.split() == ["4", "7"]
    (tmp_path / "other").write_text("{}")
    assert cli.main(["weights", str(tmp_path / "other"), "--prompt", "breast lesion"]) != 0


def test_the_page_has_a_row_of_each_of_the_ten_kinds_and_counts_their_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table().splitlines()]
    head, body = rows[0], rows[2:]
    counted = {row[0]: (row[head.index("released file opened")], row[head.index("keys expected")]) for row in body}
    assert counted == {
        "VISTA3D": ("no", "259"), "Point Net": ("no", "395"), "OCT encoder": ("no", "149"), "USFM": ("no", "195"), "TinyUSFM": ("no", "150"), "SAM3": ("no", "1468"),
        "SAM adapters (SAMed)": ("no", "125"), "SAM": ("no", "315"), "SegFormer": ("no", "378"), "VGG16": ("no", "14"),
    }  # fmt: skip
    assert {row[head.index("keys matched")] for row in body} == {"-"}


def test_the_command_says_which_experiment_and_base_adapters_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights: SAMed's names of the demo's SAM, filled by the recipe."""
    asked = ["profiles=demo", "adapters=released/samed", "initial=released/sam_vit_b"]
    on = trial("breast_us", load("breast_us", "sam_adapters", asked))
    filled(on)
    torch.save(
        {written: on.weights[name].clone() for name, written in file_names(on.weights).items()}, tmp_path / "lora.pth"
    )
    assert cli.main(["weights", str(tmp_path / "lora.pth"), "--set", "profiles=demo"]) == 0
    output = capsys.readouterr().out
    assert "breast_us/sam_adapters takes it as adapters=released/samed" in output
    assert "initial=released/sam_vit_b" in output
    assert f"{len(on.weights)} of the network's {len(on.weights)} tensors" in output
    assert digest(on.forward()) in output
    assert cli.main(["weights", str(tmp_path / "lora.pth"), "--set", "profiles=demo", "--set", "network.rank=2"]) != 0
    assert "network.rank=4" in capsys.readouterr().err
