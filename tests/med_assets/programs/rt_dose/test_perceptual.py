"""The perceptual loss against a reference written out, and the file that its weights come from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from med_assets.errors import CheckpointMismatch
from med_assets.programs.rt_dose import perceptual
from med_assets.programs.rt_dose.perceptual import Perceptual, expected, random_weights, read_weights

torch.set_num_threads(1)


def convolved(image: np.ndarray, weights: dict[str, torch.Tensor], number: int) -> np.ndarray:
    """ReLU of a 3x3 convolution of (channels, y, x), zeros around, by its definition."""
    weight, bias = (weights[f"features.{number}.{part}"].numpy().astype(np.float64) for part in ("weight", "bias"))
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.maximum(np.einsum("ocij,cyxij->oyx", weight, windows) + bias[:, None, None], 0)


def pooled(image: np.ndarray) -> np.ndarray:
    channels, y, x = image.shape
    return image.reshape(channels, y // 2, 2, x // 2, 2).max(axis=(2, 4))


def reference(dose: np.ndarray, weights: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """relu1_2, relu2_2 and relu3_3 of one slice (y, x)."""
    x = np.stack([(dose - mean) / std for mean, std in zip(perceptual.MEAN, perceptual.STD, strict=True)])
    first = convolved(convolved(x, weights, 0), weights, 2)
    second = convolved(convolved(pooled(first), weights, 5), weights, 7)
    third = convolved(convolved(convolved(pooled(second), weights, 10), weights, 12), weights, 14)
    return [first, second, third]


def test_the_error_is_that_of_the_reference() -> None:
    weights = random_weights(3)
    weights = {name: tensor + 0.01 for name, tensor in weights.items()}
    random = torch.Generator().manual_seed(0)
    predicted, truth = torch.rand((2, 1, 1, 3, 8, 8), generator=random)
    found = Perceptual(weights, stride=2)(predicted, truth)
    wanted = 0.0
    pairs = [[reference(dose[0, 0, z].numpy(), weights) for dose in (predicted, truth)] for z in (0, 2)]
    for tap in range(3):
        wanted += float(np.mean([(mine[tap] - theirs[tap]) ** 2 for mine, theirs in pairs]))
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_only_every_so_many_slices_are_compared_and_an_equal_dose_costs_nothing() -> None:
    loss = Perceptual(random_weights(0), stride=4)
    truth = torch.rand(1, 1, 8, 4, 4)
    changed = truth.clone()
    changed[:, :, [1, 2, 3, 5, 6, 7]] += 1
    assert float(loss(changed, truth)) == 0.0
    changed[:, :, 4] += 1
    assert float(loss(changed, truth)) > 0


def test_its_gradient_is_that_of_finite_differences() -> None:
    loss = Perceptual(random_weights(1), stride=1).double()
    predicted, truth = torch.rand((2, 1, 1, 1, 4, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert torch.autograd.gradcheck(lambda dose: loss(dose, truth), (predicted.requires_grad_(),))


def test_the_weights_are_no_part_of_a_checkpoint_and_follow_the_device() -> None:
    loss = Perceptual(random_weights(0), stride=8)
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert len(list(loss.buffers())) == 14


def whole_file(path: Path, **changed: torch.Tensor | None) -> Path:
    """A file in torchvision's layout, with a later layer and a classifier; `changed` replaces or removes tensors."""
    tensors = random_weights(2) | {"features.17.weight": torch.zeros(1), "classifier.6.bias": torch.zeros(1000)}
    tensors |= {name.replace("_", "."): tensor for name, tensor in changed.items()}
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def test_of_a_file_of_the_whole_network_the_first_layers_are_taken_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_weights(whole_file(tmp_path / "vgg16.pth"))
    assert found.keys() == expected().keys()
    assert "14 tensors of VGG16; 2 of its later layers are not needed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features_7_bias": None}, r"1 missing: \['features.7.bias'\]"),
        ({"features_0_weight": torch.zeros(64, 1, 3, 3)}, r"features.0.weight expected \(64, 3, 3, 3\) found"),
        ({"features_1_weight": torch.zeros(64)}, r"1 unexpected: \['features.1.weight'\]"),
    ],
)
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, changed: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        read_weights(whole_file(tmp_path / "vgg16.pth", **changed))
