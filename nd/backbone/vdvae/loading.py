"""Read published weights into the network: every tensor in its place, or one clear message."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nd.backbone.loading import DTYPES, Backbone
from nd.backbone.vdvae.model import Vdvae
from nd.backbone.vdvae.shape import FILE, IMAGENET64, SIZE, URL, VdvaeShape
from nd.backbone.weights import hash_file
from nd.errors import UserError
from nd.files import located

FIELD = "target.vdvae"
PREFIX = "module."  # what PyTorch's wrapper for several devices puts before every name
N_NAMED = 3  # tensors that a message names
SHAPE = "vdvae_shape"  # where a safetensors file says the sizes of a network other than the published one


def save_vdvae(path: Path, model: Vdvae) -> None:
    """Write a network's weights and sizes as safetensors in half precision."""
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, path, metadata={SHAPE: json.dumps(asdict(model.shape))})


def shape_of(path: str | Path) -> VdvaeShape:
    """Return the sizes of the network in a file: those it says, else the published ones."""
    file = located(path)
    if file.suffix != ".safetensors" or not file.is_file():
        return IMAGENET64
    try:
        with safe_open(file, framework="pt") as opened:
            said = (opened.metadata() or {}).get(SHAPE)
        return VdvaeShape(**json.loads(said)) if said else IMAGENET64
    except Exception:  # what is damaged is told when the tensors are read
        return IMAGENET64


def load_vdvae(
    path: str | Path,
    shape: VdvaeShape | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Vdvae:
    """The network with the weights of a file, frozen and in eval mode; gradients still flow through to its inputs.

    Args:
        path: OpenAI's `.th` file (a state dict, opened without running code), or the same tensors as safetensors.
        shape: the sizes that the weights must have; by default those that the file says.
        device: where the network goes.
        dtype: its arithmetic.

    Raises:
        UserError: no such file, not readable without running code, or tensors missing, in excess or misshapen.
    """
    file = find_vdvae(path)
    shape, state = shape or shape_of(file), _without_prefix(_read(file))
    with torch.inference_mode(False):  # weights made inside inference mode could never take part in a gradient
        with torch.device("meta"):
            model = Vdvae(shape)
        _check(file, state, model)
        model.load_state_dict(state, strict=True, assign=True)
        return model.to(device, dtype).requires_grad_(False).eval()


def vdvae_of(backbone: Backbone, path: str, precision: str, shape: VdvaeShape | None = None) -> Vdvae:
    """The network of `load_vdvae` on a backbone's device, loaded once for all who ask this backbone for it.

    precision: 'float32', 'bfloat16' or 'float16'.
    """
    shape = shape or shape_of(path)
    key = ("vdvae", path, precision, shape)
    return backbone.shared(key, lambda: load_vdvae(path, shape, backbone.device, DTYPES[precision]))


def find_vdvae(path: str | Path) -> Path:
    """The file with the weights; where there is none, a UserError that says where it comes from."""
    file = located(path)
    if str(path) and file.is_file():
        return file
    arrived = f"{FIELD}={path}: no such file." if str(path) else f"{FIELD} is not set."
    raise UserError(f"{arrived} Needed for target vdvae, the latents of OpenAI's very deep VAE. {_remedy()}")


def vdvae_hash(path: str | Path) -> str:
    """12 hexadecimal digits of the file's bytes; loads nothing."""
    return hash_file(find_vdvae(path))


def _remedy() -> str:
    return f"Download {URL} ({SIZE}) and give its path: {FIELD}=/path/to/{FILE}."


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU."""
    try:
        with torch.inference_mode(False):
            found: Any = (
                load_file(file)
                if file.suffix == ".safetensors"
                else torch.load(file, map_location="cpu", weights_only=True)
            )
    except Exception as error:  # pickle, zip, OS and plain errors of two libraries, which differ by version
        # The first sentence only: PyTorch goes on to say how to run the code after all.
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise UserError(
            f"{FIELD}={file} cannot be read as tensors alone ({reason}). Files that would run code when opened are "
            f"refused. {_remedy()}"
        ) from error
    if not isinstance(found, dict) or not all(_is_weight(*item) for item in found.items()):
        raise UserError(f"{FIELD}={file} holds no plain table of floating-point tensors by name. {_remedy()}")
    return found


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point()


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    wrapped = all(name.startswith(PREFIX) for name in state)
    return {name.removeprefix(PREFIX): value for name, value in state.items()} if wrapped else state


def _check(file: Path, state: dict[str, Tensor], model: Vdvae) -> None:
    """Refuse tensors that are not exactly those of the network."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = [f"{n} {found[n]} instead of {wanted[n]}" for n in wanted if n in found and found[n] != wanted[n]]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "not expected": [name for name in found if name not in wanted],
        "of another shape": wrong,
    }
    told = [f"{len(names)} {what} ({_first(names)})" for what, names in problems.items() if names]
    if told:
        n_numbers = sum(value.numel() for value in model.state_dict().values())
        raise UserError(
            f"{FIELD}={file} does not fit: {'; '.join(told)}. Expected are {len(wanted)} tensors of {n_numbers:,} "
            f"numbers. {_remedy()}"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
