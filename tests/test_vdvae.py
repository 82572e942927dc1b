"""The very deep VAE: its sizes, values against plain re-statements, published weights, and the target made from it."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_config import target_settings, with_fields
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from scipy.special import erf
from torch import Tensor
from torchvision.transforms.functional import resize as torchvision_resize

from nd.backbone.loading import Backbone
from nd.backbone.vdvae.halves import Block
from nd.backbone.vdvae.images import mode, sample, to_pixels, to_uint8
from nd.backbone.vdvae.loading import FILE, URL, load_vdvae, vdvae_of
from nd.backbone.vdvae.model import Vdvae
from nd.backbone.vdvae.shape import IMAGENET64, BlockShape, VdvaeShape
from nd.config import BackboneConfig, Config
from nd.errors import UserError
from nd.generate.trajectories import noise_for
from nd.targets import vdvae as target_module
from nd.targets.base import Items
from nd.targets.components import build_extractor
from nd.targets.noise import keyed_generator, keyed_normal
from nd.targets.vdvae import NOISE_SEED, VdvaeLatents

TINY = VdvaeShape(
    width=16, zdim=3, n_mixtures=4, image_size=8,
    encoder="8x1,8d2,4x1,4d2,2x1,2d2,1x1", decoder="1x2,2m1,4m2,4x1,8m4,8x1",
)  # fmt: skip
N_LAYERS = 7
SIDES = [1, 1, 2, 4, 4, 8, 8]  # of the tiny model's layers


def randomised(model: Vdvae, seed: int = 0) -> Vdvae:
    """Every tensor random, biases and starts too: what is zero could not show that it is used."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        spread = 0.7 / math.sqrt(value[0].numel()) if name.endswith("weight") else 0.3
        value.data = spread * torch.randn(value.shape, generator=generator)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def model() -> Vdvae:
    return randomised(Vdvae(TINY))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(1)).float()


def noise_of(seed: int = 5) -> Callable[[int, tuple[int, ...]], Tensor]:
    """Noise that is a function of the layer, so that it can be asked for twice."""
    return lambda layer, shape: torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + layer))


# ---- sizes ---------------------------------------------------------------------------------------------------------


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, listed from its description alone."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, n_in: int, n_out: int, kernel: int) -> None:
        found.update({f"{name}.weight": (n_out, n_in, kernel, kernel), f"{name}.bias": (n_out,)})

    def block(name: str, n_in: int, n_out: int, side: int) -> None:
        kernel = 3 if side > 2 else 1
        for k, (i, o, size) in enumerate([(n_in, 128, 1), (128, 128, kernel), (128, 128, kernel), (128, n_out, 1)], 1):
            conv(f"{name}.c{k}", i, o, size)

    conv("encoder.in_conv", 3, 512, 3)
    for k, side in enumerate([64] * 12 + [32] * 21 + [16] * 10 + [8] * 9 + [4] * 8 + [1] * 5):
        block(f"encoder.enc_blocks.{k}", 512, 512, side)
    for k, side in enumerate([1] * 2 + [4] * 4 + [8] * 8 + [16] * 16 + [32] * 32 + [64] * 13):
        block(f"decoder.dec_blocks.{k}.enc", 1024, 32, side)
        block(f"decoder.dec_blocks.{k}.prior", 512, 544, side)
        conv(f"decoder.dec_blocks.{k}.z_proj", 16, 512, 1)
        block(f"decoder.dec_blocks.{k}.resnet", 512, 512, side)
    found |= {f"decoder.bias_xs.{k}": (1, 512, side, side) for k, side in enumerate([1, 4, 8, 16, 32, 64])}
    found |= {"decoder.gain": (1, 512, 1, 1), "decoder.bias": (1, 512, 1, 1)}
    conv("decoder.out_net.out_conv", 512, 100, 1)
    return found


def test_state_dict_of_the_published_size() -> None:
    with torch.device("meta"):
        state = Vdvae().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected_shapes()
    assert len(state) == 2482
    assert sum(value.numel() for value in state.values()) == 125_005_860


def test_latents_of_the_published_size() -> None:
    shapes = IMAGENET64.latent_shapes()
    assert len(shapes) == 75
    assert shapes[30] == (16, 32, 32)
    dims = [math.prod(shape) for shape in shapes[:31]]
    assert dims == [16] * 2 + [256] * 4 + [1024] * 8 + [4096] * 16 + [16384]
    assert IMAGENET64.n_numbers(31) == sum(dims) == 91_168
    assert IMAGENET64.n_numbers() == 1_451_040


def test_small_resolutions_have_no_neighbours() -> None:
    assert [BlockShape(side).kernel for side in (1, 2, 4, 64)] == [1, 1, 3, 3]


@pytest.mark.parametrize("wrong", ["8y2", "8m4", "8x", "", "8x1,,4x1"])
def test_malformed_blocks_are_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"is no run of encoder blocks\. Write it like '64x11,64d2,32x20'"):
        _ = replace(TINY, encoder=wrong).encoder_blocks
    with pytest.raises(UserError, match="'8d2' is no run of decoder blocks"):
        _ = replace(TINY, decoder="4x1,8d2").decoder_blocks


# ---- plain re-statements -------------------------------------------------------------------------------------------


def plain_gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def plain_conv(x_BCHW: NDArray[np.float64], state: dict[str, Tensor], name: str) -> NDArray[np.float64]:
    """A convolution as a sum over the kernel's places."""
    weight, bias = state[f"{name}.weight"].numpy(), state[f"{name}.bias"].numpy()
    kernel, (height, width) = weight.shape[-1], x_BCHW.shape[-2:]
    margin = kernel // 2
    padded = np.pad(x_BCHW, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    out = np.zeros((len(x_BCHW), len(weight), height, width)) + bias[:, None, None]
    for i in range(kernel):
        for j in range(kernel):
            out += np.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
    return out


def plain_block(x: NDArray[np.float64], state: dict[str, Tensor], name: str) -> NDArray[np.float64]:
    for k in range(1, 5):
        x = plain_conv(plain_gelu(x), state, f"{name}.c{k}")
    return x


def plain_pool(x_BCHW: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    batch, channels, height, width = x_BCHW.shape
    return x_BCHW.reshape(batch, channels, height // size, size, width // size, size).mean((3, 5))


def plain_activations(pixels: Tensor, state: dict[str, Tensor]) -> dict[int, NDArray[np.float64]]:
    x = plain_conv((pixels.double().numpy() - 115.92961967) / 69.37404, state, "encoder.in_conv")
    found = {x.shape[-1]: x}
    for k, shrink in enumerate([1, 2, 1, 2, 1, 2, 1]):  # as TINY.encoder says
        x = plain_pool(x + plain_block(x, state, f"encoder.enc_blocks.{k}"), shrink)
        found[x.shape[-1]] = x
    return found


def plain_layers(
    state: dict[str, Tensor],
    choose: Callable[[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """The decoder for two images, `choose` told layer, features, prior mean and prior log deviation."""
    canvas = {
        side: np.repeat(state[f"decoder.bias_xs.{k}"].double().numpy(), 2, axis=0)
        for k, side in enumerate([1, 2, 4, 8])
    }
    latents = []
    for k, (side, mixin) in enumerate(zip(SIDES, [0, 0, 1, 2, 0, 4, 0], strict=True)):
        name, x = f"decoder.dec_blocks.{k}", canvas[side]
        if mixin:
            x = x + canvas[mixin].repeat(side // mixin, axis=2).repeat(side // mixin, axis=3)
        prior = plain_block(x, state, f"{name}.prior")
        z = choose(k, x, prior[:, :3], prior[:, 3:6])
        latents.append(z)
        x = x + prior[:, 6:] + plain_conv(z, state, f"{name}.z_proj")
        canvas[side] = x + plain_block(x, state, f"{name}.resnet")
    x = canvas[8] * state["decoder.gain"].numpy() + state["decoder.bias"].numpy()
    return plain_conv(x, state, "decoder.out_net.out_conv"), latents


def close(found: Tensor, expected: NDArray[Any]) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found.numpy() / scale, expected / scale, atol=1e-5)


def test_gelu_is_exact() -> None:
    block = Block(1, 1, 1, kernel=1)
    for name, value in block.named_parameters():
        value.data.fill_(1.0 if "weight" in name else 0.0)
    x = torch.linspace(-4, 4, 101).view(1, 1, 1, -1)
    expected = x.double().numpy()
    for _ in range(4):
        expected = plain_gelu(expected)
    with torch.no_grad():
        np.testing.assert_allclose(block(x).numpy(), expected, atol=1e-5)
    approximate = torch.nn.functional.gelu(x, approximate="tanh")
    assert np.abs(plain_gelu(x.double().numpy()) - approximate.numpy()).max() > 1e-4  # 1e-5 above tells them apart


def test_encoder_against_plain_arithmetic(model: Vdvae, pixels: Tensor) -> None:
    found, expected = model.encode(pixels), plain_activations(pixels, model.state_dict())
    assert list(found) == list(expected) == [8, 4, 2, 1]
    for side in expected:
        close(found[side], expected[side])


@pytest.mark.parametrize("sampled", [False, True])
def test_posterior_against_plain_arithmetic(model: Vdvae, pixels: Tensor, sampled: bool) -> None:
    state = model.state_dict()
    seen = plain_activations(pixels, state)

    def choose(k: int, x: NDArray[np.float64], _mean: Any, _log_std: Any) -> NDArray[np.float64]:
        out = plain_block(np.concatenate([x, seen[SIDES[k]]], axis=1), state, f"decoder.dec_blocks.{k}.enc")
        noise = noise_of()(k, (2, 3, SIDES[k], SIDES[k])).numpy() if sampled else 0.0
        return out[:, :3] + np.exp(out[:, 3:]) * noise

    expected, latents = plain_layers(state, choose)
    found = model.posterior(model.encode(pixels), noise=noise_of() if sampled else None)
    assert [tuple(z.shape) for z in found] == [(2, 3, side, side) for side in SIDES]
    for ours, theirs in zip(found, latents, strict=True):
        close(ours, theirs)
    described, through = model(pixels, noise_of() if sampled else None)
    close(described, expected)
    for ours, theirs in zip(through, latents, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("temperature", [None, 0.5, 0.0])
def test_prior_against_plain_arithmetic(model: Vdvae, temperature: float | None) -> None:
    given = [torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side)) for side in SIDES[:3]]

    def choose(k: int, _x: Any, mean: NDArray[np.float64], log_std: NDArray[np.float64]) -> NDArray[np.float64]:
        if k < 3:
            return given[k].double().numpy()
        factor = 1.0 if temperature is None else temperature
        return mean + factor * np.exp(log_std) * noise_of()(k, mean.shape).numpy()

    expected, _ = plain_layers(model.state_dict(), choose)
    close(model.decode(given, noise_of(), temperature), expected)


def test_fine_resolutions_without_a_learnt_start(pixels: Tensor) -> None:
    model = randomised(Vdvae(replace(TINY, no_bias_above=2)))
    assert [tuple(value.shape) for value in model.decoder.bias_xs] == [(1, 16, 1, 1), (1, 16, 2, 2)]
    full = randomised(Vdvae(TINY))  # the same with starts of zeros
    state = {**full.state_dict(), **model.state_dict()}
    state |= {f"decoder.bias_xs.{k}": torch.zeros(1, 16, side, side) for k, side in ((2, 4), (3, 8))}
    full.load_state_dict(state)
    torch.testing.assert_close(model(pixels)[0], full(pixels)[0])


# ---- one way and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [None, noise_of()])
def test_decoding_all_latents_equals_the_forward_pass(model: Vdvae, pixels: Tensor, noise: Any) -> None:
    described, latents = model(pixels, noise)
    assert (model.decode(latents) - described).abs().max() <= 1e-5
    assert (model.decode(model.posterior(model.encode(pixels), noise=noise)) - described).abs().max() <= 1e-5
    other = [*latents[:-1], latents[-1] + 1]
    assert (model.decode(other) - described).abs().max() > 1e-3  # the finest latent matters too


def test_first_latents_do_not_depend_on_how_many_are_asked_for(model: Vdvae, pixels: Tensor) -> None:
    activations = model.encode(pixels)
    everything = model.posterior(activations, noise=noise_of())
    for n_layers in range(1, N_LAYERS + 1):
        some = model.posterior(activations, n_layers, noise_of())
        assert len(some) == n_layers
        assert all(torch.equal(a, b) for a, b in zip(some, everything, strict=False))


def test_nothing_beyond_the_last_latent_is_computed(model: Vdvae, pixels: Tensor) -> None:
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, _o, name=name: ran.append(name))
        for name, module in model.named_modules()
        if isinstance(module, Block) and name.startswith("decoder")
    ]
    model.posterior(model.encode(pixels), 3)
    for hook in hooks:
        hook.remove()
    wanted = [f"decoder.dec_blocks.{k}.{part}" for k in (0, 1) for part in ("prior", "enc", "resnet")]
    assert sorted(ran) == sorted([*wanted, "decoder.dec_blocks.2.enc"])


def test_noise_is_asked_for_the_layers_that_are_drawn(model: Vdvae) -> None:
    asked: list[int] = []

    def noise(layer: int, shape: tuple[int, ...]) -> Tensor:
        asked.append(layer)
        return torch.zeros(shape)

    latents = [torch.zeros(2, 3, side, side) for side in SIDES]
    model.decode(latents[:4], noise)
    assert asked == [4, 5, 6]
    model.decode(latents[:4], noise, temperature=0)
    model.decode(latents, noise)
    assert asked == [4, 5, 6]


def test_without_noise_the_prior_mean(model: Vdvae) -> None:
    latents = [torch.ones(1, 3, 1, 1)]
    assert torch.equal(model.decode(latents), model.decode(latents, noise_of(), temperature=0))
    assert not torch.equal(model.decode(latents), model.decode(latents, noise_of(), temperature=0.1))


def test_gradients_reach_every_given_latent(model: Vdvae, pixels: Tensor) -> None:
    latents = [z.clone().requires_grad_() for z in model.posterior(model.encode(pixels), 4)]
    model.picture(model.decode(latents) * 0.01).square().sum().backward()
    assert all(z.grad is not None and z.grad.abs().sum() > 0 for z in latents)


def test_split_undoes_join(model: Vdvae, pixels: Tensor) -> None:
    latents = model.posterior(model.encode(pixels), 4)
    joined = model.join(latents)
    by_hand = np.concatenate([z.numpy().reshape(2, -1) for z in latents], axis=1)
    np.testing.assert_array_equal(joined.numpy(), by_hand)
    assert joined.shape == (2, TINY.n_numbers(4))
    assert all(torch.equal(a, b) for a, b in zip(model.split(joined), latents, strict=True))


def test_what_does_not_fit_is_refused(model: Vdvae) -> None:
    with pytest.raises(UserError, match=r"built for images \(3, 8, 8\) but was given \(3, 16, 16\)"):
        model.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match=r"shape \(1, 5\) fit no number of the VDVAE's layers; .* of 3 numbers for 1"):
        model.split(torch.zeros(1, 5))
    with pytest.raises(UserError, match=r"latent 1 of the VDVAE has shape \(1, 3, 2, 2\); wanted \(1, 3, 1, 1\)"):
        model.decode([torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 2, 2)])
    with pytest.raises(UserError, match="0 latents for the VDVAE's 7 layers; hand in 1 to 7"):
        model.decode([])
    with pytest.raises(ValueError, match="a temperature has no effect without noise"):
        model.decode([torch.zeros(1, 3, 1, 1)], temperature=0.5)
    with pytest.raises(ValueError, match="temperature is -1; wanted a number of at least 0"):
        model.decode([torch.zeros(1, 3, 1, 1)], noise_of(), temperature=-1)


# ---- the mixture ---------------------------------------------------------------------------------------------------


def plain_pixel(
    described: NDArray[np.float64], u_mix: NDArray[np.float64] | None, u_colour: NDArray[np.float64] | None
) -> list[float]:
    """One pixel of ten numbers per component, in words: red, green, blue in [-1, 1]."""
    n = len(described) // 10
    logits, rest = described[:n], described[n:].reshape(3, 3 * n)
    means, scales, coefficients = rest[:, :n], np.maximum(rest[:, n : 2 * n], -7), np.tanh(rest[:, 2 * n :])
    m = int(np.argmax(logits if u_mix is None else logits - np.log(-np.log(u_mix))))
    x = means[:, m].copy()
    if u_colour is not None:
        x += np.exp(scales[:, m]) * np.log(u_colour / (1 - u_colour))
    red = min(max(x[0], -1), 1)
    green = min(max(x[1] + coefficients[0, m] * red, -1), 1)
    blue = min(max(x[2] + coefficients[1, m] * red + coefficients[2, m] * green, -1), 1)
    return [red, green, blue]


def test_mixture_against_plain_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    described = torch.randn(2, 100, 3, 5, generator=generator)
    described[:, 20:30] -= 8  # some log scales below the clamp
    drawn = [torch.rand(2, 10, 3, 5, generator=generator), torch.rand(2, 3, 3, 5, generator=generator)]
    parts = iter(drawn)
    found, modes = sample(described, lambda shape: next(parts)), mode(described)
    inside = [u.double().numpy() * (1 - 2e-5) + 1e-5 for u in drawn]
    for b, y, x in np.ndindex(2, 3, 5):
        pixel = described[b, :, y, x].double().numpy()
        expected = plain_pixel(pixel, inside[0][b, :, y, x], inside[1][b, :, y, x])
        np.testing.assert_allclose(found[b, :, y, x].numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(modes[b, :, y, x].numpy(), plain_pixel(pixel, None, None), atol=1e-5)


def test_samples_follow_weights_and_scales() -> None:
    """20,000 pixels of two components: shares by softmax, spread of a logistic distribution (scale * pi / sqrt 3)."""
    described = torch.zeros(1, 20, 100, 200)
    described[:, 0] = math.log(3)  # weights 3/4 and 1/4
    for colour in range(3):
        means = described[:, 2 + 6 * colour : 4 + 6 * colour]
        means[:, 0], means[:, 1] = -0.5, 0.5
        described[:, 4 + 6 * colour : 6 + 6 * colour] = -4
    generator = torch.Generator().manual_seed(0)
    found = sample(described, lambda shape: torch.rand(shape, generator=generator))
    low = found < 0
    assert low.float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert found[low].mean().item() == pytest.approx(-0.5, abs=1e-3)
    assert found[low].std().item() == pytest.approx(math.exp(-4) * math.pi / math.sqrt(3), rel=0.03)


def test_extreme_uniform_numbers_stay_finite() -> None:
    described = torch.randn(1, 100, 2, 2, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 1.0):
        found = sample(described, lambda shape, value=value: torch.full(shape, value))
        assert torch.isfinite(found).all()


def test_bytes_are_truncated() -> None:
    values = torch.tensor([-1.0, -0.9999, 0.0, 0.9999, 1.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    found = to_uint8(values)
    assert found.dtype == torch.uint8
    assert found.shape == (1, 1, 5, 3)
    assert found[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255]


# ---- images ------------------------------------------------------------------------------------------------------


def test_pictures_are_resized_as_torchvision_resizes_pil_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 425, 425, 3)).astype(np.uint8)
    found = to_pixels(images, 64)
    assert found.shape == (2, 3, 64, 64)
    for ours, image in zip(found, images, strict=True):
        expected = np.asarray(torchvision_resize(Image.fromarray(image), [64, 64]))
        np.testing.assert_array_equal(ours.permute(1, 2, 0).numpy(), expected)
    small = images[:, :64, :64]
    np.testing.assert_array_equal(to_pixels(small, 64).permute(0, 2, 3, 1).numpy(), small)


# ---- weights -------------------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "x.th": lambda state, path: torch.save(state, path),
    "old.th": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "x.safetensors": lambda state, path: save_file(state, path),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", list(WRITERS))
def test_weights_round_trip(model: Vdvae, pixels: Tensor, tmp_path: Path, name: str, prefix: str) -> None:
    WRITERS[name]({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / name)
    loaded = load_vdvae(tmp_path / name, TINY)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())
    torch.testing.assert_close(loaded(pixels)[0], model(pixels)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_loaded_in_inference_mode_can_take_part_in_gradients(
    model: Vdvae, tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.save(model.state_dict(), tmp_path / FILE)
    with torch.inference_mode():
        loaded = load_vdvae(tmp_path / FILE, TINY, dtype=dtype)
    latent = torch.zeros(1, 3, 1, 1, requires_grad=True)
    loaded.decode([latent]).sum().backward()
    assert latent.grad is not None


def test_half_precision(model: Vdvae, pixels: Tensor, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / FILE)
    loaded = load_vdvae(tmp_path / FILE, TINY, dtype=torch.bfloat16)
    found, expected = loaded.posterior(loaded.encode(pixels)), model.posterior(model.encode(pixels))
    assert {z.dtype for z in found} == {torch.bfloat16}
    spread = expected[-1].std()
    assert 0 < (found[-1].float() - expected[-1]).abs().mean() < 0.1 * spread


def test_absent_weights(tmp_path: Path) -> None:
    wanted = rf"Download {URL} \(about 0.5 GB, licence MIT\) and give its path: target.vdvae=/path/to/{FILE}"
    with pytest.raises(UserError, match=rf"no such file. Needed for target vdvae, .* {wanted}"):
        load_vdvae(tmp_path / FILE)
    with pytest.raises(UserError, match=rf"^target.vdvae is not set. Needed for target vdvae, .* {wanted}"):
        load_vdvae("")
    with pytest.raises(UserError, match="no such file"):
        load_vdvae(tmp_path)  # a folder


def test_unfitting_tensors_are_named(model: Vdvae, tmp_path: Path) -> None:
    state = model.state_dict()
    del state["decoder.gain"], state["decoder.bias"]
    state["encoder.in_conv.bias"] = torch.zeros(17)
    state |= {f"more.{k}": torch.zeros(1) for k in range(5)}
    torch.save(state, tmp_path / FILE)
    with pytest.raises(UserError) as caught:
        load_vdvae(tmp_path / FILE, TINY)
    n_numbers = sum(value.numel() for value in model.parameters())
    assert (
        "does not fit: 2 missing (decoder.gain, decoder.bias); 5 not expected (more.0, more.1, more.2, ...); "
        "1 of another shape (encoder.in_conv.bias (17,) instead of (16,)). "
        f"Expected are {len(model.state_dict())} tensors of {n_numbers:,} numbers."
    ) in str(caught.value)


def test_the_prefix_is_stripped_from_all_names_or_none(model: Vdvae, tmp_path: Path) -> None:
    state = {**model.state_dict(), "module.decoder.gain": torch.zeros(1)}
    torch.save(state, tmp_path / FILE)
    with pytest.raises(UserError, match=r"1 not expected \(module.decoder.gain\)"):
        load_vdvae(tmp_path / FILE, TINY)


class Trap:
    """Code that a pickle would run when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"encoder.in_conv.bias": Trap(tmp_path / "ran")}, tmp_path / "new.th")
    (tmp_path / "plain.th").write_bytes(pickle.dumps({"encoder.in_conv.bias": Trap(tmp_path / "ran")}, protocol=2))
    for name in ("new.th", "plain.th"):
        with pytest.raises(
            UserError, match=r"cannot be read as tensors alone .* would run code when opened are refused"
        ):
            load_vdvae(tmp_path / name, TINY)
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "plain.th").read_bytes())  # the trap works where it is opened carelessly
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.th", "x.safetensors"])
def test_damaged_files_are_refused(model: Vdvae, tmp_path: Path, name: str) -> None:
    WRITERS[name](model.state_dict(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{name} cannot be read as tensors alone"):
        load_vdvae(tmp_path / name, TINY)


@pytest.mark.parametrize("found", [{"state_dict": {}}, {"step": torch.zeros(1, dtype=torch.int64)}, [torch.zeros(1)]])
def test_other_contents_are_refused(tmp_path: Path, found: Any) -> None:
    torch.save(found, tmp_path / FILE)
    with pytest.raises(UserError, match="holds no plain table of floating-point tensors by name"):
        load_vdvae(tmp_path / FILE, TINY)


# ---- the published size --------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files, half a gigabyte each, do not outlive the test."""
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


@pytest.mark.slow
def test_the_published_size_round_trip_and_back(disk: Path) -> None:
    torch.manual_seed(0)
    state = Vdvae().state_dict()
    for name, prefix in (("x.th", "module."), ("x.safetensors", "")):
        WRITERS[name]({prefix + key: value for key, value in state.items()}, disk / name)
        loaded = load_vdvae(disk / name)
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        assert len(loaded.state_dict()) == 2482
    pixels = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(1)).float()
    with torch.inference_mode():
        described, latents = loaded(pixels)
        assert (loaded.decode(latents) - described).abs().max() <= 1e-5
        first = loaded.posterior(loaded.encode(pixels), 31)
        assert loaded.join(first).shape == (1, 91_168)
        torch.testing.assert_close(first[30], latents[30])


# ---- the target ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(model: Vdvae, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vdvae") / FILE
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, path)
    return path


def extractor_of(weights: Path, **settings: Any) -> VdvaeLatents:
    target = target_settings(name="vdvae", vdvae=str(weights), **{"vdvae_layers": 5, **settings})
    return VdvaeLatents(Backbone(BackboneConfig()), target, TINY)


@pytest.fixture(scope="module")
def items() -> Items:
    images = np.random.default_rng(2).integers(0, 256, (5, 20, 20, 3)).astype(np.uint8)
    return Items(np.array([7, 0, 3, 70_000, 1], np.int32), images)


def taken(items: Items, rows: list[int]) -> Items:
    return Items(items.ids[rows], items.images[rows])


def test_target_is_the_posterior_mean_of_the_first_layers(model: Vdvae, weights: Path, items: Items) -> None:
    extractor = extractor_of(weights)
    found = extractor(items)
    assert found.dtype == np.float32
    assert extractor.shape == (3 * (1 + 1 + 4 + 16 + 16),)
    latents = model.posterior(model.encode(to_pixels(items.images, 8)))[:5]
    expected = np.concatenate([z.numpy().reshape(5, -1) for z in latents], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_target_sample_adds_noise_of_image_and_layer(model: Vdvae, weights: Path, items: Items) -> None:
    def noise(layer: int, shape: tuple[int, ...]) -> Tensor:
        drawn = [keyed_generator(NOISE_SEED, int(i), layer).standard_normal(shape[1:], np.float32) for i in items.ids]
        return torch.from_numpy(np.stack(drawn))

    expected = model.join(model.posterior(model.encode(to_pixels(items.images, 8)), 5, noise)).numpy()
    found = extractor_of(weights, posterior="sample")(items)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - extractor_of(weights)(items)).max() > 0.1


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_target_does_not_depend_on_the_batch(
    weights: Path, items: Items, posterior: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = extractor_of(weights, posterior=posterior)
    together = extractor(items)
    np.testing.assert_allclose(extractor(taken(items, [3, 1])), together[[3, 1]], atol=1e-5)
    monkeypatch.setattr(target_module, "CHUNK", 2)
    np.testing.assert_allclose(extractor(items), together, atol=1e-5)
    assert extractor(taken(items, [])).shape == (0, *extractor.shape)


def test_target_precision(weights: Path, items: Items) -> None:
    exact, coarse = extractor_of(weights)(items), extractor_of(weights, precision="bfloat16")(items)
    assert coarse.dtype == np.float32
    assert 1e-4 < np.abs(coarse - exact).mean() < 0.1 * exact.std()


def test_fingerprint_follows_settings_and_file_without_loading(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / FILE
    other.write_bytes(b"anything")
    monkeypatch.setattr(torch, "load", None)  # loading would fail
    base = extractor_of(weights).fingerprint()

    def changed(path: Path, **settings: Any) -> set[str]:
        found = extractor_of(path, **settings).fingerprint()
        return {key for key in base | found if base.get(key) != found.get(key)}

    assert changed(weights) == set()
    assert changed(other) == {"weights"}
    assert changed(weights, vdvae_layers=4) == {"layers"}
    assert changed(weights, posterior="sample") == {"rule", "noise_seed"}


def test_target_by_name(weights: Path) -> None:
    cfg = Config()
    cfg = with_fields(cfg, vdvae=str(weights))
    extractor = build_extractor("vdvae", cfg, Backbone(cfg.backbone))
    assert (extractor.name, extractor.needs, extractor.shape) == ("vdvae", "images", (91_168,))
    with pytest.raises(UserError, match=r"does not fit: .* Expected are 2482 tensors of 125,005,860 numbers"):
        extractor(Items(np.array([0], np.int32), np.zeros((1, 8, 8, 3), np.uint8)))


def test_target_mistakes(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target.vdvae is not set\. Needed for target vdvae"):
        VdvaeLatents(Backbone(BackboneConfig()), target_settings(name="vdvae")).fingerprint()
    for n_layers in (0, 8):
        with pytest.raises(UserError, match=rf"target.vdvae_layers={n_layers}: the model has 7 layers; .* in 1..7"):
            _ = extractor_of(weights, vdvae_layers=n_layers).shape


def test_network_is_loaded_once_for_a_backbone(weights: Path) -> None:
    extractor = extractor_of(weights)
    assert extractor.model is extractor.model
    assert vdvae_of(extractor.backbone, str(weights), "float32", TINY) is extractor.model
    assert extractor_of(weights).model is not extractor.model  # another backbone, perhaps another device


# ---- noise ---------------------------------------------------------------------------------------------------------


def test_keyed_noise_is_the_noise_of_the_samplers() -> None:
    together = noise_for(3, [4, 1], 2, (2, 5))
    for repeat in range(2):
        np.testing.assert_array_equal(keyed_normal(3, [4, 1], repeat, (2, 5)), together[:, repeat].numpy())
    np.testing.assert_array_equal(
        keyed_normal(3, [1], 1, (2, 5))[0], keyed_generator(3, 1, 1).standard_normal((2, 5), np.float32)
    )
