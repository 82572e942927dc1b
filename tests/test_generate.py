"""Schedule, noise, guidance and sampler against a plain statement of the algorithm on tiny random models.

Numbers of the schedule: the reference document of the method (timesteps 721 .. 601 and their alpha_bar).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from helpers_backbone import tiny_backbone
from helpers_config import method_settings
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config, GuidanceConfig
from nd.config.fields import share_of
from nd.errors import UserError
from nd.generate.guidance import FeatureGuidance, feature_loss, guided_noise, layer_weights, unit_vectors
from nd.generate.sampler import GuidedSampler
from nd.generate.trajectories import build_schedule, noise_for

SD_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PINNED_NOISE = [0.6426796, -1.2621155, -0.1979454]  # noise_for(42, [1000], 1, (3,))
A = [1.5, 1.2, 1.0, 1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny")))


def settings(backbone: Backbone, **changes: object) -> Config:
    """Six sampled steps, the first three guided; kappa of a size that changes images visibly."""
    method = method_settings(steps=8, strength=0.75, cfg_scale=3.0, repeats=2)
    guidance = GuidanceConfig(kappa=0.5, eta=0.5, normalise=True)
    method = replace(method, **{k: v for k, v in changes.items() if hasattr(method, k)})
    guidance = replace(guidance, **{k: v for k, v in changes.items() if hasattr(guidance, k)})
    return Config(method=method, guidance=guidance, backbone=backbone.config)


def sampled(sampler: GuidedSampler, z: Tensor, c: Tensor, g: Tensor, noise: Tensor) -> Tensor:
    """Pictures of the sampler's one point."""
    (one,) = sampler.sample(z, c, g, noise)
    assert not one.stopped.any()
    return one.images


def inputs(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = (4, 4, 4), (8, 16), (6, 17, 16)
    z, c, g = (torch.randn(n, *shape, generator=random) for shape in shapes)
    return z, c, 0.1 * g


# ---- the algorithm once more, slowly -----------------------------------------------------------------------------


def plain_features(backbone: Backbone, picture: Tensor) -> list[Tensor]:
    """MLP-branch outputs of blocks 0 .. 5 by forward hooks on the whole tower; image (1, 3, H, W) in [0, 1]."""
    found: list[Tensor] = []
    blocks = backbone.tower.transformer.resblocks[:6]
    hooks = [block.mlp.c_proj.register_forward_hook(lambda m, i, output: found.append(output)) for block in blocks]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    backbone.tower((picture - mean[:, None, None]) / std[:, None, None])
    for hook in hooks:
        hook.remove()
    return found


def plain_loss(backbone: Backbone, z: Tensor, eps: Tensor, abar: float, g: Tensor) -> Tensor:
    x0 = (z - np.sqrt(1 - abar) * eps) / np.sqrt(abar)
    picture = (backbone.vae.decode(x0 / backbone.vae.config.scaling_factor).sample + 1) / 2
    features = plain_features(backbone, picture)
    inverse_norms = [1 / float(torch.sqrt((g[layer] ** 2).sum())) for layer in range(6)]
    loss = torch.zeros(())
    for layer in range(6):
        weight = A[layer] * inverse_norms[layer] / sum(inverse_norms)
        loss = loss + weight * ((features[layer][0] - g[layer]) ** 2).mean()
    return loss


def plain_sample(backbone: Backbone, cfg: Config, z0: Tensor, c: Tensor, g: Tensor, noise: Tensor) -> Tensor:
    """One image (3, H, W) of one image and one noise: every line a line of the method's description."""
    scheduler = DDIMScheduler(**SD_SCHEDULE, clip_sample=False)
    scheduler.set_timesteps(cfg.method.steps)
    n = int(cfg.method.steps * cfg.method.strength)
    n_guided = int(n * cfg.guidance.eta)
    uncond = backbone.encode_text([""])
    timesteps = scheduler.timesteps[-n:]
    z = scheduler.add_noise(z0[None], noise[None], timesteps[:1])
    for step, t in enumerate(timesteps):
        abar = float(scheduler.alphas_cumprod[t])
        leaf = z.detach().requires_grad_(True)
        with torch.set_grad_enabled(step < n_guided):
            eps_cond = backbone.unet(leaf, t, encoder_hidden_states=c[None]).sample
            if step < n_guided:
                through = eps_cond if cfg.guidance.through_unet else eps_cond.detach()
                (gradient,) = torch.autograd.grad(plain_loss(backbone, leaf, through, abar, g), leaf)
        eps_uncond = backbone.unet(z, t, encoder_hidden_states=uncond).sample
        eps = eps_uncond + cfg.method.cfg_scale * (eps_cond.detach() - eps_uncond)
        share = {"constant": 1.0, "falling": 1 - step / n, "rising": (step + 1) / n}[cfg.guidance.schedule]
        kappa = share * cfg.guidance.kappa
        if step < n_guided and cfg.guidance.normalise:
            eps = eps + kappa * torch.linalg.norm(eps) * gradient / torch.linalg.norm(gradient)
        elif step < n_guided:
            eps = eps + np.sqrt(1 - abar) * kappa * gradient
        z = scheduler.step(eps, t, z).prev_sample
    picture = (backbone.vae.decode(z / backbone.vae.config.scaling_factor).sample[0] + 1) / 2
    return picture.clamp(0, 1)


CASES = [
    {},
    {"eta": 0.0},
    {"eta": 1.0},
    {"through_unet": False},
    {"normalise": False, "kappa": 3e3},
    {"cfg_scale": 1.0},
    {"kappa": 0.0},
    {"schedule": "falling"},
    {"schedule": "rising"},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_engine_equals_plain_algorithm(backbone: Backbone, changes: dict[str, object]) -> None:
    cfg = settings(backbone, **changes)
    z, c, g = inputs(2)
    noise = noise_for(1, [5, 9], 2, (4, 4, 4))
    pictures = sampled(GuidedSampler(backbone, cfg), z, c, g, noise)
    assert pictures.shape == (2, 2, 3, 16, 16)
    for image in range(2):
        for repeat in range(2):
            with torch.no_grad():
                expected = plain_sample(backbone, cfg, z[image], c[image], g[image], noise[image, repeat])
            assert torch.allclose(pictures[image, repeat], expected, atol=1e-4)


def test_guidance_changes_pictures_and_kappa_zero_does_not(backbone: Backbone) -> None:
    z, c, g = inputs(2)
    noise = noise_for(1, [5, 9], 1, (4, 4, 4))

    def pictures(**changes: object) -> Tensor:
        return sampled(GuidedSampler(backbone, settings(backbone, **changes)), z, c, g, noise)

    assert (pictures() - pictures(kappa=0.0)).abs().max() > 0.02
    assert torch.equal(pictures(kappa=0.0), pictures(eta=0.0))
    assert torch.equal(pictures(kappa=0.0), pictures(kappa=0.0, normalise=False))


def test_backbone_first_used_without_gradients_serves_guidance_later(backbone: Backbone) -> None:
    fresh = load_backbone(backbone.config)
    z, c, g = inputs(1)
    noise = noise_for(1, [5], 1, (4, 4, 4))
    GuidedSampler(fresh, settings(backbone, kappa=0.0)).sample(z, c, None, noise)
    with torch.inference_mode():
        fresh.tower_input(torch.zeros(1, 3, 16, 16)).sum() + fresh.tower.positional_embedding.sum()
    guided = sampled(GuidedSampler(fresh, settings(backbone)), z, c, g, noise)
    assert torch.allclose(guided, sampled(GuidedSampler(backbone, settings(backbone)), z, c, g, noise), atol=1e-5)


# ---- schedule ----------------------------------------------------------------------------------------------------


def test_schedule_of_the_reference() -> None:
    for scheduler in (DDIMScheduler(**SD_SCHEDULE), PNDMScheduler(**SD_SCHEDULE, skip_prk_steps=True)):
        schedule = build_schedule(scheduler, 50, 0.75)
        assert len(schedule) == 37
        assert schedule.timesteps == tuple(range(721, 0, -20))
        assert share_of(len(schedule), 0.2) == 7
        printed = [0.0705, 0.0819, 0.0946, 0.1087, 0.1243, 0.1413, 0.1598]
        np.testing.assert_allclose(schedule.alpha_bar[:7], printed, atol=5e-5)
        assert schedule.alpha_bar_next[:-1] == schedule.alpha_bar[1:]
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        assert schedule.alpha_bar_next[-1] == pytest.approx(1 - betas[0], abs=1e-6)  # set_alpha_to_one is off


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
def test_every_step_leads_to_the_level_of_the_next(offset: int, to_one: bool) -> None:
    """Without an offset one step leads to timestep 0, whose level is its own and not that of clean latents."""
    changes = {"steps_offset": offset, "set_alpha_to_one": to_one}
    schedule = build_schedule(DDIMScheduler(**{**SD_SCHEDULE, **changes}), 50, 0.75)
    levels = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    wanted = [levels[t] for t in range(720 + offset, -1, -20)]
    np.testing.assert_allclose(schedule.alpha_bar, wanted, rtol=1e-4)
    np.testing.assert_allclose(schedule.alpha_bar_next, [*wanted[1:], 1.0 if to_one else levels[0]], rtol=1e-4)


@pytest.mark.parametrize(
    ("n", "share", "steps"), [(50, 0.58, 29), (37, 0.2, 7), (15, 0.2, 3), (7, 1.0, 7), (9, 0.1, 0)]
)
def test_share_of_counts_as_in_decimal(n: int, share: float, steps: int) -> None:
    assert share_of(n, share) == steps


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_timesteps_may_be_spaced_in_any_way(spacing: str) -> None:
    """30 do not divide 1,000, so timesteps are not all 33 apart."""
    scheduler = DDIMScheduler(**SD_SCHEDULE, timestep_spacing=spacing)
    whole, part = build_schedule(scheduler, 30, 1.0), build_schedule(scheduler, 30, 0.5, slot_above=True)
    assert whole.alpha_bar_next[:-1] == whole.alpha_bar[1:]
    assert part.timesteps == whole.timesteps[15:]
    assert part.start == whole.alpha_bar[14]


def test_more_steps_than_the_schedule_has_timesteps_are_refused() -> None:
    scheduler = DDIMScheduler(**SD_SCHEDULE)
    assert len(build_schedule(scheduler, 1000, 0.5)) == 500
    with pytest.raises(UserError, match=r"steps=1000: .*steps_offset \(1\).* timestep 1000, and the last is 999"):
        build_schedule(scheduler, 1000, 1.0)


@pytest.mark.parametrize(
    ("steps", "spacing", "wanted"),
    [
        (300, "leading", "method.steps=300: the backbone takes timesteps 3 apart from 0 on, so that the noisiest is 898"
         " of 999. With 250 or 333 steps it lies nearer the last."),
        (700, "leading", "timesteps 1 apart from 0 on, so that the noisiest is 700 of 999. With 500 or 1000 steps"),
        (50, "leading", ""), (30, "leading", ""), (999, "leading", ""),
        (300, "trailing", ""), (300, "linspace", ""),
    ],
)  # fmt: skip
def test_steps_that_begin_far_below_the_last_timestep_are_told(
    steps: int, spacing: str, wanted: str, caplog: pytest.LogCaptureFixture
) -> None:
    build_schedule(DDIMScheduler(**SD_SCHEDULE, timestep_spacing=spacing), steps, 0.5)
    assert wanted in caplog.text
    assert bool(caplog.text) is bool(wanted)


@pytest.mark.parametrize(("steps", "strength"), [(1, 0.5), (10, 0.0), (10, 1.2)])
def test_schedule_without_steps_is_refused(steps: int, strength: float) -> None:
    with pytest.raises(UserError, match=r"method\.strength.* leave .* steps"):
        build_schedule(DDIMScheduler(**SD_SCHEDULE), steps, strength)


def test_backbone_that_does_not_predict_noise_is_refused() -> None:
    with pytest.raises(UserError, match="'v_prediction'"):
        build_schedule(DDIMScheduler(**SD_SCHEDULE, prediction_type="v_prediction"), 50, 0.75)


# ---- noise -------------------------------------------------------------------------------------------------------


def test_noise_belongs_to_seed_image_and_repeat() -> None:
    together = noise_for(3, [4, 1, 7], 3, (2, 5, 5))
    assert together.dtype == torch.float32
    for row, image_id in enumerate([4, 1, 7]):
        assert torch.equal(noise_for(3, [image_id], 3, (2, 5, 5))[0], together[row])
    assert torch.equal(noise_for(3, [7, 4], 2, (2, 5, 5)), together[[2, 0], :2])
    different = [noise_for(4, [4], 1, (2, 5, 5))[0, 0], together[0, 1], together[1, 0]]
    assert all(not torch.allclose(together[0, 0], other) for other in different)


def test_noise_is_standard_normal_and_stays_what_it_is() -> None:
    noise = noise_for(0, range(200), 2, (4, 8, 8))
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    # Shipped tables depend on these draws: a library that changes them must be noticed.
    assert noise_for(42, [1000], 1, (3,))[0, 0].tolist() == pytest.approx(PINNED_NOISE, abs=1e-6)


# ---- guidance ----------------------------------------------------------------------------------------------------


def test_layer_weights_follow_the_formula() -> None:
    g = torch.zeros(1, 3, 1, 2)
    g[0, :, 0, 0] = torch.tensor([1.0, 2.0, 4.0])  # norms 1, 2, 4: shares 4/7, 2/7, 1/7
    np.testing.assert_allclose(layer_weights(g, [1.5, 1.0, 2.0]).numpy(), [[6 / 7, 2 / 7, 2 / 7]], rtol=1e-6)


def test_layer_weights_survive_a_layer_of_zeros() -> None:
    g = torch.ones(1, 2, 3, 3)
    g[0, 0] = 0
    assert torch.isfinite(layer_weights(g, [1.0, 1.0])).all()


def test_loss_of_a_picture_does_not_depend_on_the_batch() -> None:
    _, _, g = inputs(5)
    features = [torch.randn(5, 17, 16) for _ in range(6)]
    together = feature_loss(features, g, layer_weights(g, A))
    for row in range(5):
        alone = feature_loss([f[row : row + 1] for f in features], g[row : row + 1], layer_weights(g[row : row + 1], A))
        assert float(alone) == pytest.approx(float(together[row]), rel=1e-5)


def guide_of(backbone: Backbone, c: Tensor, g: Tensor, t: int = 601) -> FeatureGuidance:
    sampler = GuidedSampler(backbone, settings(backbone))
    return sampler.guide(c, g, t)


def test_gradient_equals_finite_differences_in_float64(backbone: Backbone) -> None:
    double = load_backbone(backbone.config)
    double.dtype = torch.float64  # before any module is loaded
    z, c, g = (x.double() for x in inputs(1, seed=2))
    weights = layer_weights(g, A)
    tower = GuidedSampler(double, settings(backbone)).tower
    assert tower is not None

    def denoise(x: Tensor) -> Tensor:
        return double.unet(x, 601, encoder_hidden_states=c).sample

    guide = FeatureGuidance(denoise, lambda x: double.decode(x, clamp=False), tower, g, weights)
    gradient, eps, _ = guide.gradient(z, 0.16)
    assert torch.allclose(eps, denoise(z))
    random = torch.Generator().manual_seed(3)
    for _ in range(5):
        direction = torch.randn(z.shape, generator=random, dtype=torch.float64)
        h = 1e-6
        up, down = (guide.gradient(z + s * h * direction, 0.16)[2] for s in (1, -1))
        expected = float((up - down) / (2 * h))
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_small_guided_steps_lower_the_loss(backbone: Backbone) -> None:
    z, c, g = inputs(50, seed=4)
    guide = guide_of(backbone, c, g)
    gradient, _, before = guide.gradient(z, 0.16)
    _, _, after = guide.gradient(z - 1e-3 * unit_vectors(gradient), 0.16)
    assert (after < before).all()


def test_normalised_term_has_kappa_times_the_size_of_the_noise() -> None:
    eps, gradient = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4)
    gradient[1] *= 1e-30  # its square underflows
    gradient[2] = 0
    term = guided_noise(eps, gradient, 0.1, 0.25, normalise=True) - eps
    sizes = term.flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1)
    np.testing.assert_allclose(sizes.numpy(), [0.25, 0.25, 0.0], rtol=1e-4, atol=1e-7)
    assert float((term[0] * gradient[0]).sum()) > 0  # up the loss in eps is down the loss in z


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_taken_for_none(value: float, normalise: bool) -> None:
    """The sample has to stop with a message: unguided, it would look as if it had been guided."""
    eps, gradient = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4)
    gradient[1], gradient[2] = 0, value
    moved = guided_noise(eps, gradient, 0.1, 0.7, normalise=normalise)
    assert torch.isfinite(moved[:2]).all()
    assert torch.equal(moved[1], eps[1])
    assert not torch.isfinite(moved[2]).any()


def test_saturated_pixels_keep_their_gradient(backbone: Backbone) -> None:
    """Far outside [0, 1] a clamped image would have no gradient at all."""
    guide = guide_of(backbone, *inputs(1)[1:])
    white = replace(guide, decode=lambda z: z[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3) + 50)
    assert float(white.gradient(inputs(1)[0], 0.16)[0].abs().max()) > 0


# ---- sampler -----------------------------------------------------------------------------------------------------


def test_pictures_do_not_depend_on_batch_or_order(backbone: Backbone) -> None:
    sampler = GuidedSampler(backbone, settings(backbone))
    z, c, g = inputs(7)
    ids = [30, 2, 11, 5, 6, 90, 7]
    together = sampled(sampler, z, c, g, noise_for(1, ids, 2, (4, 4, 4)))
    order = [6, 0, 3, 1, 5, 2, 4]
    for row in order:
        alone = sampled(
            sampler, z[row : row + 1], c[row : row + 1], g[row : row + 1], noise_for(1, [ids[row]], 2, (4, 4, 4))
        )
        assert torch.allclose(alone[0], together[row], atol=1e-4)
    shuffled = sampled(sampler, z[order], c[order], g[order], noise_for(1, [ids[i] for i in order], 2, (4, 4, 4)))
    assert torch.allclose(shuffled, together[order], atol=1e-4)


def test_latents_that_stop_being_finite_stop_alone(backbone: Backbone) -> None:
    sampler = GuidedSampler(backbone, settings(backbone, kappa=3e3, normalise=False))
    z, c, g = inputs(3)
    noise = noise_for(1, [70, 71, 72], 2, (4, 4, 4))
    well = sampled(sampler, z, c, g, noise)
    z[1, 0, 0, 0] = float("inf")
    (one,) = sampler.sample(z, c, g, noise)
    assert one.stopped.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert torch.isfinite(one.images).all()
    assert torch.allclose(one.images[[0, 2]], well[[0, 2]], atol=1e-5)


def test_features_of_another_backbone_are_refused(backbone: Backbone) -> None:
    sampler = GuidedSampler(backbone, settings(backbone))
    z, c, g = inputs(1)
    noise = noise_for(1, [0], 1, (4, 4, 4))
    with pytest.raises(UserError, match=r"decoded c has shape \(8, 12\) .* takes \(8, 16\)"):
        sampler.sample(z, c[..., :12], g, noise)
    with pytest.raises(UserError, match=r"decoded g has shape \(5, 17, 16\)"):
        sampler.sample(z, c, g[:, :5], noise)
    with pytest.raises(UserError, match=r"decoded g has shape \(6, 9, 16\) .* \(6, 17, 16\)"):
        sampler.sample(z, c, g[:, :, :9], noise)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 1.5}, r"guidance\.eta=1\.5 .*\[0, 1\]"),
        ({"kappa": -1.0}, r"guidance\.kappa=-1\.0 must be at least 0"),
        ({"kappa": float("nan")}, r"guidance\.kappa=nan"),
        ({"layer_weights": [1.0, 1.0]}, "2 weights for 6 layers"),
    ],
)
def test_settings_out_of_range_are_refused(backbone: Backbone, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GuidedSampler(backbone, settings(backbone, **changes))
