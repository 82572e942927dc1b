"""The targets that nd has, in the variants that published code uses: their fields, rules, and how they are built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nd.config.components import Target, component
from nd.config.fields import opt
from nd.config.rules import at_least
from nd.config.schema import TargetConfig

if TYPE_CHECKING:
    from nd.backbone.loading import Backbone
    from nd.config.schema import Config
    from nd.targets.base import Extractor

TOWER_BLOCKS = 12  # blocks of the image towers in use (ViT-B/32 and the shipped ones)
POSTERIORS = ("mode", "sample")
POSTERIOR = "mean of the encoder's posterior, or a sample that is a function of the image id"
CAPTIONS = "captions averaged per image; 0: all"
CLIP = "CLIP model: hub id, folder in transformers' layout, or a backbone's, whose image tower is read as one"


@dataclass(kw_only=True)
class LatentTarget(TargetConfig):
    """z: the VAE latent, from which the sampler starts."""

    name: str = opt("z", "target")
    picture: str = opt(
        "direct",
        "z: how an image comes to the backbone's size: bilinear with antialiasing; PIL's Lanczos; or by way of 224 px"
        " in half precision",
        choices=("direct", "lanczos", "via224"),
    )
    posterior: str = opt("mode", f"z, z40, vdvae: {POSTERIOR}", choices=POSTERIORS)


@dataclass(kw_only=True)
class SmallLatentTarget(TargetConfig):
    """z40: the VAE latent of the image at 320 px (Takagi & Nishimoto)."""

    name: str = opt("z40", "target")
    posterior: str = opt("mode", f"z, z40, vdvae: {POSTERIOR}", choices=POSTERIORS)


@dataclass(kw_only=True)
class TextTarget(TargetConfig):
    """c: what the UNet is conditioned on, averaged over the captions of an image."""

    name: str = opt("c", "target")
    max_captions: int = opt(5, f"c, clip_text: {CAPTIONS}")
    tokens: int = opt(0, "c: tokens to which a caption is padded and cut; 0: the text encoder's full length")


@dataclass(kw_only=True)
class TowerTarget(TargetConfig):
    """g: MLP-branch outputs of blocks of the image tower, which guide the sampler."""

    name: str = opt("g", "target")
    layers: list[int] = opt([0, 1, 2, 3, 4, 5], "g: image-tower blocks whose MLP-branch output is taken")
    direct: bool = opt(
        False,
        "g: bring images straight to the tower's size, as the released extraction does; false: to the backbone's size"
        " first, at which guidance meets decoded images",
    )


@dataclass(kw_only=True)
class ClipVisionTarget(TargetConfig):
    """clip_vision: all tokens of CLIP's vision model."""

    name: str = opt("clip_vision", "target")
    clip: str = opt("openai/clip-vit-large-patch14", f"clip_*: {CLIP}", identity=False, weights=True)


@dataclass(kw_only=True)
class ClipImageTarget(TargetConfig):
    """clip_image: CLIP's pooled, projected image embedding."""

    name: str = opt("clip_image", "target")
    clip: str = opt("openai/clip-vit-large-patch14", f"clip_*: {CLIP}", identity=False, weights=True)


@dataclass(kw_only=True)
class ClipTextTarget(TargetConfig):
    """clip_text: all tokens of CLIP's text model, averaged over the captions of an image."""

    name: str = opt("clip_text", "target")
    clip: str = opt("openai/clip-vit-large-patch14", f"clip_*: {CLIP}", identity=False, weights=True)
    max_captions: int = opt(5, f"c, clip_text: {CAPTIONS}")


@dataclass(kw_only=True)
class VdvaeTarget(TargetConfig):
    """vdvae: latents of the first layers of VDVAE (Brain-Diffuser)."""

    name: str = opt("vdvae", "target")
    posterior: str = opt("mode", f"z, z40, vdvae: {POSTERIOR}", choices=POSTERIORS)
    vdvae_layers: int = opt(31, "vdvae: decoder layers whose latents are taken, from the coarsest on")
    vdvae: str = opt(
        "",
        "vdvae: imagenet64-iter-1600000-model-ema.th, or safetensors of a VDVAE of any size",
        identity=False,
        path=True,
        weights=True,
    )


@dataclass(kw_only=True)
class PixelsTarget(TargetConfig):
    """pixels: the image itself, in [0, 1]."""

    name: str = opt("pixels", "target")


@dataclass(kw_only=True)
class EdgeTarget(TargetConfig):
    """edge: Sobel edge map at 64 px."""

    name: str = opt("edge", "target")


@dataclass(kw_only=True)
class ColourTarget(TargetConfig):
    """colour: mosaic of 8 x 8 mean colours."""

    name: str = opt("colour", "target")


@dataclass(kw_only=True)
class InstanceTarget(TargetConfig):
    """instance: one vector of length 1 for a whole image, which instance-conditioned GANs are given."""

    name: str = opt("instance", "target")
    network: str = opt(
        "tower",
        "instance: whose pooled features: the backbone's image tower, or SwAV's ResNet-50",
        choices=("tower", "swav"),
    )
    swav: str = opt(
        "", "instance: swav_800ep_pretrain.pth.tar, for network=swav", identity=False, path=True, weights=True
    )


def _z(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.vae_latent import VaeLatent

    return VaeLatent(backbone, settings.picture, settings.posterior)


def _z40(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.vae_latent import SmallLatent

    return SmallLatent(backbone, settings.posterior)


def _c(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.text_condition import TextCondition

    return TextCondition(backbone, settings.max_captions, settings.tokens)


def _g(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.tower_features import TowerFeatures, tower_pass

    return TowerFeatures(tower_pass(backbone, settings.layers, settings.direct))


def _clip_vision(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.clip_features import ClipVision, vision_pass

    return ClipVision(vision_pass(settings, backbone))


def _clip_image(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.clip_features import ClipImage, vision_pass

    return ClipImage(vision_pass(settings, backbone))


def _clip_text(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.clip_features import ClipText, clip_of

    return ClipText(clip_of(settings, backbone), settings.max_captions)


def _vdvae(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.vdvae import VdvaeLatents

    return VdvaeLatents(backbone, settings)


def _pixels(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.maps import Pixels

    return Pixels(cfg.data.image_size)


def _edge(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.maps import EdgeMap

    return EdgeMap()


def _colour(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.maps import ColourMosaic

    return ColourMosaic()


def _instance(settings: Any, cfg: Config, backbone: Any) -> Any:
    from nd.targets.instance import InstanceFeatures

    return InstanceFeatures(backbone, settings)


def layer_groups(settings: TowerTarget, shape: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """Return (label, first column, end column) of every layer: they differ in scale and in how well decoded."""
    width = math.prod(shape) // shape[0]
    return [(f"block {layer}", k * width, (k + 1) * width) for k, layer in enumerate(settings.layers)]


def _layer_rules(cfg: Config) -> Iterator[str]:
    layers = getattr(cfg.decoding("g").target, "layers", [0])
    if not layers or any(not 0 <= layer < TOWER_BLOCKS for layer in layers) or len(set(layers)) < len(layers):
        yield f"target.layers: {layers} must be different block numbers from 0 to {TOWER_BLOCKS - 1}."


def _text_rules(cfg: Config) -> Iterator[str]:
    yield from at_least(0, data=cfg.decoding("c").target, names=("max_captions", "tokens"), key="target")


def _clip_text_rules(cfg: Config) -> Iterator[str]:
    yield from at_least(0, data=cfg.decoding("clip_text").target, names=("max_captions",), key="target")


def _vdvae_rules(cfg: Config) -> Iterator[str]:
    yield from at_least(1, data=cfg.decoding("vdvae").target, names=("vdvae_layers",), key="target")


TEXT = ("text_encoder", "tokenizer")
COMPONENTS = (
    Target(name="z", settings=LatentTarget, parts=("vae",), axes="map", build=_z),
    Target(name="c", settings=TextTarget, parts=TEXT, rules=_text_rules, build=_c),
    Target(
        name="g",
        settings=TowerTarget,
        parts=("image_tower",),
        axes="layers",
        groups=layer_groups,
        rules=_layer_rules,
        build=_g,
    ),
    Target(name="pixels", settings=PixelsTarget, axes="none", build=_pixels),
    Target(name="clip_vision", settings=ClipVisionTarget, build=_clip_vision),
    Target(name="clip_text", settings=ClipTextTarget, rules=_clip_text_rules, build=_clip_text),
    Target(name="clip_image", settings=ClipImageTarget, build=_clip_image),
    Target(name="vdvae", settings=VdvaeTarget, rules=_vdvae_rules, build=_vdvae),
    Target(name="z40", settings=SmallLatentTarget, parts=("vae",), axes="map", build=_z40),
    Target(name="instance", settings=InstanceTarget, parts=("image_tower",), build=_instance),
    Target(name="edge", settings=EdgeTarget, build=_edge),
    Target(name="colour", settings=ColourTarget, axes="none", build=_colour),
)


def build_extractor(name: str, cfg: Config, backbone: Backbone) -> Extractor:
    """Return the extractor of a target with its settings in this configuration; loads nothing yet.

    Networks and passes that several targets use are kept by the backbone (`Backbone.shared`), so that `Items.once` runs
    a pass once for each batch.

    Args:
        name: of the target.
        cfg: whose settings of that target count.
        backbone: that its networks are parts of.

    Raises:
        UserError: there is no target of that name.
    """
    extractor: Extractor = component("target", name).build(cfg.decoding(name).target, cfg, backbone)
    return extractor


def column_groups(settings: TargetConfig, shape: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """Return the parts of a flattened target that are decoded with settings of their own: (label, first, end column).

    Layers of g differ in scale and in how well they can be decoded; most targets are one part.
    """
    groups = component("target", settings.name).groups
    return groups(settings, shape) if groups else [(settings.name, 0, math.prod(shape))]
