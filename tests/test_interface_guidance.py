"""Guidance of a foreign pipeline against the engine, on tiny random models."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from helpers_backbone import tiny_backbone
from torch import Tensor

import nd
from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config, GuidanceConfig, MethodConfig, TargetConfig
from nd.generate.sampler import GuidedSampler

LAYERS = [0, 2, 5]
WEIGHTS = [1.5, 1.0, 0.5]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def tower(backbone: Backbone) -> Any:
    """The same weights as somebody would open them."""
    return open_clip.create_model(f"local-dir:{backbone.config.image_tower}").eval()


@pytest.fixture
def pipeline(backbone: Backbone) -> Any:
    return opened(StableDiffusionImg2ImgPipeline, backbone)


def opened(kind: Any, backbone: Backbone) -> Any:
    pipe = kind.from_pretrained(
        backbone.config.weights, safety_checker=None, feature_extractor=None, **modules(backbone)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modules(backbone: Backbone) -> dict[str, Any]:
    names = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
    return {name: getattr(backbone, name) for name in names}


def engine(backbone: Backbone, tower: Any, inputs: dict[str, Tensor], cfg_scale: float, **guidance: Any) -> Tensor:
    """What the project's own sampler makes of the same inputs, (B, 3, H, W)."""
    how = open_clip.model.get_model_preprocess_cfg(tower)
    config = Config(
        method=MethodConfig(steps=8, strength=0.75, cfg_scale=cfg_scale, repeats=1),
        guidance=GuidanceConfig(layer_weights=WEIGHTS, **guidance),
        target=TargetConfig(layers=LAYERS),
        backbone=backbone.config,
    )
    backbone.config.tower_mean, backbone.config.tower_std = list(how["mean"]), list(how["std"])
    backbone.config.tower_filter = how["interpolation"]
    sampler = GuidedSampler(backbone, config)
    (one,) = sampler.sample(inputs["z"], inputs["c"], inputs["g"], inputs["noise"][:, None])
    return one.pictures[:, 0]


def drawn(n: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    shapes = {"z": (4, 4, 4), "c": (8, 16), "g": (3, 17, 16)}
    inputs = {name: torch.randn(n, *shape, generator=random) for name, shape in shapes.items()}
    inputs["g"] *= 0.1
    inputs["noise"] = torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    return inputs


def called(pipeline: Any, inputs: dict[str, Tensor], cfg_scale: float) -> Tensor:
    images = pipeline(
        prompt_embeds=inputs["c"],
        negative_prompt_embeds=pipeline.encode_prompt("", "cpu", 1, False)[0].expand(len(inputs["c"]), -1, -1),
        image=inputs["z"],
        strength=0.75,
        num_inference_steps=8,
        guidance_scale=cfg_scale,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    return images


CASES = [
    {"kappa": 0.5, "eta": 0.5, "normalise": True},
    {"kappa": 3e3, "eta": 1.0, "normalise": False},
    {"kappa": 0.5, "eta": 1.0, "normalise": True, "through_unet": False, "schedule": "falling"},
    {"kappa": 0.5, "eta": 0.5, "normalise": True, "decoder": "half"},
]


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
@pytest.mark.parametrize("guidance", CASES, ids=str)
def test_a_pipeline_under_guidance_gives_the_images_of_the_engine(
    backbone: Backbone, pipeline: Any, tower: Any, guidance: dict[str, Any], cfg_scale: float
) -> None:
    inputs = drawn(2)
    expected = engine(backbone, tower, inputs, cfg_scale, **guidance)
    with nd.guide_pipeline(pipeline, tower, inputs["g"], layers=LAYERS, layer_weights=WEIGHTS, **guidance):
        found = called(pipeline, inputs, cfg_scale)
    plain = called(pipeline, inputs, cfg_scale)
    print("dist", (found - expected).abs().max(), (plain - expected).abs().max())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (plain - expected).abs().max() > 1e-2
