"""Open an open_clip model from a local folder, from the package, or by model name and pretrained tag."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nd.backbone.weights import PACKAGE, fetch, hash_folder, shipped_folder
from nd.errors import UserError, unknown
from nd.files import located

FIELD = "backbone.image_tower"
CONFIG_FILE = "open_clip_config.json"
HUB_FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"]


def load_clip(spec: str) -> Any:
    """The open_clip model that `backbone.image_tower` names, on the CPU in float32.

    Args:
        spec: a folder with open_clip_config.json and safetensors, 'package://<folder>', or '<model>:<pretrained tag>'.

    Raises:
        UserError: nothing there, unknown names, or weights that do not fit the configuration.
    """
    folder = _folder(spec)
    if folder is not None:
        _weights_in(folder)
        return _create(spec, f"local-dir:{folder}")
    model, tag = _split(spec)
    settings = _tag_settings(model, tag)
    # The weights fix the activation: OpenAI's in an exact-GELU model run silently and change every feature.
    return _create(spec, model, pretrained=str(_tag_file(spec)), force_quick_gelu=bool(settings.get("quick_gelu")))


def tower_folder(spec: str) -> Path:
    """Where the tower's files lie, fetched first where need be."""
    return _folder(spec) or _tag_file(spec).parent


def tower_hash(spec: str) -> str:
    """12 hexadecimal digits of the tower's files."""
    return hash_folder(tower_folder(spec))


def _folder(spec: str) -> Path | None:
    """The folder that `spec` means, or None for a model name and tag."""
    if spec.startswith(PACKAGE):
        return shipped_folder(spec, FIELD)
    local = located(spec)
    if local.is_dir():
        return local
    if ":" in spec and "/" not in spec:
        return None
    raise UserError(
        f"{FIELD}={spec}: no such folder. Give a folder with {CONFIG_FILE} and open_clip_model.safetensors, "
        "or '<model>:<pretrained tag>' such as ViT-B-32-quickgelu:openai."
    )


def _weights_in(folder: Path) -> Path:
    """The safetensors file of an open_clip folder."""
    found = [folder / name for name in (*HUB_FILES, "model.safetensors") if (folder / name).is_file()]
    if not (folder / CONFIG_FILE).is_file() or not found:
        raise UserError(f"{FIELD}: {folder} must hold {CONFIG_FILE} and {HUB_FILES[0]}; only safetensors are read.")
    return found[0]


def _split(spec: str) -> tuple[str, str]:
    import open_clip  # takes seconds; hashing a local folder does without
    from open_clip.pretrained import list_pretrained_tags_by_model

    model, _, tag = spec.partition(":")
    if model not in open_clip.list_models():
        raise unknown(f"open_clip model ({FIELD})", model, [m for m in open_clip.list_models() if m.startswith("ViT")])
    tags = list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise unknown(f"pretrained tag of {model} ({FIELD})", tag, tags)
    return model, tag


def _tag_settings(model: str, tag: str) -> dict[str, Any]:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    settings = get_pretrained_cfg(model, tag)
    config = open_clip.get_model_config(model) or {}
    if config.get("quick_gelu", False) and not settings.get("quick_gelu", False):
        raise UserError(
            f"{FIELD}={model}:{tag}: these weights were trained with exact GELU, but {model} computes QuickGELU. "
            f"Use {model.removesuffix('-quickgelu')}:{tag}."
        )
    return settings


def _tag_file(spec: str) -> Path:
    """The safetensors of a pretrained tag, in the hub's cache."""
    model, tag = _split(spec)
    hub_id = str(_tag_settings(model, tag).get("hf_hub", "")).rpartition("/")[0]
    remedy = (
        f"Needed for {FIELD}={spec}: {HUB_FILES[0]} and {CONFIG_FILE} of https://huggingface.co/{hub_id} "
        "(0.6 GB for ViT-B/32; OpenAI's CLIP is MIT-licensed). Without a network, download both elsewhere and give "
        f"their folder: {FIELD}=/path/to/folder."
    )
    if not hub_id:
        raise UserError(f"{FIELD}={spec} is not published as safetensors on the hub. Choose another tag, or a folder.")
    folder = fetch(hub_id, [*HUB_FILES, CONFIG_FILE], remedy)
    found = [folder / name for name in HUB_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} holds no safetensors. {remedy}")
    return found[0]


def _create(spec: str, name: str, **options: Any) -> Any:
    import open_clip

    try:
        with _quiet():
            return open_clip.create_model(name, require_pretrained=True, **options)
    except Exception as error:  # open_clip and safetensors raise their own, OS, JSON and plain errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{FIELD}={spec}: open_clip cannot load it ({reason}). Is the folder whole?") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's progress, which it logs as the root logger's own, out of the user's terminal."""
    root, only_warnings = logging.getLogger(), lambda record: record.levelno >= logging.WARNING
    root.addFilter(only_warnings)
    try:
        yield
    finally:
        root.removeFilter(only_warnings)
