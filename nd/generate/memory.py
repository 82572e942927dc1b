"""What the steps of sampling need in memory, found without running them.

Every operation of a step is played through on tensors without contents, and the bytes alive are counted: parameters
aside, what is kept for the backward pass and what is only passing through. Two batch sizes give a straight line.

S samples, C h w latent, T tokens, D width, L layers.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nd.backbone.loading import Backbone
from nd.config import Config

S = TypeVar("S", bound="Sampler")


class Sampler(Protocol):
    """What sampling has to offer for its memory to be counted.

    Attributes:
        lighter: a setting with which it needs less.
        leanest: the highest ``Plan.checkpoint``.
    """

    backbone: Backbone
    cfg: Config
    denoise: Any
    plan: Any
    schedule: Any
    lighter: str
    leanest: int

    @property
    def knows_lanes(self) -> bool:
        """Whether it follows ``Plan.lanes``."""

    @property
    def guides(self) -> bool:
        """Whether any of its work holds a graph."""

    @property
    def networks(self) -> tuple[str, ...]:
        """The backbone's modules that it runs, by name."""

    @property
    def steps_kept(self) -> int:
        """Steps whose activations it holds at once where nothing is computed again."""

    def use(self, plan: Any) -> None:
        """Take a plan and set the networks up for it."""

    def over(self: S, backbone: Backbone, cfg: Config) -> S:
        """Return the same over another backbone."""

    def rehearse(self, n: int) -> None:
        """Go through the work with a graph, of n samples, on tensors without contents."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside it make, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):  # weights and inputs, which were there before: a view makes nothing
            if isinstance(leaf, torch.Tensor):
                self._meet(leaf.untyped_storage(), made=False)
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._meet(leaf.untyped_storage(), made=True)
        return result

    def _meet(self, storage: torch.UntypedStorage, made: bool) -> None:
        key, size = storage._cdata, storage.nbytes() if made else 0
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Attention(torch.autograd.Function):
    """Attention as fused kernels keep it: queries, keys, values and the result, never the matrix of weights.

    On tensors without contents PyTorch would otherwise count the matrix, which no device makes.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return something of the result's shape."""
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return something of the gradients' shapes."""
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Put ``Attention`` in the place of PyTorch's, in the backward pass too, where activations may be made again.

    A mode of PyTorch's own for this is off while gradients are taken.
    """
    functional = torch.nn.functional
    before = functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        found: Tensor = Attention.apply(query, key, value)
        return found

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


@dataclass(frozen=True)
class Need:
    """Bytes of one kind of work: a fixed part and one per sample."""

    fixed: float
    each: float

    def fits(self, budget: float) -> int:
        """Return how many samples fit into some bytes."""
        return max(0, int((budget - self.fixed) / max(self.each, 1.0)))


def need_of(work: Callable[[int], Any]) -> Need:
    """Return what some work holds: the straight line through its peaks for one and for two samples.

    Args:
        work: what is done with n samples, on tensors of the meta device.
    """
    peaks = []
    for n in (1, 2):
        with fused_attention(), LiveBytes() as counted:
            work(n)
        peaks.append(counted.peak)
    each = max(peaks[1] - peaks[0], 1)
    return Need(max(peaks[0] - each, 0), each)


def empty_copy(sampler: S) -> S:
    """Return the sampler over networks without contents, which can be run for their shapes."""
    backbone, meta = copy.copy(sampler.backbone), torch.device("meta")
    backbone.device, backbone._shared = meta, {}
    with torch.inference_mode(False):
        for name in sampler.networks:
            vars(backbone)[name] = _emptied(getattr(sampler.backbone, name))
        vars(backbone)["_uncond"] = sampler.backbone.uncond().to(meta)
    cfg = replace(sampler.cfg, trainer=replace(sampler.cfg.trainer, compile=False))
    return sampler.over(backbone, cfg)


def _emptied(network: torch.nn.Module) -> torch.nn.Module:
    """A copy on the meta device; the weights themselves, gigabytes of them, are not copied on the way."""
    kept = {id(weight): weight.to("meta") for weight in network.state_dict(keep_vars=True).values()}
    as_parameter = {id(p): torch.nn.Parameter(kept[id(p)].detach(), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, kept | as_parameter).to("meta")


def needs_of(sampler: Sampler, checkpoint: int = 0) -> dict[str, Need]:
    """Return what each kind of work needs, by the plan's names, of an ``empty_copy`` under a setting of the plan."""
    sampler.use(replace(sampler.plan, checkpoint=checkpoint))
    t, abar, text = sampler.schedule.timesteps[0], sampler.schedule.alpha_bar[0], sampler.denoise.uncond_1TD.shape[1:]

    def empty(n: int, *shape: int) -> Tensor:
        return torch.empty(n, *shape, device="meta")

    @torch.no_grad()
    def plain(n: int) -> None:
        sampler.denoise(empty(n, *sampler.backbone.latent_shape), t, empty(n, *text), abar)

    @torch.no_grad()
    def decode(n: int) -> None:
        sampler.backbone.decode(empty(n, *sampler.backbone.latent_shape))

    kinds = {"plain": plain, "decode": decode} | ({"guided": sampler.rehearse} if sampler.guides else {})
    return {name: need_of(work) for name, work in kinds.items()}


def weight_bytes(sampler: Sampler) -> int:
    """Return the bytes of the networks that sampling uses."""
    networks = [getattr(sampler.backbone, name) for name in sampler.networks]
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
