"""Subject layers, and the trunk behind them: residual blocks, this project's or as published, or a mixer.

Shapes: B samples, B_s of one subject, V_s its voxels, H hidden, 1 the mixer's sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.errors import UserError, did_you_mean
from nd.mappers.network.draws import Draws, Dropout


class Trunk(nn.Module):
    """Voxels of several subjects to the shared space (B, H).

    Attributes:
        subject_layers: a `SubjectLayer` for each subject by `key_of` its name; their outputs mean the same.
        body: what follows, the same for every subject.
    """

    def __init__(self, layers: nn.ModuleDict, body: nn.Module) -> None:
        super().__init__()
        self.subject_layers, self.body = layers, body

    def forward(self, voxels: Mapping[str, Tensor], draws: Draws | None) -> Tensor:
        """Return (B, H), subjects in the order of `voxels`; some may have no samples.

        Args:
            voxels: (B_s, V_s) float32 by subject.
            draws: of a training step; without them nothing is dropped.

        Raises:
            UserError: a subject has no layer, or one that was made for another number of voxels.
        """
        hidden = [layer_of(self.subject_layers, name, x.shape[-1])(x) for name, x in voxels.items()]
        return self.body(torch.cat(hidden), draws)


class Front(Protocol):
    """How the voxels of subjects come into the shared space: what a network is made for."""

    @property
    def n_voxels(self) -> Mapping[str, int]:
        """V by name of the subject."""

    @property
    def shape(self) -> dict[str, Any]:
        """What shapes the weights that subjects share beside `NetworkConfig`, as plain JSON values.

        A network goes on from another one only where these are equal.
        """

    @property
    def aligns(self) -> bool:
        """Whether a subject's part is one linear layer, which can be started from ridge regression."""

    def of(self, subject: str) -> Front:
        """Return the same of one subject alone."""

    def arrays(self, subject: str) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint keeps of one subject, beside weights."""

    def trunk(self, config: NetworkConfig, name: str, *, for_map: bool, variant: str) -> Trunk:
        """Return a trunk for these subjects; arguments as of `build_trunk`."""


@dataclass(frozen=True)
class SubjectLayers:
    """A linear layer for every subject: `n_voxels` by name. A `Front`."""

    n_voxels: Mapping[str, int]
    shape: dict[str, Any] = field(default_factory=dict)
    aligns: bool = True

    def of(self, subject: str) -> SubjectLayers:
        """Return the same of one subject alone."""
        return SubjectLayers({subject: self.n_voxels[subject]})

    def arrays(self, subject: str) -> dict[str, NDArray[Any]]:
        """Return nothing: the weights are all."""
        return {}

    def trunk(self, config: NetworkConfig, name: str, *, for_map: bool, variant: str) -> Trunk:
        """Return `build_trunk` of these subjects."""
        return build_trunk(config, self.n_voxels, name, for_map=for_map, variant=variant)


def build_trunk(
    config: NetworkConfig, n_voxels: Mapping[str, int], name: str, *, for_map: bool, variant: str = "nd"
) -> Trunk:
    """Return the trunk of a configuration.

    Args:
        n_voxels: by name of the subject.
        name: tells its random streams from those of other trunks.
        for_map: whether it feeds a latent map.
        variant: as in `MapperConfig`.

    Raises:
        UserError: a mixer before a latent map under ``variant="released"``; published code has none there.
    """
    released = variant == "released"
    if config.trunk == "mixer":
        if released and for_map:
            raise UserError(
                f"trunk {name!r} feeds a latent map, before which published code has residual blocks and no mixer. Add"
                " network=released_z for that target, or choose mapper.variant=nd to put a mixer there."
            )
        body: nn.Module = Mixer(config.hidden, config.blocks, config.dropout, name)
        return Trunk(subject_layers(n_voxels, config.hidden), body)
    body = (PublishedResidual if released else Residual)(
        config.hidden, config.blocks, config.subject_dropout, config.dropout, name
    )
    return Trunk(subject_layers(n_voxels, config.hidden, normed=released), body)


class SubjectLayer(nn.Linear):
    """(B_s, V_s) voxels to (B_s, H); linear unless it ends in a norm of its own, as published for z."""

    def __init__(self, n_voxels: int, hidden: int, *, normed: bool = False) -> None:
        """Make the layer; `normed`: without bias, followed by a LayerNorm of the subject's own (NeuralDiffuser's z)."""
        super().__init__(n_voxels, hidden, bias=not normed)
        self.norm = nn.LayerNorm(hidden) if normed else None

    def forward(self, voxels_BV: Tensor) -> Tensor:
        """Return (B_s, H) of (B_s, V_s); B_s may be 0."""
        hidden_BH = super().forward(voxels_BV)
        return hidden_BH if self.norm is None else self.norm(hidden_BH)


def key_of(subject: str) -> str:
    """Return the subject's key in a ModuleDict: its name, unless torch would not take that; different for every name.

    >>> key_of("subj01"), key_of("a.b"), name_of(key_of("a.b"))
    ('subj01', 'a%2Eb', 'a.b')
    """
    key = subject.replace("%", "%25").replace(".", "%2E")
    return f"%{key}" if hasattr(nn.ModuleDict(), key) else key  # "train" would hide a method


def name_of(key: str) -> str:
    """Return the subject whose key this is."""
    plain = key[1:] if hasattr(nn.ModuleDict(), key[1:]) else key
    return plain.replace("%2E", ".").replace("%25", "%")


def subject_layers(n_voxels: Mapping[str, int], hidden: int, *, normed: bool = False) -> nn.ModuleDict:
    """Return a layer for each subject of `n_voxels`, by `key_of` its name; `normed` as of `SubjectLayer`."""
    layers = {key_of(name): SubjectLayer(n, hidden, normed=normed) for name, n in n_voxels.items()}
    return nn.ModuleDict(layers)


def layer_of(layers: nn.ModuleDict, subject: str, n_voxels: int) -> nn.Module:
    """Return the layer of a subject whose samples have `n_voxels`, as its `in_features` must be.

    Raises:
        UserError: the subject has no layer, or one that was made for another number of voxels.
    """
    if key_of(subject) not in layers:
        names = sorted(name_of(key) for key in layers)
        raise UserError(
            f"the network has no layer for subject {subject!r}.{did_you_mean(subject, names)} It has one for:"
            f" {', '.join(names) or 'nobody'}. Train it on {subject!r} first (subject.name={subject})."
        )
    layer = layers[key_of(subject)]
    if layer.in_features != n_voxels:
        raise UserError(
            f"{n_voxels} voxels of subject {subject!r} arrived, but its layer expects {layer.in_features}. Use the"
            " data and the subject.roi that the network was trained with."
        )
    return layer


class Residual(nn.Module):
    """Dropout of the shared space, then ``x + Linear(Dropout(GELU(Linear(LayerNorm(x)))))`` in every block.

    Made for few samples. The last linear layer of a block starts at zero, so at first the trunk is linear in the
    voxels, as ridge regression is, and bends only where that lowers the loss. Nothing normalises the stream itself: its
    size, which falls with the signal-to-noise of a trial, reaches the heads. Dropout of the shared space averages over
    many thinned linear maps, which shrinks like ridge does.

    Correlation of predicted c with 150 held-out images of Scenes (simulated) after 600 trials of 200 images, three
    seeds: .668; with the blocks started as usual .665, with a norm behind them .662 (and a squared error 15 % higher),
    with the published blocks .635, with none .613 (one seed).
    """

    def __init__(self, hidden: int, n_blocks: int, subject_share: float, share: float, name: str) -> None:
        """subject_share, share: dropped of the shared space and inside blocks; ``name``: prefix of the streams."""
        super().__init__()
        self.drop = Dropout(subject_share, f"{name}/subject")
        self.blocks = nn.ModuleList(ResidualBlock(hidden, share, f"{name}/block {k}") for k in range(n_blocks))

    def forward(self, x_BH: Tensor, draws: Draws | None) -> Tensor:
        """Return (B, H)."""
        x_BH = self.drop(x_BH, draws)
        for block in self.blocks:
            x_BH = x_BH + block(x_BH, draws)
        return x_BH


class ResidualBlock(nn.Module):
    """What one block of ``Residual`` adds; zero until trained."""

    def __init__(self, hidden: int, share: float, name: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.inner, self.outer = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.drop = Dropout(share, name)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x_BH: Tensor, draws: Draws | None) -> Tensor:
        """Return (B, H)."""
        return self.outer(self.drop(nn.functional.gelu(self.inner(self.norm(x_BH))), draws))


class PublishedResidual(nn.Module):
    """SiLU, Dropout, then ``x + Dropout(SiLU(LayerNorm(Linear(x))))`` in every block, linear layers without bias.

    Behind subject layers that end in a LayerNorm of their own. As NeuralDiffuser decodes z
    (HaoyyLi/NeuralDiffuser@9286cad:src/train_z.py, VoxelEncoder; src/models.py, Voxel2StableDiffusionModel).
    """

    def __init__(self, hidden: int, n_blocks: int, subject_share: float, share: float, name: str) -> None:
        """subject_share, share: dropped of the shared space and of what a block adds; ``name``: prefix of streams."""
        super().__init__()
        self.drop = Dropout(subject_share, f"{name}/subject")
        self.linears = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(n_blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(n_blocks))
        self.drops = nn.ModuleList(Dropout(share, f"{name}/block {k}") for k in range(n_blocks))

    def forward(self, x_BH: Tensor, draws: Draws | None) -> Tensor:
        """Return (B, H)."""
        x_BH = self.drop(nn.functional.silu(x_BH), draws)
        for linear, norm, drop in zip(self.linears, self.norms, self.drops, strict=True):
            x_BH = x_BH + drop(nn.functional.silu(norm(linear(x_BH))), draws)
        return x_BH


class MixerPart(nn.Module):
    """LayerNorm, Linear, GELU, Dropout, Linear over the last axis."""

    def __init__(self, width: int, share: float, name: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.drop = Dropout(share, name)

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        """Return the same shape as x."""
        return self.outer(self.drop(nn.functional.gelu(self.inner(self.norm(x))), draws))


class Mixer(nn.Module):
    """Mixer blocks wired as published (HaoyyLi/NeuralDiffuser@9286cad:src/models.py, BrainNetwork, sequence length 1).

    Over the sequence of one, LayerNorm returns its bias whatever it is given: the second part of every block is a
    constant. Its residual starts from the input and replaces what the first part made, so

        output = input + the constants of all blocks,

    the trunk is affine in the voxels, and parameters of the first parts (2 H^2 in a block) reach no output. Dropout
    adds noise to the constants that does not depend on the voxels. Decoding the mean of trials equals the mean of
    decoded trials. All of it is kept under ``network.trunk=mixer``, so that published weights mean what they meant.
    """

    def __init__(self, hidden: int, n_blocks: int, share: float, name: str) -> None:
        """share: dropped of the inner activations; ``name``: prefix of the random streams."""
        super().__init__()
        blocks = range(n_blocks)
        self.first = nn.ModuleList(MixerPart(hidden, share, f"{name}/mixer {k}/hidden") for k in blocks)
        self.second = nn.ModuleList(MixerPart(1, share, f"{name}/mixer {k}/sequence") for k in blocks)

    def forward(self, x_BH: Tensor, draws: Draws | None) -> Tensor:
        """Return (B, H)."""
        x_B1H = residual_B1H = x_BH.unsqueeze(1)
        residual_BH1 = x_B1H.mT
        for first, second in zip(self.first, self.second, strict=True):
            residual_B1H = first(x_B1H, draws) + residual_B1H
            residual_BH1 = second(residual_B1H.mT, draws) + residual_BH1
            x_B1H = residual_BH1.mT
        return x_B1H.squeeze(1)
