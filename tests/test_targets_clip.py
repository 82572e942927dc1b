"""Targets from CLIP: images as its processor brings them, values against a plain re-statement, and what is shared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers_backbone import TEXT_LENGTH, TEXT_WIDTH
from helpers_clip import LARGE, clip_tokenizer, randomise, tiny_clip
from helpers_config import with_fields
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from nd.backbone.clip import Clip
from nd.backbone.clip_pictures import STD, to_pixels
from nd.backbone.loading import Backbone
from nd.config import BackboneConfig, Config
from nd.errors import UserError
from nd.targets.base import Items
from nd.targets.clip_features import ClipImage, ClipText, ClipVision, VisionPass, clip_of, vision_pass
from nd.targets.components import build_extractor

CPU = torch.device("cpu")
CLIP_TARGETS = ["clip_vision", "clip_image", "clip_text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def cfg(folder: Path, tiny_backbone_config: BackboneConfig) -> Config:
    cfg = Config(backbone=tiny_backbone_config)
    cfg = with_fields(cfg, clip=str(folder))
    return cfg


@pytest.fixture
def backbone(cfg: Config) -> Backbone:
    return Backbone(cfg.backbone)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def noise(n: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes, a third of them black or white: what overshoots most when it is resized."""
    values = np.random.default_rng(seed).integers(-128, 384, (n, height, width, 3))
    return values.clip(0, 255).astype(np.uint8)


def pictures(images: NDArray[Any]) -> Items:
    return Items(np.arange(len(images), dtype=np.int32), images)


def texts_of(captions: list[list[str]]) -> Items:
    return Items(np.arange(len(captions), dtype=np.int32), captions=captions)


def counter(calls: list[tuple[int, ...]]) -> Callable[..., None]:
    """A forward hook that notes the shape of what a module was given."""
    return lambda module, given, kwargs, found: calls.append(tuple((*given, *kwargs.values())[0].shape))


# ---- images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(425, 425), (64, 64), (224, 224), (512, 512), (448, 301), (300, 431), (28, 28)])
def test_pixels_are_those_of_the_processor(size: tuple[int, int]) -> None:
    images = noise(3, *size)
    found = to_pixels(images, 224, CPU).numpy()
    assert found.shape == (3, 3, 224, 224)
    pil = np.asarray(CLIPImageProcessorPil()(list(images), return_tensors="np")["pixel_values"])
    np.testing.assert_allclose(found, pil, atol=1e-5)
    fast = np.asarray(CLIPImageProcessor()(list(images), return_tensors="np")["pixel_values"])
    levels = np.abs(found - fast) * np.array(STD)[:, None, None] * 255
    assert levels.max() < 2.01  # torchvision's own rounding
    assert levels.mean() < 0.02


def test_grey_bytes_come_out_near_zero_and_grey_floats_are_refused() -> None:
    grey = np.full((1, 300, 300, 3), 127, np.uint8)
    found = to_pixels(grey, 224, CPU)
    torch.testing.assert_close(found.amax((0, 2, 3)), torch.tensor([0.062, 0.154, 0.326]), atol=5e-4, rtol=0)
    torch.testing.assert_close(found.amin((0, 2, 3)), found.amax((0, 2, 3)))
    # What the guard prevents: a modern processor divides floats in [0, 1] by 255 once more, which makes them black.
    floats = np.full((300, 300, 3), 0.5)
    twice = np.asarray(CLIPImageProcessor()(floats, return_tensors="np")["pixel_values"])
    np.testing.assert_allclose(twice.mean((0, 2, 3)), [-1.785, -1.745, -1.473], atol=5e-4)
    with pytest.raises(UserError, match=r"are float64; wanted uint8.*rescaled twice.*nearly black.*Give bytes"):
        to_pixels(floats[None], 224, CPU)


def test_floats_are_refused_by_the_targets(cfg: Config, backbone: Backbone) -> None:
    for name in ("clip_vision", "clip_image"):
        with pytest.raises(UserError, match="are float32; wanted uint8"):
            build_extractor(name, cfg, backbone)(pictures(np.full((1, 32, 32, 3), 0.5, np.float32)))


@pytest.mark.parametrize("shape", [(30, 30, 3), (1, 3, 30, 30), (1, 30, 30, 1), (0, 30, 30, 3)])
def test_pictures_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"wanted \(B, H, W, 3\), colours last"):
        to_pixels(np.zeros(shape, np.uint8), 224, CPU)


# ---- values, tiny model --------------------------------------------------------------------------------------------


def test_shapes_and_what_each_target_is_by_transformers_own_forward(
    cfg: Config, backbone: Backbone, folder: Path
) -> None:
    images, captions = noise(3, 40, 40), ["a b", "xyz", "some thing"]
    vision, image, text = (build_extractor(name, cfg, backbone) for name in CLIP_TARGETS)
    whole = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        embeds = whole.get_image_features(pixel_values=to_pixels(images, 28, CPU)).pooler_output
        ids = clip_of(cfg.decoding("clip_vision").target, backbone).tokenizer(
            captions, padding="max_length", return_tensors="pt"
        )["input_ids"]
        hidden = whole.text_model(input_ids=ids)
        tokens, ends = whole.text_projection(hidden.last_hidden_state), whole.text_projection(hidden.pooler_output)
    assert (vision.shape, image.shape, text.shape) == ((17, 24), (24,), (16, 24))
    found_image, found_vision = image(pictures(images)), vision(pictures(images))
    found_text = text(texts_of([[caption] for caption in captions]))
    assert {f.dtype for f in (found_image, found_vision, found_text)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found_image, embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(found_vision[:, 0], (embeds / embeds.norm(dim=1, keepdim=True)).numpy(), atol=1e-5)
    assert np.abs(np.linalg.norm(found_vision[:, 1:], axis=-1) - 1).max() > 0.05  # the others keep their own lengths
    np.testing.assert_allclose(found_text, (tokens / ends.norm(dim=1)[:, None, None]).numpy(), atol=1e-5)


def test_clip_text_is_the_mean_over_captions_each_encoded_once(cfg: Config, backbone: Backbone) -> None:
    fewer = with_fields(cfg, max_captions=2)
    text, target = build_extractor("clip_text", fewer, backbone), fewer.decoding("clip_text").target
    calls: list[tuple[int, ...]] = []
    clip_of(target, backbone).text.text_model.register_forward_hook(counter(calls), with_kwargs=True)
    found = text(texts_of([["a", "bb", "never seen"], ["bb"], ["a", "a"]]))
    assert calls == [(2, 16)]
    a, bb = text(texts_of([["a"], ["bb"]]))
    np.testing.assert_allclose(found, np.stack([(a + bb) / 2, bb, a]), atol=1e-6)
    every = build_extractor("clip_text", with_fields(cfg, max_captions=0), backbone)
    c = text(texts_of([["never seen"]]))[0]
    np.testing.assert_allclose(every(texts_of([["a", "bb", "never seen"]]))[0], (a + bb + c) / 3, atol=1e-6)
    with pytest.raises(UserError, match=r"^image 1 has no caption; target clip_text needs at least one"):
        text(texts_of([["a"], []]))


def test_long_captions_keep_their_end_token(cfg: Config, backbone: Backbone) -> None:
    clip = clip_of(cfg.decoding("clip_vision").target, backbone)
    with torch.no_grad():
        tokens, ends = clip.encode_text(["a " * 40, "a"])
    torch.testing.assert_close(ends[0], tokens[0, 15])
    torch.testing.assert_close(ends[1], tokens[1, 2])


def test_clip_image_and_clip_vision_share_one_pass(cfg: Config, backbone: Backbone) -> None:
    vision, image = (build_extractor(name, cfg, backbone) for name in ("clip_vision", "clip_image"))
    assert isinstance(vision, ClipVision)
    assert isinstance(image, ClipImage)
    assert vision.forward is image.forward
    assert build_extractor("clip_image", cfg, backbone).forward is vision.forward  # type: ignore[attr-defined]
    calls: list[tuple[int, ...]] = []
    vision.forward.clip.vision.vision_model.encoder.register_forward_hook(counter(calls), with_kwargs=True)
    items = pictures(noise(2, 40, 40))
    together = vision(items), image(items)
    assert calls == [(2, 17, 32)]
    alone = vision(pictures(items.images)), image(pictures(items.images))
    assert len(calls) == 3  # another batch is another pass
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_settings_that_differ_are_not_shared(cfg: Config, backbone: Backbone, copied: Path) -> None:
    one = vision_pass(cfg.decoding("clip_vision").target, backbone)
    assert vision_pass(cfg.decoding("clip_image").target, backbone) is one
    assert vision_pass(replace(cfg.decoding("clip_vision").target, precision="bfloat16"), backbone) is not one
    assert vision_pass(replace(cfg.decoding("clip_vision").target, clip=str(copied)), backbone) is not one
    assert vision_pass(cfg.decoding("clip_vision").target, Backbone(cfg.backbone)) is not one


def test_clip_image_alone_projects_the_class_token_alone(cfg: Config, backbone: Backbone) -> None:
    image = build_extractor("clip_image", cfg, backbone)
    half = clip_of(cfg.decoding("clip_vision").target, backbone).vision
    calls: list[tuple[int, ...]] = []
    half.visual_projection.register_forward_hook(counter(calls), with_kwargs=True)
    half.vision_model.post_layernorm.register_forward_hook(counter(calls), with_kwargs=True)
    image(pictures(noise(2, 40, 40)))
    assert set(calls) == {(2, 32)}


@pytest.mark.parametrize("name", CLIP_TARGETS)
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.03), ("float16", 0.004)])  # 8 and 11 bits kept
def test_half_precision_gives_the_same_but_for_rounding(
    name: str, precision: str, tolerance: float, cfg: Config, backbone: Backbone
) -> None:
    items = Items(np.arange(2, dtype=np.int32), noise(2, 40, 40), [["a b c"], ["some words", "more"]])
    whole = build_extractor(name, cfg, backbone)(items)
    half = build_extractor(name, with_fields(cfg, precision=precision), backbone)(items)
    assert half.dtype == np.float32
    error = np.linalg.norm(half - whole) / np.linalg.norm(whole)
    assert 1e-5 < error < tolerance


# ---- values, full width --------------------------------------------------------------------------------------------


def plain_norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def plain_linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def plain_transformer(x: Tensor, w: dict[str, Tensor], prefix: str, heads: int, causal: bool) -> Tensor:
    """Residual stream (B, T, W) after all layers, from the weights alone: attention, quick GELU, norms before each."""
    n_layers = 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in w if name.startswith(prefix))
    length = x.shape[1]
    unseen = torch.ones(length, length).triu(1).bool() if causal else torch.zeros(length, length).bool()
    for layer in range(n_layers):
        p = f"{prefix}{layer}."
        normed = plain_norm(x, w, p + "layer_norm1")
        parts = [plain_linear(normed, w, f"{p}self_attn.{part}_proj") for part in "qkv"]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(unseen, -torch.inf)
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        x = x + plain_linear(mixed, w, p + "self_attn.out_proj")
        inner = plain_linear(plain_norm(x, w, p + "layer_norm2"), w, p + "mlp.fc1")
        x = x + plain_linear(inner * torch.sigmoid(1.702 * inner), w, p + "mlp.fc2")
    return x


def plain_vision(w: dict[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """Projected tokens (B, T, D) of preprocessed images."""
    kernel = w["vision_model.embeddings.patch_embedding.weight"]
    cells = torch.nn.functional.unfold(pixels, kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)
    first = w["vision_model.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, cells @ kernel.flatten(1).T], 1) + w["vision_model.embeddings.position_embedding.weight"]
    x = plain_norm(x, w, "vision_model.pre_layrnorm")
    x = plain_transformer(x, w, "vision_model.encoder.layers.", heads, causal=False)
    return plain_norm(x, w, "vision_model.post_layernorm") @ w["visual_projection.weight"].T


def plain_text(w: dict[str, Tensor], ids: Tensor, heads: int) -> Tensor:
    """Projected tokens (B, T, D)."""
    places = w["text_model.embeddings.position_embedding.weight"][: ids.shape[1]]
    x = w["text_model.embeddings.token_embedding.weight"][ids] + places
    x = plain_transformer(x, w, "text_model.encoder.layers.", heads, causal=True)
    return plain_norm(x, w, "text_model.final_layer_norm") @ w["text_projection.weight"].T


def large_clip(half: str, kind: Any) -> Clip:
    """A model of full width and random weights, of which one half is there; some layers stand for all of them."""
    clip = Clip("random", CPU)
    clip.config = CLIPConfig(**LARGE)
    config = getattr(clip.config, f"{half}_config")
    config.num_hidden_layers = 4
    config.projection_dim = clip.config.projection_dim
    with torch.device("meta"):
        module = kind(config).eval().requires_grad_(False)
    module.to_empty(device="cpu")  # without the library's own random numbers, which take as long as all the rest
    for numbers in module.buffers():
        numbers.copy_(torch.arange(numbers.shape[-1]))
    torch.manual_seed(0)
    randomise(module)
    setattr(clip, half, module)
    return clip


def test_vision_targets_of_vit_l_14_equal_a_plain_restatement() -> None:
    clip = large_clip("vision", CLIPVisionModelWithProjection)
    forward = VisionPass(clip)
    items = pictures(noise(1, 425, 425))
    found_vision, found_image = ClipVision(forward)(items), ClipImage(forward)(items)
    assert found_vision.shape == (1, *ClipVision(forward).shape) == (1, 257, 768)
    assert found_image.shape == (1, *ClipImage(forward).shape) == (1, 768)
    pixels = CLIPImageProcessorPil()(list(items.images), return_tensors="pt")["pixel_values"]
    tokens = plain_vision(clip.vision.state_dict(), torch.as_tensor(np.asarray(pixels)), heads=16)
    close(found_vision, tokens / tokens[:, :1].square().sum(-1, keepdim=True).sqrt())
    close(found_image, tokens[:, 0])


def test_clip_text_of_vit_l_14_equals_a_plain_restatement() -> None:
    clip = large_clip("text", CLIPTextModelWithProjection)
    clip.tokenizer = clip_tokenizer()
    text = ClipText(clip, 5)
    found = text(texts_of([["A dog runs over a meadow."]]))
    assert found.shape == (1, *text.shape) == (1, 77, 768)
    ids = open_clip.tokenize(["A dog runs over a meadow."])  # filled up with 0 instead of end tokens
    assert ids[0, [0, 8]].tolist() == [49406, 49407]
    ids[ids == 0] = 49407
    tokens = plain_text(clip.text.state_dict(), ids, heads=12)
    close(found, tokens / tokens[:, 8:9].square().sum(-1, keepdim=True).sqrt())


def close(found: NDArray[np.float32], expected: Tensor) -> None:
    """Within 1e-4 of each token's length."""
    wanted = expected.numpy()
    error = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert error.max() < 1e-4


# ---- c, padded to fewer tokens -------------------------------------------------------------------------------------


def test_c_of_fewer_tokens_equals_the_full_length_up_to_the_end_token(cfg: Config, backbone: Backbone) -> None:
    short_cfg = with_fields(cfg, tokens=5)
    full, short = build_extractor("c", cfg, backbone), build_extractor("c", short_cfg, backbone)
    assert short.shape == (5, TEXT_WIDTH)
    caption, cut = texts_of([["a b"]]), texts_of([["a b c d e"]])
    np.testing.assert_allclose(short(caption)[0, :4], full(caption)[0, :4], atol=1e-5)  # begin, a, b, end
    np.testing.assert_allclose(short(cut)[0, :4], full(cut)[0, :4], atol=1e-5)  # begin, a, b, c
    assert np.abs(short(cut)[0, 4] - full(cut)[0, 4]).max() > 1e-2  # the end token, where the full length has d
    ids = backbone.tokenizer(["a b c d e"], truncation=True, max_length=5)["input_ids"]
    assert ids[0][-1] == backbone.tokenizer.eos_token_id
    assert full.fingerprint()["tokens"] == 0
    assert short.fingerprint() == full.fingerprint() | {"tokens": 5}


@pytest.mark.parametrize("tokens", [TEXT_LENGTH + 1, 2, -1])
def test_c_of_more_tokens_than_the_encoder_has_is_refused(tokens: int, cfg: Config, backbone: Backbone) -> None:
    c = build_extractor("c", with_fields(cfg, tokens=tokens), backbone)
    message = rf"target\.tokens={tokens}, but the text encoder .* takes 3 to {TEXT_LENGTH} tokens"
    with pytest.raises(UserError, match=message):
        _ = c.shape
    with pytest.raises(UserError, match=message):
        c(texts_of([["a"]]))


def test_c_averages_all_captions_where_max_captions_is_0(cfg: Config, backbone: Backbone) -> None:
    c = build_extractor("c", with_fields(cfg, max_captions=0), backbone)
    captions = list("abcdefg")
    with torch.no_grad():
        expected = backbone.encode_text(captions).mean(0).numpy()
    np.testing.assert_allclose(c(texts_of([captions]))[0], expected, atol=1e-5)


def test_c_of_15_tokens_has_15_rows_of_768(cfg: Config) -> None:
    backbone = Backbone(cfg.backbone)
    config = CLIPConfig(**LARGE).text_config
    config.num_hidden_layers = 1
    backbone.text_encoder = CLIPTextModel(config).eval()
    backbone.tokenizer = clip_tokenizer()
    caption = texts_of([["A dog runs over a meadow."]])
    full, short = (build_extractor("c", with_fields(cfg, tokens=tokens), backbone) for tokens in (0, 15))
    assert (full.shape, short.shape) == ((77, 768), (15, 768))
    np.testing.assert_allclose(short(caption)[0, :9], full(caption)[0, :9], atol=1e-5)  # begin, seven, end


# ---- files ---------------------------------------------------------------------------------------------------------


def test_reading_one_half_of_an_old_checkpoint_says_nothing(
    copied: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = copied / "model.safetensors"
    weights = load_file(path)
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(weights, path, metadata={"format": "pt"})
    clip = Clip(str(copied), CPU)
    assert torch.equal(clip.vision.visual_projection.weight, weights["visual_projection.weight"])
    assert torch.equal(clip.text.text_projection.weight, weights["text_projection.weight"])
    assert not any(p.requires_grad for half in (clip.vision, clip.text) for p in half.parameters())
    assert not clip.vision.training
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_halves_follow_the_width_of_the_whole_model(folder: Path) -> None:
    """Files that transformers writes name one width for the model, and leave the halves' own entries at a default."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert saved["vision_config"]["projection_dim"] != saved["projection_dim"] == 24


@pytest.mark.parametrize("half", ["vision", "text"])
def test_weights_that_a_file_lacks_are_never_made_up(half: str, copied: Path) -> None:
    path = copied / "model.safetensors"
    weights = load_file(path)
    lacking = {"vision": "vision_model.post_layernorm.weight", "text": "text_projection.weight"}[half]
    del weights[lacking]
    save_file(weights, path, metadata={"format": "pt"})
    name = {"vision": "image encoder", "text": "text encoder"}[half]
    with pytest.raises(UserError, match=f"cannot read the CLIP model's {name} from .* the weights lack {lacking}"):
        getattr(Clip(str(copied), CPU), half)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_truncated_files(file: str, copied: Path) -> None:
    (copied / file).write_bytes((copied / file).read_bytes()[:60])
    part = {"config.json": "config", "model.safetensors": "vision", "tokenizer.json": "tokenizer"}[file]
    with pytest.raises(UserError, match=r"cannot read the CLIP model's .* Fetch or write it again"):
        getattr(Clip(str(copied), CPU), part)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_files_are_named_with_size_and_licence(file: str, copied: Path) -> None:
    (copied / file).unlink()
    with pytest.raises(UserError, match=rf"holds no {file}\. Needed: a whole CLIP model .*1\.7 GB, licence MIT"):
        _ = Clip(str(copied), CPU).folder


def test_missing_tokenizer(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    kept = Clip(str(copied), CPU).tokenizer  # from vocab.json and merges.txt
    assert kept(["a b"])["input_ids"] == [[188, 158, 159, 189]]
    (copied / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer\. Needed: .* tokenizer\.json or vocab\.json and merges"):
        _ = Clip(str(copied), CPU).tokenizer


def test_half_a_model_is_refused(copied: Path) -> None:
    Clip(str(copied), CPU).vision.save_pretrained(copied)
    with pytest.raises(UserError, match=r"describes a model of type 'clip_vision_model'. Needed: a whole CLIP model"):
        _ = Clip(str(copied), CPU).vision


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "clip", "a/b/c"])
def test_no_such_folder(source: str) -> None:
    with pytest.raises(UserError, match=r"no such folder\. Needed: .*target\.clip=/path/to/folder"):
        _ = Clip(source, CPU).folder


def test_hub_without_network_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfg: Config, backbone: Backbone
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = with_fields(cfg, clip="openai/clip-vit-large-patch14")
    for name in CLIP_TARGETS:
        extractor = build_extractor(name, hub, backbone)  # looks for nothing yet
        with pytest.raises(UserError, match=r"cannot fetch openai/clip-vit-large-patch14 .*1\.7 GB, licence MIT"):
            extractor.fingerprint()


def test_fingerprints_load_no_model_and_follow_every_file(cfg: Config, copied: Path, backbone: Backbone) -> None:
    changed = with_fields(cfg, clip=str(copied))

    def prints(config: Config) -> dict[str, dict[str, Any]]:
        return {name: build_extractor(name, config, Backbone(cfg.backbone)).fingerprint() for name in CLIP_TARGETS}

    before = prints(cfg)
    assert prints(changed) == before  # the place does not matter
    assert json.loads(json.dumps(before)) == before
    assert len({found["target"] for found in before.values()}) == 3
    for extractor in [build_extractor(name, cfg, backbone) for name in CLIP_TARGETS]:
        extractor.fingerprint()
    assert not {"vision", "text", "tokenizer"} & set(vars(clip_of(cfg.decoding("clip_vision").target, backbone)))

    with (copied / "merges.txt").open("a", encoding="utf-8") as handle:
        handle.write("a b\n")
    assert {name for name in CLIP_TARGETS if prints(changed)[name] != before[name]} == {"clip_text"}
    weights = load_file(copied / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, copied / "model.safetensors", {"format": "pt"})
    for name in CLIP_TARGETS:
        assert prints(changed)[name]["clip"] != before[name]["clip"]
