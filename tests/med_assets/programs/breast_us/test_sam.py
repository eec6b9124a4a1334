"""SAM: the function of its release, with and without the adapters of SAMed, and both kinds of file read and written."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from med_assets.errors import CheckpointMismatch, ConfigurationError
from med_assets.experiments.configuration import load
from med_assets.programs.breast_us.experiment import BreastExperiment, Sam
from med_assets.programs.breast_us.export import export_network
from med_assets.programs.breast_us.network import Segmenter, released
from med_assets.programs.breast_us.sam import is_new
from med_assets.programs.breast_us.sam_names import IMAGE_PLACE, PLACE, original_name, original_names, resized
from med_assets.programs.breast_us.samed import file_names, holds_all_that_is_trained, write_adapters
from med_assets.training.job import run
from tests import reference_layers as reference
from tests import reference_sam
from tests.med_assets.programs.breast_us.builders import write_job

torch.set_num_threads(1)
TRAINED = (
    "network.trained=[prompt_encoder.no_mask_embed,mask_decoder]",
    "network.frozen=[mask_decoder.transformer,mask_decoder.iou_prediction_head]",
)


def experiment(name: str = "sam_lora", *overrides: str, side: int = 48) -> BreastExperiment:
    """A small SAM whose windows, 4 of 6 tokens, are padded; its image is `side` pixels wide."""
    more = [f"input_px={side}", "initial=released/sam_vit_b", *TRAINED, *overrides]
    found = load("breast_us", name, more, profile="demo")
    assert isinstance(found, BreastExperiment)
    return found


def sizes(chosen: BreastExperiment) -> reference_sam.Sizes:
    network = chosen.network
    assert isinstance(network, Sam)
    return reference_sam.Sizes(
        network.patch, network.depth, network.heads, network.window, network.global_blocks, network.decoder_heads
    )


def own_names(chosen: BreastExperiment) -> dict[str, torch.Size]:
    """Shapes of a SAM's tensors by transformers' names, without adapters."""
    start = "net.sam."
    shapes = {
        name.removeprefix(start): one.shape for name, one in Segmenter(chosen).state_dict().items() if not is_new(name)
    }
    return {name.replace(".base.", "."): shape for name, shape in shapes.items()}


def sam_file(chosen: BreastExperiment, seed: int = 3) -> dict[str, Tensor]:
    """SAM's file in its original names, by `reference.recipe(seed)`."""
    shapes = {original_name(name): shape for name, shape in own_names(chosen).items() if name != IMAGE_PLACE}
    return tensors(reference.recipe(shapes, seed))


def samed_file(chosen: BreastExperiment, seed: int = 4) -> dict[str, Tensor]:
    """SAMed's file for it, by `reference.recipe(seed)`."""
    own = Segmenter(chosen).state_dict()
    return tensors(reference.recipe({written: own[name].shape for name, written in file_names(own).items()}, seed))


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(one).float() for name, one in arrays.items()}


def arrays(given: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: one.double().numpy() for name, one in given.items()}


def loaded(chosen: BreastExperiment, given: dict[str, Tensor], adapters: dict[str, Tensor] | None = None) -> Segmenter:
    torch.manual_seed(1)
    network = Segmenter(chosen).eval()
    network.load_state_dict(released(chosen, dict(network.state_dict()), adapters)(given), strict=True)
    return network


def answer(network: Segmenter, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        logits, features = network.both(torch.from_numpy(grey).float()[None, None])
    return logits[0, 0].numpy(), features[0].numpy()


GREY = np.random.default_rng(3).uniform(size=(48, 48))
IMAGE = np.repeat(GREY[None], 3, 0)

LOGITS = (-0.099863, -0.244963, -0.22147, -0.20471)
"""First mask of row 24, columns 0, 12, 24 and 36, in the test below."""


def test_the_released_network_is_upstreams() -> None:
    """Weights: `sam_file(experiment())`. Image: numpy.random.default_rng(3).uniform(size=(48, 48)) as grey values of 0..1."""
    chosen = experiment()
    given = sam_file(chosen)
    masks, embeddings = reference_sam.sam(IMAGE, arrays(given), {}, sizes(chosen))
    logits, features = answer(loaded(chosen, given), GREY)
    assert masks[0].std() > 0.01
    np.testing.assert_allclose(features, embeddings, atol=1e-4)
    np.testing.assert_allclose(logits, masks[0], atol=1e-4)
    np.testing.assert_allclose(logits[24, [0, 12, 24, 36]], LOGITS, atol=1e-4)


@pytest.mark.parametrize("name", ["sam_lora", "sam_lora_encoder"])
def test_an_adapter_only_file_of_samed_makes_the_network_that_it_makes_upstream(name: str) -> None:
    chosen = experiment(name, "network.multimask_outputs=2")
    base, adapters = sam_file(experiment(name)), samed_file(chosen)
    assert ("sa_a_000" in adapters) == (name == "sam_lora")
    assert ("mask_decoder.transformer.layers.0.self_attn.q_proj.weight" in adapters) == (name != "sam_lora")
    # What upstream has in the end: SAM's tensors, and in their place those of the adapter-only file.
    weights = arrays(base) | arrays(adapters)
    masks, embeddings = reference_sam.sam(IMAGE, weights, arrays(adapters), sizes(chosen))
    logits, features = answer(loaded(chosen, base, adapters), GREY)
    np.testing.assert_allclose(features, embeddings, atol=1e-4)
    np.testing.assert_allclose(logits, masks[0], atol=1e-4)
    classes = chosen.model_copy(update={"network": chosen.network.model_copy(update={"answer": "classes"})})
    united, _ = answer(loaded(classes, base, adapters), GREY)
    np.testing.assert_allclose(united, np.log(np.exp(masks[1:]).sum(0)) - masks[0], atol=1e-4)


def test_without_its_adapters_the_network_is_another() -> None:
    chosen = experiment()
    base, adapters = sam_file(chosen), samed_file(chosen)
    assert not np.allclose(
        answer(loaded(chosen, base, adapters), GREY)[0], answer(loaded(chosen, base), GREY)[0], atol=0.01
    )


def test_positions_of_another_image_are_resized_as_samed_does() -> None:
    large, small = experiment(side=96), experiment()
    base, adapters = sam_file(large), samed_file(small)
    upstream = dict(base)
    grid = base["image_encoder.pos_embed"][0].permute(2, 0, 1).double().numpy()
    upstream["image_encoder.pos_embed"] = torch.from_numpy(reference.resize(grid, (6, 6))).permute(1, 2, 0)[None]
    for name, table in base.items():
        if "rel_pos" in name and len(table) == 2 * 12 - 1:
            upstream[name] = torch.from_numpy(reference.along(23, 11) @ table.double().numpy())
    assert sum(upstream[name].shape != base[name].shape for name in base) == 3
    masks, _ = reference_sam.sam(IMAGE, arrays(upstream) | arrays(adapters), arrays(adapters), sizes(small))
    np.testing.assert_allclose(answer(loaded(small, base, adapters), GREY)[0], masks[0], atol=1e-4)


def test_positions_from_1024_to_224_pixels_keep_their_lattice() -> None:
    rows = torch.linspace(0, 63, 64)[:, None].expand(64, 64)[None, :, :, None].contiguous()
    found = resized("pos_embed", rows, (1, 14, 14, 1))
    expected = functional.interpolate(
        rows.permute(0, 3, 1, 2), (14, 14), mode="bilinear", align_corners=False, antialias=False
    )
    assert torch.equal(found, expected.permute(0, 2, 3, 1))
    assert found[0, :, 0, 0].tolist() == pytest.approx([(i + 0.5) * 64 / 14 - 0.5 for i in range(14)], rel=1e-5)


@pytest.mark.parametrize("layout", ["original", "module", "sam", "transformers", "transformers tied"])
def test_every_layout_of_sam_gives_the_same_network(layout: str) -> None:
    chosen = experiment()
    base = sam_file(chosen)
    given = dict(base)
    match layout:
        case "module":
            given = {f"module.{name}": one for name, one in base.items()}
        case "sam":
            given = {f"module.sam.{name}": one for name, one in base.items()}
        case "transformers":
            given = original_names(base)
        case "transformers tied":
            given = original_names(base)
            del given[PLACE]
    assert np.array_equal(answer(loaded(chosen, given), GREY)[0], answer(loaded(chosen, base), GREY)[0])


def test_names_of_the_original_and_of_transformers_are_one_to_one() -> None:
    names = [name for name in own_names(experiment()) if name != IMAGE_PLACE]
    there = {original_name(name): torch.zeros(1) for name in names}
    assert len(there) == len(names)
    assert original_names(there).keys() == {*names, IMAGE_PLACE}


@pytest.mark.parametrize("name", ["sam_lora", "sam_lora_encoder"])
def test_adapters_are_written_as_they_are_read(name: str, tmp_path: Path) -> None:
    chosen = experiment(name)
    base, adapters = sam_file(chosen), samed_file(chosen)
    network = loaded(chosen, base, adapters)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "experiment.json").write_text(chosen.to_json())
    torch.save(network.state_dict(), folder / "weights.pt")
    (path,) = export_network(folder, tmp_path / "out")
    written = torch.load(path, weights_only=True)
    assert written.keys() == adapters.keys()
    assert all(torch.equal(written[key], adapters[key]) for key in adapters)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("network.rank=2",), r"network\.rank=4"),
        (("network.multimask_outputs=1",), r"network\.multimask_outputs=3"),
        (("network.lora=encoder",), r"network\.lora=both"),
    ],
)
def test_adapters_of_another_network_say_what_to_set(overrides: tuple[str, ...], message: str) -> None:
    base, adapters = sam_file(experiment()), samed_file(experiment())
    with pytest.raises(CheckpointMismatch, match=message):
        loaded(experiment("sam_lora", *overrides), base, adapters)


def test_a_file_in_the_place_of_another_kind_is_named() -> None:
    chosen = experiment()
    base, adapters = sam_file(chosen), samed_file(chosen)
    with pytest.raises(CheckpointMismatch, match="name it in adapters"):
        loaded(chosen, adapters)
    with pytest.raises(CheckpointMismatch, match="a whole SAM; name it in initial"):
        loaded(chosen, base, base)
    with pytest.raises(CheckpointMismatch, match="PEFT"):
        loaded(chosen, base, {"base_model.model.vision_encoder.layers.0.attn.qkv.lora_A.weight": torch.zeros(1)})
    del adapters["w_b_003"]
    with pytest.raises(CheckpointMismatch, match="w_b_003"):
        loaded(chosen, base, adapters)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("image_encoder.pos_embed", torch.zeros(1, 0, 0, 48)),
        ("image_encoder.pos_embed", torch.zeros(1, 7, 9, 48, dtype=torch.int64)),
        ("image_encoder.pos_embed", torch.zeros(1, 7, 9, 47)),
        ("image_encoder.blocks.0.attn.rel_pos_h", torch.zeros(0, 12)),
        ("mask_decoder.mask_tokens.weight", torch.zeros(())),
        ("image_encoder.blocks.1.mlp.lin1.weight", torch.zeros(3)),
    ],
)
def test_odd_tensors_are_refused(name: str, tensor: Tensor) -> None:
    chosen = experiment()
    with pytest.raises(CheckpointMismatch):
        loaded(chosen, sam_file(chosen) | {name: tensor})
    for adapter in ("w_a_000", "mask_decoder.mask_tokens.weight"):
        with pytest.raises(CheckpointMismatch):
            loaded(chosen, sam_file(chosen), samed_file(chosen) | {adapter: torch.zeros(())})


def test_positions_in_half_precision_are_resized() -> None:
    large, small = experiment(side=96), experiment()
    given = {name: one.bfloat16() if "pos_embed" in name else one for name, one in sam_file(large).items()}
    assert np.isfinite(answer(loaded(small, given), GREY)[0]).all()


def test_adapters_without_a_release_under_them_are_no_experiment() -> None:
    with pytest.raises((ConfigurationError, ValidationError), match="initial released/NAME too"):
        experiment("sam_lora", "adapters=released/samed", "initial=random")
    assert experiment("sam_lora", "adapters=released/samed").released_files() == ("samed",)


def test_a_training_publishes_its_adapters_beside_its_weights(tmp_path: Path) -> None:
    overrides = ("input_px=48", "initial=released/sam_vit_b", "adapters=released/samed", *TRAINED, "schedule.epochs=1",
                 "schedule.batch=2", "data.per_epoch=2", "network.rank=2")  # fmt: skip
    chosen = experiment("sam_lora", "network.rank=2")
    job = write_job(tmp_path / "job", "sam_lora", overrides)
    torch.save(sam_file(chosen), job / "initial.pt")
    (job / "released").mkdir()
    torch.save(samed_file(chosen), job / "released" / "samed")
    run(job)
    weights, adapters = (torch.load(job / name, weights_only=True) for name in ("weights.pt", "adapters.pt"))
    assert adapters.keys() == samed_file(chosen).keys()
    assert all(torch.equal(one, adapters[name]) for name, one in write_adapters(weights).items())
    assert not torch.equal(adapters["w_b_000"], samed_file(chosen)["w_b_000"])
    again = loaded(chosen, sam_file(chosen), adapters).state_dict()
    assert all(torch.equal(again[name], one) for name, one in weights.items())


def test_a_network_that_is_trained_in_full_has_no_adapter_only_file() -> None:
    whole = load("breast_us", "sam_lora", ["input_px=48"], profile="demo")
    assert isinstance(whole, BreastExperiment)
    assert isinstance(whole.network, Sam)
    assert not holds_all_that_is_trained(whole.network, Segmenter(whole).state_dict())


@pytest.mark.parametrize(
    ("name", "parameters", "blocks", "dim"),
    [("sam_lora", 93_735_472, 12, 768), ("sam_vit_l", 312_342_832, 24, 1024), ("sam_vit_h", 641_090_608, 32, 1280)],
)
def test_the_full_networks_are_the_released_ones_and_their_adapters_are_small(
    name: str, parameters: int, blocks: int, dim: int
) -> None:
    chosen = load("breast_us", name, ["input_px=1024"], profile="full")
    assert isinstance(chosen, BreastExperiment)
    assert isinstance(chosen.network, Sam)
    assert chosen.scaling == "imagenet"
    with torch.device("meta"):
        network = Segmenter(chosen)
    shapes = {name: tuple(one.shape) for name, one in network.state_dict().items()}
    release = {
        original_name(key.removeprefix("net.sam.").replace(".base.", ".")): shape
        for key, shape in shapes.items()
        if not is_new(key) and not key.endswith(IMAGE_PLACE)
    }
    frequencies = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert sum(int(np.prod(shape)) for key, shape in release.items() if key != frequencies) == parameters
    assert release[frequencies] == (2, 128)
    assert release["image_encoder.pos_embed"] == (1, 64, 64, dim)
    assert release[f"image_encoder.blocks.{blocks - 1}.attn.rel_pos_h"] == (127, dim // chosen.network.heads)
    assert release["image_encoder.blocks.0.attn.rel_pos_w"] == (27, dim // chosen.network.heads)
    assert release["mask_decoder.mask_tokens.weight"] == (4, 256)
    assert release["mask_decoder.transformer.layers.1.mlp.lin1.weight"] == (2048, 256)
    assert release["mask_decoder.output_hypernetworks_mlps.3.layers.2.weight"] == (32, 256)
    kept = {written: shapes[key] for key, written in file_names(shapes).items()}
    assert kept[f"w_a_{2 * blocks - 1:03d}"] == (4, dim)
    assert kept["cti_b_003"] == (128, 4)
    megabytes = 4 * sum(int(np.prod(shape)) for shape in kept.values()) / 1e6
    assert 2 < megabytes < 6
    assert holds_all_that_is_trained(chosen.network, shapes)
