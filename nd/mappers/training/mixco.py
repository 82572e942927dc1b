"""MixCo, and the rows of all processes that it and the contrastive losses compare.

Some rows of a step get voxels mixed with another row's of the same subject, and labels that say how much. What is mixed
is drawn for all rows of the step at once, so it does not depend on the number of processes. Rows are in the step's
order: subject after subject, and within a subject by process.

Source: MindEye's MixCo as HaoyyLi/NeuralDiffuser@9286cad:src/train_c.py uses it.

Contrastive losses compare all rows of a step. Every process computes such a loss L on all of them, with its own rows
attached to its graph and the others' as constants. Its gradient is then g_r, the sum over its own rows i of
dL/dx_i dx_i/dw, and one process with all rows would have dL/dw = g_0 + ... + g_(W-1). DDP averages over W processes, so
each multiplies its loss by W (``batch.n_processes``): the mean of W g_r is dL/dw. A loss that is a mean over the own
samples is multiplied by ``batch.share`` for the same reason, and needs no gathering. Where a step is not shared (one
process, validation, prediction) nothing is sent and rows stay as they are.

Shapes: W processes; B rows of a step over all of them, B_own of one; of one subject n_all rows, n_own of one process, V
voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nd.data.batch import Batch
from nd.data.epoch import processes
from nd.mappers.network.draws import Draws, key_of


@dataclass(frozen=True)
class Mix:
    """How each row of a step is mixed: ``beta`` of itself and 1 - ``beta`` of its partner.

    Attributes:
        partner: (B,) int64 row of the same subject; within a subject every row is the partner of exactly one.
        first: (B,) int64 first row of the same subject.
        beta: (B,) float32 in [0, 1]; 1 where the row is left as it is.
        selected: (B,) bool: rows that are mixed. A row that is its own partner stays as it is all the same.
    """

    partner: Tensor
    first: Tensor
    beta: Tensor
    selected: Tensor


def draw_mix(draws: Draws, sizes: Sequence[int], beta: float, select: float) -> Mix:
    """Return what is mixed in a step: a function of seed, epoch, step and `sizes`, on the device of `draws`.

    Args:
        draws: of the step.
        sizes: rows of each subject over all processes; B in sum.
        beta: both parameters of the beta distribution of ``Mix.beta``, above 0.
        select: probability that a row is mixed.
    """
    assert sum(sizes) == draws.n_rows, f"{list(sizes)} rows of the subjects, but draws for {draws.n_rows}"
    # PyTorch draws beta variates from its global generator alone.
    rng = np.random.default_rng(key_of(*draws.words, "mixco"))
    starts = np.cumsum(sizes) - sizes
    partner = np.concatenate([start + rng.permutation(size) for start, size in zip(starts, sizes, strict=True)])
    selected = rng.random(draws.n_rows) < select
    own = np.where(selected, rng.beta(beta, beta, draws.n_rows), 1).astype(np.float32)
    columns = (partner, np.repeat(starts, sizes), own, selected)
    return Mix(*(torch.from_numpy(values).to(draws.rows.device) for values in columns))


def mix_rows(voxels_nV: Tensor, mix: Mix, first: int, own: slice) -> Tensor:
    """Return (n_own, V) mixed voxels of a process's rows of one subject.

    Args:
        voxels_nV: (n_all, V) of the subject's rows in all processes.
        mix: of the step.
        first: the subject's first row in the step.
        own: which of the n_all rows are wanted.
    """
    rows = slice(first + own.start, first + own.stop)
    return _blend(voxels_nV[own], voxels_nV[mix.partner[rows] - first], mix.beta[rows])


def mixed_voxels(batch: Batch, mix: Mix) -> dict[str, Tensor]:
    """Return (B_s, V_s) mixed voxels of this process's samples, by subject; all processes of the step must call it."""
    rank, first, mixed = processes()[0], 0, {}
    for name, part in batch.subjects.items():
        voxels_nV = gather_subject(part.voxels, part.counts)
        mixed[name] = mix_rows(voxels_nV, mix, first, part.own(rank))
        first += part.n_rows
    return mixed


def mix_targets(targets: Tensor, mix: Mix, rows: Tensor) -> Tensor:
    """Return targets (n, *shape) mixed as the voxels are, of the rows `rows` (n,) int64 among `targets` (B, *shape)."""
    return _blend(targets[rows], targets[mix.partner[rows]], mix.beta[rows])


def mix_labels(mix: Mix, variant: str = "nd") -> Tensor:
    """Return (B, B) float32 labels of `mixco_nce`: the share of image j in the voxels of row i; every row sums to 1.

    ``variant="released"`` is the published arithmetic with both of its slips: the partner's place among its subject's
    rows is taken as its column among all rows, so partners are right for the first subject alone; and the partner's
    share replaces what is in its column instead of being added, so where that is the diagonal (a row that is its own
    partner, in the first subject) the label is 1 - beta, and 0 for a row that is not mixed.
    """
    rows = torch.arange(len(mix.beta), device=mix.beta.device)
    labels_BB = mix.beta.diag()
    if variant == "released":
        labels_BB[rows, mix.partner - mix.first] = 1 - mix.beta
        return labels_BB
    labels_BB[rows, mix.partner] += 1 - mix.beta
    return labels_BB


def _blend(own: Tensor, other: Tensor, beta: Tensor) -> Tensor:
    """beta own + (1 - beta) other, by row."""
    beta = beta.to(own.dtype).reshape(-1, *[1] * (own.ndim - 1))
    return own * beta + other * (1 - beta)


def gather(x: Tensor, batch: Batch) -> Tensor:
    """Return the rows of all processes (B, *shape) in the step's order (`nd.data.batch`), own ones with their gradient.

    All processes of the step must call it, in the same order.

    Args:
        x: (B_own, *shape), a row for each sample of `batch`, of the same shape and dtype in every process.
    """
    counts = [part.counts for part in batch.subjects.values()]
    if batch.n_processes == 1:
        return x
    rows = torch.cat(_pieces(x, [sum(own) for own in zip(*counts, strict=True)]))
    places = torch.cat([batch.rows(rank) for rank in range(batch.n_processes)])
    return rows[places.argsort()]


def gather_subject(x: Tensor, counts: Sequence[int]) -> Tensor:
    """Return one subject's rows of all processes (n_all, *shape), in rank order, own ones with their gradient.

    All processes of the step must call it, in the same order.

    Args:
        x: (n_own, *shape).
        counts: of `SubjectBatch`.
    """
    return x if len(counts) < 2 else torch.cat(_pieces(x, counts))


def _pieces(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Every process's rows; ``sizes`` of them are as many as each has."""
    rank, world_size = processes()
    assert len(sizes) == world_size, f"a step shared by {len(sizes)} processes was read by one of {world_size}"
    assert sizes[rank] == len(x), f"{len(x)} rows of process {rank}, which has {sizes[rank]} in this step"
    longest = max(sizes)
    if not longest:
        return [x]
    padded = x.new_zeros(longest, *x.shape[1:])  # processes can only send equal shapes
    padded[: len(x)] = x.detach()
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded)
    return [x if r == rank else rows[:size] for r, (rows, size) in enumerate(zip(received, sizes, strict=True))]
