"""The engine with the released arithmetic against the released algorithm written plainly, on tiny random models.

The numbers are those of a DDIM schedule of 50 steps, of which 37 are sampled (strength .75) and 7 guided (eta .2), with
Stable Diffusion v1.4's betas.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers_backbone import tiny_backbone
from helpers_config import method_settings
from helpers_released import (
    Numbers,
    attended,
    blurred,
    hearing,
    middle_attention,
    plain_features,
    plain_gradient,
    plain_loss,
    plain_picture,
    plain_scheduler,
)
from scipy.ndimage import gaussian_filter
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config, GuidanceConfig
from nd.config.fields import share_of
from nd.generate.guidance import VARIANTS, guided_noise, shown_latents
from nd.generate.guided_diffusion import GuidedDiffusion
from nd.generate.sampler import GuidedSampler
from nd.generate.trajectories import build_schedule, ddim_step, shared_noise

LATENT = (4, 8, 8)
KAPPA = 1e3  # changes images of these models by a fifth of their range
TIMESTEPS = (721, 701, 681, 661, 641, 621, 601)
TABLE = {  # at each guided timestep
    "alpha_bar": [0.0705, 0.0819, 0.0946, 0.1087, 0.1243, 0.1413, 0.1598],
    "fac": [0.964, 0.958, 0.952, 0.944, 0.936, 0.927, 0.917],
    "residual": [0.130, 0.140, 0.150, 0.160, 0.170, 0.181, 0.191],
    "k": [0.0781, 0.0751, 0.0722, 0.0694, 0.0666, 0.0639, 0.0612],
}
RELEASED = VARIANTS["released"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Pictures of 32 px; attention in the middle that attends, as random weights alone do not."""
    found = load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny"), image_size=32))
    for projection in (middle_attention(found).to_q, middle_attention(found).to_k):
        projection.weight.mul_(8)
    return found


@cache
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, c, g of two images, two noises of each."""
    random = torch.Generator().manual_seed(5)
    shapes = (2, *LATENT), (2, 8, 16), (2, 6, 17, 16), (2, 2, *LATENT)
    z, c, g, noise = (torch.randn(*shape, generator=random) for shape in shapes)
    return z, c, 0.1 * g, noise


def settings(backbone: Backbone, numbers: Numbers) -> Config:
    method = method_settings(
        variant="released", steps=numbers.steps, strength=numbers.strength, cfg_scale=numbers.cfg,
        sag_scale=numbers.sag, repeats=2,
    )  # fmt: skip
    guidance = GuidanceConfig(kappa=numbers.kappa, eta=numbers.eta)
    return Config(method=method, guidance=guidance, backbone=backbone.config)


@pytest.fixture(scope="module")
def plain(backbone: Backbone) -> dict[Numbers, Tensor]:
    """Images (2, 2, 3, H, W) by the plain algorithm, filled in as they are asked for."""
    return {}


def plain_pictures(backbone: Backbone, known: dict[Numbers, Tensor], numbers: Numbers) -> Tensor:
    if numbers not in known:
        z, c, g, noise = inputs()
        rows = [[plain_picture(backbone, z[i], c[i], g[i], x, numbers) for x in noise[i]] for i in range(2)]
        known[numbers] = torch.stack([torch.stack(row) for row in rows])
    return known[numbers]


# ---- engine and plain algorithm ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sag", "eta", "samples"), [*product([0.0, 0.75], [0.0, 0.2, 1.0], [4]), (0.0, 0.2, 1), (0.75, 0.2, 1)]
)
def test_pictures_of_the_engine_are_those_of_the_plain_algorithm(
    backbone: Backbone, plain: dict[Numbers, Tensor], sag: float, eta: float, samples: int
) -> None:
    numbers = Numbers(steps=8, sag=sag, kappa=KAPPA, eta=eta)
    z, c, g, noise = (x[:1] if samples == 1 else x for x in inputs())
    noise = noise[:, :1] if samples == 1 else noise
    (found,) = GuidedSampler(backbone, settings(backbone, numbers)).sample(z, c, g, noise)
    wanted = plain_pictures(backbone, plain, numbers)[: len(z), : noise.shape[1]]
    assert found.images.shape == wanted.shape
    assert not found.stopped.any()
    assert float((found.images - wanted).abs().max()) <= 1e-3


def test_every_setting_above_changes_the_pictures(backbone: Backbone, plain: dict[Numbers, Tensor]) -> None:
    base = Numbers(steps=8, sag=0.75, kappa=KAPPA, eta=0.2)
    pictures = plain_pictures(backbone, plain, base)
    for other in (replace(base, sag=0.0), replace(base, eta=0.0), replace(base, eta=1.0)):
        assert float((pictures - plain_pictures(backbone, plain, other)).abs().max()) > 0.02, other
    for variant in ("nd", "paper"):
        cfg = settings(backbone, base)
        cfg.method.variant = variant
        (found,) = GuidedSampler(backbone, cfg).sample(*inputs())
        assert float((pictures - found.images).abs().max()) > 0.02, variant


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("t", [721, 401, 1])
def test_gradient_of_the_engine_is_that_of_the_plain_algorithm(backbone: Backbone, t: int, samples: int) -> None:
    numbers = Numbers(kappa=KAPPA)
    sampler = GuidedSampler(backbone, settings(backbone, numbers))
    abar = float(backbone.scheduler.alphas_cumprod[t])
    images = torch.arange(samples) % 2
    _, c, g, noise = inputs()
    z = noise.flatten(0, 1)[:samples]
    gradient, _, loss = sampler.guide(c[images], g[images], t).gradient(z, abar)
    for row, image in enumerate(images):
        wanted = plain_gradient(backbone, z[row : row + 1], torch.tensor(t), c[image][None], g[image], numbers)
        assert float((gradient[row] - wanted[0]).norm() / wanted.norm()) <= 1e-4
        assert float(wanted.norm()) > 0
    assert (loss > 0).all()


def test_all_images_get_the_same_noises_and_bytes_are_cut(backbone: Backbone) -> None:
    numbers = Numbers(steps=4, kappa=KAPPA, eta=0.5)
    z, c, g, _ = inputs()
    sampler = GuidedSampler(backbone, settings(backbone, numbers))
    (found,) = GuidedDiffusion(sampler, 42, 2)([7, 3], {"z": z[:2], "c": c[:2], "g": g[:2]})
    torch.manual_seed(42)
    first = torch.randn(1, *LATENT)
    for _ in range(40):
        torch.randn(1, *LATENT)
    noises = [first[0], torch.randn(1, *LATENT)[0]]
    for image in range(2):
        for repeat, noise in enumerate(noises):
            wanted = plain_picture(backbone, z[image], c[image], g[image], noise, numbers).permute(1, 2, 0).numpy()
            difference = found.images[image, repeat].astype(int) - (wanted * 255).astype(np.uint8)
            assert np.abs(difference).max() <= 1
            assert np.mean(difference != 0) < 0.02  # rounded bytes would differ in half of the places


# ---- the numbers of the schedule ---------------------------------------------------------------------------------


def sd_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def test_timesteps_and_start_of_the_released_schedule(backbone: Backbone) -> None:
    schedule = build_schedule(sd_scheduler(), 50, 0.75, matched_start=False)
    assert schedule.timesteps == tuple(range(721, 0, -20))
    assert (len(schedule), share_of(len(schedule), 0.2)) == (37, 7)
    assert schedule.start == pytest.approx(0.0608, abs=5e-5)
    assert schedule.start == pytest.approx(float(sd_scheduler().alphas_cumprod[740]), abs=1e-7)
    assert build_schedule(sd_scheduler(), 50, 0.75).start == pytest.approx(0.0705, abs=5e-5)
    assert plain_scheduler(backbone, 50).timesteps[-37:].tolist() == list(schedule.timesteps)


def test_guided_steps_have_the_coefficients_of_the_table() -> None:
    schedule = build_schedule(sd_scheduler(), 50, 0.75, matched_start=False)
    assert schedule.timesteps[:7] == TIMESTEPS
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    found: dict[str, list[float]] = {name: [] for name in TABLE}
    shown: list[tuple[float, float]] = []
    for abar, after in list(zip(schedule.alpha_bar, schedule.alpha_bar_next, strict=True))[:7]:
        noise, signal = (1 - abar) ** 0.5 * one, abar**0.5 * one  # what z is of noise 1, and of signal 1
        unmixed = replace(RELEASED, mix_noisy=False)
        steered = guided_noise(0 * one, one, abar, 1.0, normalise=False)
        found["alpha_bar"].append(abar)
        # s = fac x0 + (1 - fac) z is linear: with no predicted noise, (s - z) / (x0 - z) = fac.
        apart = shown_latents(one, 0 * one, abar, unmixed) - one
        found["fac"].append(float((shown_latents(one, 0 * one, abar, RELEASED) - one) / apart))
        found["residual"].append(float(shown_latents(noise, one, abar, unmixed)))
        found["k"].append(-float(ddim_step(0 * one, steered, abar, after)))
        shown.append(tuple(float(shown_latents(z, e, abar, RELEASED)) for z, e in ((noise, one), (signal, 0 * one))))
    for name, printed in TABLE.items():
        digits = 5.1e-5 if name in ("alpha_bar", "k") else 5.1e-4
        np.testing.assert_allclose(found[name], printed, atol=digits, err_msg=name)
    np.testing.assert_allclose([shown[0], shown[-1]], [(0.160, 0.974), (0.252, 0.950)], atol=5.1e-4)


def test_shared_noise_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(42)
    noises = []
    for _ in range(5):
        noises.append(torch.randn(1, 4, 16, 16)[0])
        for _ in range(40):
            torch.randn(1, 4, 16, 16)
    assert torch.equal(shared_noise(42, 5, (4, 16, 16)), torch.stack(noises))
    assert torch.equal(shared_noise(42, 2, (4, 16, 16)), torch.stack(noises[:2]))


# ---- the plain algorithm itself ----------------------------------------------------------------------------------


def test_plain_blur_is_a_gaussian_filter() -> None:
    x = inputs()[0][:1]
    wanted = [gaussian_filter(channel.numpy(), sigma=1, mode="mirror", radius=4) for channel in x[0]]
    np.testing.assert_allclose(blurred(x)[0].numpy(), wanted, atol=1e-6)


def test_plain_attention_is_the_modules_own(backbone: Backbone) -> None:
    z, c, _, _ = inputs()
    attention = middle_attention(backbone)
    with hearing(attention) as heard:
        backbone.unet(z[:1], 601, encoder_hidden_states=c[:1])
    query, key = (attention.head_to_batch_dim(project(heard[0])) for project in (attention.to_q, attention.to_k))
    received = attention.get_attention_scores(query, key).mean(dim=0).sum(dim=0)
    mask = attended(attention, heard[0][0])
    assert torch.equal(mask.flatten().bool(), received > 1)
    assert 0 < float(mask.mean()) < 1


def test_plain_gradient_is_that_of_finite_differences(backbone: Backbone) -> None:
    """In float64; the loss written once more, in one line a step."""
    double = load_backbone(backbone.config)
    double.dtype = torch.float64  # before any module is loaded
    z, c, g, _ = (x[:1].double() for x in inputs())
    t, abar = torch.tensor(601), float(double.scheduler.alphas_cumprod[601])
    gradient = plain_gradient(double, z, t, c, g[0], Numbers(kappa=1.0))

    def loss(x: Tensor) -> float:
        e = double.unet(x, t, encoder_hidden_states=c).sample.float()
        s = (1 - abar) ** 0.5 * (x - (1 - abar) * e) / abar**0.5 + (1 - (1 - abar) ** 0.5) * x
        y = ((double.vae.decode(s / 0.3).sample + 1) / 2).clamp(0, 1)
        return float(plain_loss(plain_features(double, y), g[0]))

    direction = gradient / gradient.norm()
    slope = (loss(z + 1e-2 * direction) - loss(z - 1e-2 * direction)) / 2e-2
    assert float(gradient.norm()) == pytest.approx(slope, rel=2e-2)  # float32 in between
