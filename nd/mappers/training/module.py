"""Training of the network as a LightningModule: devices, nodes, precision and launchers are Lightning's business.

Nothing is drawn from a global generator: what a step draws is a function of seed, epoch and step (``nd.mappers.network.
draws``), so training goes on after a stop as if there had been none, and does not depend on the number of processes.

Shapes: B samples, P numbers of a flattened target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel

from nd.config import TrainingConfig
from nd.data.batch import Batch
from nd.data.epoch import processes
from nd.errors import UserError
from nd.mappers.network.draws import Draws
from nd.mappers.network.heads import TargetSlice
from nd.mappers.network.network import Network, predict_slices
from nd.mappers.statistics import TargetScale
from nd.mappers.training.mixco import Mix, draw_mix, mixed_voxels
from nd.mappers.training.objective import Phase, StepLosses, step_losses, teacher_tokens

# The first learning rate is the largest / DIV, the last one the first / FINAL_DIV
# (HaoyyLi/NeuralDiffuser@9286cad:src/train_c.py:331-361).
DIV, FINAL_DIV = 25.0, 1000.0


@dataclass(frozen=True)
class Recipe:
    """What a stage trains with.

    Attributes:
        training: losses, precision and what is kept.
        seed: of all draws.
        n_epochs: of this stage.
        lr: the largest learning rate.
        where: the last good checkpoint, for messages.
    """

    training: TrainingConfig
    seed: int
    n_epochs: int
    lr: float
    where: str = ""


class MapperTraining(pl.LightningModule):
    """Trains a ``Network``; validation predicts whole targets of validation images and keeps them for scoring.

    Attributes:
        held: per validation batch, (subject, image ids, prediction by target) on the CPU.
        losses: of the epoch's steps so far, by name.
    """

    def __init__(self, network: Network, scales: Mapping[str, TargetScale], recipe: Recipe) -> None:
        """Prepare the training of `network` on targets relative to `scales`, by target."""
        super().__init__()
        self.network, self.recipe, self.config = network, recipe, recipe.training
        self.targets = list(dict.fromkeys(part.target for part in network.slices))
        for name, scale in scales.items():
            self.register_buffer(f"mean_{name}", torch.from_numpy(scale.mean), persistent=False)
            self.register_buffer(f"scale_{name}", torch.from_numpy(scale.scale), persistent=False)
        moved = partial(move_average, self.config.ema)
        self.average = AveragedModel(network, multi_avg_fn=moved) if self.config.ema else None
        for weight in self.average.parameters() if self.average is not None else ():
            weight.requires_grad_(False)  # not trained, so DDP must not wait for its gradient
        self.held: list[tuple[str, Tensor, dict[str, Tensor]]] = []
        self.losses: dict[str, list[Tensor]] = {}

    # ---- a step ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss () of a step times the number of processes, see `objective`.

        Raises:
            UserError: it is not finite.
        """
        phase = Phase.of(self.config, self.current_epoch, self.recipe.n_epochs)
        draws = Draws(self.recipe.seed, self.current_epoch, batch_idx, batch.rows(processes()[0]), batch.n_rows)
        mix = self._mix(batch, draws) if phase.mixing and self._contrasts() else None
        voxels = (
            {name: part.voxels for name, part in batch.subjects.items()} if mix is None else mixed_voxels(batch, mix)
        )
        outputs = self.network(voxels, draws)
        goals = {part.name: self.standardised(part, batch.target(part.target)) for part in self.network.slices}
        scales = {part.name: self._of_part(part, "scale") for part in self.network.slices}
        teacher = teacher_tokens(batch.target(self.config.aux_target), self.network) if self._is_taught() else {}
        losses = step_losses(self.network, outputs, goals, scales, batch, draws, self.config, phase, mix, teacher)
        self._note(losses, batch_idx, batch.n_processes)
        return losses.total() * batch.n_processes

    def _contrasts(self) -> bool:
        return any(getattr(self.network.head(part), "projector", None) is not None for part in self.network.slices)

    def _is_taught(self) -> bool:
        return any(getattr(self.network.head(part), "maps_projector", None) is not None for part in self.network.slices)

    def _mix(self, batch: Batch, draws: Draws) -> Mix:
        sizes = [part.n_rows for part in batch.subjects.values()]
        return draw_mix(draws, sizes, self.config.mixco_beta, self.config.mixco_select)

    def _note(self, losses: StepLosses, step: int, n_processes: int) -> None:
        """Keep the values for the curve, and stop at the first that is not finite: later ones would all be lost."""
        values = losses.over_processes(n_processes)
        if not torch.isfinite(torch.stack(list(values.values()))).all():
            bad = ", ".join(f"{name} {float(v)}" for name, v in values.items() if not torch.isfinite(v))
            raise UserError(self._lost(f"the loss is not finite in step {step} of epoch {self.current_epoch}", bad))
        for name, value in values.items():
            self.losses.setdefault(name, []).append(value)

    def check_weights(self) -> None:
        """Raise UserError where a weight is not finite, as after the last step of an epoch whose loss still was."""
        bad = [name for name, weight in self.network.named_parameters() if not torch.isfinite(weight).all()]
        if bad:
            where = f"weights are not finite at the end of epoch {self.current_epoch}"
            raise UserError(self._lost(where, f"{bad[0]} and {len(bad) - 1} more"))

    def _lost(self, where: str, bad: str) -> str:
        return (
            f"{where} ({self.global_step} steps were taken): {bad}. {self.recipe.where} Give a smaller training.lr,"
            " training.clip_norm=1, or training.precision=32-true."
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and move the running mean of the weights where there is one; called where gradients are complete."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.network)

    # ---- targets ---------------------------------------------------------------------------------------------------

    def _of_part(self, part: TargetSlice, which: str) -> Tensor:
        """Return (1, *shape), the mean or scale of a slice."""
        values: Tensor = getattr(self, f"{which}_{part.target}")
        return values[part.start : part.stop].view(1, *part.shape)

    def standardised(self, part: TargetSlice, target: Tensor) -> Tensor:
        """Return (B, *shape of the slice), of targets (B, *shape of the target) as extracted."""
        columns = target.flatten(1)[:, part.start : part.stop].unflatten(1, part.shape)
        return (columns - self._of_part(part, "mean")) / self._of_part(part, "scale")

    # ---- validation ------------------------------------------------------------------------------------------------

    @property
    def kept_network(self) -> Network:
        """The network that is validated and kept: the running mean, or the weights as they are."""
        if self.average is None:
            return self.network
        averaged = self.average.module
        assert isinstance(averaged, Network)
        return averaged

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predict validation images; scored when the epoch ends."""
        voxels = {name: part.voxels for name, part in batch.subjects.items()}
        predicted = predict_slices(self.kept_network, voxels, batch.image_id, self.recipe.seed)
        whole = {name: self.unscaled(name, predicted).float().cpu() for name in self.targets}
        first = 0
        for name, part in batch.subjects.items():
            rows = slice(first, first + len(part.image_id))
            self.held.append((name, part.image_id.cpu(), {t: values[rows] for t, values in whole.items()}))
            first = rows.stop

    def unscaled(self, target: str, predicted: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction (B, P) of a target as extracted, from the standardised ones of its slices."""
        slices = [part for part in self.network.slices if part.target == target]
        columns = [predicted[p.name] * self._of_part(p, "scale") + self._of_part(p, "mean") for p in slices]
        return torch.cat([values.flatten(1) for values in columns], 1)

    # ---- optimiser -------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return AdamW under one cycle of the learning rate, over all steps of all epochs."""
        # On a CPU one pass over memory in place of ten: a tenth of a step. Lightning clips no gradients of a fused
        # optimiser under mixed precision.
        fused = self.device.type == "cpu" and self.config.precision.endswith("-true")
        optimiser = torch.optim.AdamW(list(decay_groups(self.network, self.config)), lr=self.recipe.lr, fused=fused)
        n_steps = int(self.trainer.estimated_stepping_batches)
        warmup = self.config.warmup if self.config.warmup * n_steps > 1 else 0.0  # PyTorch divides by its last step
        schedule = OneCycleLR(
            optimiser, self.recipe.lr, n_steps, pct_start=warmup, div_factor=DIV, final_div_factor=FINAL_DIV
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def move_average(decay: float, averages: Any, weights: Any, n_averaged: Any) -> None:
    """Move every running mean by 1 - ``decay`` of the way to its weight. The first step copies (AveragedModel).

    As PyTorch's ``get_ema_multi_avg_fn``, whose function cannot be sent to the processes that train together.
    """
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight.to(average.dtype), 1 - decay)


def decay_groups(network: Network, config: TrainingConfig) -> Iterator[dict[str, Any]]:
    """Yield AdamW's groups of parameters by their decay: subject layers, other weights, and what is not decayed.

    Gains and biases are exempt, and the logarithms of a state space's rates, which decay would pull towards one rate
    (as state-spaces/mamba: mamba_ssm/modules/mamba_simple.py). Published code means the same, but goes by names: it
    decays the gains of layer norms in a Sequential, which do not say what they are, and the subject layers' biases, and
    exempts whatever has "bias" in its name, such as the table of the prior's relative bias
    (HaoyyLi/NeuralDiffuser@9286cad:src/train_c.py:331-361).
    """
    released = network.variant == "released"
    groups: dict[float, list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        subject = ".subject_layers." in name
        flat = "bias" in name and not subject if released else weight.ndim < 2 or name.endswith(".A_log")
        decay = 0.0 if flat else config.subject_decay if subject else config.weight_decay
        groups.setdefault(decay, []).append(weight)
    for decay, weights in groups.items():
        yield {"params": weights, "weight_decay": decay}
