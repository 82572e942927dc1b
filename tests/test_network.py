"""The trained network: trunks and heads against plain restatements, who shares what, and steps split over processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor, nn
from torch.nn import functional

from nd.config import NetworkConfig
from nd.errors import UserError
from nd.mappers.network.draws import Draws, Dropout
from nd.mappers.network.heads import HeadOutput, LatentHead, LinearHead, TargetSlice, TokenHead, build_head, slices_of
from nd.mappers.network.network import Network
from nd.mappers.network.prior import DiffusionPrior
from nd.mappers.network.trunk import Mixer, PublishedResidual, Residual, Trunk, build_trunk, key_of, name_of

M = TypeVar("M", bound=nn.Module)
H = 12
N_VOXELS = {"subj01": 9, "subj02": 7, "subj05": 11}
C, LAYERS, Z = slices_of("c", (3, 8)), slices_of("g", (2, 5, 6)), slices_of("z", (4, 8, 8))
PARTS = [*C, *LAYERS, *Z]


def config(**changes: Any) -> NetworkConfig:
    """A tiny network."""
    small: dict[str, Any] = {
        "hidden": H, "blocks": 2, "latent_channels": 8, "decoder_channels": [8, 16], "prior": False, "prior_depth": 1,
        "prior_heads": 2, "prior_head_width": 4,
    }  # fmt: skip
    return replace(NetworkConfig(), **{**small, **changes})


def randomised(module: M, seed: int = 0) -> M:
    """Every parameter random, zero starts and gains too: what is 0 or 1 could not show that it is used."""
    generator = torch.Generator().manual_seed(seed)
    for weights in module.parameters():
        spread = 1 / math.sqrt(weights.shape[-1]) if weights.ndim > 1 else 0.5
        weights.data = spread * torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
    return module


def voxels(sizes: Mapping[str, int] = {"subj01": 4, "subj02": 3, "subj05": 5}, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, N_VOXELS[name], generator=generator) for name, n in sizes.items()}


def trunk(dtype: torch.dtype = torch.float64, for_map: bool = False, variant: str = "nd", **changes: Any) -> Trunk:
    return randomised(build_trunk(config(**changes), N_VOXELS, "t", for_map=for_map, variant=variant).to(dtype))


def one(n: int, seed: int = 2) -> dict[str, Tensor]:
    """Samples of the first subject in float64."""
    return {"subj01": torch.randn(n, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}


def mask(draws: Draws | None, name: str, share: float, shape: Sequence[int]) -> Tensor:
    """What dropout multiplies by, by its definition."""
    return torch.ones(1) if draws is None else (draws.uniform(name, shape) >= share) / (1 - share)


def standard(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean 0 and variance 1 along the last axis."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def count(module: nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())


# ---- subject layers ------------------------------------------------------------------------------------------------


def test_subject_layers_follow_the_order_of_the_voxels_and_take_none() -> None:
    net, x = trunk(torch.float32, blocks=0), voxels({"subj05": 2, "subj01": 0, "subj02": 3})
    net.body.drop.share = 0.0
    layers = net.subject_layers
    expected = [x[name] @ layers[name].weight.T + layers[name].bias for name in ("subj05", "subj02")]
    torch.testing.assert_close(net(x, None), torch.cat(expected))
    assert all(isinstance(layer, nn.Linear) for layer in layers.values())


def test_a_subject_without_a_layer_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(
        UserError, match=r"no layer for subject 'subj03'.*Did you mean 'subj0.'.*subj01, subj02, subj05"
    ):
        trunk()({"subj03": torch.zeros(2, 9)}, None)
    with pytest.raises(UserError, match="It has one for: nobody"):
        build_trunk(config(), {}, "t", for_map=False)({"subj03": torch.zeros(2, 9)}, None)


def test_a_wrong_number_of_voxels_is_an_error_that_says_what_arrived_and_what_was_expected() -> None:
    with pytest.raises(UserError, match=r"8 voxels of subject 'subj01' arrived, but its layer expects 9.*subject\.roi"):
        trunk()({"subj01": torch.zeros(2, 8)}, None)


@pytest.mark.parametrize("name", ["subj01", "own.1", "own%2E1", "train", "training", "%train", "a.b%c", "keys.1"])
def test_every_subject_name_is_a_key_and_is_found_again(name: str) -> None:
    net = build_trunk(config(), {name: 9, "other": 9}, "t", for_map=False)
    assert net({name: torch.zeros(2, 9)}, None).shape == (2, H)
    assert name_of(key_of(name)) == name
    with pytest.raises(UserError, match="It has one for"):
        net({f"{name}?": torch.zeros(2, 9)}, None)


def test_names_that_torch_refuses_do_not_share_a_layer() -> None:
    assert len({key_of(name) for name in ("own.1", "own%2E1", "own_1", "own-1")}) == 4
    assert key_of("subj01") == "subj01"


# ---- mixer ---------------------------------------------------------------------------------------------------------


def plain_mixer(body: Mixer, x_BH: Tensor, draws: Draws | None, share: float = 0.15) -> Tensor:
    """The published wiring with an axis for the sequence of one (HaoyyLi/NeuralDiffuser@9286cad:src/models.py)."""

    def part(layer: nn.Module, x: Tensor, stream: str) -> Tensor:
        inner = (standard(x) * layer.norm.weight + layer.norm.bias) @ layer.inner.weight.T + layer.inner.bias
        kept = mask(draws, stream, share, x.shape[1:])
        return (gelu(inner) * kept) @ layer.outer.weight.T + layer.outer.bias

    x = x_BH[:, None]
    residual1, residual2 = x, x.permute(0, 2, 1)
    for k, (first, second) in enumerate(zip(body.first, body.second, strict=True)):
        x = part(first, x, f"t/mixer {k}/hidden") + residual1
        residual1 = x
        x = part(second, x.permute(0, 2, 1), f"t/mixer {k}/sequence") + residual2
        residual2 = x
        x = x.permute(0, 2, 1)
    return x[:, 0]


@pytest.mark.parametrize("training", [False, True])
def test_mixer_is_the_published_wiring(training: bool) -> None:
    net, draws = trunk(trunk="mixer", variant="released", blocks=4), Draws.alone(5) if training else None
    x, layer = one(5), net.subject_layers["subj01"]
    hidden = x["subj01"] @ layer.weight.T + layer.bias
    torch.testing.assert_close(net(x, draws), plain_mixer(net.body, hidden, draws))


def test_mixer_is_affine_and_adds_a_constant_to_the_subject_layer() -> None:
    net = trunk(trunk="mixer", variant="released", blocks=4)
    a, b, zero = one(6)["subj01"], one(6, seed=3)["subj01"], torch.zeros(6, 9, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return net({"subj01": x}, None)

    assert (f(a + b) - f(a) - f(b) + f(zero)).abs().max() < 1e-13
    constant = f(a) - net.subject_layers["subj01"](a)
    torch.testing.assert_close(constant, constant[0, 0].expand_as(constant))
    assert constant.abs().max() > 0.01
    torch.testing.assert_close(f(a).mean(0), f(a.mean(0, keepdim=True))[0])


def test_the_residual_trunk_is_not_affine() -> None:
    """The check above can fail."""
    net, a, b = trunk(blocks=4), one(6)["subj01"], one(6, seed=3)["subj01"]
    f = [net({"subj01": x}, None) for x in (a + b, a, b, 0 * a)]
    assert (f[0] - f[1] - f[2] + f[3]).abs().max() > 0.1


def test_the_mixers_first_parts_reach_no_output() -> None:
    net = trunk(trunk="mixer", variant="released", blocks=4)
    net(one(6), Draws.alone(6)).square().sum().backward()
    of_first = [weights.grad.abs().max() for weights in net.body.first.parameters()]
    assert max(of_first) < 1e-12
    assert all(part.outer.bias.grad.abs().max() > 0.01 for part in net.body.second)


def test_the_mixers_dropout_adds_noise_that_does_not_depend_on_the_voxels() -> None:
    net, a, b = trunk(trunk="mixer", variant="released", blocks=4), one(6), one(6, seed=3)
    noise_a, noise_b = (net(x, Draws.alone(6)) - net(x, None) for x in (a, b))
    torch.testing.assert_close(noise_a, noise_b)
    assert noise_a.std() > 1e-3


def test_published_code_has_no_mixer_before_a_latent_map() -> None:
    with pytest.raises(UserError, match=r"trunk 't' feeds a latent map.*network=released_z.*mapper\.variant=nd"):
        trunk(trunk="mixer", variant="released", for_map=True)
    assert isinstance(trunk(trunk="mixer", variant="nd", for_map=True).body, Mixer)
    mixed = config(trunk="mixer", share="all")
    with pytest.raises(UserError, match="trunk 'shared' feeds a latent map"):
        Network(mixed, [*C, *Z], N_VOXELS, "released")


# ---- residual trunks -----------------------------------------------------------------------------------------------


def plain_published(net: Trunk, x_BV: Tensor, draws: Draws | None) -> Tensor:
    """HaoyyLi/NeuralDiffuser@9286cad:src/train_z.py (VoxelEncoder), src/models.py."""
    layer, body = net.subject_layers["subj01"], net.body
    hidden = silu(standard(x_BV @ layer.weight.T) * layer.norm.weight + layer.norm.bias)
    x = hidden * mask(draws, "t/subject", 0.5, (H,))
    for k, (linear, norm) in enumerate(zip(body.linears, body.norms, strict=True)):
        more = silu(standard(x @ linear.weight.T) * norm.weight + norm.bias)
        x = x + more * mask(draws, f"t/block {k}", 0.25, (H,))
    return x


@pytest.mark.parametrize("training", [False, True])
def test_the_published_residual_trunk(training: bool) -> None:
    net, draws = trunk(variant="released", for_map=True, blocks=4, dropout=0.25), Draws.alone(5) if training else None
    assert isinstance(net.body, PublishedResidual)
    torch.testing.assert_close(net(one(5), draws), plain_published(net, one(5)["subj01"], draws))


def test_the_published_norm_belongs_to_the_subject() -> None:
    net = trunk(variant="released", for_map=True)
    names = {name for name, _ in net.named_parameters() if ".subj02." in name}
    assert names == {f"subject_layers.subj02.{rest}" for rest in ("weight", "norm.weight", "norm.bias")}


def plain_residual(net: Trunk, x_BV: Tensor, draws: Draws | None) -> Tensor:
    layer = net.subject_layers["subj01"]
    x = (x_BV @ layer.weight.T + layer.bias) * mask(draws, "t/subject", 0.5, (H,))
    for k, block in enumerate(net.body.blocks):
        inner = (standard(x) * block.norm.weight + block.norm.bias) @ block.inner.weight.T + block.inner.bias
        kept = mask(draws, f"t/block {k}", 0.15, (H,))
        x = x + (gelu(inner) * kept) @ block.outer.weight.T + block.outer.bias
    return x


@pytest.mark.parametrize("training", [False, True])
def test_the_residual_trunk(training: bool) -> None:
    net, draws = trunk(blocks=3), Draws.alone(5) if training else None
    assert isinstance(net.body, Residual)
    torch.testing.assert_close(net(one(5), draws), plain_residual(net, one(5)["subj01"], draws))


def test_the_residual_trunk_starts_linear() -> None:
    net = build_trunk(config(), N_VOXELS, "t", for_map=False)
    x = voxels()
    torch.testing.assert_close(net(x, None), torch.cat([net.subject_layers[name](x[name]) for name in x]))


# ---- heads ---------------------------------------------------------------------------------------------------------


def head_of(part: TargetSlice, aux_width: int = 0, **changes: Any) -> nn.Module:
    return randomised(build_head(config(**changes), part, aux_width=aux_width).double())


def test_token_head_predicts_tokens_and_projects_each_by_itself() -> None:
    head, hidden = head_of(C[0]), torch.randn(5, H, dtype=torch.float64)
    assert isinstance(head, TokenHead)
    output = head(hidden, None)
    expected = (hidden @ head.tokens.weight.T + head.tokens.bias).reshape(5, 3, 8)
    torch.testing.assert_close(output.predicted, expected)
    x = expected
    for k in range(3):
        norm, linear = head.projector[3 * k], head.projector[3 * k + 2]
        x = gelu(standard(x) * norm.weight + norm.bias) @ linear.weight.T + linear.bias
    torch.testing.assert_close(output.projected, x)


@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize("prior", [False, True])
def test_token_head_has_what_is_asked_for(projector: bool, prior: bool) -> None:
    head = build_head(config(projector=projector, prior=prior), C[0], aux_width=5)
    output = head(torch.zeros(2, H), None)
    assert (output.projected is not None) == projector
    assert isinstance(head.prior, DiffusionPrior) == prior


def test_latent_head_doubles_a_coarse_map_by_the_published_decoder() -> None:
    """NeuralDiffuser's: 16 x 16 x 64 to 64 x 64 x 4."""
    head = build_head(config(latent_channels=64, decoder_channels=[64, 128, 256]), slices_of("z", (4, 64, 64))[0])
    assert isinstance(head, LatentHead)
    published = Decoder(64, 4, ("UpDecoderBlock2D",) * 3, (64, 128, 256), layers_per_block=1)
    published.load_state_dict(head.decoder.state_dict())
    hidden = torch.randn(1, H)
    coarse = functional.group_norm((hidden @ head.coarse.weight.T).reshape(1, 64, 16, 16), 1)
    with torch.no_grad():
        output = head(hidden, None)
        torch.testing.assert_close(output.predicted, published(coarse))
    assert output.predicted.shape == (1, 4, 64, 64)
    assert output.projected is None
    assert head.prior is None
    assert head.decoder.mid_block.attentions[0].heads == 1
    assert head.decoder.conv_norm_out.num_groups == 32


def plain_group_norm(x_BCS: Tensor, norm: nn.Module) -> Tensor:
    return standard(x_BCS.flatten(1)).reshape(x_BCS.shape) * norm.weight[:, None] + norm.bias[:, None]


def test_auxiliary_head_makes_a_token_of_every_place() -> None:
    head, hidden = head_of(Z[0], aux_width=5), torch.randn(3, H, dtype=torch.float64)
    output = head(hidden, None)
    x = plain_group_norm((hidden @ head.coarse.weight.T).reshape(3, 8, 16), head.norm)
    convolutions, norms = (head.maps_projector[k::3] for k in (0, 1))
    for convolution, norm in zip(convolutions, norms, strict=False):
        x = plain_group_norm(torch.einsum("oi,bis->bos", convolution.weight[..., 0, 0], x), norm).clamp(min=0)
    last = convolutions[-1]
    x = torch.einsum("oi,bis->bso", last.weight[..., 0, 0], x) + last.bias
    torch.testing.assert_close(output.projected, x)
    assert output.projected.shape == (3, 16, 5)


@pytest.mark.parametrize(("channels", "groups"), [([48, 96], 24), ([6, 10], 2), ([7, 5], 1), ([128], 32)])
def test_the_decoders_norms_have_groups_that_divide(channels: list[int], groups: int) -> None:
    head = build_head(config(decoder_channels=channels), Z[0])
    assert isinstance(head, LatentHead)
    assert head.decoder.conv_norm_out.num_groups == groups
    assert head(torch.zeros(1, H), None).predicted.shape == (1, 4, 8, 8)


def test_a_linear_head_is_one_layer_to_the_map() -> None:
    head, hidden = build_head(config(decoder_channels=[]), Z[0]), torch.randn(3, H, dtype=torch.float64)
    assert isinstance(head.double(), LinearHead)
    output = head(hidden, None)
    torch.testing.assert_close(output.predicted.flatten(1), hidden @ head.map.weight.T + head.map.bias)
    assert (output.projected, head.prior) == (None, None)


def test_a_map_may_be_oblong() -> None:
    head = build_head(config(), TargetSlice("m", "m", 0, 3 * 4 * 6, (3, 4, 6)))
    assert head(torch.zeros(1, H), None).predicted.shape == (1, 3, 4, 6)


@pytest.mark.parametrize(
    ("side", "allowed"), [(10, "Give decoder_channels 1 to 2 numbers"), (7, "Give decoder_channels 1 number")]
)
def test_a_map_that_cannot_be_divided_is_an_error_that_says_what_would_do(side: int, allowed: str) -> None:
    part = slices_of("z", (4, side, side))[0]
    wanted = rf"decoder_channels=\[8, 8, 8\] enlarges a map 4 times, but z has {side} x {side} places.*{allowed}"
    with pytest.raises(UserError, match=wanted):
        build_head(config(decoder_channels=[8, 8, 8]), part)
    for n in range(1, int(allowed.split()[-2]) + 1):
        assert build_head(config(decoder_channels=[8] * n), part)(torch.zeros(1, H), None).predicted.shape[-1] == side


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "hidden", "ridge", "backbone"),
    [("c", 1024, 16.1, 70.8), ("c", 4096, 64.4, 378), ("g_0", 1024, 16.1, 49.5), ("g_0", 4096, 64.4, 293)],
)
def test_parameters_of_the_published_token_mappers(target: str, hidden: int, ridge: float, backbone: float) -> None:
    """In millions, of HaoyyLi/NeuralDiffuser@9286cad:src/models.py; the backbone is trunk and head, no prior."""
    parts = [part for part in (*slices_of("c", (77, 768)), *slices_of("g", (6, 50, 768))) if part.name == target]
    with torch.device("meta"):
        net = Network(config(hidden=hidden, trunk="mixer", blocks=4), parts, {"subj01": 15724}, "released")
    layers, body = net.trunks[net.trunk_of[target]].subject_layers, net.trunks[net.trunk_of[target]].body
    assert count(layers) / 1e6 == pytest.approx(ridge, abs=0.05)
    assert (count(body) + count(net.heads)) / 1e6 == pytest.approx(backbone, abs=0.5 if backbone > 100 else 0.05)


def test_parameters_of_the_published_latent_mapper() -> None:
    sizes = {"latent_channels": 64, "decoder_channels": [64, 128, 256], "hidden": 1024, "blocks": 4}
    with torch.device("meta"):
        net = Network(config(**sizes), slices_of("z", (4, 64, 64)), {"subj01": 15724}, "released", 512)
        decoder = Decoder(64, 4, ("UpDecoderBlock2D",) * 3, (64, 128, 256), layers_per_block=1)
    assert count(net.trunks["z"].subject_layers) == 15724 * 1024 + 2 * 1024
    assert count(net.trunks["z"].body) == 4 * (1024**2 + 2 * 1024)
    auxiliary = 64 * 512 + 2 * 512 + 512**2 + 2 * 512 + 512**2 + 512
    assert count(net.heads) == 1024 * 16384 + 2 * 64 + auxiliary + count(decoder)


# ---- the whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "trunks"),
    [
        ("part", {"c": "c", "g_0": "g_0", "g_1": "g_1", "z": "z"}),
        ("target", {"c": "c", "g_0": "g", "g_1": "g", "z": "z"}),
        ("all", dict.fromkeys(("c", "g_0", "g_1", "z"), "shared")),
    ],
)
def test_who_shares_a_trunk(share: str, trunks: dict[str, str]) -> None:
    net = randomised(Network(config(share=share), PARTS, N_VOXELS))
    assert net.trunk_of == trunks
    assert set(net.trunks) == set(trunks.values())
    before = predicted(net(voxels()))
    for name in net.trunks:
        first, kept = net.trunks[name].subject_layers["subj01"].weight, None
        kept = first.data.clone()
        first.data += 1
        changed = {part for part, value in predicted(net(voxels())).items() if not torch.equal(value, before[part])}
        assert changed == {part for part, feeds in trunks.items() if feeds == name}
        first.data = kept


def predicted(outputs: Mapping[str, HeadOutput]) -> dict[str, Tensor]:
    return {name: output.predicted for name, output in outputs.items()}


def everything(outputs: Mapping[str, HeadOutput]) -> dict[str, Tensor]:
    """Predictions and projections."""
    shown = {f"{name} projected": output.projected for name, output in outputs.items() if output.projected is not None}
    return {**predicted(outputs), **shown}


def whole(**changes: Any) -> Network:
    return randomised(Network(config(**changes), PARTS, N_VOXELS, aux_width=5))


def test_shapes_of_all_outputs() -> None:
    found = {name: tuple(value.shape) for name, value in everything(whole()(voxels())).items()}
    assert found == {
        "c": (12, 3, 8), "g_0": (12, 5, 6), "g_1": (12, 5, 6), "z": (12, 4, 8, 8), "c projected": (12, 3, 8),
        "g_0 projected": (12, 5, 6), "g_1 projected": (12, 5, 6), "z projected": (12, 16, 5),
    }  # fmt: skip


def test_subjects_together_are_as_each_alone() -> None:
    net, x = whole(), voxels()
    together = everything(net(x))
    alone = [everything(net({name: part})) for name, part in x.items()]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([part[name] for part in alone]), rtol=1e-4, atol=1e-5)


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    net, x = whole().eval(), voxels()
    first, again = everything(net(x)), everything(net(x))
    assert all(torch.equal(first[name], again[name]) for name in first)
    one_step, same_step = (everything(net(x, Draws.alone(12))) for _ in range(2))
    other_step = everything(net(x, Draws(0, 0, 1, torch.arange(12), 12)))
    assert all(torch.equal(one_step[name], same_step[name]) for name in first)
    assert not any(torch.allclose(one_step[name], other_step[name]) for name in first)
    assert not any(torch.allclose(one_step[name], first[name]) for name in first)


@pytest.mark.parametrize("kind", [("residual", "nd"), ("residual", "released"), ("mixer", "nd")])
def test_rows_of_two_processes_are_those_of_one(kind: tuple[str, str]) -> None:
    """Dropout included; the processes have uneven shares, and one of them nothing of a subject."""
    net, x = randomised(Network(config(trunk=kind[0]), PARTS, N_VOXELS, kind[1], aux_width=5)), voxels()
    shares = [
        {"subj01": [0, 2], "subj02": [0, 1, 2], "subj05": [4]},
        {"subj01": [1, 3], "subj02": [], "subj05": [0, 1, 2, 3]},
    ]
    start = {"subj01": 0, "subj02": 4, "subj05": 7}
    together = everything(net(x, Draws(3, 1, 5, torch.arange(12), 12)))
    for own in shares:
        rows = torch.tensor([start[name] + k for name, picked in own.items() for k in picked])
        part = everything(net({name: x[name][picked] for name, picked in own.items()}, Draws(3, 1, 5, rows, 12)))
        for name, value in together.items():
            torch.testing.assert_close(part[name], value[rows], rtol=1e-4, atol=1e-5)


def test_a_subject_without_samples_gets_zero_gradients_and_the_others_theirs() -> None:
    net = whole()
    losses = [
        value.square().sum() for value in everything(net(voxels({"subj01": 4, "subj02": 0, "subj05": 2}))).values()
    ]
    torch.stack(losses).sum().backward()
    gradients = {name: weights.grad for name, weights in net.named_parameters()}
    assert all(value is not None and value.isfinite().all() for value in gradients.values())
    assert all((value.abs().max() == 0) == ("subj02" in name) for name, value in gradients.items())


def test_a_process_without_samples_gives_zero_gradients_everywhere() -> None:
    net = whole()
    outputs = everything(net(voxels(dict.fromkeys(N_VOXELS, 0)), Draws(0, 0, 0, torch.arange(0), 12)))
    assert {len(value) for value in outputs.values()} == {0}
    torch.stack([value.square().sum() for value in outputs.values()]).sum().backward()
    assert all(weights.grad is not None and weights.grad.abs().max() == 0 for weights in net.parameters())


def test_weights_make_a_round_trip() -> None:
    net, other, x = whole(prior=True), Network(config(prior=True), PARTS, N_VOXELS, aux_width=5), voxels()
    other.load_state_dict(net.state_dict())
    first, again = everything(net(x)), everything(other(x))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("kind", [("residual", "nd"), ("residual", "released"), ("mixer", "nd")])
def test_every_dropout_has_a_stream_of_its_own(kind: tuple[str, str]) -> None:
    net = Network(config(trunk=kind[0], share="part"), PARTS, N_VOXELS, kind[1])
    names = [module.name for module in net.modules() if isinstance(module, Dropout)]
    assert len(names) >= len(PARTS) * 2
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("target", "shape"), [("pixels", (8, 8, 3)), ("colour", (8, 8, 3)), ("c", (2, 3, 4, 5))])
def test_images_with_channels_last_have_no_head(target: str, shape: tuple[int, ...]) -> None:
    """Latent maps and layers of tokens have three axes, too: a target says how its own are meant."""
    with pytest.raises(UserError, match=rf"no head for target '{target}' of shape .* Use mapper=ridge"):
        slices_of(target, shape)
