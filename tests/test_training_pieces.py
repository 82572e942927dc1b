"""The pieces of training: phases, scales, noise, teacher, decay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_training import NETWORK, PARTS

from nd.config import TrainingConfig
from nd.errors import UserError
from nd.mappers.network.draws import ImageNoise, key_of
from nd.mappers.network.network import Network
from nd.mappers.statistics import TargetScale
from nd.mappers.training.losses import soft_temperature
from nd.mappers.training.module import decay_groups
from nd.mappers.training.objective import Phase, patch_tokens, pooled_tokens, teacher_tokens

# ---- phases and scales ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "n_epochs"), [(0.33, 150), (0.5, 4), (0.0, 3), (1.0, 5), (0.33, 1), (0.9, 10)])
def test_phases_are_those_of_the_published_loop(share: float, n_epochs: int) -> None:
    """MixCo below int(share * epochs); then a temperature for each epoch that is left, first to last."""
    phases = [Phase.of(TrainingConfig(mixco_share=share), epoch, n_epochs) for epoch in range(n_epochs)]
    n_mixing = int(share * n_epochs)
    assert [phase.mixing for phase in phases] == [True] * n_mixing + [False] * (n_epochs - n_mixing)
    found = [soft_temperature(phase.progress, 0.004, 0.0075) for phase in phases[n_mixing:]]
    n_left = n_epochs - n_mixing
    angles = np.pi * np.arange(n_left) / max(1, n_left - 1)
    np.testing.assert_allclose(found, 0.0075 + (0.004 - 0.0075) / 2 * (1 + np.cos(angles)))


class Table:
    """Targets in memory; notes which columns are read."""

    def __init__(self, values_NP: np.ndarray) -> None:
        self.values, self.size, self.read = values_NP.astype(np.float32), values_NP.shape[1], []

    def columns(self, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
        self.read.append((start, stop))
        return self.values[ids, start:stop]


def test_scale_is_that_of_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(3, np.linspace(0.1, 50, 7), (40, 7))
    ids = np.arange(0, 30, 2)
    monkeypatch.setattr("nd.mappers.statistics.BLOCK_NUMBERS", 2 * len(ids))
    table = Table(values)
    scale = TargetScale.fit(table, ids)
    assert table.read == [(0, 2), (2, 4), (4, 6), (6, 7)]
    np.testing.assert_allclose(scale.mean, values[ids].mean(0), rtol=1e-6)
    np.testing.assert_allclose(scale.scale, values[ids].std(0), rtol=1e-6)


@pytest.mark.parametrize("n_constant", [1, 5, 8])
def test_columns_that_only_vary_by_rounding_keep_their_units(n_constant: int) -> None:
    """Divided by their own spread they would be noise as loud as the rest, however many they are."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(50, 8))
    values[:, :n_constant] = 7 + 1e-6 * rng.normal(size=(50, n_constant)) * (n_constant < 8)
    scale = TargetScale.fit(Table(values), np.arange(50)).scale
    assert (scale[:n_constant] == 1).all()
    np.testing.assert_allclose(scale[n_constant:], values[:, n_constant:].std(0), rtol=1e-5)


def test_plain_scale_changes_nothing() -> None:
    scale = TargetScale.plain(3)
    assert scale.mean.tolist() == [0] * 3
    assert scale.scale.tolist() == [1] * 3


# ---- noise and teacher ---------------------------------------------------------------------------------------------


def test_noise_is_of_the_image_whatever_the_batch() -> None:
    whole = ImageNoise(3, np.array([5, 9, 70000]))("start", (2, 3))
    for place, image in enumerate((5, 9, 70000)):
        alone = ImageNoise(3, torch.tensor([image, 1]))("start", (2, 3))[0]
        assert torch.equal(whole[place], alone)
    others = [ImageNoise(4, np.array([5]))("start", (2, 3)), ImageNoise(3, np.array([5]))("step 0", (2, 3))]
    others += [ImageNoise(3, np.array([5])).of("c")("start", (2, 3)), ImageNoise(3, np.array([6]))("start", (2, 3))]
    assert not any(torch.equal(other[0], whole[0]) for other in others)
    assert torch.equal(
        ImageNoise(3, np.array([5])).of("c")("start", (2, 3)), ImageNoise(3, np.array([5]))("c start", (2, 3))
    )


def test_noise_is_standard_normal() -> None:
    many = ImageNoise(0, np.arange(200))("start", (50,))
    assert many.dtype == torch.float32
    assert abs(float(many.mean())) < 0.05
    assert abs(float(many.std()) - 1) < 0.05
    assert len({key_of(0, image, "start") for image in range(1000)}) == 1000


def test_teacher_is_the_mean_of_the_patches_of_a_place() -> None:
    """Of the last layer, without the class token, row by row."""
    target = torch.randn(2, 3, 17, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(patch_tokens(target), target[:, 2, 1:])
    assert torch.equal(patch_tokens(target[:, 0, 1:]), target[:, 0, 1:])
    grid = target[:, 2, 1:].reshape(2, 4, 4, 5)
    quarters = [grid[:, r : r + 2, k : k + 2] for r in (0, 2) for k in (0, 2)]
    torch.testing.assert_close(pooled_tokens(target, (2, 2)), torch.stack([part.mean((1, 2)) for part in quarters], 1))
    network = Network(NETWORK, PARTS, {"a": 3}, aux_width=5)
    assert {name: tuple(tokens.shape) for name, tokens in teacher_tokens(target, network).items()} == {"z": (2, 4, 5)}
    assert teacher_tokens(target, Network(NETWORK, PARTS[:1], {"a": 3})) == {}


@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 12), (2, 3, 8, 5)])
def test_teacher_without_a_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"training.aux_target has features of shape .* no square .* Choose g"):
        patch_tokens(torch.zeros(shape))


# ---- decay ---------------------------------------------------------------------------------------------------------


def decays(network: Network, config: TrainingConfig) -> dict[str, float]:
    names = {id(weight): name for name, weight in network.named_parameters()}
    groups = [(group["weight_decay"], group["params"]) for group in decay_groups(network, config)]
    found = {names[id(weight)]: decay for decay, weights in groups for weight in weights}
    assert len(found) == len(names) == sum(len(weights) for _, weights in groups)
    return found


def test_decay_of_this_project_spares_gains_and_biases() -> None:
    network, config = (
        Network(NETWORK, PARTS, {"a": 5}, aux_width=4),
        TrainingConfig(weight_decay=0.1, subject_decay=0.3),
    )
    for name, decay in decays(network, config).items():
        weight = network.get_parameter(name)
        assert decay == (0 if weight.ndim < 2 else 0.3 if "subject_layers" in name else 0.1), name


def test_decay_as_published_spares_what_is_called_bias() -> None:
    """Gains of norms in a Sequential are decayed, and so are the biases of subject layers."""
    released = replace(NETWORK, trunk="mixer", share="part")
    network, config = Network(released, PARTS[:1], {"a": 5}, "released"), TrainingConfig(subject_decay=0.2)
    found = decays(network, config)
    assert {found[name] for name in found if "subject_layers" in name} == {0.2}
    assert found["heads.c.projector.0.weight"] == config.weight_decay
    assert found["heads.c.projector.0.bias"] == 0
    assert found["heads.c.tokens.weight"] == config.weight_decay
