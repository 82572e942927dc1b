"""The three stages of mapper=cycle, each with its loss, its best weights on validation images, and its draws.

1. maps to voxels: the encoder. 2. voxels to maps: the decoder. 3. maps to voxels to maps: the decoder is trained on, on
what the encoder says of images, whether or not their voxels were measured. The encoder is frozen then: trained along,
it would come to write the map into voxels that no brain has (as in Beliy et al., NeurIPS 2019, arXiv:1907.02431).

Predicted voxels have no noise, measured ones do; a decoder trained on the former would trust the latter too much. So
what the encoder leaves unexplained in a measured response, of any training image, is added to what it predicts.

Shapes: N images with voxels, M images in all, B images of a step, V voxels, C S map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nd.errors import UserError
from nd.mappers.cycle.components import CycleSettings
from nd.mappers.network.draws import key_of

CHECK_EVERY = 25  # steps between two looks at the validation images
AT_ONCE = 256


@dataclass(frozen=True)
class Pairs:
    """Standardised responses and maps of the same images."""

    voxels: Tensor  # (N, V)
    maps: Tensor  # (N, C, S, S)


@dataclass(frozen=True)
class Outcome:
    """How a stage went.

    Attributes:
        before, after: its loss on validation images when it began, and of the weights that are kept.
        steps: after which these were reached.
    """

    before: float
    after: float
    steps: int


def encode(
    encoder: nn.Module, train: Pairs, held: Pairs, how: CycleSettings, tell: Callable[[str, int], object]
) -> Outcome:
    """Train the encoder on measured responses: stage 1.

    Args:
        encoder: maps to voxels.
        train: images trained on.
        held: validation images.
        how: steps, batch and rates.
        tell: called with the stage and the step, from 1.
    """

    def loss(rows: Tensor, _: torch.Generator) -> Tensor:
        return functional.mse_loss(encoder(train.maps[rows]), train.voxels[rows])

    return _fit(encoder, loss, lambda: _error(encoder, held.maps, held.voxels), len(train.maps), "encode", how, tell)


def decode(
    decoder: nn.Module, train: Pairs, held: Pairs, how: CycleSettings, tell: Callable[[str, int], object]
) -> Outcome:
    """Train the decoder on measured responses: stage 2. Arguments as of ``encode``."""

    def loss(rows: Tensor, _: torch.Generator) -> Tensor:
        return functional.mse_loss(decoder(train.voxels[rows]), train.maps[rows])

    return _fit(decoder, loss, lambda: _error(decoder, held.voxels, held.maps), len(train.maps), "decode", how, tell)


def cycle(
    encoder: nn.Module,
    decoder: nn.Module,
    train: Pairs,
    held: Pairs,
    maps_MCSS: Tensor,
    how: CycleSettings,
    tell: Callable[[str, int], object],
) -> Outcome:
    """Train the decoder on, on measured responses and on what the encoder says of any images: stage 3.

    Args:
        encoder: of stage 1, which is left as it is.
        decoder: of stage 2.
        train: images with voxels.
        held: validation images, whose measured voxels decide which weights are kept.
        maps_MCSS: of all images that may be seen, with voxels and without.
        how: as of ``encode``, with weight and noise of what is predicted.
        tell: as of ``encode``.
    """
    with torch.no_grad():
        predicted_MV, unexplained_NV = _apply(encoder, maps_MCSS), train.voxels - _apply(encoder, train.maps)
        # What is unexplained in images trained on is too little; in validation images it is what it is.
        ratio = (_apply(encoder, held.maps) - held.voxels).square().mean() / unexplained_NV.square().mean()
        unexplained_NV *= how.cycle_noise * ratio.sqrt()

    def loss(rows: Tensor, random: torch.Generator) -> Tensor:
        measured = functional.mse_loss(decoder(train.voxels[rows]), train.maps[rows])
        any_B = torch.randint(len(maps_MCSS), (len(rows),), generator=random)
        noise_BV = unexplained_NV[torch.randint(len(unexplained_NV), (len(rows),), generator=random)]
        cycled = functional.mse_loss(decoder(predicted_MV[any_B] + noise_BV), maps_MCSS[any_B])
        return measured + how.cycle_weight * cycled

    return _fit(decoder, loss, lambda: _error(decoder, held.voxels, held.maps), len(train.maps), "cycle", how, tell)


def _fit(
    network: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    error: Callable[[], float],
    n_images: int,
    stage: str,
    how: CycleSettings,
    tell: Callable[[str, int], object],
) -> Outcome:
    """Minimise a loss of some rows; the network ends with the weights of the least error, be it the first one.

    Raises UserError where the loss is not finite: no later error would be less, and the first weights would be kept.
    """
    steps = getattr(how, f"{stage}_steps")
    optimiser = torch.optim.AdamW(network.parameters(), lr=how.rate, weight_decay=how.weight_decay)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best = before = error()
    kept, reached = copy.deepcopy(network.state_dict()), 0
    for step in range(1, steps + 1):
        random = torch.Generator().manual_seed(key_of(how.seed, stage, step))
        torch.manual_seed(key_of(how.seed, stage, step, "dropout"))
        network.train()
        value = loss(torch.randint(n_images, (how.batch,), generator=random), random)
        optimiser.zero_grad(set_to_none=True)
        if not torch.isfinite(value):
            raise UserError(
                f"mapper=cycle: the loss of stage {stage!r} is {value.item()} in step {step} of {steps}. Give a smaller"
                f" mapper.rate than {how.rate:g}."
            )
        value.backward()
        optimiser.step()
        falling.step()
        tell(stage, step)
        if (step % CHECK_EVERY == 0 or step == steps) and (now := error()) < best:
            best, kept, reached = now, copy.deepcopy(network.state_dict()), step
    network.load_state_dict(kept)
    network.eval()
    return Outcome(round(before, 6), round(best, 6), reached)


@torch.no_grad()
def _error(network: nn.Module, inputs: Tensor, wanted: Tensor) -> float:
    return float(functional.mse_loss(_apply(network, inputs), wanted))


def _apply(network: nn.Module, inputs: Tensor) -> Tensor:
    """What a network makes of many rows, as in use."""
    network.eval()
    return torch.cat([network(part) for part in inputs.split(AT_ONCE)])
