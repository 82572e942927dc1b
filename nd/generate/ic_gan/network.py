"""The class-free instance-conditioned BigGAN generator, by the names and shapes of its published weights.

Architecture: facebookresearch/ic_gan@8eff2f7:BigGAN_PyTorch/BigGAN.py and layers.py, with hierarchical noise: the first
part of the noise becomes the 4 x 4 map, each further one modulates one block, together with the instance features.
At 256 px: six blocks, noise of 7 x 17 numbers, features of 2,048, 90 million weights.

B batch, N noise, K noise of one part, F instance features, S shared width of features, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

BOTTOM = 4  # rows and columns that the first part of the noise becomes
BN_EPS, SN_EPS, BN_MOMENTUM = 1e-5, 1e-6, 0.1  # BigGAN_PyTorch/utils.py:682,688; layers.py
ATTENDING, GATHERED = 8, 2  # attention has a quarter of the places, an eighth and half of the channels


@dataclass(frozen=True)
class Shape:
    """Sizes of a generator.

    Attributes:
        channels: of the 4 x 4 map and after each block; each block doubles the side.
        chunk: numbers of one part of the noise, K.
        features: instance features, F.
        shared: width that they are brought to, S.
        attention: number of the block that is followed by self-attention; -1: none.
        classes: rows of the unused table of classes that the published weights carry; 0: there is none.
    """

    channels: tuple[int, ...]
    chunk: int
    features: int
    shared: int
    attention: int = -1
    classes: tuple[int, int] = (0, 0)

    @property
    def noise(self) -> int:
        """Numbers of noise, N."""
        return self.chunk * len(self.channels)

    @property
    def side(self) -> int:
        """Side of its images, pixels."""
        return int(BOTTOM * 2 ** (len(self.channels) - 1))

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Shape:
        """Return the sizes that a state dict has. KeyError: it is no generator of this kind."""
        linear, features = state["linear.weight"], state["shared_feat.weight"]
        blocks = sorted(int(key.split(".")[1]) for key in state if key.endswith(".0.conv1.weight"))
        attention = [int(key.split(".")[1]) for key in state if key.endswith(".1.gamma")]
        widths = tuple(len(state[f"blocks.{block}.0.conv1.weight"]) for block in blocks)
        table = tuple(state["shared.weight"].shape) if "shared.weight" in state else (0, 0)
        return cls(
            channels=(len(linear) // BOTTOM**2, *widths), chunk=linear.shape[1], features=features.shape[1],
            shared=len(features), attention=attention[0] if attention else -1, classes=(table[0], table[1]),
        )  # fmt: skip


# Of icgan_biggan_imagenet_res256: config_files/ImageNet/IC-GAN/icgan_res256.json, G_ch 96.
IMAGENET256 = Shape((1536, 1536, 768, 768, 384, 192, 96), 17, 2048, 512, attention=3, classes=(1000, 128))


class Spectral(nn.Module):
    """A weight divided by its largest singular value, which one power iteration estimates in every pass.

    In evaluation too, from the vector that was stored (BigGAN_PyTorch/layers.py:39-112); only training stores the new
    one. PyTorch's own spectral norm makes no iteration in evaluation, and would give other images.
    """

    u0: Tensor
    sv0: Tensor

    def __init__(self, shape: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("u0", torch.randn(1, shape[0]))
        self.register_buffer("sv0", torch.ones(1))
        if self.weight.device.type != "meta":
            nn.init.orthogonal_(self.weight)

    def normalised(self) -> Tensor:
        """Return the weight over its estimated largest singular value."""
        w = self.weight.flatten(1)
        with torch.no_grad():
            v = functional.normalize(self.u0 @ w, eps=SN_EPS)
            u = functional.normalize(v @ w.T, eps=SN_EPS)
            if self.training:
                self.u0.copy_(u)
        sigma = (v @ w.T @ u.T).squeeze()
        if self.training:
            self.sv0.copy_(sigma.detach())
        return self.weight / sigma


class Linear(Spectral):
    """A linear layer, spectrally normalised."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__((n_out, n_in), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out) of (B, in)."""
        return functional.linear(x, self.normalised(), self.bias)


class Conv(Spectral):
    """A convolution that keeps rows and columns, spectrally normalised."""

    def __init__(self, n_in: int, n_out: int, side: int, *, bias: bool = True) -> None:
        super().__init__((n_out, n_in, side, side), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H, W) of (B, in, H, W)."""
        return functional.conv2d(x, self.normalised(), self.bias, padding=self.weight.shape[-1] // 2)


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics' published names; training updates them."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def standardised(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) with mean 0 and variance 1 in every channel."""
        statistics = (self.stored_mean, self.stored_var)
        return functional.batch_norm(x, *statistics, None, None, self.training, BN_MOMENTUM, BN_EPS)


class ConditionedNorm(BatchNorm):
    """Batch normalisation whose gain and bias are linear in the condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__(channels)
        self.gain, self.bias = (Linear(condition, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x (B, C, H, W) modulated by y (B, S + K)."""
        gain, bias = (part(y)[:, :, None, None] for part in (self.gain, self.bias))
        return self.standardised(x) * (1 + gain) + bias


class OutputNorm(BatchNorm):
    """Batch normalisation with a gain and a bias of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gain, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return self.standardised(x) * self.gain[:, None, None] + self.bias[:, None, None]


class Block(nn.Module):
    """A residual block that doubles rows and columns."""

    def __init__(self, n_in: int, n_out: int, condition: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(n_in, n_out, 3), Conv(n_out, n_out, 3)
        self.conv_sc = Conv(n_in, n_out, 1)
        self.bn1, self.bn2 = ConditionedNorm(n_in, condition), ConditionedNorm(n_out, condition)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B, out, 2 H, 2 W) of x (B, in, H, W) under y (B, S + K)."""
        h = self.conv1(functional.interpolate(self.bn1(x, y).relu(), scale_factor=2))
        h = self.conv2(self.bn2(h, y).relu())
        # A 1 x 1 convolution and repeated places commute: a quarter of the work.
        return h + functional.interpolate(self.conv_sc(x), scale_factor=2)


class Attention(nn.Module):
    """Self-attention whose places look at a quarter of the places; no scale before the softmax."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi = (Conv(channels, channels // ATTENDING, 1, bias=False) for _ in range(2))
        self.g = Conv(channels, channels // GATHERED, 1, bias=False)
        self.o = Conv(channels // GATHERED, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        theta = self.theta(x).flatten(2)
        phi, g = (functional.max_pool2d(part(x), 2).flatten(2) for part in (self.phi, self.g))
        weights = (theta.transpose(1, 2) @ phi).softmax(-1)
        gathered = (g @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.gamma * self.o(gathered)


class Generator(nn.Module):
    """Noise and instance features to images."""

    def __init__(self, shape: Shape) -> None:
        """Make a generator with random weights; ``nd.generate.ic_gan.generator`` reads trained ones."""
        super().__init__()
        self.shape = shape
        if shape.classes[0]:  # in the published weights, read by nothing
            self.shared = nn.Embedding(*shape.classes)
        self.shared_feat = Linear(shape.features, shape.shared)
        self.linear = Linear(shape.chunk, shape.channels[0] * BOTTOM**2)
        condition = shape.shared + shape.chunk
        self.blocks = nn.ModuleList()
        for number, (n_in, n_out) in enumerate(zip(shape.channels, shape.channels[1:], strict=False)):
            attention = [Attention(n_out)] if number == shape.attention else []
            self.blocks.append(nn.ModuleList([Block(n_in, n_out, condition), *attention]))
        last = shape.channels[-1]
        self.output_layer = nn.Sequential(OutputNorm(last), nn.ReLU(), Conv(last, 3, 3))

    def forward(self, noise_BN: Tensor, features_BF: Tensor) -> Tensor:
        """Return images (B, 3, side, side) in [-1, 1].

        Args:
            noise_BN: standard normal.
            features_BF: instance features of length 1.
        """
        e_BS = self.shared_feat(features_BF)
        first, *rest = noise_BN.split(self.shape.chunk, dim=1)
        x = self.linear(first).unflatten(1, (-1, BOTTOM, BOTTOM))
        for part_BK, modules in zip(rest, self.blocks, strict=True):
            block, *attention = cast(nn.ModuleList, modules)
            x = block(x, torch.cat([e_BS, part_BK], dim=1))
            x = attention[0](x) if attention else x
        return self.output_layer(x).tanh()
