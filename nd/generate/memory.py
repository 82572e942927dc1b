"""What a guided step needs in memory, found without running it, and the plan that a budget allows.

Every operation of a step is played through on tensors without contents, and the bytes alive are counted: parameters
aside, what is kept for the backward pass and what is only passing through. Two batch sizes give a straight line.

S samples, C h w latent, T tokens, D width, L layers.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nd.errors import UserError
from nd.generate.plan import Plan

if TYPE_CHECKING:
    from nd.generate.sampler import GuidedSampler

log = logging.getLogger(__name__)

GB = 1e9
FREE_SHARE = 0.9  # of what is free, where no budget was given: other programs and the allocator want some
# What counting does not see: workspaces of convolutions, fragments, the CUDA context; on top of what was counted.
UNSEEN = 1.15


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside it make, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._meet(leaf.untyped_storage())
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@dataclass(frozen=True)
class Need:
    """Bytes of one kind of work: a fixed part and one per sample."""

    fixed: float
    each: float

    def fits(self, budget: float) -> int:
        """Return how many samples fit into some bytes."""
        return max(0, int((budget - self.fixed) / max(self.each, 1.0)))


def need_of(work: Callable[[int], Any]) -> Need:
    """Play ``work(n)`` through for one and two samples and return the straight line through their peaks."""
    peaks = []
    for n in (1, 2):
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as counted:
            work(n)
        peaks.append(counted.peak)
    each = max(peaks[1] - peaks[0], 1)
    return Need(max(peaks[0] - each, 0), each)


def plan_for(sampler: GuidedSampler, memory_gb: float) -> Plan:
    """Return the fastest plan that keeps within a budget.

    Args:
        sampler: its backbone's networks are loaded by now or will be, and count.
        memory_gb: in GB (1e9 bytes); 0 for what is free on the device.

    Raises:
        UserError: the budget cannot hold one sample, even where activations are computed again.
    """
    device = sampler.backbone.device
    fastest = Plan.for_speed(device, sampler.denoise.passes)
    budget = memory_gb * GB if memory_gb else FREE_SHARE * free_bytes(device)
    weights = weight_bytes(sampler)
    room = (budget - (weights if memory_gb else 0)) / UNSEEN
    needs = sampler.needs(checkpoint=False)
    plan = fitted(fastest, needs, room)
    if "guided" in needs and plan.guided < min(2, fastest.guided):
        # Computing again costs a third more in the guided steps; a batch of one costs more than that.
        again = fitted(replace(fastest, checkpoint=True), sampler.needs(checkpoint=True), room)
        plan = again if again.guided > plan.guided else plan
    if min(plan.guided, plan.plain, plan.decode) < 1:
        raise too_small(sampler, budget, weights)
    log.debug("plan %s for %.1f GB", plan, budget / GB)
    return plan


def fitted(plan: Plan, needs: dict[str, Need], room: float) -> Plan:
    """Return a plan cut down to what fits into ``room`` bytes."""
    return replace(plan, **{name: min(getattr(plan, name), need.fits(room)) for name, need in needs.items()})


def too_small(sampler: GuidedSampler, budget: float, weights: float) -> UserError:
    """Return the error of a budget that cannot hold one sample."""
    needs = sampler.needs(checkpoint=True)
    least = weights + UNSEEN * max(need.fixed + need.each for need in needs.values())
    half = "" if sampler.backbone.dtype != torch.float32 else "backbone.dtype=bfloat16, which halves it; "
    return UserError(
        f"trainer.memory_gb: {budget / GB:.2g} GB cannot hold one sample: weights take {weights / GB:.2g} GB and all "
        f"together {least / GB:.2g} GB is needed. Give at least trainer.memory_gb={least / GB * 1.005:.3g}, or lower "
        f"the need by {half}guidance.decoder=half."
    )


def weight_bytes(sampler: GuidedSampler) -> int:
    """Return the bytes of the networks that sampling uses."""
    backbone = sampler.backbone
    networks = [backbone.unet, backbone.vae, *([backbone.clip] if sampler.tower is not None else [])]
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def free_bytes(device: torch.device) -> float:
    """Return what is free on a device: of a GPU's memory, or of this machine's."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
