"""The target group: what mappers learn to predict, in the variants that published code uses."""

from __future__ import annotations

from dataclasses import dataclass

from nd.config.fields import opt

# Everything that can be decoded; what each is stands in nd/targets/registry.py.
TARGETS = ("z", "c", "g", "pixels", "clip_vision", "clip_text", "clip_image", "vdvae", "z40", "edge", "colour")
ALL = "all"  # extract: every target of the method, in one pass over the stimuli


@dataclass(kw_only=True)
class TargetConfig:
    """One target: the features a mapper learns to predict."""

    name: str = opt("z", "target; extract: 'all' for every target of the method", choices=(*TARGETS, ALL))
    picture: str = opt(
        "direct",
        "z: how an image comes to the backbone's size: bilinear with antialiasing; PIL's Lanczos; or by way of 224 px"
        " in half precision",
        choices=("direct", "lanczos", "via224"),
    )
    posterior: str = opt(
        "mode",
        "z, z40, vdvae: mean of the encoder's posterior, or a sample that is a function of the image id",
        choices=("mode", "sample"),
    )
    max_captions: int = opt(5, "c, clip_text: captions averaged per image; 0: all")
    tokens: int = opt(0, "c: tokens to which a caption is padded and cut; 0: the text encoder's full length")
    layers: list[int] = opt([0, 1, 2, 3, 4, 5], "g: image-tower blocks whose MLP-branch output is taken")
    vdvae_layers: int = opt(31, "vdvae: decoder layers whose latents are taken, from the coarsest on")
    clip: str = opt(
        "openai/clip-vit-large-patch14",
        "clip_vision, clip_text, clip_image: CLIP model in transformers' layout, hub id or local folder",
        identity=False,
    )
    vdvae: str = opt(
        "", "vdvae: imagenet64-iter-1600000-model-ema.th, or the same tensors as safetensors", identity=False, path=True
    )
    dtype: str = opt("float32", "storage type", choices=("float16", "float32"))
    precision: str = opt(
        "float32", "arithmetic of the networks while extracting", choices=("float32", "bfloat16", "float16")
    )
