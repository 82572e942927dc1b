"""Voxels of one subject to tokens: of regions, by attention over a region's voxels, or of cubes of the volume.

Both are linear in the voxels, with weights that are functions of where a voxel lies: any number of voxels in any order
will do, and subjects share all weights. Where asked (``voxel_numbers``), a voxel has learned numbers beside its place.

Shapes: B samples, V voxels, n of a region, K tokens of a region, C cubes, D numbers of a token, H heads, W numbers of a
head, P numbers of a place, T tokens that there could be.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nd.mappers.network.draws import Draws
from nd.mappers.volumetric.sequence_mixers import Mixer
from nd.mappers.volumetric.voxel_layout import Layout

if TYPE_CHECKING:
    from nd.mappers.volumetric.components import VolumetricSettings

OCTAVES = 5  # the shortest wave of a place is an eighth of the half length it is measured in
PLACE = 3 * (1 + 2 * OCTAVES)  # numbers of three coordinates as `waves`
INNER = 128  # width of the layer between a place and its embedding
Float = NDArray[np.float32]


class SubjectVoxels(nn.Module):
    """What belongs to one subject: where its voxels lie, and, where asked, learned numbers of each.

    Attributes:
        in_features: V.
        present: places among the T tokens of those that the subject has, in order.
        own: (V, D) learned, or None.
    """

    def __init__(self, layout: Layout, width: int = 0) -> None:
        """layout: of the subject; width: D of the learned numbers, 0: there are none."""
        super().__init__()
        self.in_features, self.present = layout.n_voxels, list[int]()
        self.own = nn.Parameter(torch.zeros(layout.n_voxels, width)) if width else None


class Tokenizer(nn.Module):
    """Voxels to tokens; `n_tokens` is T."""

    n_tokens: int

    def subject(self, layout: Layout) -> SubjectVoxels:
        """Return what belongs to a subject with this layout."""
        raise NotImplementedError

    def forward(self, voxels_BV: Tensor, own: SubjectVoxels, draws: Draws | None) -> Tensor:
        """Return the tokens that the subject has (B, len(own.present), D)."""
        raise NotImplementedError


# ---- regions ---------------------------------------------------------------------------------------------------------


class RegionVoxels(SubjectVoxels):
    """Voxels by region: `rows(k)` (n,) of region k, `places` (V, 2 P) in the brain and in the voxel's region."""

    places: Tensor

    def __init__(self, layout: Layout, config: VolumetricSettings) -> None:
        super().__init__(layout, config.width if config.voxel_numbers else 0)
        found = {k: np.flatnonzero(layout.region == k) for k in range(config.n_regions)}
        self.regions = [k for k, rows in found.items() if len(rows)]
        self.present = [k * config.region_tokens + token for k in self.regions for token in range(config.region_tokens)]
        self.register_buffer("places", torch.tensor(region_places(layout)), persistent=False)
        for k in self.regions:
            self.register_buffer(f"rows_{k}", torch.tensor(found[k]), persistent=False)

    def rows(self, region: int) -> Tensor:
        """Return (n,) int64, the voxels of a region that has some."""
        rows: Tensor = getattr(self, f"rows_{region}")
        return rows


class RegionTokenizer(Tokenizer):
    """K tokens of every region, each by attention over its voxels, then a mixer of the region's own.

    The embedding e_v of a voxel is a function of its place in the brain, its place in its region, and the region. It
    gives the keys of attention and the weights w_v = W e_v of the voxel's response x_v. With a_kv the softmax over the
    region's n voxels of q_k . key_v / sqrt(W) in each head::

        token_k = sqrt(n) sum_v a_kv x_v w_v + tag_k + sum_v a_kv P e_v

    the last two being where the token lies. Attention is by place alone, so tokens are linear in the responses.
    """

    def __init__(self, config: VolumetricSettings, share: float, name: str) -> None:
        """config: sizes; share: dropped in the mixers; name: prefix of the random streams."""
        super().__init__()
        width, n_regions = config.width, config.n_regions
        self.config, self.n_tokens = config, n_regions * config.region_tokens
        self.embed, self.out = nn.Linear(2 * PLACE, INNER), nn.Linear(INNER, width)
        self.region = nn.Parameter(0.5 * torch.randn(n_regions, INNER))
        self.to_key, self.to_weight, self.to_tag = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.query = nn.Parameter(torch.randn(n_regions, config.region_tokens, width))
        self.tag = nn.Parameter(0.5 * torch.randn(n_regions, config.region_tokens, width))
        self.mixers = nn.ModuleList(
            Mixer(config, config.region_blocks, share, f"{name}/region {k}") for k in range(n_regions)
        )
        # So that embeddings, keys and weights are of size 1 and tokens as large as the voxels.
        nn.init.normal_(self.out.weight, std=2.5 * INNER**-0.5)
        for layer in (self.to_key, self.to_weight):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def subject(self, layout: Layout) -> RegionVoxels:
        """Return what belongs to a subject with this layout."""
        return RegionVoxels(layout, self.config)

    def forward(self, voxels_BV: Tensor, own: SubjectVoxels, draws: Draws | None) -> Tensor:
        """Return (B, len(own.present), D), region by region."""
        assert isinstance(own, RegionVoxels)
        tokens = [self.mixers[k](self._tokens(voxels_BV, own, k), draws) for k in own.regions]
        return torch.cat(tokens, 1)

    def _tokens(self, voxels_BV: Tensor, own: RegionVoxels, region: int) -> Tensor:
        """(B, K, D) of one region, before its mixer."""
        rows, heads = own.rows(region), self.config.heads
        embedding_nD = self.out(functional.gelu(self.embed(own.places[rows]) + self.region[region]))
        if own.own is not None:
            embedding_nD = embedding_nD + own.own[rows]
        key_nHW = self.to_key(embedding_nD).unflatten(-1, (heads, -1))
        query_KHW = self.query[region].unflatten(-1, (heads, -1))
        logits_KHn = torch.einsum("khw,nhw->khn", query_KHW, key_nHW) / math.sqrt(key_nHW.shape[-1])
        attention_KHn = logits_KHn.softmax(-1)
        weight_nHW = self.to_weight(embedding_nD).unflatten(-1, (heads, -1)) * math.sqrt(len(rows))
        weight_nKD = torch.einsum("khn,nhw->nkhw", attention_KHn, weight_nHW).flatten(2)
        place_nHW = self.to_tag(embedding_nD).unflatten(-1, (heads, -1))
        tag_KD = self.tag[region] + torch.einsum("khn,nhw->khw", attention_KHn, place_nHW).flatten(1)
        tokens_BKD = (voxels_BV[:, rows] @ weight_nKD.flatten(1)).unflatten(-1, weight_nKD.shape[1:])
        return tokens_BKD + tag_KD


def region_places(layout: Layout) -> Float:
    """Return (V, 2 P) float32: waves of the voxels' places in the brain, and in their region; 0 where unknown."""
    if not layout.has_places:
        return np.zeros((layout.n_voxels, 2 * PLACE), np.float32)
    inside = np.zeros((layout.n_voxels, 3))
    for k in np.unique(layout.region):
        rows = layout.region == k
        inside[rows] = centred(layout.ijk[rows], each=True)
    return np.concatenate([waves(centred(layout.ijk)), waves(inside)], 1)


def centred(ijk_V3: NDArray[np.int32], *, each: bool = False) -> NDArray[np.float64]:
    """Return places (V, 3) in [-1, 1] from the middle of the box around them, in halves of its longest side.

    Args:
        ijk_V3: on the grid.
        each: in halves of each side by itself.
    """
    low, high = ijk_V3.min(0), ijk_V3.max(0)
    half = np.maximum((high - low) / 2, 0.5)
    centred_V3: NDArray[np.float64] = (ijk_V3 - (low + high) / 2) / (half if each else half.max())
    return centred_V3


def waves(place_V3: NDArray[np.float64]) -> Float:
    """Return (V, P) float32: coordinates in [-1, 1], and sines and cosines of pi 2^k times them, k below `OCTAVES`."""
    angles = np.pi * place_V3[:, :, None] * 2.0 ** np.arange(OCTAVES)
    parts = [place_V3, np.sin(angles).reshape(len(place_V3), -1), np.cos(angles).reshape(len(place_V3), -1)]
    return np.concatenate(parts, 1).astype(np.float32)


# ---- cubes -----------------------------------------------------------------------------------------------------------


class CubeVoxels(SubjectVoxels):
    """Voxels by cube: `cells` (V,) int64 among the cells of the C cubes that are not empty, and `places` (C, P).

    `share` (V,) is 1 over the number of voxels in the same cell, so that a cell holds their mean, times what makes a
    token as large as the voxels at the start, however many cells of a cube are filled.
    """

    cells: Tensor
    share: Tensor
    places: Tensor

    def __init__(self, layout: Layout, config: VolumetricSettings) -> None:
        super().__init__(layout)
        cube_V, inner_V = cells_of(layout, config)
        present, place_V = np.unique(cube_V, return_inverse=True)
        self.present = present.tolist()
        cells_V = place_V * config.cube**3 + inner_V
        centre_C3 = np.stack(np.unravel_index(present, tuple(config.cubes)), 1) + 0.5
        middle_3 = np.array(config.cubes) / 2
        self.register_buffer("cells", torch.tensor(cells_V), persistent=False)
        n_filled = len(np.unique(cells_V)) / len(present)
        # PyTorch draws the weights of n inputs with a variance of 1 / (3 n).
        share_V = math.sqrt(3 * config.cube**3 / n_filled) / np.bincount(cells_V)[cells_V]
        self.register_buffer("share", torch.tensor(share_V.astype(np.float32)), persistent=False)
        self.register_buffer("places", torch.tensor(waves((centre_C3 - middle_3) / middle_3)), persistent=False)


class CubeTokenizer(Tokenizer):
    """One token of every cube that holds voxels: linear in its cells, shared by all cubes, and where the cube lies.

    As the patches of Shen et al. (NeurIPS 2024, section 3.1), who resize the volume of every subject to one grid, cut
    it into cubes and drop those without voxels. Here a voxel goes to the nearest cell of the common grid, and voxels
    that meet there are averaged.
    """

    def __init__(self, config: VolumetricSettings) -> None:
        """config: number and size of the cubes."""
        super().__init__()
        self.config, self.n_tokens = config, math.prod(config.cubes)
        self.cells = nn.Linear(config.cube**3, config.width, bias=False)
        self.place = nn.Sequential(nn.Linear(PLACE, INNER), nn.GELU(), nn.Linear(INNER, config.width))

    def subject(self, layout: Layout) -> CubeVoxels:
        """Return what belongs to a subject with this layout."""
        return CubeVoxels(layout, self.config)

    def forward(self, voxels_BV: Tensor, own: SubjectVoxels, draws: Draws | None) -> Tensor:
        """Return (B, C, D)."""
        assert isinstance(own, CubeVoxels)
        n_cells = self.cells.in_features
        empty = voxels_BV.new_zeros(len(voxels_BV), len(own.present) * n_cells)
        filled = empty.index_add(1, own.cells, voxels_BV * own.share)
        return self.cells(filled.unflatten(1, (-1, n_cells))) + self.place(own.places)


def cells_of(layout: Layout, config: VolumetricSettings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (V,) the cube of each voxel and (V,) its cell in it, the box around the voxels resized to one grid."""
    cubes, low = np.array(config.cubes), layout.ijk.min(0)
    grid, sides = cubes * config.cube, layout.ijk.max(0) - low + 1
    cell_V3 = ((layout.ijk - low) * grid // sides).astype(np.int64)
    cube_3V, inner_3V = (cell_V3 // config.cube).T, (cell_V3 % config.cube).T
    inner = np.ravel_multi_index(tuple(inner_3V), (config.cube,) * 3)
    return np.ravel_multi_index(tuple(cube_3V), tuple(cubes)), inner
