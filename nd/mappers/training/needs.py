"""What a training needs of memory: warned of before it begins, and said where it runs out after all."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from nd.config import Config, NetworkConfig
from nd.errors import UserError
from nd.launch import n_local, n_processes
from nd.machine import free_bytes, pick_device
from nd.mappers.network.parts import Part
from nd.mappers.network.size import largest_levers, training_bytes

log = logging.getLogger(__name__)

# What PyTorch, its allocators and NumPy say; also where another process's traceback ends with it.
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "Unable to allocate")


@contextmanager
def within_memory(
    network: NetworkConfig,
    parts: Sequence[Part],
    n_voxels: Mapping[str, int],
    batch_size: int,
    cfg: Config,
    aux_width: int = 0,
) -> Iterator[None]:
    """Warn where less memory is free than training is estimated to take; it may be less in truth.

    Args: as of ``Network``; batch_size: samples of a step over all processes. Running out of memory in the body is a
    UserError with the estimate, and the settings that lower it.
    """
    device, training = pick_device(cfg.trainer.accelerator), cfg.training
    how: dict[str, Any] = {"variant": cfg.mapper.variant, "aux_width": aux_width}
    how |= {"ema": training.ema > 0, "precision": training.precision}
    n_samples = math.ceil(batch_size / n_processes(cfg.trainer))
    wanted = training_bytes(network, parts, n_voxels, n_samples, **how).total
    # Processes have a GPU each, but share the memory of the machine.
    wanted *= 1 if device.type == "cuda" else n_local(cfg.trainer)
    free = free_bytes(device) if device.type in ("cpu", "cuda") else None
    advice = lambda: largest_levers(network, parts, n_voxels, n_samples, **how)  # noqa: E731
    if free is not None and wanted > free:
        log.warning("%s has %.2f GB free, less than training may take. %s", device, free / 1e9, advice())
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        raise UserError(f"there is not enough memory for this training. {advice()}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error, perhaps another process's, says that there is no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)
