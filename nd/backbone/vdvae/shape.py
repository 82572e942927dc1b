"""Sizes of the network, and the two strings that list its blocks.

Block strings are comma-separated runs, R a resolution: 'RxN' N plain blocks; 'RdK' one block whose output is averaged
over K x K pixels; 'RmS' one block that first adds what the decoder has at resolution S, enlarged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nd.errors import UserError

COLOURS = 3
RUN = re.compile(r"(\d+)([xdm])(\d+)")
EXAMPLES = {"encoder": "'64x11,64d2,32x20'", "decoder": "'1x2,4m1,4x3'"}


@dataclass(frozen=True)
class BlockShape:
    """One block: its resolution, by how much its output shrinks, and the resolution whose features it takes in."""

    resolution: int
    shrink: int = 1
    mixin: int = 0  # 0: none

    @property
    def kernel(self) -> int:
        """Side of the two middle convolutions; images of one or two pixels have no neighbours worth seeing."""
        return 3 if self.resolution > 2 else 1


@dataclass(frozen=True, kw_only=True)
class VdvaeShape:
    """The network's sizes; the defaults are those of OpenAI's imagenet64 model (2482 tensors, 125,005,860 numbers)."""

    width: int = 512
    bottleneck: float = 0.25  # width inside a block, as a share of `width`
    zdim: int = 16  # channels of every layer's latent
    no_bias_above: int = 64  # resolutions up to this one start from a learnt image, finer ones from zeros
    n_mixtures: int = 10  # logistic distributions per pixel
    image_size: int = 64
    encoder: str = "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5"
    decoder: str = "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"

    @property
    def middle(self) -> int:
        """Channels between the outer convolutions of a block."""
        return int(self.width * self.bottleneck)

    @property
    def n_output(self) -> int:
        """Numbers that describe the distribution of one pixel: a weight and three triples per mixture component."""
        return self.n_mixtures * (1 + 3 * COLOURS)

    @cached_property
    def encoder_blocks(self) -> list[BlockShape]:
        """The encoder's blocks from the image inwards."""
        return list(_blocks("encoder", self.encoder, "xd"))

    @cached_property
    def decoder_blocks(self) -> list[BlockShape]:
        """The decoder's blocks from the coarsest outwards; each is one layer of latents."""
        return list(_blocks("decoder", self.decoder, "xm"))

    @property
    def starts(self) -> list[int]:
        """Resolutions that start from a learnt image, ascending."""
        found = {block.resolution for block in self.decoder_blocks}
        return sorted(resolution for resolution in found if resolution <= self.no_bias_above)

    def latent_shapes(self, n_layers: int | None = None) -> list[tuple[int, int, int]]:
        """(C, h, w) of the latents of the first `n_layers` layers, all by default.

        UserError: more layers than there are, or fewer than one.
        """
        n_all = len(self.decoder_blocks)
        if n_layers is not None and not 1 <= n_layers <= n_all:
            raise UserError(
                f"target.vdvae_layers={n_layers}: the model has {n_all} layers; give a number in 1..{n_all}."
            )
        return [(self.zdim, b.resolution, b.resolution) for b in self.decoder_blocks[:n_layers]]

    def n_numbers(self, n_layers: int | None = None) -> int:
        """Latent numbers of the first `n_layers` layers together."""
        return sum(math.prod(shape) for shape in self.latent_shapes(n_layers))


IMAGENET64 = VdvaeShape()
# Its published weights; nothing is fetched from there by itself.
FILE = "imagenet64-iter-1600000-model-ema.th"
URL = f"https://openaipublic.blob.core.windows.net/very-deep-vaes-assets/vdvae-assets-2/{FILE}"
SIZE = "about 0.5 GB, licence MIT"


def _blocks(half: Literal["encoder", "decoder"], text: str, kinds: str) -> Iterator[BlockShape]:
    """The blocks that a string lists; anything else than runs of the allowed kinds is a UserError."""
    for run in text.split(","):
        match = RUN.fullmatch(run.strip())
        if match is None or match[2] not in kinds:
            raise UserError(f"{run.strip()!r} is no run of {half} blocks. Write it like {EXAMPLES[half]}.")
        resolution, kind, number = int(match[1]), match[2], int(match[3])
        if kind == "x":
            yield from [BlockShape(resolution)] * number
        elif kind == "d":
            yield BlockShape(resolution, shrink=number)
        else:
            yield BlockShape(resolution, mixin=number)
