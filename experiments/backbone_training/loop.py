"""The one training loop behind the autoencoder, the CLIP and the denoiser: resumable, bf16, with a moving average.

Every step draws from generators seeded by (seed, step), so a run that was interrupted sees the same batches as one
that was not. In several processes (torch.distributed) each draws batches of its own and the gradients are averaged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

log = logging.getLogger(__name__)

GRADIENT_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How long and how fast: the learning rate warms up, stays, then falls linearly to zero at the end."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    decay_share: float = 0.35  # of the steps, at the end; measured from `steps`, which may change on resuming
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    average: float = 0.0  # decay of the exponential moving average of the weights; 0 keeps none
    # Peak rate of Muon (Jordan et al. 2024), which then takes the matrices of `muon_layers` from AdamW; 0 for none.
    muon_rate: float = 0.0
    muon_layers: str = "resblocks"  # part of the names of these weights
    bf16: bool = True
    checkpoint_every_s: float = 120.0


@dataclass(frozen=True)
class Draw:
    """The randomness of one step."""

    step: int
    numpy: np.random.Generator
    torch: torch.Generator


LossOfStep = Callable[[Draw], Tensor]
AfterCheckpoint = Callable[[nn.Module, int], None]


def rate_factor(step: int, how: Optimisation) -> float:
    """The learning rate of `step` as a share of its peak."""
    falling = (how.steps - step) / max(1.0, how.decay_share * how.steps)
    return max(0.0, min(1.0, (step + 1) / max(1, how.warmup), falling))


def is_falling(step: int, how: Optimisation) -> bool:
    """Whether the learning rate has begun its final fall."""
    return how.steps - step < how.decay_share * how.steps


def rank() -> int:
    """Number of this process; 0 where there is one only."""
    return dist.get_rank() if dist.is_initialized() else 0


def share_gradients(model: nn.Module) -> None:
    """Average the gradients over the processes; nothing where there is one only."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def draw_of_step(seed: int, step: int) -> Draw:
    """Generators that depend on (seed, step, rank of the process) only; PyTorch's global one is seeded likewise."""
    rng = np.random.default_rng([seed, step, rank()] if rank() else [seed, step])
    torch.manual_seed(int(rng.integers(2**62)))  # for layers that draw by themselves, such as dropout
    return Draw(step, rng, torch.Generator().manual_seed(int(rng.integers(2**62))))


def fit(
    model: nn.Module,
    loss_of_step: LossOfStep,
    how: Optimisation,
    *,
    seed: int,
    checkpoint: Path | None = None,
    after_checkpoint: AfterCheckpoint | None = None,
) -> nn.Module:
    """Minimise the loss over the model's parameters; returns the model holding the averaged weights, in eval mode.

    checkpoint: file to resume from and to keep up to date. after_checkpoint: called with the model (averaged weights
    loaded) and the step each time the file was written, e.g. to export a snapshot.
    """
    run = _Run(model, how, checkpoint)
    model.train()
    started, first, saved, losses = time.time(), run.step, time.time(), []
    while run.step < how.steps:
        losses.append(run.advance(loss_of_step(draw_of_step(seed, run.step))))
        if run.step % 50 == 0:
            _report(checkpoint, run.step, how.steps, (run.step - first) / (time.time() - started), losses)
            losses = []
        if time.time() - saved > how.checkpoint_every_s:
            run.save(after_checkpoint)
            saved = time.time()
    if run.step > first:
        run.save(after_checkpoint)
    run.load_average()
    return model.eval()


def _report(checkpoint: Path | None, step: int, steps: int, rate: float, losses: list[Tensor]) -> None:
    name = checkpoint.stem if checkpoint else "fit"
    loss = float(torch.stack(losses).mean())
    log.info("%s %d/%d loss %.4f  %.2f steps/s  ETA %.0f s", name, step, steps, loss, rate, (steps - step) / rate)


def optimisers(model: nn.Module, how: Optimisation) -> list[tuple[torch.optim.Optimizer, float]]:
    """AdamW and, where asked for, Muon; each with its peak learning rate."""
    named = dict(model.named_parameters())
    matrices = {n: p for n, p in named.items() if how.muon_rate and p.ndim == 2 and how.muon_layers in n}
    others = [p for n, p in named.items() if n not in matrices]
    options = {"lr": how.learning_rate, "betas": how.betas, "weight_decay": how.weight_decay, "fused": True}
    out: list[tuple[torch.optim.Optimizer, float]] = [(torch.optim.AdamW(others, **options), how.learning_rate)]
    if matrices:
        muon = torch.optim.Muon(matrices.values(), lr=how.muon_rate, weight_decay=how.weight_decay)
        out.append((muon, how.muon_rate))
    return out


class _Run:
    """Model, optimiser and moving average at one step."""

    def __init__(self, model: nn.Module, how: Optimisation, checkpoint: Path | None) -> None:
        self.model, self.how, self.checkpoint, self.step = model, how, checkpoint, 0
        self.optimisers = optimisers(model, how)
        self.average = [p.detach().clone() for p in model.parameters()]
        if checkpoint is not None and checkpoint.exists():
            self._load(torch.load(checkpoint, weights_only=True))

    def advance(self, loss: Tensor) -> Tensor:
        for optimiser, peak in self.optimisers:
            optimiser.param_groups[0]["lr"] = peak * rate_factor(self.step, self.how)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        share_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        for optimiser, _ in self.optimisers:
            optimiser.step()
        self.step += 1
        # The average must forget the first weights quickly, hence the ramp (as in EDM's reference training).
        decay = min(self.how.average, self.step / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], 1 - decay)
        return loss.detach()

    def load_average(self) -> None:
        with torch.no_grad():
            for p, averaged in zip(self.model.parameters(), self.average, strict=True):
                p.copy_(averaged)

    def save(self, after: AfterCheckpoint | None) -> None:
        if rank():
            return  # all processes hold the same weights
        if self.checkpoint is not None:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            partial = self.checkpoint.with_suffix(".partial")
            torch.save(self._state(), partial)
            partial.replace(self.checkpoint)
        if after is not None:
            current = [p.detach().clone() for p in self.model.parameters()]
            self.load_average()
            after(self.model.eval(), self.step)
            self.model.train()
            with torch.no_grad():
                for p, value in zip(self.model.parameters(), current, strict=True):
                    p.copy_(value)

    def _state(self) -> dict[str, object]:
        weights = {"model": self.model.state_dict(), "average": self.average}
        return {"step": self.step, "optimisers": [o.state_dict() for o, _ in self.optimisers], **weights}

    def _load(self, state: dict[str, object]) -> None:
        self.step = state["step"]  # type: ignore[assignment]
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        for (optimiser, _), saved in zip(self.optimisers, state["optimisers"], strict=True):  # type: ignore[call-overload]
            optimiser.load_state_dict(saved)
        self.average = state["average"]  # type: ignore[assignment]
