"""Stage 2: the sampler's inputs are moved by Adam until the image has the decoded features; every image by itself.

All samples share an iteration, but nothing else: each has its own loss, its own moments (Adam works number by number),
stops when it gains too little or diverges, and keeps its own best iterate.

S samples, R of them still active, I iterations, C h w latent, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nd.generate.minddiffuser.components import MindDiffuserSettings

# A loss so many times the first one counts as diverged: features of a tower are bounded by its norms, so that an
# optimisation that ran away need not meet infinities.
RAN_AWAY = 10.0

# Rows that are active, z and c there, noise there: loss (R,), latents (R, C, h, w), gradient by each moved input.
Gradient = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Optimised:
    """What stage 2 found for a batch.

    Attributes:
        z: (S, C, h, w) to sample from.
        c: (S, T, D) to sample under.
        losses: (I, S) of every iterate before its update; NaN where a sample had stopped.
        kept: (S,) number of the iterate that is kept, from 0; I: the one after all updates.
        diverged: (S,) iteration, from 1, at which a sample diverged; 0: it did not.
    """

    z: Tensor
    c: Tensor
    losses: Tensor
    kept: Tensor
    diverged: Tensor


class Optimisation:
    """Adam on what z and c are moved by, with what is known of every sample."""

    def __init__(self, method: MindDiffuserSettings, z: Tensor, c: Tensor) -> None:
        """Begin at the decoded z (S, C, h, w) and c (S, T, D)."""
        self.method, self.begun = method, {"z": z, "c": c}
        self.by = {name: torch.zeros_like(self.begun[name], requires_grad=True) for name in method.moved}
        self.scale = {name: size_of(self.begun[name]) if method.relative else 1.0 for name in method.moved}
        self.adam = torch.optim.Adam(list(self.by.values()), lr=method.learning_rate)
        samples = (len(z),)
        self.active = torch.ones(samples, dtype=torch.bool, device=z.device)
        self.first, self.best, self.mark = (torch.full(samples, torch.inf, device=z.device) for _ in range(3))
        self.kept, self.marked, self.diverged = (
            torch.zeros(samples, dtype=torch.long, device=z.device) for _ in range(3)
        )
        self.best_by = {name: torch.zeros_like(moved) for name, moved in self.by.items()}

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and c of some samples as they are now."""
        return self._placed({name: moved.detach() for name, moved in self.by.items()}, rows)

    def _placed(self, by: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        now = {name: value[rows] for name, value in self.begun.items()}
        for name, moved in by.items():
            scale = self.scale[name]
            now[name] = now[name] + moved[rows] * (scale[rows] if isinstance(scale, Tensor) else scale)
        return now["z"], now["c"]

    def judge(self, iteration: int, rows: Tensor, loss_R: Tensor, finite_R: Tensor) -> None:
        """Note the losses of the active samples: which are the best so far, and who stops before another update.

        Args:
            iteration: from 0.
            rows: of the active samples (R,).
            loss_R: their losses.
            finite_R: whether loss and gradient are finite.
        """
        loss_R = loss_R.float()
        if iteration == 0:
            self.first[rows] = loss_R
        lost_R = ~finite_R | (loss_R > RAN_AWAY * self.first[rows])
        better = rows[~lost_R & (loss_R < self.best[rows])]
        gained = rows[~lost_R & (loss_R < (1 - self.method.min_gain) * self.mark[rows])]
        losses = torch.full_like(self.best, torch.inf).index_put((rows,), loss_R)
        self.best[better], self.kept[better] = losses[better], iteration
        for name, moved in self.by.items():
            self.best_by[name][better] = moved.detach()[better]
        self.mark[gained], self.marked[gained] = losses[gained], iteration
        self.diverged[rows[lost_R]] = iteration + 1
        idle_R = iteration - self.marked[rows] >= self.method.patience if self.method.patience else lost_R
        self.active[rows[lost_R | idle_R]] = False

    def update(self, iteration: int, rows: Tensor, gradients: tuple[Tensor, ...]) -> None:
        """Move the samples that are still active; the others stay where they are.

        Args:
            iteration: from 0.
            rows: of the samples that the gradients are of, (R,); some may have stopped since.
            gradients: by each moved input, (R, ...).
        """
        before = {name: moved.detach().clone() for name, moved in self.by.items()}
        for (name, moved), gradient in zip(self.by.items(), gradients, strict=True):
            scale = self.scale[name]
            moved.grad = torch.zeros_like(moved)
            moved.grad[rows] = gradient * (scale[rows] if isinstance(scale, Tensor) else scale)
            moved.grad[~self.active] = 0  # of those that diverged it may be anything
        self.adam.param_groups[0]["lr"] = self.method.rate(iteration)
        self.adam.step()
        for name, moved in self.by.items():
            moved.data[~self.active] = before[name][~self.active]

    def result(self, losses_IS: Tensor) -> Optimised:
        """Return what is kept: the best iterate, or the last of those that did not diverge."""
        every, kept = torch.arange(len(self.active), device=self.active.device), self.kept
        z, c = self._placed(self.best_by, every)
        if self.method.keep == "last":
            stays, (z_last, c_last) = self.diverged == 0, self.at(every)
            z, c = torch.where(spread(stays, z), z_last, z), torch.where(spread(stays, c), c_last, c)
            updates = (~losses_IS.isnan()).sum(0) - (~self.active).long()  # who stops is judged and not moved again
            kept = torch.where(stays, updates, kept)
        return Optimised(z, c, losses_IS, kept, self.diverged)


def optimise(
    method: MindDiffuserSettings,
    gradient: Gradient,
    z: Tensor,
    c: Tensor,
    noise_at: Callable[[int], Tensor],
    seen: Callable[[int, Tensor, Tensor], object] | None = None,
) -> Optimised:
    """Move z, c or both of a batch until the image has the decoded features, or gains nothing any more.

    Args:
        method: what is moved, how fast and how long.
        gradient: of rows (R,), z, c and noise of these rows.
        z: decoded latents (S, C, h, w).
        c: decoded text condition (S, T, D).
        noise_at: returns the noise (S, C, h, w) of an iteration.
        seen: called after each iteration with its number, from 0, the active rows and the latents they led to.
    """
    state, losses = Optimisation(method, z, c), []
    for iteration in range(method.iterations):
        rows = state.active.nonzero().flatten()
        if not len(rows):
            break
        loss_R, latents, *gradients = gradient(rows, *state.at(rows), noise_at(iteration)[rows])
        finite_R = torch.stack([part.flatten(1).isfinite().all(1) for part in gradients]).all(0) & loss_R.isfinite()
        losses.append(torch.full_like(state.first, torch.nan).index_put((rows,), loss_R.float()))
        state.judge(iteration, rows, loss_R, finite_R)
        state.update(iteration, rows, tuple(gradients))
        if seen is not None:
            seen(iteration, rows, latents)
    return state.result(torch.stack(losses))


def size_of(x: Tensor) -> Tensor:
    """Return each sample's root mean square, of a shape that multiplies the samples."""
    return spread(x.square().flatten(1).mean(1).sqrt(), x)


def spread(x_S: Tensor, like: Tensor) -> Tensor:
    """Return numbers per sample in a shape that meets that of samples (S, ...)."""
    return x_S.view(-1, *(1,) * (like.ndim - 1))
