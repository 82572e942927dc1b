"""What training takes of memory: estimated before any of it is made, warned of, and said where it runs out.

The network is built on torch's meta device and run forward there: tensors have shapes and no values, so that what
autograd would keep is counted and not modelled.

Shapes: B samples of a step in one process, M members of a contrastive set, D numbers of a member.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from nd.config import Config, NetworkConfig
from nd.errors import UserError, is_out_of_memory
from nd.launch import n_local, n_processes
from nd.machine import free_bytes, pick_device
from nd.mappers.network.draws import Draws
from nd.mappers.network.heads import HeadOutput, TargetSlice
from nd.mappers.network.network import Network
from nd.mappers.network.prior import DiffusionPrior
from nd.mappers.network.trunk import Front
from nd.mappers.training.losses import BLOCK_NUMBERS

STATE_BYTES = 16  # of a parameter: weight, gradient and both moments of Adam in float32
EMA_BYTES = 4
# Autocast keeps most activations in 2 bytes, but norms, softmax and losses in 4, and a copy of every weight in 2. On
# small networks .33 (trunks) to .63 (priors) of the bytes in float32 were counted.
MIXED_SHARE, MIXED_WEIGHT_BYTES = 0.65, 2
SHARES = ("part", "target", "all")
NOTEWORTHY = 0.02  # share of the memory that a setting must save to be named
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """What training takes in one process.

    Attributes:
        parameters: of the network.
        states: bytes of weights, gradients and optimiser.
        activations: bytes kept for the gradient of a step, an upper estimate.
    """

    parameters: int
    states: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes; the framework's own share (about 0.5 GB on a GPU) comes on top."""
        return self.states + self.activations


def training_bytes(
    config: NetworkConfig,
    slices: Sequence[TargetSlice],
    front: Front | Mapping[str, int],
    batch_size: int,
    *,
    variant: str = "nd",
    aux_width: int = 0,
    ema: bool = False,
    precision: str = "32-true",
) -> Estimate:
    """Return what training takes in one process whose steps have `batch_size` samples over all subjects.

    Args:
        config, slices, front, variant, aux_width: as of `Network`.
        ema: whether a running mean of the weights is kept.
        precision: as ``TrainingConfig``.
    """
    given = (config, tuple(slices), front, batch_size, variant, aux_width)
    try:
        n_parameters, activations = _counted_once(pickle.dumps(given))
    except (pickle.PicklingError, AttributeError, TypeError):  # a front from outside need not go through pickle
        n_parameters, activations = _counted(*given)
    states = n_parameters * (STATE_BYTES + EMA_BYTES * ema)
    if precision.endswith("mixed"):
        activations = int(MIXED_SHARE * activations) + MIXED_WEIGHT_BYTES * n_parameters
    wide = 2 if precision == "64-true" else 1
    return Estimate(n_parameters, wide * states, wide * activations)


@lru_cache(maxsize=64)
def _counted_once(given: bytes) -> tuple[int, int]:
    """Count for folds, rows and jobs whose pickled settings and sizes are equal."""
    return _counted(*pickle.loads(given))


def _counted(
    config: NetworkConfig,
    slices: Sequence[TargetSlice],
    front: Front | Mapping[str, int],
    batch_size: int,
    variant: str,
    aux_width: int,
) -> tuple[int, int]:
    """Return how many parameters there are, and how many bytes autograd keeps; arguments as of `training_bytes`."""
    with torch.device("meta"):
        network = Network(config, slices, front, variant, aux_width)
    return sum(weights.numel() for weights in network.parameters()), activation_bytes(network, batch_size)


def activation_bytes(network: Network, batch_size: int) -> int:
    """Return how many bytes autograd keeps in float32 for the gradient of a step, of a network on the meta device.

    Heads for parts of the same shape keep as much as each other, so one of them is run.
    """
    n_voxels = network.front.n_voxels
    each, more = divmod(batch_size, max(1, len(n_voxels)))
    alike: dict[tuple[int, ...], list[TargetSlice]] = {}
    for part in network.slices:
        alike.setdefault(part.shape, []).append(part)
    with torch.device("meta"), saved_storages(network) as sizes:
        draws = Shapes(batch_size)
        voxels = {name: torch.empty(each + (k < more), n) for k, (name, n) in enumerate(n_voxels.items())}
        hidden = {name: trunk(voxels, draws) for name, trunk in network.trunks.items()}
        for shared in hidden.values():  # kept by every head that reads it, once
            sizes[shared.untyped_storage()._cdata] = shared.untyped_storage().nbytes()
        total = sum(sizes.values())
        for first, *others in alike.values():
            before = sum(sizes.values())
            output = network.head(first)(hidden[network.trunk_of[first.name]], draws)
            stand_in_loss(network, first.name, output, draws)
            total += (sum(sizes.values()) - before) * (1 + len(others))
    return total


def largest_levers(
    config: NetworkConfig,
    slices: Sequence[TargetSlice],
    front: Front | Mapping[str, int],
    batch_size: int,
    **how: Any,
) -> str:
    """Return a sentence on what training takes, and one on which settings would lower it, the largest saving first.

    Args: as of `training_bytes`, `how` its keyword arguments.
    """
    now = training_bytes(config, slices, front, batch_size, **how)
    text = (
        f"Training takes about {_gb(now.total)}: {_gb(now.states)} for {now.parameters / 1e6:,.0f} million parameters"
        f" with gradients and optimiser, {_gb(now.activations)} for the activations of {batch_size} samples."
    )
    totals = {
        setting: training_bytes(changed, slices, front, size, **{**how, **more}).total
        for setting, changed, size, more in _levers(config, slices, batch_size, how)
    }
    named = sorted((total, setting) for setting, total in totals.items() if total < (1 - NOTEWORTHY) * now.total)
    offers = ", ".join(f"{_gb(total)} with {setting}" for total, setting in named)
    return f"{text} It would take {offers}." if named else text


def _levers(
    config: NetworkConfig, slices: Sequence[TargetSlice], batch_size: int, how: Mapping[str, Any]
) -> Iterator[tuple[str, NetworkConfig, int, dict[str, Any]]]:
    """Settings that may save memory: what to write, the network, the batch size and what else changes."""
    alone = len({part.target for part in slices}) == 1  # then share=all would bring the other targets' heads along
    for share in SHARES[SHARES.index(config.share) + 1 : -1 if alone else None]:
        yield f"network.share={share}", replace(config, share=share), batch_size, {}
    if (hidden := config.hidden // 2) > 0:
        yield f"network.hidden={hidden}", replace(config, hidden=hidden), batch_size, {}
    if (half := batch_size // 2) > 0:
        yield f"training.batch_size={half}", config, half, {}
    if config.prior and (depth := config.prior_depth // 2) > 0 and not all(part.is_map for part in slices):
        yield f"network.prior_depth={depth}", replace(config, prior_depth=depth), batch_size, {}
    if not how.get("precision", "32-true").endswith("mixed"):
        yield "training.precision=bf16-mixed", config, batch_size, {"precision": "bf16-mixed"}


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


class Shapes(Draws):
    """Draws that have a shape and no values."""

    def __init__(self, n_rows: int) -> None:
        super().__init__(0, 0, 0, torch.arange(n_rows, device="meta"), n_rows)

    def part(self, rows: slice) -> Shapes:
        """Return those for some of the rows."""
        return Shapes(len(range(self.n_rows)[rows]))

    def uniform(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """Return (B, *shape) float32."""
        return torch.empty(self.n_rows, *shape, device="meta")

    normal = uniform

    def integers(self, name: str, high: int) -> Tensor:
        """Return (B,) int64."""
        return torch.empty(self.n_rows, dtype=torch.int64, device="meta")


def stand_in_loss(network: Network, name: str, output: HeadOutput, draws: Draws) -> Tensor:
    """Return a loss that keeps what the losses of a slice keep: squared error, the prior's, and one contrast."""
    predicted, prior = output.predicted, network.heads[name].prior
    goal = torch.empty_like(predicted, requires_grad=False)
    loss = (predicted - goal).square().mean()
    if isinstance(prior, DiffusionPrior):
        loss = loss + prior.error(predicted, goal, draws).mean()
    if output.projected is not None:
        # Of tokens a sample's are one member of the contrastive set, of a map every place is one.
        rows_MD = output.projected.flatten(0, 1) if goal.ndim == 4 else output.projected.flatten(1)
        loss = loss + stand_in_contrast(rows_MD)
    return loss


def stand_in_contrast(rows_MD: Tensor) -> Tensor:
    """Return a loss that keeps what a contrastive one does: both directions, of one block of a large set."""
    n_rows = max(1, BLOCK_NUMBERS // max(1, len(rows_MD)))
    student_MD, teacher_MD = normalize(rows_MD, dim=-1), torch.empty_like(rows_MD, requires_grad=False)
    forward = log_softmax(student_MD[:n_rows] @ teacher_MD.T, 1)
    loss = (forward * torch.empty_like(forward, requires_grad=False)).sum()
    if n_rows >= len(rows_MD):
        backward = log_softmax(teacher_MD @ student_MD.T, 1)
        loss = loss + (backward * torch.empty_like(backward, requires_grad=False)).sum()
    return loss


@contextmanager
def saved_storages(network: Network) -> Iterator[dict[int, int]]:
    """Count the bytes of every storage but the parameters' that autograd keeps in the block, by its address."""
    own = {weights.untyped_storage()._cdata for weights in network.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # an address is given to a new tensor once nothing holds the old one

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            alive.append(storage)
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


@contextmanager
def within_memory(
    network: NetworkConfig,
    slices: Sequence[TargetSlice],
    front: Front,
    batch_size: int,
    cfg: Config,
    aux_width: int = 0,
) -> Iterator[None]:
    """Warn where less memory is free than training is estimated to take; it may be less in truth.

    Args:
        network, slices, front, aux_width: as of `Network`.
        batch_size: samples of a step over all processes.

    Raises:
        UserError: memory runs out in the body; with the estimate, and the settings that lower it.
    """
    device, training = pick_device(cfg.trainer.accelerator), cfg.training
    how: dict[str, Any] = {"variant": cfg.mapper.variant, "aux_width": aux_width}
    how |= {"ema": training.ema > 0, "precision": training.precision}
    n_samples = math.ceil(batch_size / n_processes(cfg.trainer))
    wanted = training_bytes(network, slices, front, n_samples, **how).total
    # Processes have a GPU each, but share the memory of the machine.
    wanted *= 1 if device.type == "cuda" else n_local(cfg.trainer)
    free = free_bytes(device) if device.type in ("cpu", "cuda") else None
    advice = lambda: largest_levers(network, slices, front, n_samples, **how)  # noqa: E731
    if free is not None and wanted > free:
        log.warning("%s has %.2f GB free, less than training may take. %s", device, free / 1e9, advice())
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        raise UserError(f"there is not enough memory for this training. {advice()}") from error
