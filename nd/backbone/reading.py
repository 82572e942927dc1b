"""Open the files of a network's folder: damaged ones, and those that lack weights, end in one clear message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nd.errors import UserError


@contextmanager
def reading(what: str, folder: Path) -> Iterator[None]:
    """Turn whatever a library raises on damaged or unfitting files into one message that names them."""
    try:
        yield
    except Exception as error:  # the libraries raise their own, OS, JSON and plain errors, which differ by version
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read {what} from {folder}: {reason} Fetch or write it again.") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back transformers' report on reading, which lists weights of a file that are not wanted."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@torch.inference_mode(False)  # weights made inside inference mode could never take part in a gradient
def read_module(kind: Any, what: str, folder: Path, device: torch.device, **options: Any) -> Any:
    """A frozen module of a library with the safetensors of a folder.

    Args:
        kind: a class of diffusers or transformers.
        what: the module's name in messages.
        folder: holds its configuration and weights.
        device: where it goes.
        options: further arguments of `from_pretrained`.

    Raises:
        UserError: the files are damaged or lack weights; the libraries fill those with random numbers and go on.
    """
    with reading(what, folder):
        options |= {"use_safetensors": True, "local_files_only": True}
        module, report = kind.from_pretrained(folder, output_loading_info=True, **options)
        if report["missing_keys"]:
            raise ValueError(f"the weights lack {', '.join(sorted(report['missing_keys']))}.")
    return freeze(module, device)


def freeze(module: nn.Module, device: torch.device) -> Any:
    """The module on a device, in eval mode, its weights without gradients."""
    return module.to(device).requires_grad_(False).eval()
