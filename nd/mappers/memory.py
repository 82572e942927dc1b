"""Whether a computation fits the memory there is, asked before it begins."""

from __future__ import annotations

from pathlib import Path

import torch

from nd.errors import UserError

MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if not MEMINFO.exists():
        return None
    lines = MEMINFO.read_text(encoding="utf-8").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def check_memory(wanted: float, device: torch.device, advice: str) -> None:
    """`UserError` where `wanted` bytes are more than the device has left; `advice` says what takes them and to do."""
    free = free_bytes(device)
    if free is not None and wanted > free:
        raise UserError(f"about {wanted / 1e9:.1f} GB are needed on {device}, {free / 1e9:.1f} GB are free: {advice}.")
