"""The judging networks: read at the right layer, from the right file, seeing what they should."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.transforms import v2

from nd.errors import UserError
from nd.metrics import features, network_layers
from nd.metrics.images import resize, to_float
from nd.metrics.measures import MEASURES, View
from nd.metrics.network_layers import B32, Tapped, VisionShape, clip_image
from nd.metrics.networks import FIELD, NETWORKS, Weights, network_named, scaled

TINY = VisionShape(32, 2, 2, 112, 8, "ViT-B-32-quickgelu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine's caches hold, these tests see empty ones."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


# ---- layers


@pytest.fixture(scope="module")
def whole_alexnet() -> nn.Module:
    torch.manual_seed(1)
    return models.alexnet(weights=None).eval()


def test_alexnet_is_read_after_its_second_and_fifth_relu(whole_alexnet: nn.Module) -> None:
    seen: dict[int, Tensor] = {}
    for index in (4, 11):
        module = whole_alexnet.features[index]  # type: ignore[index]
        assert isinstance(module, nn.ReLU)
        module.register_forward_hook(lambda _m, _i, output, index=index: seen.update({index: output.clone()}))
    x = noise(2, 3, 224, 224) - 0.5
    ours = network_layers.alexnet({k: v.clone() for k, v in whole_alexnet.state_dict().items()}).eval()
    with torch.inference_mode():
        whole_alexnet(x)
        got = ours(x)
    assert {layer: tuple(values.shape) for layer, values in got.items()} == {
        "features.4": (2, 139968),  # 192 x 27 x 27
        "features.11": (2, 43264),  # 256 x 13 x 13
    }
    for index in (4, 11):
        torch.testing.assert_close(got[f"features.{index}"], seen[index].flatten(1))


def test_swav_is_read_without_its_heads_and_prefix() -> None:
    torch.manual_seed(2)
    reference = models.resnet50(weights=None).eval()
    state = {f"module.{key}": value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    heads = {"module.projection_head.0.weight": torch.zeros(2), "module.prototypes.weight": torch.zeros(2)}
    ours = network_layers.swav_resnet50(state | heads).eval()
    reference.fc = nn.Identity()  # type: ignore[assignment]
    x = noise(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x)["avgpool"], reference(x))
    state.pop("module.layer1.0.conv1.weight")
    with pytest.raises(RuntimeError, match=r"layer1\.0\.conv1\.weight"):
        network_layers.swav_resnet50(state)


def test_inception_undoes_imagenets_normalisation() -> None:
    ours = network_layers.inception_v3(None).eval()
    first: list[Tensor] = []
    ours.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _m, inputs: first.append(inputs[0].clone()))
    pixels = noise(1, 3, 80, 80)
    with torch.inference_mode():
        got = ours(network_named("inception_v3").normalise(pixels))
    assert got["avgpool"].shape == (1, 2048)
    torch.testing.assert_close(first[0], pixels * 2 - 1, atol=1e-5, rtol=1e-5)  # what Inception was trained on


def test_efficientnet_is_read_at_its_pooled_features() -> None:
    torch.manual_seed(3)
    reference = models.efficientnet_b1(weights=None).eval()
    ours = network_layers.efficientnet_b1(reference.state_dict()).eval()
    x = noise(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x)["avgpool"], reference.features(x).mean((-2, -1)))


def quick_gelu_vit(state: dict[str, Tensor], x_BCHW: Tensor) -> Tensor:
    """CLIP's image encoder of shape TINY written out (Radford et al. 2021, clip/model.py)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (TINY.width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    patches = F.conv2d(x_BCHW, state["vision_model.embeddings.patch_embedding.weight"], stride=TINY.patch)
    cls = state["vision_model.embeddings.class_embedding"].expand(len(x_BCHW), 1, -1)
    tokens = torch.cat([cls, patches.flatten(2).mT], 1) + state["vision_model.embeddings.position_embedding.weight"]
    tokens = norm(tokens, "vision_model.pre_layrnorm")
    for index in range(TINY.layers):
        here = f"vision_model.encoder.layers.{index}"
        seen = norm(tokens, f"{here}.layer_norm1")
        q, k, v = (linear(seen, f"{here}.self_attn.{n}_proj").unflatten(-1, (TINY.heads, -1)) for n in "qkv")
        weights = torch.einsum("bthd,bshd->bhts", q, k) / (TINY.width / TINY.heads) ** 0.5
        mixed = torch.einsum("bhts,bshd->bthd", weights.softmax(-1), v).flatten(2)
        tokens = tokens + linear(mixed, f"{here}.self_attn.out_proj")
        wide = linear(norm(tokens, f"{here}.layer_norm2"), f"{here}.mlp.fc1")
        tokens = tokens + linear(wide * torch.sigmoid(1.702 * wide), f"{here}.mlp.fc2")
    return norm(tokens[:, 0], "vision_model.post_layernorm") @ state["visual_projection.weight"].T


def test_clip_is_its_formula_and_leaves_the_text_half_unread() -> None:
    torch.manual_seed(4)
    state = network_layers.clip_image(TINY, None).network.state_dict()
    state = {key: value + 0.1 * torch.randn_like(value) for key, value in state.items() if value.is_floating_point()}
    extra = {"text_model.final_layer_norm.weight": torch.ones(2), "logit_scale": torch.ones(())}
    ours = network_layers.clip_image(TINY, state | extra).eval()
    x = noise(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x)["embedding"], quick_gelu_vit(state, x), atol=1e-5, rtol=1e-5)


def test_clip_reads_open_clips_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    named = nn.ModuleDict({"conv1": nn.Linear(2, 2)})
    created = SimpleNamespace(visual=nn.ModuleDict({"conv1": nn.Linear(2, 2)}))
    asked: list[Any] = []

    def create(*given: Any, **options: Any) -> Any:
        asked.append((given, options))
        return created

    monkeypatch.setattr("open_clip.create_model", create)
    state = {f"visual.{key}": value for key, value in named.state_dict().items()}
    clip_image(B32, state | {"transformer.x": torch.zeros(1)})
    assert asked == [(("ViT-B-32-quickgelu",), {"pretrained": None})], "OpenAI's weights want QuickGELU"
    assert torch.equal(created.visual["conv1"].weight, named["conv1"].weight)


# ---- what a network sees


def test_a_view_resizes_as_it_says() -> None:
    images = pictures(2, 90)
    floats = to_float(images)
    once = F.interpolate(floats, (64, 64), mode="bilinear", antialias=False, align_corners=False)
    twice = F.interpolate(once, (50, 50), mode="bilinear", antialias=False, align_corners=False)
    view = View("alexnet", 50, antialias=False, via=64)
    torch.testing.assert_close(features.seen_by(floats, view), twice)
    sharp = v2.functional.resize(floats, [50, 50], v2.InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(features.seen_by(floats, View("alexnet", 50)), sharp, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_bytes_are_resized_as_pillow_does(method: str) -> None:
    images = pictures(2, 90)
    wanted = [Image.fromarray(i).resize((50, 50), getattr(Image.Resampling, method.upper())) for i in images]
    got = resize(to_float(images), 50, method, True, "bytes")
    assert torch.equal(got, to_float(np.stack([np.asarray(i) for i in wanted])))
    with pytest.raises(UserError, match=r"Pillow .* always low-passes"):
        resize(to_float(images), 50, method, False, "bytes")
    with pytest.raises(UserError, match=r"unknown resize arithmetic 'byte'\. Did you mean 'bytes'"):
        resize(to_float(images), 50, method, True, "byte")


def test_normalisation_is_torchvisions() -> None:
    images = noise(2, 3, 5, 5)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.testing.assert_close(scaled(mean, std)(images), v2.functional.normalize(images, list(mean), list(std)))
    for name in ("alexnet", "inception_v3", "efficientnet_b1_v1", "efficientnet_b1_v2", "swav_resnet50"):
        torch.testing.assert_close(NETWORKS[name].normalise(images), scaled(mean, std)(images))


def test_random_weights_are_the_same_each_time_and_disturb_no_seed() -> None:
    view, images = View("alexnet", 64), pictures(2)
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first = features.features(images, view, features.RANDOM)
    assert torch.equal(torch.rand(1), wanted)
    features.loaded.cache_clear()
    again = features.features(images, view, features.RANDOM)
    assert torch.equal(first["features.11"], again["features.11"])
    assert not first["features.4"].is_inference()


# ---- weights


WEIGHTS = Weights(
    "small", "the small one", "small-deadbeef.pth", "https://example.org/small-deadbeef.pth", 3, "deadbeef"
)
FREE = Weights("small", "the small one", "small.pth.tar", "https://example.org/small.pth.tar", 3)


def test_absent_weights_say_everything() -> None:
    with pytest.raises(UserError) as caught:
        features.features(pictures(1), View("alexnet", 64))
    text = str(caught.value)
    for part in (
        "torchvision's AlexNet",
        "alexnet-owt-7be5be79.pth (244 MB)",
        "https://download.pytorch.org/models/",
        f"alexnet.pth into a folder and give {FIELD}=<folder>",
    ):
        assert part in text
    with pytest.raises(UserError, match=r"nowhere and the hubs' caches hold no weights of OpenAI's CLIP ViT-L/14"):
        network_named("clip_vit_l14").state("nowhere")
    with pytest.raises(UserError, match=r"unknown network of a measure 'alexnt'\. Did you mean 'alexnet'"):
        network_named("alexnt")


@pytest.mark.parametrize("name", ["small.pth", "small.safetensors", "small.pth.tar"])
def test_weights_are_read_from_the_folder(name: str, tmp_path: Path) -> None:
    state = {"w": torch.arange(3.0)}
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    assert torch.equal(FREE.read(str(tmp_path))["w"], state["w"])
    assert len(FREE.sha256_of(tmp_path / name)) == 64


def test_weights_of_torch_hubs_cache_will_do(tmp_path: Path) -> None:
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"w": torch.ones(1)}, tmp_path / "hub" / "checkpoints" / FREE.file)
    assert "w" in FREE.read("")


def test_other_weights_are_refused_and_copies_are_not(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"begins with deadbeef: other weights would give other scores"):
        WEIGHTS.read(str(tmp_path))
    save_file({"w": torch.ones(1)}, tmp_path / "small.safetensors")
    assert "w" in WEIGHTS.read(str(tmp_path)), "a copy in safetensors has other bytes; its hash is recorded instead"


def test_a_file_that_is_not_the_known_one_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "small.safetensors"
    save_file({"w": torch.ones(1)}, path)
    replace(FREE, known=FREE.sha256_of(path)).read(str(tmp_path))
    assert not caplog.records
    for _ in range(2):
        replace(FREE, known="ab" * 32).read(str(tmp_path))
    assert len(caplog.records) == 1
    assert re.search(r"small.safetensors has SHA-256 \w{12}\.\.\., .* small one abababababab", caplog.text)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "small.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"cannot read the weights of the small one from .*small\.pth"):
        FREE.read(str(tmp_path))


def test_the_pins_are_the_digits_in_torchvisions_names() -> None:
    for name, kind in (
        ("alexnet", models.AlexNet_Weights.IMAGENET1K_V1),
        ("inception_v3", models.Inception_V3_Weights.IMAGENET1K_V1),
        ("efficientnet_b1_v1", models.EfficientNet_B1_Weights.IMAGENET1K_V1),
        ("efficientnet_b1_v2", models.EfficientNet_B1_Weights.IMAGENET1K_V2),
    ):
        weights = NETWORKS[name].weights
        assert weights is not None
        assert weights.source == kind.url
        assert kind.url.endswith(f"-{weights.sha256}.pth")
        assert len(weights.sha256) == 8
        assert weights.megabytes == pytest.approx(kind.meta["_file_size"] * 1.048576, abs=1.0)  # MiB to MB


# ---- distances from other packages


def test_lpips_sees_its_range_and_says_when_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake(nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert (net, verbose) == ("alex", False)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            assert x.shape[-2:] == (256, 256)
            return (x - y).abs().mean((1, 2, 3)).view(-1, 1, 1, 1)

    monkeypatch.setattr(features, "_BUILT", {})
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Fake))
    black, white = np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), 255, np.uint8)
    got = features.pair_scores(white, black, MEASURES["lpips_256"])
    np.testing.assert_allclose(got, [2, 2])  # from -1 to 1
    assert got.dtype == torch.float64
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(UserError, match=r"needs the package dreamsim.*pip install dreamsim"):
        features.pair_scores(white, black, MEASURES["dreamsim_224"])


def test_weights_that_a_package_cannot_fetch_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=fails))
    with pytest.raises(UserError, match=r"dreamsim: its weights cannot be loaded \(no route to host\)"):
        features.pair_scores(pictures(2), pictures(2), MEASURES["dreamsim_224"])


def test_a_tap_keeps_nothing() -> None:
    tapped = Tapped(nn.Sequential(nn.Identity(), nn.ReLU()), {"first": "0"})
    assert tapped(-torch.ones(1, 2))["first"].tolist() == [[-1, -1]]
    assert tapped._seen == {}
