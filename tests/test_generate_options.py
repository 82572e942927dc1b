"""Switches of the sampler: the decoder of the gradient, kappa over the steps, half precision, previews, messages."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from helpers_backbone import tiny_backbone
from helpers_config import method_settings
from PIL import Image
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config, GuidanceConfig
from nd.config.application import compose
from nd.errors import UserError
from nd.generate.denoiser import SelfAttention, degraded
from nd.generate.floors import Alone, DecodedLatents
from nd.generate.guidance import VARIANTS, image_decoder, kappa_at
from nd.generate.guided_diffusion import GuidedDiffusion, Previews, previews_of
from nd.generate.sampler import GuidedSampler
from nd.generate.takagi import TwoPasses
from nd.generate.trajectories import noise_for

SHAPE = (4, 4, 4)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny")))


def settings(backbone: Backbone, **guidance: object) -> Config:
    return Config(
        method=method_settings(steps=6, strength=0.75, cfg_scale=3.0, repeats=2),
        guidance=replace(GuidanceConfig(kappa=0.5, eta=0.5, normalise=True), **guidance),  # type: ignore[arg-type]
        backbone=backbone.config,
    )


def inputs(n: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    z, c, g = (torch.randn(n, *shape, generator=random) for shape in (SHAPE, (8, 16), (6, 17, 16)))
    return {"z": z, "c": c, "g": 0.1 * g}


# ---- decoders ----------------------------------------------------------------------------------------------------


def test_half_resolution_is_the_vae_of_shrunk_latents(backbone: Backbone) -> None:
    z = torch.randn(2, 4, 8, 8)
    small = torch.nn.functional.interpolate(z, (4, 4), mode="bilinear", antialias=True)
    assert torch.allclose(image_decoder(backbone, "half")(z), backbone.decode(small, clamp=False), atol=1e-5)
    assert image_decoder(backbone, "full")(z).shape == (2, 3, 32, 32)


@pytest.fixture
def tiny_vae(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_tiny_decoder_takes_latents_in_its_own_units(backbone: Backbone, tiny_vae: Path) -> None:
    config = replace(backbone.config, tiny_vae=str(tiny_vae))
    z = torch.randn(2, *SHAPE)
    model = AutoencoderTiny.from_pretrained(tiny_vae)
    expected = model.decode(z / model.config["scaling_factor"]).sample / 2 + 0.5
    assert torch.allclose(image_decoder(load_backbone(config), "tiny")(z), expected, atol=1e-5)


@pytest.mark.parametrize("decoder", ["half", "tiny"])
def test_guidance_by_another_decoder_descends_too(backbone: Backbone, tiny_vae: Path, decoder: str) -> None:
    fresh = load_backbone(replace(backbone.config, tiny_vae=str(tiny_vae)))
    sampler, given = GuidedSampler(fresh, settings(fresh, decoder=decoder)), inputs(3)
    guide = sampler.guide(given["c"], given["g"], 601)
    gradient, _, before = guide.gradient(given["z"], 0.16)
    step = 1e-3 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    assert (guide.gradient(given["z"] - step, 0.16)[2] < before).all()


def test_tiny_decoder_without_weights_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"guidance\.decoder: tiny needs backbone\.tiny_vae"):
        compose(["experiment=scenes", "guidance.decoder=tiny"])
    with pytest.raises(UserError, match=r"backbone\.tiny_vae=.*/none: no such folder\. .* madebyollin/taesd"):
        image_decoder(load_backbone(replace(backbone.config, tiny_vae=str(tmp_path / "none"))), "tiny")
    with pytest.raises(UserError, match=r"the folder has no config\.json"):
        image_decoder(load_backbone(replace(backbone.config, tiny_vae=str(tmp_path))), "tiny")


# ---- kappa over the steps ----------------------------------------------------------------------------------------


def test_kappa_over_the_steps() -> None:
    assert [kappa_at(3.0, "constant", step, 4) for step in range(4)] == [3, 3, 3, 3]
    assert [kappa_at(4.0, "falling", step, 4) for step in range(4)] == [4, 3, 2, 1]
    assert [kappa_at(4.0, "rising", step, 4) for step in range(4)] == [1, 2, 3, 4]


def test_the_schedule_reaches_the_pictures(backbone: Backbone) -> None:
    given, noise = inputs(1), noise_for(1, [0], 1, SHAPE)
    made = [
        GuidedSampler(backbone, settings(backbone, schedule=name)).sample(*given.values(), noise)[0].images
        for name in ("constant", "falling", "rising")
    ]
    assert (made[0] - made[1]).abs().max() > 1e-3
    assert (made[1] - made[2]).abs().max() > 1e-3


# ---- precision ---------------------------------------------------------------------------------------------------


def test_half_precision_keeps_small_gradients(backbone: Backbone) -> None:
    """The loss of features that almost fit has gradients below what float16 can hold, unless it is scaled."""
    half = load_backbone(replace(backbone.config, dtype="float16"))
    sampler, single, given = GuidedSampler(half, settings(half)), GuidedSampler(backbone, settings(backbone)), inputs(2)
    pair = [s.guide(given["c"], 1e-3 * given["g"], 601) for s in (sampler, single)]
    coarse, fine = (guide.gradient(given["z"], 0.16)[0].flatten(1) for guide in pair)
    assert pair[0].loss_scale > 1
    assert torch.nn.functional.cosine_similarity(coarse, fine).min() > 0.99
    assert torch.allclose(coarse.norm(dim=1), fine.norm(dim=1), rtol=0.05)


def test_bfloat16_gives_nearly_the_same_picture(backbone: Backbone) -> None:
    given, noise = inputs(1), noise_for(1, [0], 1, SHAPE)
    brain = load_backbone(replace(backbone.config, dtype="bfloat16"))
    coarse, fine = (GuidedSampler(b, settings(b)).sample(*given.values(), noise)[0].images for b in (brain, backbone))
    assert (coarse - fine).abs().mean() < 0.02


@pytest.mark.slow
def test_compiled_unet_gives_the_same_picture(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UNet is traced, forwards and backwards, and run as traced; machine code, minutes in making, is PyTorch's."""
    graphs: list[str] = []

    def traced(module: torch.nn.Module, inputs: list[Tensor]) -> object:
        graphs.append(type(module).__name__)
        return lookup_backend("aot_eager")(module, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traced))
    given, noise = inputs(1), noise_for(1, [0], 1, SHAPE)
    cfg = settings(backbone, eta=0.3)
    compiled = replace(cfg, trainer=replace(cfg.trainer, compile=True))
    made, plain = (GuidedSampler(backbone, one).sample(*given.values(), noise)[0].images for one in (compiled, cfg))
    assert graphs
    made, plain = (GuidedSampler(backbone, one).sample(*given.values(), noise)[0].images for one in (compiled, cfg))
    assert (made - plain).abs().max() < 1e-4
    with pytest.raises(UserError, match=r"trainer\.compile: self-attention guidance .* method\.sag_scale=0"):
        compose(["trainer.compile=true", "method.sag_scale=0.5"])


# ---- self-attention guidance -------------------------------------------------------------------------------------


def test_nothing_is_blurred_where_nothing_is_attended_to_more() -> None:
    z, eps = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    even = torch.ones(1, 16)
    assert torch.allclose(degraded(z, eps, 0.3, even), z, atol=1e-5)
    some = even.clone()
    some[0, 5] = 1.5  # row 1, column 1 of 4 x 4: latent rows and columns 2, 3
    changed = (degraded(z, eps, 0.3, some) - z).abs().amax(1)[0] > 1e-4
    assert changed[2:4, 2:4].all()
    assert int(changed.sum()) == 4


def test_self_attention_guidance_needs_attention_and_room(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"attention in its middle block.*method\.sag_scale=0"):
        SelfAttention(torch.nn.Linear(1, 1), 8)
    with pytest.raises(UserError, match=r"latents of 4 x 4 are too small for a blur of 9"):
        SelfAttention(backbone.unet, 4)
    with pytest.raises(UserError, match=r"method\.sag_scale: -1\.0 is negative"):
        compose(["method.sag_scale=-1"])


# ---- images that are not finite ----------------------------------------------------------------------------------


def half_broken(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the VAE overflow on the second row that it decodes, as half precision may."""
    plain = backbone.decode

    def decode(latents: Tensor, **options: bool) -> Tensor:
        images = plain(latents, **options).clone()
        images[1, 0, 0, 0] = torch.nan
        return images

    monkeypatch.setattr(backbone, "decode", decode)


def test_a_decoded_image_that_is_not_finite_is_told_and_not_shown_black(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, z = GuidedSampler(backbone, settings(backbone, kappa=0.0)), inputs(3)["z"]
    half_broken(backbone, monkeypatch)
    (made,) = GuidedDiffusion(sampler, 1, 2)([7, 8], inputs(2))
    assert made.failed == {7: "image 7, repeat 1: sampling gave values that are not finite"}
    (made,) = Alone(DecodedLatents(backbone))([7, 8, 9], {"z": z})
    assert list(made.failed) == [8]


def test_a_first_guess_that_is_not_finite_starts_nothing(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    half_broken(backbone, monkeypatch)
    z, _ = TwoPasses(backbone, "nd")([7, 8, 9], {"z40": torch.randn(3, 4, 3, 3), "c": inputs(3)["c"]}, 4)
    assert z.isfinite().flatten(1).all(1).tolist() == [True, False, True]


# ---- presets and previews ----------------------------------------------------------------------------------------


def test_presets_follow_what_they_are_named_after() -> None:
    released = compose(["method=neuraldiffuser_released", "guidance=released"])
    assert (released.method.sag_scale, released.method.steps, released.method.strength) == (0.75, 50, 0.75)
    assert (released.guidance.kappa, released.guidance.eta, released.guidance.normalise) == (3e5, 0.2, False)
    assert VARIANTS[released.method.variant].own_noise is False
    paper = compose(["method=neuraldiffuser_paper", "guidance=released"])
    assert (paper.method.sag_scale, VARIANTS[paper.method.variant].exact_x0) == (0.0, True)


def test_previews_show_the_first_image_after_every_step(backbone: Backbone, tmp_path: Path) -> None:
    sampler = GuidedSampler(backbone, settings(backbone))
    generator = GuidedDiffusion(sampler, 1, 2, Previews(tmp_path / "shown", backbone, 2))
    generator([7, 9], inputs(2))
    names = sorted(path.name for path in (tmp_path / "shown").iterdir())
    assert names == [f"image-00007-step-{step:03d}.png" for step in range(1, 5)]
    last = np.asarray(Image.open(tmp_path / "shown" / names[-1]))
    quiet = GuidedDiffusion(sampler, 1, 2)([7, 9], inputs(2))[0].images
    # Two samples are decoded there and four here; a value may be rounded to the next grey on one of the two ways.
    assert np.abs(last.astype(int) - np.concatenate(list(quiet[0]), axis=1)).max() <= 1
    generator([11], inputs(1))
    assert len(list((tmp_path / "shown").iterdir())) == 4  # of the first batch alone


def test_of_several_processes_the_first_shows_previews(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a first batch, and what is named by no image would be the last one's to write."""
    cfg = settings(backbone)
    cfg.trainer.previews = "shown"
    assert previews_of(cfg, backbone) is not None
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        assert (previews_of(cfg, backbone) is None) == (rank > 0)
