"""What extraction of a data set's targets will cost on this machine: operations counted, times a rate just measured.

S side of an image, T tokens, D width of a transformer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from nd.backbone.loading import DTYPES
from nd.config import Config
from nd.doctor.extent import Extent
from nd.doctor.memory import module_config, target_numbers, tower_config
from nd.machine import pick_device
from nd.targets.vae_latent import small_size

MEASURED_S = 0.2  # for each of the two rates
CONV = (128, 128)  # channels and side: most of the VAE's work at 512 px is of 128 channels, on larger sides
PRODUCT = 1024  # side of a matrix
CLIP_IMAGE, CLIP_TEXT = (24, 1024, 257), (12, 768, 77)  # blocks, width, tokens of ViT-L/14 and of its text half
LITTLE_S = 60.0  # what is done sooner is not worth a line
SLOWEST = 1e10  # operations a second, of any machine: what is little by this rate is not measured


def extraction_lines(cfg: Config, data: Extent) -> Iterator[str]:
    """Say how long each target of the method will take for all images; those that are soon done are left out."""
    wanted = target_numbers(cfg)
    flops = {name: n for name, n in target_flops(cfg).items() if name in wanted}
    if data.images * sum(map(sum, flops.values())) < LITTLE_S * SLOWEST:
        return
    device, precisions = pick_device(cfg.trainer.accelerator), {n: cfg.decoding(n).target.precision for n in flops}
    rates = {
        one: (conv_rate(device, DTYPES[one]), product_rate(device, DTYPES[one]))
        for one in dict.fromkeys(precisions.values())
    }
    lines = list(_target_lines(data, flops, {name: rates[precision] for name, precision in precisions.items()}))
    yield from lines
    for precision, pair in rates.items() if lines else ():
        speeds, of = " and ".join(f"{rate / 1e9:,.0f}" for rate in pair), f" of {precision}" if len(rates) > 1 else ""
        yield f"at {speeds} GFLOP/s in convolutions and matrix products{of}, measured now on this {device.type}"


def _target_lines(
    data: Extent, flops: Mapping[str, tuple[float, float]], rates: Mapping[str, tuple[float, float]]
) -> Iterator[str]:
    """A line for each target that takes long, by name: operations an image, and the rate of each kind."""
    for name, kinds in flops.items():
        seconds = data.images * sum(n / rate for n, rate in zip(kinds, rates[name], strict=True))
        if seconds >= LITTLE_S:
            billions = sum(kinds) / 1e9
            each = f"{billions:,.{0 if billions >= 10 else 2}f} GFLOP and {seconds / data.images:.3g} s an image"
            yield f"{duration(seconds):>9}  target {name}: {data.images:,} images, {each}"


def duration(seconds: float) -> str:
    """Return a time in the unit one would use.

    >>> duration(90), duration(5400), duration(1e6)
    ('2 min', '1.5 h', '11.6 days')
    """
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


# ---- operations ----------------------------------------------------------------------------------------------------


def target_flops(cfg: Config) -> dict[str, tuple[float, float]]:
    """Return the operations an image costs, in convolutions and in matrix products, for each target of a network.

    A multiplication with its addition counts two. VDVAE is left out: its time is not known from a count of this kind.
    """
    vae, text, tower = module_config(cfg, "vae"), module_config(cfg, "text_encoder"), tower_config(cfg)
    own = {name: cfg.decoding(name).target for name in ("c", "g", "clip_text")}
    side, tokens = cfg.backbone.image_size, own["c"].tokens or text["max_position_embeddings"]
    grid = cfg.backbone.tower_size // tower["patch_size"]
    ratio = text["intermediate_size"] / text["hidden_size"]
    clip_image = transformer_flops(*CLIP_IMAGE)
    return {
        "z": encoder_flops(vae, side),
        "z40": encoder_flops(vae, small_size(side, 2 ** (len(vae["block_out_channels"]) - 1))),
        "c": (
            0.0,
            own["c"].max_captions * transformer_flops(text["num_hidden_layers"], text["hidden_size"], tokens, ratio),
        ),
        "g": (
            _conv(3, tower["width"], grid, tower["patch_size"]),
            transformer_flops(max(own["g"].layers) + 1, tower["width"], grid**2 + 1),
        ),
        "clip_vision": (0.0, clip_image),
        "clip_image": (0.0, clip_image),
        "clip_text": (0.0, own["clip_text"].max_captions * transformer_flops(*CLIP_TEXT)),
    }


def encoder_flops(vae: Mapping[str, Any], side: int) -> tuple[float, float]:
    """Return the operations of a diffusers VAE's encoder on one image: of its convolutions, and of its attention.

    Args:
        vae: its config.json.
        side: S.
    """
    channels, latent = list(vae["block_out_channels"]), vae["latent_channels"]
    total, before = _conv(3, channels[0], side), channels[0]
    for level, width in enumerate(channels):
        for _ in range(vae["layers_per_block"]):
            total += _resnet(before, width, side)
            before = width
        if level + 1 < len(channels):
            side //= 2
            total += _conv(width, width, side)
    total += 2 * _resnet(before, before, side)
    total += _conv(before, 2 * latent, side) + _conv(2 * latent, 2 * latent, side, 1)
    return total, attention_flops(before, side**2)


def _resnet(n_in: int, n_out: int, side: int) -> float:
    shortcut = _conv(n_in, n_out, side, 1) if n_in != n_out else 0.0
    return _conv(n_in, n_out, side) + _conv(n_out, n_out, side) + shortcut


def _conv(n_in: int, n_out: int, side: int, kernel: int = 3) -> float:
    return 2.0 * kernel**2 * n_in * n_out * side**2


def transformer_flops(n_blocks: int, width: int, tokens: int, ratio: float = 4.0) -> float:
    """Return the operations of a transformer on one sequence.

    Args:
        n_blocks: of attention and two linear layers.
        width: D.
        tokens: T.
        ratio: width between the two linear layers, in D.
    """
    return n_blocks * (attention_flops(width, tokens) + 4 * ratio * tokens * width**2)


def attention_flops(width: int, tokens: int) -> float:
    """Return the operations of one self-attention: queries, keys, values, result; scores and their sums."""
    return 8.0 * tokens * width**2 + 4.0 * tokens**2 * width


# ---- rates ---------------------------------------------------------------------------------------------------------


@cache
def conv_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations a second of a 3 x 3 convolution, measured once in a process."""
    channels, side = CONV
    x = torch.randn(1, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return _rate(lambda: functional.conv2d(x, weight, padding=1), _conv(channels, channels, side), device)


@cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations a second of a matrix product, measured once in a process."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=dtype) for _ in range(2))
    return _rate(lambda: a @ b, 2.0 * PRODUCT**3, device)


def _rate(work: Callable[[], object], flops: float, device: torch.device) -> float:
    """Operations a second over ``MEASURED_S``, after one call that warms up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with torch.inference_mode():
        work()
        wait()
        begun, n_calls = time.perf_counter(), 0
        while (passed := time.perf_counter() - begun) < MEASURED_S or not n_calls:
            work()
            wait()
            n_calls += 1
    return n_calls * flops / max(passed, 1e-9)
