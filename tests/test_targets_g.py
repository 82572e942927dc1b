"""g on a full-size ViT-B/32 of random weights: which layers it is made of, and its numbers, against plain code."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from helpers_backbone import IMAGE_SIZE
from numpy.typing import NDArray
from open_clip.pretrained import get_pretrained_cfg
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from nd.backbone.loading import Backbone, load_backbone
from nd.backbone.tower import BlockFeatures, preprocess
from nd.config import BackboneConfig, Config
from nd.errors import UserError
from nd.targets.base import Items
from nd.targets.components import build_extractor
from nd.targets.tower_features import TowerFeatures, tower_pass

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
WIDTH, HEADS, BLOCKS = 768, 12, 12


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A residual attention block as CLIP has it: nn.MultiheadAttention over (tokens, batch, width), then the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS)
        inner = OrderedDict(c_fc=nn.Linear(WIDTH, 4 * WIDTH), gelu=QuickGELU(), c_proj=nn.Linear(4 * WIDTH, WIDTH))
        self.mlp = nn.Sequential(inner)

    def forward(self, x_TBD: Tensor) -> Tensor:
        normed = self.ln_1(x_TBD)
        x_TBD = x_TBD + self.attn(normed, normed, normed, need_weights=False)[0]
        return x_TBD + self.mlp(self.ln_2(x_TBD))


def random_clip(name: str) -> nn.Module:
    """ViT-B/32 whose norms and biases are random too, so that none of them can be left out unseen."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    with torch.no_grad():
        for part, values in model.visual.named_parameters():
            if part.endswith("bias") or "ln_" in part:
                values.add_(0.1 * torch.randn_like(values))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Pictures of 256 px, the full-size tower, ImageNet's normalisation: no weights file is touched."""
    mean, std = IMAGENET
    config = BackboneConfig(image_size=256, tower_size=224, tower_mean=mean, tower_std=std)
    backbone = Backbone(config)
    backbone.__dict__["clip"] = random_clip("ViT-B-32-quickgelu")
    return backbone


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, 300, 300, 3)).astype(np.uint8)


def seen_by_tower(images: NDArray[np.uint8], sizes: tuple[int, int]) -> Tensor:
    """Resized twice, as decoded images are once, and normalised with ImageNet's statistics."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    for size in sizes:
        x = tv.resize(x, [size, size], antialias=True)
    return tv.normalize(x, *IMAGENET)


def embed(w: dict[str, Tensor], x_B3HW: Tensor) -> Tensor:
    """Patches and class token with their positions, normed: what enters the first block, (B, T, D)."""
    patches = nn.functional.conv2d(x_B3HW, w["conv1.weight"], stride=32).flatten(2).transpose(1, 2)
    tokens = torch.cat([w["class_embedding"].expand(len(patches), 1, -1), patches], 1) + w["positional_embedding"]
    return norm(tokens, w, "ln_pre")


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def branches(w: dict[str, Tensor], h: Tensor, n_blocks: int, gelu: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The MLP branch of each block, written out from the state dict."""
    found = []
    for b in range(n_blocks):
        p = f"transformer.resblocks.{b}."
        qkv = norm(h, w, f"{p}ln_1") @ w[f"{p}attn.in_proj_weight"].T + w[f"{p}attn.in_proj_bias"]
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        mixed = (torch.softmax(q @ k.transpose(-1, -2) / 8, -1) @ v).transpose(1, 2).flatten(2)  # 8: root of 64
        h = h + mixed @ w[f"{p}attn.out_proj.weight"].T + w[f"{p}attn.out_proj.bias"]
        inner = gelu(norm(h, w, f"{p}ln_2") @ w[f"{p}mlp.c_fc.weight"].T + w[f"{p}mlp.c_fc.bias"])
        found.append(inner @ w[f"{p}mlp.c_proj.weight"].T + w[f"{p}mlp.c_proj.bias"])
        h = h + found[-1]
    return found


def quick(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def exact(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


@pytest.fixture(scope="module")
def released(backbone: Backbone, images: NDArray[np.uint8]) -> dict[str, tuple[str, Tensor]]:
    """What the released rule records in a plain stack of blocks: name to (module, output), in firing order.

    A hook on every module; its name is the class and how many recorded names hold that class name already, plus one.
    """
    weights = backbone.tower.state_dict()
    stack = nn.Sequential(OrderedDict((str(b), Block()) for b in range(BLOCKS))).eval().requires_grad_(False)
    prefix = "transformer.resblocks."
    stack.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    recorded: dict[str, tuple[str, Tensor]] = {}

    def hook_of(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            kind = type(module).__name__
            recorded[f"{kind}-{sum(kind in name for name in recorded) + 1}"] = path, output

        return hook

    for path, module in stack.named_modules():
        if not list(module.children()) or isinstance(module, nn.MultiheadAttention):
            module.register_forward_hook(hook_of(path))
    stack(embed(weights, seen_by_tower(images, (256, 224))).transpose(0, 1))
    return recorded


def test_released_names_are_c_fc_and_c_proj_in_turn(released: dict[str, tuple[str, Tensor]]) -> None:
    linear = {name: value for name, value in released.items() if name.startswith("Linear-")}
    assert list(linear) == [f"Linear-{k}" for k in range(1, 25)]
    assert not any("Quantizable" in name for name in released)  # out_proj's weight is used, its module is never called
    for b in range(BLOCKS):
        for name, part, width in ((f"Linear-{2 * b + 1}", "c_fc", 3072), (f"Linear-{2 * b + 2}", "c_proj", 768)):
            path, output = linear[name]
            assert path == f"{b}.mlp.{part}"
            assert tuple(output.shape) == (50, 2, width)


def test_g_is_what_the_released_rule_calls_linear_2_to_12(
    released: dict[str, tuple[str, Tensor]], backbone: Backbone, images: NDArray[np.uint8]
) -> None:
    extractor = build_extractor("g", Config(backbone=backbone.config), backbone)
    found = extractor(Items(np.arange(2, dtype=np.int32), images))
    assert extractor.shape == (6, 50, 768)
    assert found.shape == (2, 6, 50, 768)
    assert found.dtype == np.float32
    for row, name in enumerate(f"Linear-{2 * k}" for k in range(1, 7)):
        path, output_TBD = released[name]
        assert path == f"{row}.mlp.c_proj"
        np.testing.assert_allclose(found[:, row], output_TBD.transpose(0, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize(("gelu", "other"), [(quick, exact), (exact, quick)])
def test_each_models_own_gelu_is_computed(
    gelu: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    backbone: Backbone,
    images: NDArray[np.uint8],
) -> None:
    tower = backbone.tower if gelu is quick else random_clip("ViT-B-32").visual
    x, w = seen_by_tower(images[:1], (256, 224)), tower.state_dict()
    found = BlockFeatures(tower, range(6))(x)
    for ours, plain in zip(found, branches(w, embed(w, x), 6, gelu), strict=True):
        np.testing.assert_allclose(ours.numpy(), plain.numpy(), atol=1e-5)
    assert (found[5] - branches(w, embed(w, x), 6, other)[5]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("model", "tag", "quick_gelu"), [("ViT-B-32-quickgelu", "openai", True), ("ViT-B-32", "laion2b_s34b_b79k", False)]
)
def test_published_weights_name_the_gelu_they_were_trained_with(model: str, tag: str, quick_gelu: bool) -> None:
    assert bool(get_pretrained_cfg(model, tag).get("quick_gelu", False)) is quick_gelu
    assert bool(open_clip.get_model_config(model).get("quick_gelu", False)) is quick_gelu


# ---- preprocessing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    ("method", "mode"), [("bilinear", InterpolationMode.BILINEAR), ("bicubic", InterpolationMode.BICUBIC)]
)
@pytest.mark.parametrize(("mean", "std"), [IMAGENET, CLIP])
def test_targets_and_guidance_see_pictures_by_the_settings(
    method: str,
    mode: InterpolationMode,
    antialias: bool,
    mean: list[float],
    std: list[float],
    tiny_backbone_config: BackboneConfig,
) -> None:
    settings = {"tower_filter": method, "tower_antialias": antialias, "tower_mean": mean, "tower_std": std}
    backbone = load_backbone(replace(tiny_backbone_config, image_size=36, **settings))
    images = np.random.default_rng(1).integers(0, 256, (2, 36, 36, 3)).astype(np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    expected = tv.normalize(tv.resize(x, [IMAGE_SIZE] * 2, mode, antialias=antialias), mean, std)
    torch.testing.assert_close(backbone.tower_input(x), expected)  # what guidance calls
    extractor = build_extractor("g", Config(backbone=backbone.config), backbone)
    wanted = torch.stack(BlockFeatures(backbone.tower, range(6))(expected), 1)
    np.testing.assert_allclose(extractor(Items(np.arange(2, dtype=np.int32), images)), wanted.numpy(), atol=1e-5)


def test_unknown_filter() -> None:
    with pytest.raises(UserError, match=r"unknown filter \(backbone.tower_filter\) 'bicubik'. Did you mean 'bicubic'"):
        preprocess(torch.zeros(1, 3, 8, 8), 8, *IMAGENET, "bicubik")


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ({"tower_filter": "bicubic"}, "filter"),
        ({"tower_antialias": False}, "antialias"),
        ({"tower_mean": [0.5] * 3}, "mean"),
        ({"tower_std": [0.5] * 3}, "std"),
        ({"tower_size": 17}, "tower_size"),
        ({"image_size": 17}, "image_size"),
    ],
)
def test_fingerprint_names_the_setting_that_changed(
    setting: dict[str, object], key: str, tiny_backbone_config: BackboneConfig
) -> None:
    cfg = Config(backbone=tiny_backbone_config)
    fresh = Backbone(replace(cfg.backbone, **setting))
    before = build_extractor("g", cfg, Backbone(cfg.backbone)).fingerprint()
    after = build_extractor("g", cfg, fresh).fingerprint()
    assert [name for name in before if before[name] != after[name]] == [key]
    assert "clip" not in fresh.__dict__


# ---- sharing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(tiny_backbone_config: BackboneConfig) -> Iterator[tuple[Backbone, list[int]]]:
    """A backbone, and a list that grows with every pass through its tower."""
    backbone, calls = load_backbone(tiny_backbone_config), []
    handle = backbone.tower.transformer.resblocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    yield backbone, calls
    handle.remove()


def test_targets_of_a_batch_share_the_pass(counted: tuple[Backbone, list[int]]) -> None:
    backbone, calls = counted
    one, two = (TowerFeatures(tower_pass(backbone, [0, 1])) for _ in range(2))
    images = np.random.default_rng(2).integers(0, 256, (2, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
    batch = Items(np.arange(2, dtype=np.int32), images)
    np.testing.assert_array_equal(one(batch), two(batch))
    assert len(calls) == 1
    one(Items(batch.ids, images))  # another batch is another pass
    TowerFeatures(tower_pass(backbone, [1]))(batch)  # and so are other layers
    assert len(calls) == 3


def test_straight_to_the_towers_size_is_the_released_way(backbone: Backbone, images: NDArray[np.uint8]) -> None:
    """src/img2feat_guidance.py: 300 px to 224 px in one resize; by way of 256 px features differ by more than 1e-3."""
    ids = np.arange(len(images))
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    resized = tv.resize(floats, [224, 224], InterpolationMode.BILINEAR, antialias=True)
    normal = tv.normalize(resized, *IMAGENET)
    wanted = torch.stack(BlockFeatures(backbone.tower, [0, 1])(normal), 1).detach().numpy()
    found, through = (
        TowerFeatures(tower_pass(backbone, [0, 1], direct))(Items(images=images, captions=[], ids=ids))
        for direct in (True, False)
    )
    scale = np.linalg.norm(wanted)
    assert np.linalg.norm(found - wanted) < 1e-5 * scale
    assert np.linalg.norm(through - wanted) > 1e-3 * scale
