"""Output heads, one per target slice. A layer of g is a slice; the other targets are one slice each.

Shapes: B samples, H hidden, T tokens, D numbers of a token; C0 h0 w0 the coarse map, C H' W' the latent map, S = h0 w0
its places, D_aux numbers of an auxiliary token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.config.components import component
from nd.errors import UserError
from nd.mappers.network.draws import Draws
from nd.mappers.network.prior import DiffusionPrior

MOST_GROUPS = 32  # groups of the decoder's norms where the channels allow it, the default of diffusers


@dataclass(frozen=True)
class TargetSlice:
    """Columns of a flattened target that one head predicts.

    Attributes:
        name: unique among all targets, such as "c" or "g_0".
        target: whose columns they are.
        start, stop: first column, and the one after the last.
        shape: (T, D) of tokens, or (C, H, W) of a latent map.
    """

    name: str
    target: str
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def is_map(self) -> bool:
        """Whether it is a latent map and not tokens, by its shape."""
        return len(self.shape) == 3

    @property
    def size(self) -> int:
        """Numbers of an image."""
        return math.prod(self.shape)


def slices_of(target: str, shape: tuple[int, ...]) -> list[TargetSlice]:
    """Return the slices of a target, in the order of its columns.

    Args:
        target: name; its declaration says what the axes mean (`nd.config.components.Target.axes`).
        shape: of one image: (T, D) tokens, (D,) one token, (C, H, W) a latent map, or (L, T, D) layers of tokens.

    Raises:
        UserError: a shape that no head predicts.
    """
    size, axes = math.prod(shape), component("target", target).axes
    if len(shape) == 3 and axes == "layers":
        step = size // shape[0]
        return [TargetSlice(f"{target}_{k}", target, k * step, (k + 1) * step, shape[1:]) for k in range(shape[0])]
    if len(shape) == 1:
        return [TargetSlice(target, target, 0, size, (1, *shape))]
    if len(shape) == 2 or (len(shape) == 3 and axes == "map"):
        return [TargetSlice(target, target, 0, size, shape)]
    raise UserError(f"mapper=two_stage has no head for target {target!r} of shape {shape}. Use mapper=ridge for it.")


@dataclass
class HeadOutput:
    """What a head makes of the shared space.

    Attributes:
        predicted: (B, *shape of the slice), in the units of the standardised target.
        projected: (B, T, D) of the contrastive head, or for a map (B, S, D_aux) of the auxiliary one; None without one.
    """

    predicted: Tensor
    projected: Tensor | None = None


class Head(nn.Module):
    """The shared space to one target slice; `prior` is its diffusion prior or None."""

    prior: DiffusionPrior | None

    def forward(self, hidden_BH: Tensor, draws: Draws | None) -> HeadOutput:
        """Return the prediction from the shared space (B, H)."""
        raise NotImplementedError


def build_head(config: NetworkConfig, part: TargetSlice, aux_width: int = 0) -> Head:
    """Return the head of a target slice, of tokens or of a latent map.

    Args:
        aux_width: numbers of a token that a latent map's auxiliary head makes; 0: it has none. Tokens ignore it.

    Raises:
        UserError: a map that `config.decoder_channels` cannot decode to.
    """
    if not part.is_map:
        return TokenHead(config, part)
    return LatentHead(config, part, aux_width) if config.decoder_channels else LinearHead(config, part)


class TokenHead(Head):
    """One linear layer to all tokens; beside it a contrastive head, and a prior that others train and sample.

    As published (HaoyyLi/NeuralDiffuser@9286cad:src/models.py, BrainNetwork: backbone_linear and clip_proj).
    """

    def __init__(self, config: NetworkConfig, part: TargetSlice) -> None:
        super().__init__()
        n_tokens, width = part.shape
        self.shape = part.shape
        self.tokens = nn.Linear(config.hidden, part.size)
        self.projector = projector(width) if config.projector else None
        self.prior = DiffusionPrior(config, n_tokens, width, part.name) if config.prior else None

    def forward(self, hidden_BH: Tensor, draws: Draws | None) -> HeadOutput:
        """Return `predicted` (B, T, D), and `projected` (B, T, D) where there is a contrastive head."""
        tokens_BTD = self.tokens(hidden_BH).unflatten(1, self.shape)
        return HeadOutput(tokens_BTD, self.projector(tokens_BTD) if self.projector is not None else None)


def projector(width: int) -> nn.Sequential:
    """Return three times LayerNorm, GELU, Linear on each token by itself."""
    layers = [layer for _ in range(3) for layer in (nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))]
    return nn.Sequential(*layers)


class LinearHead(Head):
    """One linear layer to a latent map: for 256 maps of Scenes .3 GFLOP forward, where `LatentHead` takes 9.

    On Scenes (simulated; maps of 4 x 16 x 16, 1,200 images of one subject, 200 steps, 300 other images) its columns
    correlate .468 with the true ones over images and explain .203 of their variance; those of `LatentHead` .467 and
    .218 (a channel to a group of its norms) or .472 and .200 (four), those of ridge regression .450 and .206.
    """

    def __init__(self, config: NetworkConfig, part: TargetSlice) -> None:
        super().__init__()
        self.shape, self.prior = part.shape, None
        self.map = nn.Linear(config.hidden, part.size)

    def forward(self, hidden_BH: Tensor, draws: Draws | None) -> HeadOutput:
        """Return `predicted` (B, C, H', W')."""
        return HeadOutput(self.map(hidden_BH).unflatten(1, self.shape))


class LatentHead(Head):
    """A linear layer to a coarse map, which the decoder of a small VAE doubles up to the latent map.

    As published (HaoyyLi/NeuralDiffuser@9286cad:src/models.py, Voxel2StableDiffusionModel: lin1, norm, upsampler and
    maps_projector), for any number of doublings.
    """

    def __init__(self, config: NetworkConfig, part: TargetSlice, aux_width: int = 0) -> None:
        """As of `build_head`."""
        super().__init__()
        self.shape = (config.latent_channels, *coarse_sides(part, config.decoder_channels))
        self.coarse = nn.Linear(config.hidden, math.prod(self.shape), bias=False)
        self.norm = nn.GroupNorm(1, config.latent_channels)
        self.decoder = decoder(config.latent_channels, part.shape[0], config.decoder_channels)
        self.maps_projector = maps_projector(config.latent_channels, aux_width) if aux_width else None
        self.prior = None

    def forward(self, hidden_BH: Tensor, draws: Draws | None) -> HeadOutput:
        """Return `predicted` (B, C, H', W'), and `projected` (B, S, D_aux) where there is an auxiliary head."""
        coarse_BChw = self.norm(self.coarse(hidden_BH).unflatten(1, self.shape))
        projected = None if self.maps_projector is None else self.maps_projector(coarse_BChw).flatten(2).mT
        return HeadOutput(self._decoded(coarse_BChw), projected)

    def _decoded(self, coarse_BChw: Tensor) -> Tensor:
        if len(coarse_BChw):
            return self.decoder(coarse_BChw)
        # The attention of diffusers takes no empty batch; a process without samples decodes one and leaves it out, so
        # that all parameters still have a (zero) gradient to share.
        return self.decoder(torch.cat([coarse_BChw, coarse_BChw.new_zeros(1, *self.shape)]))[:0]


def coarse_sides(part: TargetSlice, channels: Sequence[int]) -> tuple[int, int]:
    """Return the sides of the map from which ``len(channels) - 1`` doublings lead to that of the slice.

    Args:
        part: a latent map (C, H, W).
        channels: of the decoder, coarsest last.

    Raises:
        UserError: there is none; it says how many channels there could be.
    """
    _, height, width = part.shape
    factor = 2 ** (len(channels) - 1)
    if height % factor or width % factor:
        common = math.gcd(height, width)
        most = (common & -common).bit_length()  # 1 + how often 2 divides both sides
        lengths = "1 number" if most == 1 else f"1 to {most} numbers"
        raise UserError(
            f"network.decoder_channels={list(channels)} enlarges a map {factor} times, but {part.name} has"
            f" {height} x {width} places, which {factor} does not divide. Give decoder_channels {lengths}."
        )
    return height // factor, width // factor


def decoder(n_in: int, n_out: int, channels: Sequence[int]) -> nn.Module:
    """Return a VAE's decoder: attention over the coarse map, then a block and a doubling for each of `channels`.

    Args:
        n_in, n_out: channels of the coarse map, and of the latent one.
        channels: of the blocks, coarsest last.
    """
    from diffusers.models.autoencoders.vae import Decoder

    common = math.gcd(*channels)
    return Decoder(
        n_in,
        n_out,
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        norm_num_groups=max(k for k in range(1, MOST_GROUPS + 1) if common % k == 0),
    )


def maps_projector(n_in: int, width: int) -> nn.Sequential:
    """Return three 1x1 convolutions with norm and ReLU between: each place by itself but for the norms' statistics."""
    return nn.Sequential(
        nn.Conv2d(n_in, width, 1, bias=False),
        nn.GroupNorm(1, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.GroupNorm(1, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
    )
