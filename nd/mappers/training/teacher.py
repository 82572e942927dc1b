"""Tokens of the image that teach the auxiliary head of a latent map.

Shapes: B samples, T tokens of the target, D numbers of a token, S places of the head's map.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from nd.errors import UserError
from nd.mappers.network.latent_head import LatentHead
from nd.mappers.network.network import Network


def patch_tokens(target: Tensor) -> Tensor:
    """(B, T, D) patch tokens in a square: the last layer's where there are several, without a leading class token.

    Raises UserError where the tokens make no square.
    """
    tokens = target[:, -1] if target.ndim == 4 else target
    for skip in (0, 1):
        n = tokens.shape[1] - skip if tokens.ndim == 3 else 0
        if n > 0 and math.isqrt(n) ** 2 == n:
            return tokens[:, skip:]
    raise UserError(
        f"training.aux_target has features of shape {tuple(target.shape[1:])}, which hold no square of patch tokens."
        " Choose g or clip_vision, or leave it empty."
    )


def pooled_tokens(target: Tensor, sides: tuple[int, int]) -> Tensor:
    """(B, S, D) patch tokens averaged over the places of a map with these sides."""
    tokens = patch_tokens(target)
    own = math.isqrt(tokens.shape[1])
    square = tokens.transpose(1, 2).unflatten(2, (own, own))
    return functional.adaptive_avg_pool2d(square, sides).flatten(2).transpose(1, 2)


def teacher_tokens(target: Tensor, network: Network) -> dict[str, Tensor]:
    """Tokens (B, S, D) for the places of the coarse map of every latent part, by part."""
    heads = {part.name: network.head(part) for part in network.parts}
    maps = {name: head for name, head in heads.items() if isinstance(head, LatentHead)}
    return {name: pooled_tokens(target, (head.shape[1], head.shape[2])) for name, head in maps.items()}
