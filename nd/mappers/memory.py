"""Whether a computation fits the memory there is, asked before it begins."""

from __future__ import annotations

import torch

from nd.errors import UserError
from nd.machine import free_bytes


def check_memory(wanted: float, device: torch.device, advice: str) -> None:
    """`UserError` where `wanted` bytes are more than the device has left; `advice` says what takes them and to do."""
    free = free_bytes(device)
    if free is not None and wanted > free:
        raise UserError(f"about {wanted / 1e9:.1f} GB are needed on {device}, {free / 1e9:.1f} GB are free: {advice}.")
