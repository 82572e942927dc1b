"""What this machine is and has: package versions, device, free and used memory."""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nd.errors import UserError

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
PACKAGES = (
    "numpy", "scipy", "h5py", "pillow", "torch", "torchvision", "pytorch-lightning", "lightning",
    "diffusers", "transformers", "open_clip_torch", "timm", "safetensors", "scikit-image", "hydra-core", "omegaconf",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the installed versions of the packages whose arithmetic can change a result, by name."""
    found = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version}


@cache  # read from files of the installation, for every run folder of a table
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def device() -> dict[str, Any]:
    """Return the machine's name and cores and, when torch is in use, the accelerator it sees."""
    torch = sys.modules.get("torch")
    name = "cpu"
    if torch is not None and torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
    return {"name": name, "machine": platform.machine(), "cpu_count": os.cpu_count(), "host": socket.gethostname()}


def pick_device(accelerator: str) -> torch.device:
    """Return the device that ``trainer.accelerator`` means on this machine.

    Raises:
        UserError: a GPU was asked for that PyTorch does not see.
    """
    import torch

    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        if not torch.backends.mps.is_available():
            raise UserError(
                "trainer.accelerator=mps, but this machine has no Metal device. Use trainer.accelerator=auto."
            )
        return torch.device("mps")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu, but PyTorch sees no GPU here. Use trainer.accelerator=auto or cpu.")
    return torch.device("cuda" if accelerator in ("auto", "gpu") and torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be had on a device, caches that would be given up included.

    Args:
        device: a GPU, or any other for the memory of the machine, which its processes share.

    Returns:
        Bytes; None where the system does not tell.
    """
    if device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if not MEMINFO.exists():
        return None
    lines = MEMINFO.read_text(encoding="utf-8").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def peak_memory_mb() -> dict[str, float]:
    """Return the largest resident set of this process so far and, where CUDA is used, its largest allocation, in MB."""
    unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss counts bytes on macOS, kilobytes elsewhere
    peak = {"resident": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["cuda"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return peak
