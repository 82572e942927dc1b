"""Opening a backbone: arithmetic against plain re-statements, and one clear message for everything that is absent."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_backbone import IMAGE_SIZE, tiny_backbone
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from nd.backbone import image_tower
from nd.backbone.loading import Backbone, load_backbone
from nd.backbone.tower import BlockFeatures, preprocess
from nd.backbone.weights import fetch, revision_of
from nd.config import BackboneConfig
from nd.errors import UserError
from nd.machine import pick_device


@pytest.fixture(scope="module")
def backbone(tiny_backbone_config: BackboneConfig) -> Backbone:
    return load_backbone(tiny_backbone_config)


@pytest.fixture
def folder(tiny_backbone_config: BackboneConfig, tmp_path: Path) -> BackboneConfig:
    """A copy that a test may damage."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_backbone_config.weights, copy)
    return replace(tiny_backbone_config, weights=str(copy), image_tower=str(copy / "image_tower"))


def images(n: int = 2, size: int = IMAGE_SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


# ---- the image tower -------------------------------------------------------------------------------------------------


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def plain_mlp_branches(weights: dict[str, Tensor], x: Tensor, heads: int, n_blocks: int) -> list[Tensor]:
    """The tower written out from the weights alone: patches, class token, norm, attention, MLP."""
    w = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
    patch = w["conv1.weight"].shape[-1]
    cells = functional.unfold(x, patch, stride=patch).transpose(1, 2)  # (B, patches row-major, 3 * patch * patch)
    tokens = cells @ w["conv1.weight"].flatten(1).T
    first = w["class_embedding"].expand(len(x), 1, -1)
    h = torch.cat([first, tokens], 1) + w["positional_embedding"]
    h = plain_norm(h, w["ln_pre.weight"], w["ln_pre.bias"])
    found = []
    for b in range(n_blocks):
        p = f"transformer.resblocks.{b}."
        normed = plain_norm(h, w[p + "ln_1.weight"], w[p + "ln_1.bias"])
        qkv = normed @ w[p + "attn.in_proj_weight"].T + w[p + "attn.in_proj_bias"]
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        attention = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        mixed = attention.transpose(1, 2).flatten(2)
        h = h + mixed @ w[p + "attn.out_proj.weight"].T + w[p + "attn.out_proj.bias"]
        normed = plain_norm(h, w[p + "ln_2.weight"], w[p + "ln_2.bias"])
        inner = normed @ w[p + "mlp.c_fc.weight"].T + w[p + "mlp.c_fc.bias"]
        inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        branch = inner @ w[p + "mlp.c_proj.weight"].T + w[p + "mlp.c_proj.bias"]
        found.append(branch)
        h = h + branch
    return found


def test_block_features_equal_a_plain_restatement(backbone: Backbone) -> None:
    x = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    weights = load_file(Path(backbone.config.image_tower) / "open_clip_model.safetensors")
    expected = plain_mlp_branches(weights, x, heads=2, n_blocks=6)
    found = BlockFeatures(backbone.tower, [0, 1, 2, 3, 4, 5])(x)
    for plain, ours in zip(expected, found, strict=True):
        np.testing.assert_allclose(ours.numpy(), plain.numpy(), atol=1e-5)


def test_layers_come_in_the_order_asked_for_and_later_blocks_are_not_run(backbone: Backbone) -> None:
    x = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    calls = []
    hooks = [
        block.mlp.register_forward_hook(lambda *_, b=b: calls.append(b))
        for b, block in enumerate(backbone.tower.transformer.resblocks)
    ]
    both = BlockFeatures(backbone.tower, [3, 0])(x)
    [hook.remove() for hook in hooks]
    assert calls == [0, 1, 2, 3]
    torch.testing.assert_close(both[0], BlockFeatures(backbone.tower, [3])(x)[0])
    torch.testing.assert_close(both[1], BlockFeatures(backbone.tower, [0])(x)[0])


def test_gradients_reach_the_image_and_not_the_weights(backbone: Backbone) -> None:
    image = torch.rand(1, 3, 24, 24, requires_grad=True)
    sum(f.square().sum() for f in BlockFeatures(backbone.tower, [1])(backbone.tower_input(image))).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in backbone.clip.parameters())


@pytest.mark.parametrize("layers", [[], [0, 12], [-1]])
def test_wrong_layers(layers: list[int], backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"has 12 blocks, so layers must be .* from 0 to 11"):
        BlockFeatures(backbone.tower, layers)


def test_wrong_tower_size(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"Set backbone.tower_size=16"):
        BlockFeatures(backbone.tower, [0])(torch.zeros(1, 3, 20, 20))


def test_vit_b_32_has_six_layers_of_50_tokens_of_width_768() -> None:
    with torch.device("meta"):  # shapes without numbers
        tower = VisionTransformer(image_size=224, patch_size=32, width=768, layers=12, heads=12, mlp_ratio=4.0)
        found = BlockFeatures(tower, range(6))(torch.zeros(1, 3, 224, 224))
    assert [tuple(f.shape) for f in found] == [(1, 50, 768)] * 6


def test_preprocess_normalises_and_antialiases() -> None:
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::4] = 1
    found = preprocess(stripes, 8, mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 2.0))
    # Antialiased, one stripe in four averages to a quarter; two-point interpolation falls between the stripes.
    expected = torch.tensor([-0.25, 0.0, 0.125]).view(1, 3, 1, 1).expand(1, 3, 8, 6)
    torch.testing.assert_close(found[..., 1:-1], expected, atol=0.02, rtol=0)


# ---- VAE, text -------------------------------------------------------------------------------------------------------


def test_decode_is_differentiable_and_clamps_only_when_asked(backbone: Backbone) -> None:
    z = (100 * torch.randn(1, *backbone.latent_shape)).requires_grad_()
    free = backbone.decode(z, clamp=False)
    assert free.max() > 1
    torch.testing.assert_close(backbone.decode(z), free.clamp(0, 1))
    free.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_decode_divides_by_the_scaling_factor(backbone: Backbone) -> None:
    z = torch.randn(2, *backbone.latent_shape)
    plain = (backbone.vae.decode(z / 0.3).sample + 1) / 2
    torch.testing.assert_close(backbone.decode(z, clamp=False), plain)


def test_images_of_another_size_are_resized_alike_as_bytes_and_as_floats(backbone: Backbone) -> None:
    large = images(size=24)
    as_floats = torch.from_numpy(large).permute(0, 3, 1, 2) / 255
    assert backbone.encode_images(large).shape == (2, *backbone.latent_shape)
    torch.testing.assert_close(backbone.encode_images(large), backbone.encode_images(as_floats))


def test_uncond_is_the_encoded_empty_caption(backbone: Backbone) -> None:
    assert backbone.uncond().shape == (1, *backbone.text_shape)
    torch.testing.assert_close(backbone.uncond(), backbone.encode_text(["", "a"])[:1])


def test_scheduler_is_ddim_whatever_the_folder_names(folder: BackboneConfig) -> None:
    path = Path(folder.weights) / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("DDIMScheduler", "PNDMScheduler"), encoding="utf-8")
    scheduler = load_backbone(folder).scheduler
    assert type(scheduler).__name__ == "DDIMScheduler"
    assert scheduler.config.steps_offset == 1


def test_half_precision_files_are_read_in_the_dtype_asked_for(folder: BackboneConfig) -> None:
    for name in ("vae/diffusion_pytorch_model", "text_encoder/model", "image_tower/open_clip_model"):
        path = Path(folder.weights) / f"{name}.safetensors"
        save_file({key: value.half() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    variant = Path(folder.weights) / "vae" / "diffusion_pytorch_model.safetensors"
    variant.rename(variant.with_name("diffusion_pytorch_model.fp16.safetensors"))
    for dtype in (torch.float32, torch.bfloat16):
        backbone = load_backbone(folder, dtype=str(dtype).removeprefix("torch."))
        modules = (backbone.vae, backbone.text_encoder, backbone.clip)
        assert {p.dtype for module in modules for p in module.parameters()} == {dtype}
        assert torch.isfinite(backbone.encode_images(images()).float()).all()


# ---- what can be absent ----------------------------------------------------------------------------------------------


def test_hub_without_network_fails_quickly_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone = load_backbone(BackboneConfig(weights="CompVis/stable-diffusion-v1-4"))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"4\.3 GB.*CreativeML OpenRAIL-M.*backbone\.weights=/path/to/folder"):
        _ = backbone.unet
    assert time.monotonic() - started < 5


def test_tower_tag_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"ViT-B-32-quickgelu:openai.*0\.6 GB.*backbone\.image_tower=/path/to/folder"):
        image_tower.load_clip("ViT-B-32-quickgelu:openai")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ViT-B-33:openai", "unknown open_clip model .*Did you mean 'ViT-B-32'"),
        ("ViT-B-32:opnai", "unknown pretrained tag .*Did you mean 'openai'"),
        ("/no/such/tower", "no such folder. Give a folder with open_clip_config.json"),
        ("package://nothing/image_tower", "package://nothing"),
    ],
)
def test_wrong_tower(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_tower.load_clip(spec)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("/no/such/folder", "no such folder. Needed: a diffusers folder"),
        ("package://nothing", "package://nothing"),
        (str(Path(__file__).parent), "is not a diffusers folder"),
    ],
)
def test_wrong_weights(weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(BackboneConfig(weights=weights))


def test_folder_without_safetensors(folder: BackboneConfig) -> None:
    path = Path(folder.weights) / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match="Only safetensors are read"):
        _ = load_backbone(folder).vae


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "vae"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("image_tower/open_clip_model.safetensors", "tower"),
        ("tokenizer/tokenizer.json", "tokenizer"),
        ("scheduler/scheduler_config.json", "scheduler"),
    ],
)
def test_truncated_files(file: str, part: str, folder: BackboneConfig) -> None:
    path = Path(folder.weights) / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"(?s){'image_tower' if part == 'tower' else part}"):
        getattr(load_backbone(folder), part)


@pytest.mark.parametrize("kept", ["", "vocab.json"])
def test_a_tokenizer_without_its_words_is_refused(kept: str, folder: BackboneConfig) -> None:
    """transformers would make one that knows no word, to which all captions are the same."""
    for name in {"tokenizer.json", "vocab.json", "merges.txt"} - {kept}:
        (Path(folder.weights) / "tokenizer" / name).unlink()
    with pytest.raises(UserError, match=r"tokenizer holds no vocabulary \(tokenizer\.json, or vocab\.json and merges"):
        load_backbone(folder).encode_text(["a"])


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_weights_that_a_file_lacks_are_never_made_up(part: str, folder: BackboneConfig) -> None:
    (path,) = (Path(folder.weights) / part).glob("*.safetensors")
    weights = load_file(path)
    lacking = sorted(name for name in weights if name.endswith("norm.weight") or "conv_norm_out.weight" in name)[0]
    del weights[lacking]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"cannot read the backbone's {part} .* the weights lack {lacking}"):
        getattr(load_backbone(folder), part)


def test_text_encoder_files_of_older_transformers_are_understood(
    folder: BackboneConfig, tiny_backbone_config: BackboneConfig
) -> None:
    """Stable Diffusion's files name the tower `text_model.` and hold position numbers."""
    path = Path(folder.weights) / "text_encoder" / "model.safetensors"
    renamed = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(path).items()}
    renamed["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    save_file(renamed, path, metadata={"format": "pt"})
    found, wanted = (load_backbone(c).encode_text(["a b"]) for c in (folder, tiny_backbone_config))
    torch.testing.assert_close(found, wanted)


def test_hashes_follow_the_files(folder: BackboneConfig, tiny_backbone_config: BackboneConfig, tmp_path: Path) -> None:
    assert load_backbone(folder).weights_hash == load_backbone(tiny_backbone_config).weights_hash
    other = load_backbone(tiny_backbone(tmp_path / "other", seed=1)).weights_hash
    same = load_backbone(folder).weights_hash
    assert {part for part in same if same[part] == other[part]} == {"tokenizer", "scheduler"}


def test_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch sees no GPU"):
        pick_device("gpu")
    assert pick_device("cpu") == torch.device("cpu")


def test_a_revision_can_be_pinned_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None]] = []
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "abc123"

    def download(name: str, revision: str | None = None, **options: Any) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for given, wanted in (("someone/model@abc123", "abc123"), ("someone/model", None)):
        assert fetch(given, ["*"], "") == snapshot
        assert asked[-1] == ("someone/model", wanted)
    assert revision_of(snapshot / "vae") == "abc123"
    assert revision_of(tmp_path / "folder") == ""
