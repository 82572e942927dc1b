"""The layer that brings one subject's voxels into the space all subjects share.

Shapes: B_s samples of the subject, V_s its voxels, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nd.errors import UserError, did_you_mean


class SubjectLayer(nn.Linear):
    """(B_s, V_s) voxels to (B_s, H); linear unless it ends in a norm of its own, as published for z."""

    def __init__(self, n_voxels: int, hidden: int, *, normed: bool = False) -> None:
        """normed: without bias, followed by a LayerNorm that belongs to the subject (NeuralDiffuser's z)."""
        super().__init__(n_voxels, hidden, bias=not normed)
        self.norm = nn.LayerNorm(hidden) if normed else None

    def forward(self, voxels_BV: Tensor) -> Tensor:
        """(B_s, H) of (B_s, V_s); B_s may be 0."""
        hidden_BH = super().forward(voxels_BV)
        return hidden_BH if self.norm is None else self.norm(hidden_BH)


def key_of(subject: str) -> str:
    """The subject's key in a ModuleDict: its name, unless torch would not take that; different for every name."""
    key = subject.replace("%", "%25").replace(".", "%2E")
    return f"%{key}" if hasattr(nn.ModuleDict(), key) else key  # "train" would hide a method


def name_of(key: str) -> str:
    """The subject whose key this is."""
    plain = key[1:] if hasattr(nn.ModuleDict(), key[1:]) else key
    return plain.replace("%2E", ".").replace("%25", "%")


def subject_layers(n_voxels: Mapping[str, int], hidden: int, *, normed: bool = False) -> nn.ModuleDict:
    """A layer for each subject of ``n_voxels``, by ``key_of`` its name."""
    layers = {key_of(name): SubjectLayer(n, hidden, normed=normed) for name, n in n_voxels.items()}
    return nn.ModuleDict(layers)


def layer_of(layers: nn.ModuleDict, subject: str, n_voxels: int) -> SubjectLayer:
    """The layer of a subject whose samples have ``n_voxels``.

    Raises UserError for a subject without a layer, and for a number of voxels that its layer was not made for.
    """
    if key_of(subject) not in layers:
        names = sorted(name_of(key) for key in layers)
        raise UserError(
            f"the network has no layer for subject {subject!r}.{did_you_mean(subject, names)} It has one for:"
            f" {', '.join(names) or 'nobody'}. Train it on {subject!r} first (subject.name={subject})."
        )
    layer = layers[key_of(subject)]
    assert isinstance(layer, SubjectLayer)
    if layer.in_features != n_voxels:
        raise UserError(
            f"{n_voxels} voxels of subject {subject!r} arrived, but its layer expects {layer.in_features}. Use the"
            " data and the subject.roi that the network was trained with."
        )
    return layer
