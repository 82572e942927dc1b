"""What a training step minimises: the losses of every target slice, over the samples of all processes.

A loss that is a mean over samples is the sum over the own ones divided by the number of all; a contrastive loss is
computed by every process from the embeddings of all, of which its own carry a gradient. Both are parts of one sum over
processes, so the gradient of ``world size x loss``, which DDP averages, is that of one process with the whole step.

Shapes: B own samples, A samples of all processes, T tokens, D numbers of a token, C H W a latent map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from nd.config import TrainingConfig
from nd.data.batch import Batch
from nd.errors import UserError
from nd.mappers.network.draws import Draws
from nd.mappers.network.heads import HeadOutput, LatentHead, TargetSlice
from nd.mappers.network.network import Network
from nd.mappers.training.losses import (
    absolute_error,
    mixco_nce,
    soft_clip,
    soft_contrastive,
    soft_temperature,
    squared_error,
)
from nd.mappers.training.mixco import Mix, gather, mix_labels, mix_targets


@dataclass
class StepLosses:
    """Weighted losses of a step.

    Attributes:
        own: () by name, shares of a sum over processes.
        joint: () by name, the same in all processes.
    """

    own: dict[str, Tensor]
    joint: dict[str, Tensor]

    def total(self) -> Tensor:
        """Return what is differentiated, before the factor of the number of processes."""
        return torch.stack([*self.own.values(), *self.joint.values()]).sum()

    def over_processes(self, n_processes: int) -> dict[str, Tensor]:
        """Return the values of the whole step, the same in all processes that share it; all of them must call it."""
        own, joint = self.own, {name: value.detach() for name, value in self.joint.items()}
        if not own:
            return joint
        summed = torch.stack(list(own.values())).detach()
        if n_processes > 1:
            dist.all_reduce(summed)
        return dict(zip(own, summed, strict=True)) | joint


@dataclass(frozen=True)
class Phase:
    """Where training stands.

    Attributes:
        progress: through the epochs that do not mix, 0 in the first of them and 1 in the last.
        mixing: whether voxels are mixed.
    """

    progress: float
    mixing: bool

    @classmethod
    def of(cls, config: TrainingConfig, epoch: int, n_epochs: int) -> Phase:
        """Return the phase of an epoch: MixCo in the first int(share * epochs).

        HaoyyLi/NeuralDiffuser@9286cad:src/train_c.py:611-636.
        """
        n_mixing = int(config.mixco_share * n_epochs)
        if epoch < n_mixing:
            return cls(0.0, True)
        return cls((epoch - n_mixing) / max(1, n_epochs - n_mixing - 1), False)


def step_losses(
    network: Network,
    outputs: Mapping[str, HeadOutput],
    goals: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
    batch: Batch,
    draws: Draws,
    config: TrainingConfig,
    phase: Phase,
    mix: Mix | None,
    teacher: Mapping[str, Tensor] | None = None,
) -> StepLosses:
    """Return the losses of every target slice.

    Args:
        outputs: of the network, by slice.
        goals: standardised targets (B, *shape) by slice.
        scales: (1, *shape) by slice, what standardised targets are multiplied by for comparing them.
        batch, draws: of the step.
        mix: how voxels were mixed; None where they were not.
        teacher: tokens (B, S, D) that teach the auxiliary heads of latent maps, by slice.
    """
    losses = StepLosses({}, {})
    for part in network.slices:
        output, goal = outputs[part.name], goals[part.name]
        aim = goal
        if mix is not None and network.variant == "nd":
            # Published code mixes the voxels but not what the prior and the tokens are to be.
            aim = mix_targets(gather(goal, batch), mix, draws.rows)
        if part.is_map:
            _latent_losses(losses, part, output, aim, batch, config, mix, (teacher or {}).get(part.name))
            continue
        _token_losses(losses, network, part, output, aim, draws, config)
        if output.projected is not None:
            shown = output.projected.flatten(1), (goal * scales[part.name]).flatten(1)
            losses.joint[f"{part.name}/contrast"] = config.contrast_weight * _contrast(
                *shown, batch, config, phase, mix, network.variant
            )
    return losses


def _token_losses(
    losses: StepLosses,
    network: Network,
    part: TargetSlice,
    output: HeadOutput,
    aim: Tensor,
    draws: Draws,
    config: TrainingConfig,
) -> None:
    prior = network.head(part).prior
    if prior is not None:
        error_B = prior.error(output.predicted, aim, draws)
        losses.own[f"{part.name}/prior"] = config.prior_weight * error_B.sum() / draws.n_rows
    if config.token_weight:
        error_B = squared_error(output.predicted, aim)
        losses.own[f"{part.name}/tokens"] = config.token_weight * error_B.sum() / draws.n_rows


def _latent_losses(
    losses: StepLosses,
    part: TargetSlice,
    output: HeadOutput,
    aim: Tensor,
    batch: Batch,
    config: TrainingConfig,
    mix: Mix | None,
    teacher: Tensor | None,
) -> None:
    error_B = absolute_error(output.predicted, aim)
    losses.own[f"{part.name}/latent"] = config.latent_weight * error_B.sum() / batch.n_rows
    if output.projected is not None and teacher is not None:
        student, taught = gather(output.projected, batch).flatten(0, 1), gather(teacher, batch).flatten(0, 1)
        loss = soft_contrastive(student, taught, taught, config.aux_temperature)
        # Mixed voxels have no image whose tokens could teach.
        losses.joint[f"{part.name}/aux"] = config.aux_weight * loss * (mix is None)


def _contrast(
    projected: Tensor,
    target: Tensor,
    batch: Batch,
    config: TrainingConfig,
    phase: Phase,
    mix: Mix | None,
    variant: str,
) -> Tensor:
    """MixCo while voxels are mixed, then SoftCLIP, between all samples of the step."""
    all_projected, all_target = gather(projected, batch), gather(target, batch)
    if mix is not None:
        return mixco_nce(all_projected, all_target, config.mixco_temperature, mix_labels(mix, variant))
    first, last = config.soft_temperatures
    return soft_clip(all_projected, all_target, soft_temperature(phase.progress, first, last))


def patch_tokens(target: Tensor) -> Tensor:
    """Return (B, T, D), patch tokens in a square: the last layer's where there are several, without a class token.

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
    """Return (B, S, D), patch tokens averaged over the places of a map with these sides; target (B, *shape)."""
    tokens = patch_tokens(target)
    own = math.isqrt(tokens.shape[1])
    square = tokens.transpose(1, 2).unflatten(2, (own, own))
    return functional.adaptive_avg_pool2d(square, sides).flatten(2).transpose(1, 2)


def teacher_tokens(target: Tensor, network: Network) -> dict[str, Tensor]:
    """Return tokens (B, S, D) for the places of the coarse map of every latent map, by slice."""
    heads = {part.name: network.head(part) for part in network.slices}
    maps = {name: head for name, head in heads.items() if isinstance(head, LatentHead)}
    return {name: pooled_tokens(target, (head.shape[1], head.shape[2])) for name, head in maps.items()}
