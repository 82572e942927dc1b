"""Training of what Brain-Diffuser needs on Scenes: the likelihood, the converted CLIP, and a quick run that is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers_backbone import TEXT_WIDTH, tiny_backbone
from helpers_scripts import load_script
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

from backbone_training.vdvae import divergence, log_likelihood
from nd.backbone.clip import Clip
from nd.backbone.clip_pictures import MEAN, STD
from nd.backbone.image_tower import load_clip
from nd.backbone.loading import Backbone
from nd.backbone.vdvae.images import mode
from nd.backbone.vdvae.loading import load_vdvae
from nd.backbone.versatile import FILES, VersatileBackbone
from nd.backbone.weights import folders_of
from nd.errors import UserError


def test_the_likelihood_of_all_bytes_sums_to_one() -> None:
    described = torch.randn(1, 20, 1, 1, generator=torch.Generator().manual_seed(0))
    described[:, :2] = torch.tensor([50.0, -50.0]).view(1, 2, 1, 1)  # one component, its colours apart
    described.view(1, 20)[:, [6, 7, 12, 13, 18, 19]] = 0.0
    described.view(1, 20)[:, [4, 5, 10, 11, 16, 17]] = -1.5  # wide enough that no byte is beyond float32
    described.view(1, 20)[:, [2, 3, 8, 9, 14, 15]] *= 0.2
    here = torch.tensor([[60, 130, 200]]) / 127.5 - 1
    sums = []
    for colour in range(3):
        values = here.repeat(256, 1)
        values[:, colour] = torch.arange(256) / 127.5 - 1
        sums.append(log_likelihood(described.expand(256, -1, -1, -1), values[..., None, None]).logsumexp(0))
    # p(g) p(b) times p(r) p(b) times p(r) p(g), each colour's own share being one.
    own = log_likelihood(described, here[..., None, None])
    torch.testing.assert_close(torch.stack(sums).sum(), 2 * own.sum(), atol=1e-3, rtol=0)


def test_likelihood_leans_as_drawn_colours_do() -> None:
    """Bytes of the most likely image are more likely than others, by the mixing that `mixture.mode` does."""
    described = torch.randn(1, 20, 1, 1, generator=torch.Generator().manual_seed(3))
    described.view(1, 20)[:, [4, 5, 10, 11, 16, 17]] = -3.0
    described.view(1, 20)[:, [2, 3, 8, 9, 14, 15]] *= 0.3
    best = mode(described)
    for change in (-0.3, 0.3):
        for colour in range(3):
            other = best.clone()
            other[:, colour] = (other[:, colour] + change).clamp(-1, 1)
            assert log_likelihood(described, best) > log_likelihood(described, other)


def test_divergence_is_that_of_torch() -> None:
    a, b, c, d = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(a, b.exp()), normal(c, d.exp()))
    torch.testing.assert_close(divergence(a, b, c, d), wanted)


def test_a_quick_run_makes_networks_that_load(tmp_path: Path) -> None:
    backbone = tiny_backbone(tmp_path / "tiny", image_size=16)
    script = load_script("scenes-brain-diffuser/train.py")
    out = tmp_path / "out"
    # CLIP's tokens must be as wide as the UNet's condition, which the tiny backbone's are not.
    wide_tower(Path(backbone.image_tower))
    words = ["--backbone", backbone.weights, "--image-size", "16", "--work", str(tmp_path / "work"), "--quick"]
    with pytest.raises(SystemExit):
        script.main(["--out", str(out), *words, "--export-only"])  # nothing is trained yet
    script.main(["--out", str(out), *words])
    clip = Clip(backbone.weights, torch.device("cpu"))
    dual = VersatileBackbone(backbone, str(out / "versatile"), clip)
    kept, trained = Backbone(backbone).unet.state_dict(), dual.unet.state_dict()
    written = load_file(out / "versatile" / "image_unet" / FILES[0])
    assert {name.split(".transformers.")[1].split(".")[3] for name in written} == {"norm2", "attn2", "norm3", "ff"}
    assert torch.equal(trained["conv_in.weight"], kept["conv_in.weight"])  # read from the backbone
    assert torch.equal(dual.vae.decoder.conv_in.weight, Backbone(backbone).vae.decoder.conv_in.weight)
    slot = "mid_block.attentions.0.transformers.{}.transformer_blocks.0.attn2.to_q.weight"
    assert not torch.equal(trained[slot.format(0)], trained[slot.format(1)])
    assert load_vdvae(out / "vdvae.safetensors").shape == script.QUICK.shape
    assert folders_of(out / "versatile") == [out / "versatile", Path(backbone.weights)]

    whole = tmp_path / "whole"  # the same networks, written once more for diffusers
    script.main(["--out", str(whole), *words, "--export-only", "--whole"])
    other = VersatileBackbone(backbone, str(whole / "versatile"), clip)
    assert folders_of(whole / "versatile") == [whole / "versatile"]
    for name, value in other.unet.state_dict().items():
        assert torch.equal(value, trained[name].half().float())
    read = UNet2DConditionModel.from_pretrained(whole / "versatile" / "image_unet", low_cpu_mem_usage=False)
    assert read.state_dict().keys() == trained.keys()


def test_a_backbone_is_read_as_a_clip_model(tmp_path: Path) -> None:
    """Its two encoders are those of the image tower, for images normalised as OpenAI's."""
    backbone = tiny_backbone(tmp_path / "tiny", image_size=16)
    wide_tower(Path(backbone.image_tower))
    tower, clip = load_clip(backbone.image_tower).eval(), Clip(backbone.weights, torch.device("cpu"))
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (MEAN, STD))
    with torch.no_grad():
        wanted = tower.encode_image((pixels - 0.5) / 0.5)
        found = clip.project_images(clip.encode_pixels((pixels - mean) / std)[:, 0])
        ids = torch.tensor([[188, 3, 4, 189, 189, 189, 189, 189]])
        said = clip.text(input_ids=ids).text_embeds
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(said, tower.encode_text(ids), atol=1e-4, rtol=0)
    before = clip.weights_hash
    wide_tower(Path(backbone.image_tower), seed=2)
    assert Clip(backbone.weights, torch.device("cpu")).weights_hash != before
    with pytest.raises(UserError, match=r"target\.clip.* mean 'package://scenes'"):
        _ = Clip("package://scene", torch.device("cpu")).folder


def wide_tower(folder: Path, seed: int = 1) -> None:
    """Give a tiny image tower an embedding of the width of the tiny UNet's condition."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"] | {"embed_dim": TEXT_WIDTH}
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    path.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pixels}), encoding="utf-8")
    torch.manual_seed(seed)
    state = {name: value.contiguous() for name, value in CLIP(**config).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
