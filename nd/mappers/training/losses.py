"""Losses of the trained mapper, as pure functions of tensors.

Errors come per sample, for the caller to weigh. Contrastive losses are one number: they compare all rows with each
other, so processes that share a step must gather the rows first (``nd.mappers.training.mixco``).

All of them are computed in float32 (float64 where that is given), autocast or not: at the published temperature of .006
cosine similarities become logits up to 167, which bfloat16 would round to whole numbers.

Shapes: B samples of a step, F numbers of a flattened embedding, M members of a contrastive set, D numbers of a member.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

BLOCK_NUMBERS = 1 << 26  # of a block of similarities: 256 MB, of which a direction needs about four


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return (B,), the mean over a sample's numbers of (predicted - target)^2; both (B, *shape)."""
    return (wide(predicted) - wide(target)).square().flatten(1).mean(1)


def absolute_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return (B,), the mean over a sample's numbers of |predicted - target|; both (B, *shape)."""
    return (wide(predicted) - wide(target)).abs().flatten(1).mean(1)


def mixco_nce(predicted: Tensor, target: Tensor, temperature: float, labels_BB: Tensor) -> Tensor:
    """Return the contrastive loss (), both ways, of predictions whose voxels were mixed (BiMixCo of MindEye).

    With s_ij = cos(predicted_i, target_j) / temperature and labels y_ij, the share of image j in the voxels of row i::

        (- mean_i sum_j y_ij log softmax_j(s_ij) - mean_j sum_i y_ij log softmax_i(s_ij)) / 2

    Args:
        predicted, target: (B, *shape), flattened and brought to length 1 here.
        temperature: above 0; published .006.
        labels_BB: (B, B) of ``nd.mappers.training.mixco.mix_labels``.

    Source: HaoyyLi/NeuralDiffuser@9286cad:src/train_c.py calls MindEye2's, with its own labels and unit vectors.
    """
    with _exact(predicted):
        similar_BB = _unit(predicted.flatten(1)) @ _unit(target.flatten(1)).T / temperature
        labels_BB = labels_BB.to(similar_BB.dtype)
        forward, backward = similar_BB.log_softmax(1) * labels_BB, similar_BB.log_softmax(0) * labels_BB
        return -(forward.sum() + backward.sum()) / (2 * len(similar_BB))


def soft_clip(predicted: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss (), both ways, whose labels are the targets' likeness to each other (SoftCLIP).

    With p_i and t_j flattened and brought to length 1, T the temperature, and y_ij = softmax_j(t_i t_j / T)::

        (- mean_i sum_j y_ij log softmax_j(p_i t_j / T) - mean_i sum_j y_ij log softmax_j(t_i p_j / T)) / 2

    Args:
        predicted, target: (B, *shape).
        temperature: above 0; published .004 to .0075 (`soft_temperature`).

    Source: as `mixco_nce`.
    """
    target_BF = target.flatten(1)
    return soft_contrastive(predicted.flatten(1), target_BF, target_BF, temperature)


def soft_contrastive(student: Tensor, teacher: Tensor, teacher_augmented: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss (), both ways, of a student whose labels are a teacher's likeness to augmented views.

    With s, t and a of length 1, T the temperature, y_ij = softmax_j(t_i a_j / T) and z_ij = softmax_j(a_i t_j / T)::

        (- mean_i sum_j y_ij log softmax_j(s_i a_j / T) - mean_i sum_j z_ij log softmax_j(a_i s_j / T)) / 2

    Large sets are worked through in blocks whose similarities are computed again for the gradient, so that memory grows
    with M and not with its square.

    Args:
        student, teacher, teacher_augmented: (..., D), the tokens of all samples as one set of M members.
        temperature: above 0.

    Source: HaoyyLi/NeuralDiffuser@9286cad:src/train_z.py calls MindEye's, with unit vectors and one set of all tokens.
    """
    with _exact(student):
        s_MD, t_MD, a_MD = (_unit(x.flatten(0, -2)) for x in (student, teacher, teacher_augmented))
        return (_directed(s_MD, a_MD, t_MD, a_MD, temperature) + _directed(a_MD, s_MD, a_MD, t_MD, temperature)) / 2


def soft_temperature(progress: float, first: float, last: float) -> float:
    """Return the temperature of SoftCLIP: half a cosine from `first` at progress 0 to `last` at progress 1.

    `progress` outside [0, 1] counts as the nearer end. Source: MindEye's cosine_anneal, epoch k of n at k / (n - 1).

    >>> [round(soft_temperature(p, 0.004, 0.0075), 5) for p in (0, 0.5, 1)]
    [0.004, 0.00575, 0.0075]
    """
    return last + (first - last) / 2 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def _directed(query_MD: Tensor, key_MD: Tensor, like_MD: Tensor, other_MD: Tensor, temperature: float) -> Tensor:
    """Mean over rows of the cross-entropy of softmax(query key' / T) with labels softmax(like other' / T)."""
    n_rows = max(1, BLOCK_NUMBERS // len(key_MD))
    blocks = list(zip(query_MD.split(n_rows), like_MD.split(n_rows), strict=True))
    if len(blocks) == 1:
        return _cross_entropy(query_MD, key_MD, like_MD, other_MD, temperature) / len(query_MD)
    parts = [
        checkpoint(_cross_entropy, q, key_MD, k, other_MD, temperature, use_reentrant=False, preserve_rng_state=False)
        for q, k in blocks
    ]
    return torch.stack(parts).sum() / len(query_MD)


def _cross_entropy(query: Tensor, key_MD: Tensor, like: Tensor, other_MD: Tensor, temperature: float) -> Tensor:
    labels = (like @ other_MD.T / temperature).softmax(1)
    return -((query @ key_MD.T / temperature).log_softmax(1) * labels).sum()


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _unit(x: Tensor) -> Tensor:
    """Last axis of length 1."""
    return normalize(wide(x), dim=-1)


def _exact(x: Tensor) -> torch.autocast:
    """Matrix products as they are written; autocast would round them to half precision."""
    return torch.autocast(x.device.type, enabled=False)
