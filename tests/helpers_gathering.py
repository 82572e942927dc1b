"""Steps of three subjects on one process or on several; every process notes its losses and gradients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nd.data.batch import Batch, SubjectBatch
from nd.data.epoch import Pool, Step, TrainPlan
from nd.mappers.network.draws import Draws
from nd.mappers.training.losses import mixco_nce, soft_clip, soft_contrastive, squared_error
from nd.mappers.training.mixco import draw_mix, gather, gather_subject, mix_labels, mix_targets, mixed_voxels

N_SAMPLES = {"a": 13, "b": 4, "c": 2}  # so few that in some steps a process, or both, have none of a subject
N_VOXELS = {"a": 5, "b": 4, "c": 3}
SHAPE = (2, 3)


def table(name: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(N_SAMPLES[name[0]], *shape, generator=generator, dtype=torch.float64)


def batch_of(step: Step) -> Batch:
    """A step's batch; image ids are 100, 200, 300 and more for the three subjects."""
    parts = {}
    for k, (name, samples) in enumerate(step.samples.items()):
        rows = torch.from_numpy(samples)
        targets = {"t": table(f"{name} target", *SHAPE)[rows]}
        counts = step.counts[name]
        parts[name] = SubjectBatch(table(name, N_VOXELS[name])[rows], rows + 100 * (k + 1), targets, counts)
    return Batch(parts, step.share)


def batches(rank: int, world_size: int) -> list[Batch]:
    pools = {name: Pool(torch.arange(n).numpy(), torch.arange(n).numpy()) for name, n in N_SAMPLES.items()}
    return [batch_of(step) for step in TrainPlan(pools, 5, seed=1).steps(0, rank, world_size)]


class Linear(nn.Module):
    """A layer per subject and a shared one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.subjects = nn.ModuleDict({name: nn.Linear(n, 4) for name, n in N_VOXELS.items()})
        self.head = nn.Linear(4, SHAPE[0] * SHAPE[1])
        self.double()

    def forward(self, voxels: dict[str, Tensor]) -> Tensor:
        hidden = torch.cat([self.subjects[name](values) for name, values in voxels.items()])
        return self.head(hidden).unflatten(1, SHAPE)


def losses_of(model: nn.Module, batch: Batch, rank: int, step: int) -> tuple[Tensor, Tensor]:
    """(loss over the rows of all processes, mean loss of the own ones)."""
    draws = Draws(0, 0, step, batch.rows(rank), batch.n_rows)
    mix = draw_mix(draws, [part.n_rows for part in batch.subjects.values()], 0.5, 0.7)
    predicted, target = model(mixed_voxels(batch, mix)), batch.target("t")
    own = squared_error(predicted, mix_targets(gather(target, batch), mix, batch.rows(rank))).mean()
    p, t = gather(predicted, batch), gather(target, batch)
    joint = mixco_nce(p, t, 0.1, mix_labels(mix)) + soft_clip(p, t, 0.2) + soft_contrastive(p, t, t + 0.1, 0.3)
    return joint, own


def trained(rank: int, world_size: int) -> list[dict[str, Any]]:
    """Loss over all rows, and the averaged gradients, of every step."""
    model: nn.Module = Linear()
    model = DistributedDataParallel(model) if world_size > 1 else model
    found = []
    for step, batch in enumerate(batches(rank, world_size)):
        model.zero_grad()
        joint, own = losses_of(model, batch, rank, step)
        (joint * batch.n_processes + own * batch.share).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found.append({"loss": joint.detach(), "gradients": gradients})
    return found


def gathered(rank: int, world_size: int) -> dict[str, Any]:
    """What gathering makes of image ids, of half precision, and of batches that are not shared."""
    own = batches(rank, world_size)
    alone = Batch({name: SubjectBatch(p.voxels, p.image_id, p.targets) for name, p in own[0].subjects.items()})
    ids = own[0].image_id
    return {
        "ids": [gather(batch.image_id, batch) for batch in own],
        "half": gather(own[0].target("t").bfloat16(), own[0]),
        "subjects": [gather_subject(p.image_id, p.counts) for p in own[0].subjects.values()],
        "alone": torch.equal(gather(ids, alone), ids) and torch.equal(alone.rows(rank), torch.arange(len(ids))),
    }


def run(rank: int, world_size: int, folder: str) -> None:
    """One of several processes; leaves ``rank<r>.pt`` in the folder."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world_size)
    found = {"trained": trained(rank, world_size), **gathered(rank, world_size)}
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
