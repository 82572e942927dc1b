"""The dual-guided UNet: mixing, names and numbers of its parameters, folders that diffusers saves, and messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
from helpers_clip import tiny_clip
from helpers_versatile import Tiny, image_unet, text_unet, tiny_versatile
from safetensors.torch import load_file
from torch import Tensor

from nd.backbone.clip_pictures import to_pixels
from nd.backbone.versatile import IMAGE, TEXT, dual_unet, grey, joined
from nd.backbone.weights import folders_of
from nd.errors import UserError

N_IMAGE, N_TEXT, WIDTH = 17, 16, 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_versatile(tmp_path_factory.mktemp("versatile"))


def inputs(seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = (2, 4, 4, 4), (2, N_IMAGE, WIDTH), (2, N_TEXT, WIDTH)
    z, image, text = (torch.randn(*shape, generator=random) for shape in shapes)
    return z, image, text


@torch.no_grad()
def noise_at(unet: UNet2DConditionModel, share: float, z: Tensor, tokens: Tensor) -> Tensor:
    unet.mixing.share, unet.mixing.n_image = share, N_IMAGE
    found: Tensor = unet(z, 601, encoder_hidden_states=tokens).sample
    return found


def test_equal_branches_and_conditions_make_the_share_meaningless(tiny: Tiny) -> None:
    image = load_file(tiny.versatile / IMAGE / "diffusion_pytorch_model.safetensors")
    unet = dual_unet(json.loads((tiny.versatile / IMAGE / "config.json").read_text(encoding="utf-8"))).eval()
    unet.load_state_dict(joined(image, image))
    z, tokens, _ = inputs()
    both = torch.cat([tokens, tokens], dim=1)
    ends = noise_at(unet, 0.0, z, both)
    assert ends.std() > 0.01
    for share in (0.3, 0.4, 1.0):
        torch.testing.assert_close(noise_at(unet, share, z, both), ends, atol=1e-5, rtol=0)


def test_a_share_of_all_is_the_unet_of_that_branch_alone(tiny: Tiny) -> None:
    unet = tiny.backbone().unet
    z, image, text = inputs()
    both = torch.cat([image, text], dim=1)
    kept = load_file(tiny.versatile / IMAGE / "diffusion_pytorch_model.safetensors")
    others = load_file(tiny.versatile / TEXT / "diffusion_pytorch_model.safetensors")
    single = image_unet()
    for share, tokens, slots in ((0.0, image, kept), (1.0, text, others)):
        single.load_state_dict({name: (slots if ".attentions." in name else kept)[name] for name in kept})
        with torch.no_grad():
            alone = single(z, 601, encoder_hidden_states=tokens).sample
        torch.testing.assert_close(noise_at(unet, share, z, both), alone, atol=1e-5, rtol=0)
    assert (noise_at(unet, 0.0, z, both) - noise_at(unet, 1.0, z, both)).abs().max() > 1e-3


def test_mixing_is_that_of_diffusers(tiny: Tiny) -> None:
    """Slot by slot: diffusers' UNet hands its own dual transformer an argument that it does not take."""
    unet, theirs = tiny.backbone().unet, image_unet(dual=True)
    theirs.load_state_dict(unet.state_dict())
    unet.mixing.share = 0.4
    _, image, text = inputs()
    h = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    slot, dual = unet.mid_block.attentions[0], theirs.mid_block.attentions[0]
    dual.mix_ratio, dual.condition_lengths = 0.4, [N_TEXT, N_IMAGE]  # of the first condition, the text's there
    with torch.no_grad():
        (ours,) = slot(h, encoder_hidden_states=torch.cat([image, text], dim=1))
        (wanted,) = dual(h, torch.cat([text, image], dim=1), return_dict=False)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_names_and_numbers_at_full_size() -> None:
    sizes = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    flat = {
        "down_block_types": ("CrossAttnDownBlockFlat",) * 3 + ("DownBlockFlat",),
        "up_block_types": ("UpBlockFlat",) + ("CrossAttnUpBlockFlat",) * 3,
        "in_channels": 768, "out_channels": 768,
    }  # fmt: skip
    with torch.device("meta"):
        image = UNet2DConditionModel(**sizes)
        text, ours = UNetFlatConditionModel(**sizes, **flat), dual_unet(image.config)
        theirs = UNet2DConditionModel(**sizes, dual_cross_attention=True)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert shapes == {name: value.shape for name, value in joined(image.state_dict(), text.state_dict()).items()}
    # Stable Diffusion v1's UNet, and once more its 16 transformers.
    assert sum(p.numel() for p in image.parameters()) == 859_520_964
    assert sum(p.numel() for p in ours.parameters()) == 859_520_964 + 267_239_360
    assert len([name for name in shapes if name.endswith("transformers.1.norm.weight")]) == 16


def copied(tiny: Tiny, to: Path) -> Path:
    shutil.copytree(tiny.versatile, to)
    return to


def test_a_folder_saved_with_both_branches_in_one_gives_the_same(tiny: Tiny, tmp_path: Path) -> None:
    unet, folder = tiny.backbone().unet, copied(tiny, tmp_path / "merged")
    theirs = image_unet(dual=True)
    theirs.load_state_dict(unet.state_dict())
    shutil.rmtree(folder / TEXT)
    shutil.rmtree(folder / IMAGE)
    theirs.save_pretrained(folder / IMAGE)
    again = tiny.backbone(folder).unet
    z, image, text = inputs()
    both = torch.cat([image, text], dim=1)
    assert torch.equal(noise_at(again, 0.4, z, both), noise_at(unet, 0.4, z, both))


def test_old_weights_are_read_as_tensors_alone(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "old")
    for branch in (IMAGE, TEXT):
        path = folder / branch / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    assert torch.equal(tiny.backbone(folder).unet.conv_in.weight, tiny.backbone().unet.conv_in.weight)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {"conv_in.weight": torch.ones(1)}}, [torch.ones(1)]])
def test_old_weights_of_something_else_are_refused(tiny: Tiny, tmp_path: Path, content: object) -> None:
    folder = copied(tiny, tmp_path / "old")
    path = folder / IMAGE / "diffusion_pytorch_model.safetensors"
    torch.save(content, path.with_suffix(".bin"))
    path.unlink()
    said = r"cannot read the weights from .*image_unet: diffusion_pytorch_model.bin holds something other than tensors"
    with pytest.raises(UserError, match=said):
        _ = tiny.backbone(folder).unet


def test_folders_that_share_parts_in_a_circle_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    one, other = copied(tiny, tmp_path / "one"), copied(tiny, tmp_path / "other")
    index = '{"shares_parts_of": "%s"}'
    (one / "model_index.json").write_text(index % (one / "." / "vae" / ".."), encoding="utf-8")
    with pytest.raises(UserError, match=r"model_index.json: 'shares_parts_of' is .* leads back to this folder"):
        _ = tiny.backbone(one).unet
    (one / "model_index.json").write_text(index % other, encoding="utf-8")
    assert folders_of(one) == [one, other]
    (other / "model_index.json").write_text(index % one, encoding="utf-8")
    for ask in (lambda: tiny.backbone(one).source, lambda: folders_of(other)):
        with pytest.raises(UserError, match="leads back to this folder"):
            ask()


def test_what_is_absent_or_does_not_fit_is_named(tiny: Tiny, tmp_path: Path) -> None:
    lacking = copied(tiny, tmp_path / "lacking")
    shutil.rmtree(lacking / IMAGE)
    with pytest.raises(UserError, match=r"method.versatile=.*lacks its image branch: .* has no folder 'image_unet'"):
        _ = tiny.backbone(lacking).unet
    textless = copied(tiny, tmp_path / "textless")
    shutil.rmtree(textless / TEXT)
    with pytest.raises(UserError, match="lacks its text branch"):
        _ = tiny.backbone(textless).unet
    other = copied(tiny, tmp_path / "other")
    image_unet().save_pretrained(other / TEXT)  # all transformers fit, and nothing else is taken
    _ = tiny.backbone(other).unet
    wide = text_unet()
    wide.mid_block.attentions[0].norm = torch.nn.GroupNorm(4, 32)
    wide.save_pretrained(other / TEXT)
    with pytest.raises(
        UserError, match=r"do not make a dual-guided UNet: 2 of .*mid_block.*is \(32,\), wanted \(16,\)"
    ):
        _ = tiny.backbone(other).unet
    with pytest.raises(UserError, match=r"method.versatile=.*nowhere: no such folder"):
        _ = tiny.backbone(tmp_path / "nowhere").unet
    narrow = tiny_clip(tmp_path / "clip")
    config = json.loads((narrow / "config.json").read_text(encoding="utf-8"))
    config["projection_dim"] = 12
    (narrow / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"takes conditions of width 24, but the tokens of target.clip=.* have 12"):
        _ = tiny.backbone(clip=narrow).unet


def test_the_unconditional_image_is_grey_and_not_divided_twice(tiny: Tiny) -> None:
    seen, backbone = grey(28, torch.device("cpu")), tiny.backbone()
    grey_bytes = torch.full((1, 40, 40, 3), 127, dtype=torch.uint8).numpy()
    torch.testing.assert_close(seen, to_pixels(grey_bytes, 28, torch.device("cpu")), atol=0.01, rtol=0)
    assert seen.mean().abs() < 0.5  # black is -1.7
    with pytest.raises(UserError, match="would be rescaled twice"):
        to_pixels(grey_bytes / 255, 28, torch.device("cpu"))
    image, text = backbone.empty_conditions
    assert image.shape == (1, N_IMAGE, WIDTH)
    assert text.shape == (1, N_TEXT, WIDTH)
    assert float(image[0, 0].norm()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(backbone.uncond(), torch.cat([image, text], dim=1))
