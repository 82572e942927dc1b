"""Guidance of a foreign pipeline against the engine, on tiny random models."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from helpers_backbone import tiny_backbone
from helpers_config import method_settings, target_settings
from torch import Tensor

import nd
from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config, GuidanceConfig
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
        method=method_settings(steps=8, strength=0.75, cfg_scale=cfg_scale, repeats=1),
        guidance=GuidanceConfig(layer_weights=WEIGHTS, **guidance),
        target=target_settings("g", layers=LAYERS),
        backbone=backbone.config,
    )
    backbone.config.tower_mean, backbone.config.tower_std = list(how["mean"]), list(how["std"])
    backbone.config.tower_filter = how["interpolation"]
    sampler = GuidedSampler(backbone, config)
    (one,) = sampler.sample(inputs["z"], inputs["c"], inputs["g"], inputs["noise"][:, None])
    return one.images[:, 0]


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
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (plain - expected).abs().max() > 1e-2


def test_repeats_of_an_image_share_its_features(pipeline: Any, tower: Any) -> None:
    """Two images, two samples each, against each image alone under the same noise."""
    inputs = drawn(2)
    four = {name: values.repeat_interleave(2, 0) for name, values in inputs.items()}
    four["noise"] = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    with nd.guide_pipeline(pipeline, tower, inputs["g"], layers=LAYERS, kappa=0.5, eta=1.0):
        together = called(pipeline, four, 3.0)
    with nd.guide_pipeline(pipeline, tower, four["g"], layers=LAYERS, kappa=0.5, eta=1.0):
        torch.testing.assert_close(called(pipeline, four, 3.0), together, atol=1e-6, rtol=0)
    with nd.guide_pipeline(pipeline, tower, inputs["g"].flip(0), layers=LAYERS, kappa=0.5, eta=1.0):
        assert (called(pipeline, four, 3.0) - together).abs().max() > 1e-2


def test_without_strength_or_steps_a_pipeline_is_as_it_was(pipeline: Any, tower: Any) -> None:
    inputs = drawn(1)
    plain = called(pipeline, inputs, 3.0)
    for off in ({"kappa": 0.0}, {"kappa": 1.0, "eta": 0.0}):
        with nd.guide_pipeline(pipeline, tower, inputs["g"], layers=LAYERS, **off):
            assert torch.equal(called(pipeline, inputs, 3.0), plain)
    with (
        pytest.raises(RuntimeError, match="of mine"),
        nd.guide_pipeline(pipeline, tower, inputs["g"], layers=LAYERS, kappa=1.0),
    ):
        raise RuntimeError("of mine")
    assert torch.equal(called(pipeline, inputs, 3.0), plain)


@pytest.mark.parametrize("scheduler", [PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers_come_closer_to_the_features(backbone: Backbone, tower: Any, scheduler: Any) -> None:
    """From text, towards the features of an image of another size."""
    pipeline = opened(StableDiffusionPipeline, backbone)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    shown = np.random.default_rng(0).integers(256, size=(1, 40, 40, 3), dtype=np.uint8)
    wanted = nd.tower_features(tower, shown, LAYERS)
    options = {"num_inference_steps": 6, "output_type": "pt", "height": 16, "width": 16}

    def distance(kappa: float) -> float:
        with nd.guide_pipeline(pipeline, tower, wanted, layers=LAYERS, kappa=kappa, eta=1.0):
            images = pipeline("ab", generator=torch.Generator().manual_seed(0), **options).images
        return float((nd.tower_features(tower, images, LAYERS) - wanted).square().mean())

    assert distance(0.5) < distance(0.0)


@pytest.mark.parametrize("as_opened", [False, True], ids=["whole", "as open_clip does it"])
def test_half_precision_steers_to_the_same_images(
    backbone: Backbone, pipeline: Any, tower: Any, as_opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, of pipeline and tower: nearer to the images of float32 than those are without guidance, by half."""
    inputs, guidance = drawn(1), {"kappa": 0.5, "eta": 1.0, "layers": LAYERS}
    plain = called(pipeline, inputs, 3.0)
    with nd.guide_pipeline(pipeline, tower, inputs["g"], **guidance):
        exact = called(pipeline, inputs, 3.0)
    low = copy.deepcopy(tower)
    open_clip.model.convert_weights_to_lp(low, torch.bfloat16) if as_opened else low.to(torch.bfloat16)
    for name in ("vae", "unet", "text_encoder"):
        monkeypatch.setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)).to(torch.bfloat16))
    given = {name: values.to(torch.bfloat16) for name, values in inputs.items()}
    with nd.guide_pipeline(pipeline, low, given["g"], **guidance):
        found = called(pipeline, given, 3.0)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().mean() < (plain - exact).abs().mean() / 2
    seen, wanted = nd.tower_features(low, found, LAYERS), nd.tower_features(tower, found.float(), LAYERS)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen, wanted, atol=float(wanted.abs().max()) * 2**-5, rtol=0)


def test_features_of_images_are_those_that_the_targets_hold(backbone: Backbone, tower: Any) -> None:
    images = np.random.default_rng(0).integers(256, size=(2, 16, 16, 3), dtype=np.uint8)
    found = nd.tower_features(tower, images, LAYERS)
    how = open_clip.model.get_model_preprocess_cfg(tower)
    seen = torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(how["mean"])[:, None, None]
    seen = seen / torch.tensor(how["std"])[:, None, None]
    expected: list[Tensor] = []
    blocks = [tower.visual.transformer.resblocks[layer] for layer in LAYERS]
    hooks = [block.mlp.c_proj.register_forward_hook(lambda m, i, output: expected.append(output)) for block in blocks]
    tower.visual(seen)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, torch.stack(expected, 1).detach(), atol=1e-5, rtol=1e-5)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(nd.tower_features(tower, floats, LAYERS), found, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_said(pipeline: Any, tower: Any) -> None:
    g = drawn(2)["g"]
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("kappa=-1", {"kappa": -1.0}),
        ("Did you mean 'guidance.eta'", {"kappa": 1.0, "etta": 0.5}),
        ("wanted a number", {"kappa": "much"}),
        ("Allowed: constant", {"kappa": 1.0, "schedule": "sinking"}),
        ("2 weights for 3 layers", {"kappa": 1.0, "layer_weights": [1.0, 2.0]}),
        (r"\(B, 2, 17, 16\) of this tower", {"kappa": 1.0, "layers": [0, 1]}),
        ("the image tower has 12 blocks", {"kappa": 1.0, "layers": [0, 1, 12]}),
    ]
    for message, given in wrong:
        with (
            pytest.raises(nd.UserError, match=message),
            nd.guide_pipeline(pipeline, tower, g, **({"layers": LAYERS} | given)),
        ):
            pass
    with pytest.raises(nd.UserError, match=r"is a VisionTransformer; a model of open_clip\.create_model"):
        nd.tower_features(tower.visual, np.zeros((1, 16, 16, 3), np.uint8))
    with (
        pytest.raises(nd.UserError, match="features of 2 images do not divide 1 samples"),
        nd.guide_pipeline(pipeline, tower, g, layers=LAYERS, kappa=1.0),
    ):
        called(pipeline, drawn(1), 3.0)


def test_models_that_do_not_predict_noise_are_refused(pipeline: Any, tower: Any) -> None:
    g = drawn(1)["g"]
    other = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    for scheduler, said in (
        (other, "DDIMScheduler predicts 'v_prediction'"),
        (FlowMatchEulerDiscreteScheduler(), "FlowMatch"),
    ):
        pipeline.scheduler = scheduler
        with pytest.raises(nd.UserError, match=said), nd.guide_pipeline(pipeline, tower, g, layers=LAYERS, kappa=1.0):
            pass
