"""Rows of the processes that share a training step, put together, with the gradient of one process.

Contrastive losses compare all rows of a step. Every process computes such a loss L on all of them, with its own rows
attached to its graph and the others' as constants. Its gradient is then g_r, the sum over its own rows i of
dL/dx_i dx_i/dw, and one process with all rows would have dL/dw = g_0 + ... + g_(W-1). DDP averages over W processes, so
each multiplies its loss by W (``batch.n_processes``): the mean of W g_r is dL/dw. A loss that is a mean over the own
samples is multiplied by ``batch.share`` for the same reason, and needs no gathering.

Where a step is not shared (one process, validation, prediction) nothing is sent and rows stay as they are.

Shapes: W processes; B_own rows of one of them, B_all of all; n_own and n_all rows of one subject.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from nd.data.batch import Batch
from nd.data.epoch import processes


def gather(x: Tensor, batch: Batch) -> Tensor:
    """(B_all, *shape) rows of all processes in the step's order (``nd.data.batch``), own ones with their gradient.

    Args: x: (B_own, *shape), a row for each sample of ``batch``, of the same shape and dtype in every process. All
        processes of the step must call it, in the same order.
    """
    counts = [part.counts for part in batch.subjects.values()]
    if batch.n_processes == 1:
        return x
    rows = torch.cat(_pieces(x, [sum(own) for own in zip(*counts, strict=True)]))
    places = torch.cat([batch.rows(rank) for rank in range(batch.n_processes)])
    return rows[places.argsort()]


def gather_subject(x: Tensor, counts: Sequence[int]) -> Tensor:
    """(n_all, *shape) rows of one subject in all processes, in rank order, own ones with their gradient.

    Args: x: (n_own, *shape); counts: of ``SubjectBatch``. All processes of the step must call it, in the same order.
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
