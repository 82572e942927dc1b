"""How many samples go through the networks at once, and whether activations are kept or computed again.

What is promised about bits. The same machine (processor, libraries, threads) gives the same image to the last bit
wherever its plan is the same: whatever else is sampled, in which order and in how many processes, in how large batches,
interrupted or not. For every call of a network is of one size within a plan (see ``in_parts``) and on one number of
threads. Another plan changes an image by rounding, which long guidance can turn into visible differences.

A plan is chosen once per run, from the number of images and repeats, ``trainer.batch_size`` and memory; all processes
follow the same, it is recorded in the run's manifest (``execution``), and a run that is resumed goes on with it. So one
image made alone (``debug.limit_images=1``) and the same one among a thousand differ by rounding. Where memory is no
limit, the same job always gets the same plan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nd.errors import UserError
from nd.generate.lanes import lanes_for, side_by_side
from nd.generate.memory import Need, Sampler, empty_copy, needs_of, weight_bytes
from nd.machine import free_bytes

log = logging.getLogger(__name__)

# Samples that may go through a network at once. More than the largest leave a CPU's caches, and a GPU is busy with as
# many images of 512 px. Small networks cost more per sample in small parts (Scenes, a step: 38 ms at one, 18 at four,
# 14 at ten, 12 at 20), large ones the same, and a sample that only fills up costs as much as another.
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40)
FILLED = 1 / 6  # the most that filling up may add

GB = 1e9
FREE_SHARE = 0.9  # of what is free, where no budget was given: other programs and the allocator want some
# What counting does not see: workspaces of convolutions, fragments, the CUDA context; on top of what was counted.
UNSEEN = 1.15
# Stable Diffusion in float32 keeps 29 kB per pixel of a guided sample and step. Where there is room for more,
# nothing is counted, for counting takes seconds.
AMPLE = 40e3


@dataclass(frozen=True)
class Plan:
    """Samples at once in each kind of work, each one of ``SIZES``."""

    guided: int  # forward and backward through UNet, decoder and image tower
    plain: int  # the UNet without a graph
    decode: int  # the final images
    checkpoint: int = 0  # how much is computed again instead of kept, up to the sampler's ``leanest``; 0: nothing
    lanes: int = 1  # parts side by side, on a CPU with memory for all of them

    @classmethod
    def for_speed(cls, batches: Sequence[int] = ()) -> Plan:
        """Return the plan of a machine with memory enough.

        Args:
            batches: how many samples (images x repeats) each batch of the run has; by default many.
        """
        return fitted(LARGEST, {}, 0.0, batches)

    def apply(self, backbone: Any) -> None:
        """Switch recomputing in UNet and VAE on or off."""
        for module in (backbone.unet, backbone.vae):
            (module.enable_gradient_checkpointing if self.checkpoint else module.disable_gradient_checkpointing)()


LARGEST = Plan(guided=20, plain=40, decode=20)  # guided samples hold more memory


def size_for(batches: Sequence[int], most: int) -> int:
    """Return the largest of ``SIZES`` that has little to fill up; 0 where not one sample is allowed.

    Args:
        batches: samples of each batch of the run, for parts are filled up at the end of each; none: any number.
        most: samples that memory and speed allow at once.

    >>> [size_for([n], 40) for n in (1, 3, 7, 20, 80)]
    [1, 3, 8, 20, 40]
    """
    allowed = (1 + FILLED) * sum(batches)
    fits = (size for size in SIZES if size <= most and sum(-(-n // size) * size for n in batches) <= allowed)
    return max(fits, default=0)


def in_parts(
    function: Callable[..., Any],
    at_once: int,
    *columns: Tensor | None,
    lanes: int = 1,
    done: Callable[[int], object] | None = None,
) -> Any:
    """Apply a function to parts of ``at_once`` rows and join what it returns.

    Every part is full, the last one by repeating its last row: libraries choose their kernels by the size of a batch,
    so equal sizes give a row the same result to the last bit, wherever it stands and whatever stands beside it.

    Args:
        function: of parts of the columns, to a tensor or a tuple of tensors with as many rows.
        at_once: rows of a part.
        columns: tensors (n, ...); None is handed on.
        lanes: parts at a time, each in a thread of its own.
        done: called after each part with the number of rows it had, those that fill it up left out.

    Returns:
        A tensor (n, ...), or a tuple of them.
    """
    n = len(next(column for column in columns if column is not None))
    rows = torch.arange(-(-n // at_once) * at_once).clamp(max=n - 1)
    cut = [
        [None] * (len(rows) // at_once) if column is None else column[rows.to(column.device)].split(at_once)
        for column in columns
    ]
    parts = []
    for k, part in enumerate(side_by_side(function, list(zip(*cut, strict=True)), lanes)):
        parts.append(part)
        if done is not None:
            done(min(at_once, n - k * at_once))
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)[:n]
    return tuple(torch.cat(column)[:n] for column in zip(*parts, strict=True))


def plan_for(sampler: Sampler, memory_gb: float, batches: Sequence[int] = ()) -> Plan:
    """Return the fastest plan that keeps within a budget.

    Args:
        sampler: its backbone's networks are loaded by now or will be, and count.
        memory_gb: in GB (1e9 bytes), weights included; 0 for what is free on the device.
        batches: how many samples each batch of the run has.

    Raises:
        UserError: the budget cannot hold one sample, even where activations are computed again.
    """
    device = sampler.backbone.device
    fastest = Plan.for_speed(batches)
    budget = memory_gb * GB if memory_gb else FREE_SHARE * free_share(device)
    ample = AMPLE * sampler.steps_kept * sampler.backbone.config.image_size**2
    if not memory_gb and fastest.guided * ample < budget:
        lanes = lanes_of(fastest, batches, sampler.guides) if sampler.knows_lanes and device.type == "cpu" else 1
        return replace(fastest, lanes=lanes if fastest.guided * lanes * ample < budget else 1)
    weights = weight_bytes(sampler)
    room = (budget - (weights if memory_gb else 0)) / UNSEEN
    empty = empty_copy(sampler)
    needs = needs_of(empty)
    plan = fitted(fastest, needs, room, batches)
    for checkpoint in range(1, sampler.leanest + 1):
        if "guided" not in needs or plan.guided >= min(2, fastest.guided):
            break
        # Computing again costs a third more in the guided steps; a batch of one costs more than that.
        again = fitted(replace(fastest, checkpoint=checkpoint), needs_of(empty, checkpoint), room, batches)
        plan = again if again.guided > plan.guided else plan
    if min(plan.guided, plan.plain, plan.decode) < 1:
        raise too_small(sampler, budget, weights, needs_of(empty, sampler.leanest))
    log.debug("plan %s for %.1f GB", plan, budget / GB)
    return plan


def lanes_of(plan: Plan, batches: Sequence[int], guides: bool) -> int:
    """Return how many parts of a plan can run side by side on this process's threads.

    Args:
        plan: sizes of the parts.
        batches: how many samples each batch of the run has; none: nothing is known of the number of parts, 1.
        guides: whether some steps are guided.
    """
    sizes = [plan.plain, plan.decode, *([plan.guided] if guides else [])]
    return lanes_for([-(-n // size) for n in batches for size in sizes], torch.get_num_threads()) if batches else 1


def fitted(plan: Plan, needs: Mapping[str, Need], room: float, batches: Sequence[int] = ()) -> Plan:
    """Return a plan cut down to what fits into ``room`` bytes and has little to fill up; 0 where not one sample fits.

    Args:
        plan: the most that is wanted of each kind of work.
        needs: bytes of each kind of work; of one that is missing, nothing is known to be short.
        room: bytes.
        batches: how many samples each batch of the run has.
    """
    most = {kind: getattr(plan, kind) for kind in ("guided", "plain", "decode")}
    most |= {kind: min(most[kind], need.fits(room)) for kind, need in needs.items()}
    return Plan(**{kind: size_for(batches, n) for kind, n in most.items()}, checkpoint=plan.checkpoint)


def too_small(sampler: Sampler, budget: float, weights: float, needs: dict[str, Need]) -> UserError:
    """Return the error of a budget that cannot hold one sample, given the least that each kind of work needs."""
    least = weights + UNSEEN * max(need.fixed + need.each for need in needs.values())
    half = "" if sampler.backbone.dtype != torch.float32 else "backbone.dtype=bfloat16, which halves it; "
    return UserError(
        f"trainer.memory_gb: {budget / GB:.2g} GB cannot hold one sample: weights take {weights / GB:.2g} GB and all "
        f"together {least / GB:.2g} GB is needed. Give at least trainer.memory_gb={least / GB * 1.005:.3g}, or lower "
        f"the need by {half}{sampler.lighter}."
    )


def free_share(device: torch.device) -> float:
    """Return what is free on a device: of a GPU's memory, or this process's share of this machine's."""
    free = free_bytes(device)
    if free is None:
        return float("inf")
    sharing = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return free if device.type == "cuda" else free / sharing
