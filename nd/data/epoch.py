"""Which samples make up each step: the order over epochs, steps and processes.

An epoch is a function of (seed, epoch) alone. Its samples are dealt into steps (or drawn, ``DrawnPlan``), and every
step into shares of the processes, so that the processes of a step together have exactly what one process would have:
nothing is padded, repeated or dropped, and the loss curve does not depend on how many processes there are.

Shapes: S subjects, K steps, W processes, N samples of an epoch, T trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from nd.errors import UserError

Samples = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Step:
    """What one process reads in one step.

    Attributes:
        samples: per subject, trials or images (B_s,) int64; B_s is 0 where there are too few to go round.
        share: see ``nd.data.batch.Batch``.
        counts: per subject, the step's samples in every process, in rank order. Empty where processes do not share a
            step, as in validation.
    """

    samples: Samples
    share: float = 1.0
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)


def generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """A random generator of (seed, epoch, name) and nothing else."""
    return np.random.default_rng([seed, epoch, crc32(name.encode())])


def deal(counts_S: NDArray[Any], n_parts: int) -> NDArray[np.int64]:
    """Sizes (S, n_parts) of near-equal parts: each row sums to its count and differs by at most 1, and so do columns.

    Whatever one row has left over is dealt on from where the row before it stopped.
    """
    base_S, extra_S = np.divmod(np.asarray(counts_S, np.int64), n_parts)
    first_S = np.cumsum(extra_S) - extra_S
    place_SP = (np.arange(n_parts) - first_S[:, None]) % n_parts
    return base_S[:, None] + (place_SP < extra_S[:, None])


@dataclass(frozen=True)
class Pool:
    """One subject's samples: ``values`` (T,) int64, trials or images, in the order of their ``image_id`` (T,).

    With ``one_per_image`` every epoch takes one value of each image.
    """

    values: NDArray[np.int64]
    image_id: NDArray[Any]
    one_per_image: bool = False

    def __len__(self) -> int:
        """N."""
        return len(np.unique(self.image_id)) if self.one_per_image else len(self.values)

    def draw(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """(N,) the samples of an epoch, not yet shuffled.

        The trial of an image is a function of (seed, epoch, image id): image i has the i-th number of one stream.
        """
        if not self.one_per_image:
            return self.values
        ids, first, counts = np.unique(self.image_id, return_index=True, return_counts=True)
        chance = generator(seed, epoch, "repeat").random(int(ids[-1]) + 1)[ids]
        return self.values[first + (chance * counts).astype(np.int64)]


class TrainPlan:
    """Shuffled epochs: every sample of every subject exactly once, in steps with near-equal parts of each subject."""

    def __init__(self, pools: Mapping[str, Pool], batch_size: int, seed: int) -> None:
        """batch_size: samples of a step over all processes. Raises UserError for one below 1 or a negative seed."""
        if seed < 0:
            raise UserError(f"seed={seed}; the order of training samples wants 0 or more.")
        self.pools, self.batch_size, self.seed = dict(pools), _checked(batch_size), seed
        self._counts_S = np.array([len(pool) for pool in self.pools.values()])

    def n_steps(self, world_size: int = 1) -> int:
        """ceil(samples / batch_size), however many processes share the steps."""
        total = int(self._counts_S.sum())
        steps = -(-total // self.batch_size)
        self._check_shares(total, steps, world_size)
        return steps

    def _check_shares(self, total: int, steps: int, world_size: int) -> None:
        """Raise UserError where a process would get no sample of some step."""
        smallest = total // max(1, steps)
        if smallest < world_size:
            raise UserError(
                f"{total} training samples in {steps} steps of batch_size={self.batch_size} (over all processes) leave "
                f"as few as {smallest} for a step, but each of {world_size} processes needs 1. Use a batch_size of "
                f"{2 * world_size} or more, or at most {max(1, smallest)} processes."
            )

    def steps(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[Step]:
        """This process's part of every step of an epoch."""
        sizes_SK = self._sizes(self.n_steps(world_size))
        orders = [self._order(name, epoch, int(n)) for name, n in zip(self.pools, sizes_SK.sum(1), strict=True)]
        starts_SK = np.cumsum(sizes_SK, axis=1) - sizes_SK
        for sizes_S, starts_S in zip(sizes_SK.T, starts_SK.T, strict=True):
            shares_SW = deal(sizes_S, world_size)
            mine = _parts(starts_S + shares_SW[:, :rank].sum(1), shares_SW[:, rank])
            samples = {name: order[part] for name, order, part in zip(self.pools, orders, mine, strict=True)}
            counts = {name: tuple(sizes) for name, sizes in zip(self.pools, shares_SW.tolist(), strict=True)}
            yield Step(samples, float(shares_SW[:, rank].sum() * world_size / sizes_S.sum()), counts)

    def _sizes(self, n_steps: int) -> NDArray[np.int64]:
        """(S, K) samples of each subject in each step."""
        return deal(self._counts_S, n_steps)

    def _order(self, name: str, epoch: int, n_samples: int) -> NDArray[np.int64]:
        """(n_samples,) a subject's samples of an epoch, step after step."""
        return generator(self.seed, epoch, name).permutation(self.pools[name].draw(self.seed, epoch))


class DrawnPlan(TrainPlan):
    """Epochs of a given number of steps, whose samples are drawn with replacement, as many of each subject.

    HaoyyLi/NeuralDiffuser@9286cad:src/train_c.py:174-198 trains so: 714 steps of 42, be they of one subject or 6 each
    of seven, however many trials there are. (Its loader draws whole sessions with replacement and mixes the trials of
    neighbours; here each trial is drawn by itself.)
    """

    def __init__(self, pools: Mapping[str, Pool], batch_size: int, seed: int, n_steps: int) -> None:
        """As of ``TrainPlan``; n_steps: of an epoch. Raises UserError too for a batch_size below one of each subject.

        A step has ``batch_size // subjects`` samples of each subject.
        """
        super().__init__(pools, batch_size, seed)
        self._n_steps, self._n_each = n_steps, batch_size // len(self.pools)
        if not self._n_each:
            raise UserError(
                f"batch_size={batch_size} leaves no sample for each of {len(self.pools)} subjects (training.epoch_steps"
                f" takes as many of each). Use {len(self.pools)} or more."
            )

    def n_steps(self, world_size: int = 1) -> int:
        """As many as were asked for."""
        self._check_shares(self._n_steps * self._n_each * len(self.pools), self._n_steps, world_size)
        return self._n_steps

    def _sizes(self, n_steps: int) -> NDArray[np.int64]:
        return np.full((len(self.pools), n_steps), self._n_each, np.int64)

    def _order(self, name: str, epoch: int, n_samples: int) -> NDArray[np.int64]:
        samples = self.pools[name].draw(self.seed, epoch)
        return samples[generator(self.seed, epoch, name).integers(len(samples), size=n_samples)]


class OrderedPlan:
    """The same samples in the same order every time; process r has the r-th contiguous block of every subject.

    So what the processes give, put together in their order, is in the order of one process.
    """

    def __init__(self, samples: Samples, batch_size: int) -> None:
        """samples: (N,) per subject, in order."""
        self.samples, self.batch_size = dict(samples), _checked(batch_size)
        self._counts_S = np.array([len(values) for values in self.samples.values()])

    def n_steps(self, world_size: int = 1) -> int:
        """About samples / batch_size, and few enough that no process is without a sample in any step."""
        total = int(self._counts_S.sum())
        if total < world_size:
            raise UserError(
                f"{total} validation samples cannot be shared by {world_size} processes. "
                f"Enlarge that part, or use at most {max(1, total)} processes."
            )
        return min(-(-total // self.batch_size), total // world_size)

    def steps(self, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[Step]:
        """This process's block of every subject, step by step; ``epoch`` changes nothing."""
        blocks_SW = deal(self._counts_S, world_size)
        sizes_SK = deal(blocks_SW[:, rank], self.n_steps(world_size))
        starts_SK = blocks_SW[:, :rank].sum(1, keepdims=True) + np.cumsum(sizes_SK, axis=1) - sizes_SK
        for sizes_S, starts_S in zip(sizes_SK.T, starts_SK.T, strict=True):
            mine = zip(self.samples.items(), _parts(starts_S, sizes_S), strict=True)
            yield Step({name: values[part] for (name, values), part in mine})


Plan = TrainPlan | OrderedPlan  # the steps of an epoch, for any number of processes


class PlanSampler(DistributedSampler[Step]):
    """Hands the steps of a plan to a loader; asks which process it is in whenever it is iterated.

    It is a DistributedSampler so that Lightning leaves it as it is and calls ``set_epoch``.
    """

    def __init__(self, plan: Plan) -> None:
        """Raises UserError where the processes are too many for the plan."""
        # The base class would fix the processes now, and pad.
        self.plan, self.epoch = plan, 0
        len(self)

    def __len__(self) -> int:
        """Number of steps."""
        return self.plan.n_steps(processes()[1])

    def __iter__(self) -> Iterator[Step]:
        """The steps of the epoch set last."""
        return self.plan.steps(self.epoch, *processes())


def processes() -> tuple[int, int]:
    """(rank, number of processes) of the running job; (0, 1) where there is but one process."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}; wanted 1 or more samples per step, over all processes.")
    return batch_size


def _parts(starts_S: NDArray[np.int64], sizes_S: NDArray[np.int64]) -> list[slice]:
    return [slice(int(start), int(start + size)) for start, size in zip(starts_S, sizes_S, strict=True)]
