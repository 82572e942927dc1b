"""What a training or validation step is given, and how it is read from the files.

Shapes: B_s samples of one subject, B of all of them, V_s voxels of that subject.

Processes share a training step. Its rows have one order, whatever the number of processes: subject by subject, and
within a subject by rank. ``Batch.rows`` says which of them a process has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nd.data.epoch import Plan, Step
from nd.data.scaling import Scaler
from nd.data.subject import Subject, mean_betas
from nd.errors import UserError


class TargetRows(Protocol):
    """Anything that gives target rows by image id. Copied to worker processes, so it must pickle small."""

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """(n, *shape) float32, in the order of ``ids``."""


@dataclass
class SubjectBatch:
    """One subject's part of a batch; B_s may be 0 where there are fewer of its samples than steps or processes.

    Attributes:
        voxels: (B_s, V_s) float32, scaled.
        image_id: (B_s,) int64.
        targets: (B_s, *shape) float32 by name of the target.
        counts: the step's samples of this subject in every process, in rank order; empty where no step is shared.
    """

    voxels: Tensor
    image_id: Tensor
    targets: dict[str, Tensor]
    counts: tuple[int, ...] = ()

    @property
    def n_rows(self) -> int:
        """Samples of this subject in the step, over all processes."""
        return sum(self.counts) if self.counts else len(self.image_id)

    def own(self, rank: int) -> slice:
        """Which of these ``n_rows`` process ``rank`` has."""
        if len(self.counts) < 2:
            return slice(0, self.n_rows)
        start = sum(self.counts[:rank])
        return slice(start, start + self.counts[rank])

    def pin_memory(self) -> SubjectBatch:
        """A copy in page-locked memory; called by loaders on machines with a GPU."""
        targets = {name: values.pin_memory() for name, values in self.targets.items()}
        return SubjectBatch(self.voxels.pin_memory(), self.image_id.pin_memory(), targets, self.counts)


@dataclass
class Batch:
    """What a step is given. Lightning moves it to the device; give ``batch_size=len(batch)`` when logging.

    Attributes:
        subjects: part of each subject by its name, always in the same order.
        share: samples of this process times the number of processes, over the samples of all. A mean loss times this
            has, once gradients are averaged over processes, the gradient of one process with the whole step.
    """

    subjects: dict[str, SubjectBatch]
    share: float = 1.0

    def __len__(self) -> int:
        """B."""
        return sum(len(part.image_id) for part in self.subjects.values())

    @property
    def image_id(self) -> Tensor:
        """(B,) int64: of all subjects, one after the other."""
        return torch.cat([part.image_id for part in self.subjects.values()])

    def target(self, name: str) -> Tensor:
        """(B, *shape) float32: one target of all subjects, one after the other."""
        return torch.cat([part.targets[name] for part in self.subjects.values()])

    @property
    def n_processes(self) -> int:
        """How many processes share this step; 1 where each has steps of its own."""
        return max([1, *(len(part.counts) for part in self.subjects.values())])

    @property
    def n_rows(self) -> int:
        """Samples of the step, over all processes that share it."""
        return sum(part.n_rows for part in self.subjects.values())

    def rows(self, rank: int) -> Tensor:
        """(B,) int64 on the batch's device: places of the samples of process ``rank`` among the ``n_rows``."""
        first, places = 0, []
        for part in self.subjects.values():
            own = part.own(rank)
            places.append(torch.arange(first + own.start, first + own.stop, device=part.image_id.device))
            first += part.n_rows
        return torch.cat(places)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; called by loaders on machines with a GPU."""
        return Batch({name: part.pin_memory() for name, part in self.subjects.items()}, self.share)


class Steps(Dataset[Batch]):
    """Reads the batch of a step; holds no open file, so it can be copied to worker processes."""

    def __init__(
        self,
        plan: Plan,
        subjects: Mapping[str, Subject],
        scalers: Mapping[str, Scaler],
        targets: Mapping[str, TargetRows],
        *,
        of_images: bool,
    ) -> None:
        """of_images: a step's samples are images, whose repeats are averaged, and not trials."""
        self.plan, self.subjects, self.scalers, self.targets = plan, subjects, scalers, targets
        self.of_images = of_images

    def __len__(self) -> int:
        """Steps of an epoch of one process."""
        return self.plan.n_steps(1)

    def __getitem__(self, step: Step) -> Batch:
        """Read the batch of a step."""
        parts = {name: self._part(name, samples, step.counts.get(name, ())) for name, samples in step.samples.items()}
        return Batch(parts, step.share)

    def _part(self, name: str, samples: NDArray[np.int64], counts: tuple[int, ...]) -> SubjectBatch:
        subject = self.subjects[name]
        ids = samples if self.of_images else subject.image_id[samples].astype(np.int64)
        voxels = mean_betas(subject, samples) if self.of_images else subject.voxels(samples)
        voxels = self.scalers[name].transform(voxels, out=voxels)
        targets = {target: _tensor(reader.rows(ids), np.float32) for target, reader in self.targets.items()}
        return SubjectBatch(torch.from_numpy(voxels), _tensor(ids, np.int64), targets, counts)


class StepLoader(DataLoader[Batch]):
    """A DataLoader over ``Steps`` that starts when its first batch is wanted, and speaks as clearly as without workers.

    Lightning iterates loaders before it sets the epoch of a resumed run; workers started then would read epoch 0.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches. UserError: as raised by the readers, without the worker's traceback."""
        try:
            yield from super().__iter__()
        except UserError as error:
            raise _plain(error) from None


def _tensor(values: NDArray[Any], dtype: type) -> Tensor:
    return torch.from_numpy(np.require(values, dtype, ["C", "W"]))


def _plain(error: UserError) -> UserError:
    """The error as it was raised; a worker process hands it on as its whole traceback."""
    last = str(error).strip().splitlines()[-1]
    name, _, message = last.partition(": ")
    return type(error)(message) if name.rpartition(".")[2] == type(error).__name__ else error
