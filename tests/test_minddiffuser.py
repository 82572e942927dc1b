"""MindDiffuser's generator against a plain statement of the released algorithm, finite differences, and its own claims.

Numbers of the schedules: ReedOnePeck/MindDiffuser@c9773ac, Image reconstruction/Reconstruction.py:357-392, as computed
from its schedule (steps 37 and 34 of 50).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from helpers_backbone import tiny_backbone
from helpers_config import method_settings, target_settings
from open_clip.model import CLIP
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import BackboneConfig, Config
from nd.config.application import compose
from nd.config.components import component
from nd.config.schema import Decoding
from nd.errors import UserError
from nd.generate.base import PlannedGenerator
from nd.generate.memory import Need, empty_copy, need_of, needs_of, weight_bytes
from nd.generate.minddiffuser.components import MindDiffuserSettings
from nd.generate.minddiffuser.generator import ITERATION, MindDiffuser, curves
from nd.generate.minddiffuser.optimisation import Optimised, optimise, size_of
from nd.generate.minddiffuser.sampler import ImageToImage, schedule_of, structure_loss, structure_weights
from nd.generate.plan import Plan, plan_for
from nd.targets.noise import keyed_normal

SD_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False,
    "steps_offset": 1,
}  # fmt: skip
LATENT, TEXT, FEATURES = (4, 4, 4), (6, 16), (6, 17, 16)  # of the tiny backbone, captions of 6 of its 8 tokens
RELEASED = {
    "optimise": "z", "relative": False, "fresh_noise": True, "clamp": True, "keep": "last", "patience": 0,
    "noise_strength": 0.74,
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def double(backbone: Backbone) -> Backbone:
    """The same networks in double precision."""
    found = load_backbone(backbone.config)
    for module in (found.unet, found.vae, found.clip, found.text_encoder):
        module.double()
    found.dtype = torch.float64
    return found


def settings(backbone: Backbone, **changes: object) -> Config:
    fields: dict[str, object] = {"steps": 8, "cfg_scale": 3.0, "iterations": 4} | changes
    method = method_settings("minddiffuser", targets=["z", "c", "g"], **fields)
    c = Decoding(target=target_settings("c", tokens=TEXT[0]), mapper=Config().mapper)
    return Config(method=method, backbone=backbone.config, decodings={"c": c})


def sampler(backbone: Backbone, **changes: object) -> ImageToImage:
    return ImageToImage(backbone, settings(backbone, **changes))


def inputs(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """z, c, and g with a quarter of its numbers decoded."""
    random = torch.Generator().manual_seed(0)
    z, c, g = (torch.randn(n, *shape, generator=random).to(dtype) for shape in (LATENT, TEXT, FEATURES))
    return z, c, 0.1 * g * (torch.rand(FEATURES, generator=random) < 0.25)


# ---- presets -----------------------------------------------------------------------------------------------------


def test_presets_are_the_numbers_of_their_sources() -> None:
    presets = {name: compose([f"method={name}"]).method for name in ("minddiffuser_released", "minddiffuser_paper")}
    released, paper = presets["minddiffuser_released"], presets["minddiffuser_paper"]
    schedule = schedule_of(DDIMScheduler(**SD_SCHEDULE), released)
    assert (len(schedule), schedule.timesteps[0], schedule.timesteps[-1]) == (35, 681, 1)
    np.testing.assert_allclose([schedule.start**0.5, (1 - schedule.start) ** 0.5], [0.2457, 0.9694], atol=5e-5)
    np.testing.assert_allclose(
        [schedule.alpha_bar[0] ** 0.5, (1 - schedule.alpha_bar[0]) ** 0.5], [0.3076, 0.9515], atol=5e-5
    )
    assert (released.moved, released.iterations, released.cfg_scale) == (("z",), 300, 5.0)
    assert released.layer_weights == [1.5, 1.2, 1, 1, 1, 1]
    assert (released.keep, released.fresh_noise, released.relative, released.patience) == ("last", True, False, 0)
    assert (paper.moved, paper.norm_weights, set(paper.layer_weights)) == (("z", "c"), False, {1.0})
    matched = schedule_of(DDIMScheduler(**SD_SCHEDULE), paper)
    assert (len(matched), matched.start) == (35, matched.alpha_bar[0])
    ours = compose(["method=minddiffuser"]).method
    assert (ours.moved, ours.keep, ours.relative, ours.noise_strength) == (("z", "c"), "best", True, 0.0)
    assert ours.patience > 0


def test_the_rate_has_decayed_once_before_the_first_update() -> None:
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.01)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.999)
    method = MindDiffuserSettings(learning_rate=0.01, decay=0.999)
    adam.step()
    for iteration in range(300):
        decay.step()  # as released, before Adam
        assert method.rate(iteration) == pytest.approx(adam.param_groups[0]["lr"], rel=1e-9)
    assert method.rate(0) == pytest.approx(0.00999)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"noise_strength": 1.0}, r"method\.noise_strength: 1\.0 lies outside"),
        ({"fresh_noise": True}, r"method\.fresh_noise: .* method\.keep=last"),
        ({"layer_weights": [1.0]}, r"method\.layer_weights: 1 weights for the 6 layers"),
        ({"layer_weights": [0.0] * 6}, r"one that is positive"),
        ({"learning_rate": 0.0}, r"method\.learning_rate: 0\.0 must be positive"),
        ({"steps": 1}, r"0 steps would be run"),
        ({"decay": 0.0}, r"method\.decay"), ({"min_gain": 1.0}, r"method\.min_gain"),
    ],
)  # fmt: skip
def test_fields_out_of_range_are_named(fields: dict[str, object], problem: str) -> None:
    kind, cfg = component("generator", "minddiffuser"), Config(method=method_settings("minddiffuser", **fields))
    (said,) = kind.rules(cfg)
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(said)
    alone = Config(method=method_settings("minddiffuser", optimise="none", **fields))
    stage_1 = {"noise_strength", "steps"} & set(fields)
    assert len(list(kind.rules(alone))) == len(stage_1), "stage 2's fields mean nothing without it"


# ---- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_weights", [True, False])
def test_gradients_through_all_steps_equal_finite_differences(double: Backbone, norm_weights: bool) -> None:
    engine = sampler(double, norm_weights=norm_weights)
    assert len(engine.schedule) == 5
    z, c, g = inputs(1, torch.float64)
    noise = torch.from_numpy(keyed_normal(1, [3], 0, LATENT)).double()
    weights = structure_weights(g, engine.method)
    _, _, by_z, by_c = engine.gradient(z, c, noise, g, weights)

    def loss(z: Tensor, c: Tensor) -> float:
        return float(engine.gradient(z, c, noise, g, weights)[0])

    random, h = torch.Generator().manual_seed(5), 1e-5
    for direction in (torch.randn(z.shape, generator=random).double(), torch.eye(64)[7].view(z.shape).double()):
        slope = (loss(z + h * direction, c) - loss(z - h * direction, c)) / (2 * h)
        assert float((by_z * direction).sum()) == pytest.approx(slope, rel=1e-3)
    direction = torch.randn(c.shape, generator=random).double()
    slope = (loss(z, c + h * direction) - loss(z, c - h * direction)) / (2 * h)
    assert float((by_c * direction).sum()) == pytest.approx(slope, rel=1e-3)


def test_computing_again_changes_no_gradient(backbone: Backbone) -> None:
    z, c, g = inputs(2)
    found = []
    for recompute in (True, False):
        engine = sampler(backbone, steps=6)
        engine.use(Plan(20, 40, 20, checkpoint=int(recompute)))
        found.append(engine.gradient(z, c, torch.zeros_like(z), g, structure_weights(g, engine.method)))
    for again, kept in zip(*found, strict=True):
        assert torch.allclose(again, kept, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_computing_again_takes_less_memory(backbone: Backbone) -> None:
    needed = []
    for recompute in (True, False):
        engine = empty_copy(sampler(backbone, steps=6))
        engine.use(Plan(20, 40, 20, checkpoint=int(recompute)))
        needed.append(need_of(engine.rehearse).each)
    assert needed[0] < 0.6 * needed[1]


@pytest.mark.slow
def test_two_steps_rehearsed_need_what_all_steps_do(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = empty_copy(sampler(backbone, steps=6))
    engine.use(Plan(20, 40, 20, checkpoint=1))
    short = need_of(engine.rehearse)
    assert len(engine.schedule) == 4
    monkeypatch.setattr("nd.generate.minddiffuser.sampler.REHEARSED", len(engine.schedule))
    assert need_of(engine.rehearse).each == pytest.approx(short.each, rel=0.02)


def test_columns_that_were_not_decoded_do_not_count() -> None:
    g = torch.zeros(1, 6, 17, 16)
    g[0, :, 0, 0] = 2.0
    features = torch.full((6, 1, 17, 16), 1.0)
    weights = torch.ones(1, 6)
    assert float(structure_loss(list(features), g, weights)) == pytest.approx(6 * 1.0 / (17 * 16))
    features[:, :, 3] = 1e6  # a column that is 0 in g
    assert float(structure_loss(list(features), g, weights)) == pytest.approx(6 * 1.0 / (17 * 16))
    sums = structure_weights(g, MindDiffuserSettings(norm_weights=False, layer_weights=[1.0] * 6))
    assert float(structure_loss(list(features), g, sums)) == pytest.approx(6.0), "equation 5: plain sums of squares"


# ---- the released stage 2 once more, slowly ----------------------------------------------------------------------


def plain_features(backbone: Backbone, image: Tensor) -> list[Tensor]:
    """Outputs of the MLP branches of blocks 0 .. 5 by hooks on the whole tower; image (1, 3, H, W) in [0, 1]."""
    found: list[Tensor] = []
    blocks = backbone.tower.transformer.resblocks[:6]
    hooks = [block.mlp.c_proj.register_forward_hook(lambda m, i, output: found.append(output)) for block in blocks]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    backbone.tower((image - mean[:, None, None]) / std[:, None, None])
    for hook in hooks:
        hook.remove()
    return [feature[0] for feature in found]


def plain_image(backbone: Backbone, z: Tensor, c: Tensor, noise: Tensor, noised: int, steps: int) -> Tensor:
    """Encode at step ``noised`` of 8, decode ``steps`` steps, every line a line of CompVis' DDIM."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    uncond = backbone.encode_text([""], TEXT[0])
    x = np.sqrt(abar[1 + 125 * noised]) * z + np.sqrt(1 - abar[1 + 125 * noised]) * noise
    for index in reversed(range(steps)):
        t = 1 + 125 * index
        before = abar[t - 125] if index else abar[0]
        e_uncond = backbone.unet(x, t, encoder_hidden_states=uncond).sample
        e_cond = backbone.unet(x, t, encoder_hidden_states=c).sample
        e = e_uncond + 3.0 * (e_cond - e_uncond)
        x0 = (x - np.sqrt(1 - abar[t]) * e) / np.sqrt(abar[t])
        x = np.sqrt(before) * x0 + np.sqrt(1 - before) * e
    return ((backbone.vae.decode(x / backbone.vae.config.scaling_factor).sample + 1) / 2).clamp(0, 1)


def plain_stage_2(backbone: Backbone, z: Tensor, c: Tensor, g: Tensor, noises: list[Tensor]) -> Tensor:
    """z after as many updates as there are noises."""
    mask = g != 0
    inverse = [1 / float(g[layer].norm()) for layer in range(6)]
    first, second, rate = torch.zeros_like(z), torch.zeros_like(z), 0.01
    for count, noise in enumerate(noises, start=1):
        leaf = z.detach().requires_grad_(True)
        features = plain_features(backbone, plain_image(backbone, leaf, c, noise, 5, 5))
        loss = torch.zeros((), dtype=z.dtype)
        for layer, a in enumerate([1.5, 1.2, 1.0, 1.0, 1.0, 1.0]):
            distance = ((g[layer] - mask[layer] * features[layer]) ** 2).mean()
            loss = loss + a * inverse[layer] / sum(inverse) * distance
        (gradient,) = torch.autograd.grad(loss, leaf)
        rate *= 0.999
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        z = z - rate * (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
    return z


def test_the_released_stage_2_equals_its_plain_statement(double: Backbone) -> None:
    z, c, g = inputs(2, torch.float64)
    generator = MindDiffuser(sampler(double, **RELEASED), seed=1, repeats=1)
    assert len(generator.sampler.schedule) == 5
    (made,) = generator([7, 8], {"z": z, "c": c, "g": g})
    for row, image_id in enumerate((7, 8)):
        draws = [keyed_normal(1, [image_id], k * ITERATION, LATENT) for k in range(5)]
        noises = [torch.from_numpy(draw).double() for draw in draws]
        one = slice(row, row + 1)
        moved = plain_stage_2(double, z[one], c[one], g[row], noises[:4])
        found = generator._optimised([7, 8], z, c, g, noises[0]).z[one]
        assert float((moved - z[one]).abs().max()) > 0.02, "it has to move for this to mean anything"
        assert torch.allclose(found, moved, atol=1e-4)
        with torch.no_grad():
            image = plain_image(double, moved, c[one], noises[4], 5, 5)[0].permute(1, 2, 0)
        assert np.abs(made.images[row, 0] - 255 * image.numpy()).max() <= 0.5 + 255e-4


# ---- every image by itself ---------------------------------------------------------------------------------------


def bowl(rows: Tensor, z: Tensor, c: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """Squares of z and c: the least loss is at 0."""
    return (z**2).flatten(1).sum(1) + (c**2).flatten(1).sum(1), z, 2 * z, 2 * c


def bowls(gradient: Callable[..., tuple[Tensor, ...]], z: Tensor, **fields: object) -> Optimised:
    method = MindDiffuserSettings(
        **({"iterations": 40, "learning_rate": 0.1, "decay": 1.0, "relative": False} | fields)
    )  # type: ignore[arg-type]
    return optimise(method, gradient, z, 2 * z, lambda iteration: torch.zeros_like(z))


@pytest.mark.parametrize("keep", ["best", "last"])
def test_images_in_a_batch_are_what_each_is_alone_and_stop_by_themselves(keep: str) -> None:
    z = torch.tensor([0.5, 3.0, 50.0]).view(3, 1, 1, 1)
    together = bowls(bowl, z, patience=4, min_gain=0.02, keep=keep)
    for row in range(3):
        alone = bowls(bowl, z[row : row + 1], patience=4, min_gain=0.02, keep=keep)
        assert torch.equal(alone.z, together.z[row : row + 1])
        assert torch.equal(alone.c, together.c[row : row + 1])
        iterations = len(alone.losses)
        assert torch.equal(alone.losses[:, 0], together.losses[:iterations, row])
        assert together.losses[iterations:, row].isnan().all()
    lasted = (~together.losses.isnan()).sum(0).tolist()
    assert lasted[0] < lasted[1]
    if keep == "last":
        assert together.kept.tolist() == [lasted[0] - 1, 40, lasted[2] - 1], "who stops is not moved again"
        return
    assert together.losses[together.kept, torch.arange(3)].tolist() == together.losses.nan_to_num(1e9).amin(0).tolist()


def test_an_image_stops_once_patience_many_iterations_gained_nothing() -> None:
    level = lambda rows, z, c, noise: (torch.ones(len(rows)), z, 0 * z, 0 * c)  # noqa: E731
    for patience in (1, 4):
        found = bowls(level, torch.ones(2, 1, 1, 1), patience=patience)
        assert len(found.losses) == 1 + patience, "the first, and those that gained nothing over it"


def test_the_best_iterate_is_kept_or_the_last() -> None:
    z = torch.full((1, 1, 1, 1), 0.25)
    best, last = (bowls(bowl, z, patience=0, keep=keep, iterations=12) for keep in ("best", "last"))
    assert int(last.kept) == 12
    assert int(best.kept) == int(best.losses.argmin()) < 11, "momentum carries it past the least loss"
    assert float(best.z**2 + best.c**2) < float(last.z**2 + last.c**2)


def test_what_is_not_moved_stays() -> None:
    z = torch.full((1, 1, 1, 1), 0.25)
    found = bowls(lambda *a: (*bowl(*a)[:2], bowl(*a)[3]), z, optimise="c", patience=0)
    assert torch.equal(found.z, z)
    assert float((found.c - 2 * z).abs()) > 0.1


@pytest.mark.parametrize("keep", ["best", "last"])
def test_an_image_that_diverges_keeps_its_best_iterate_and_harms_no_other(keep: str) -> None:
    calls = 0

    def breaks(rows: Tensor, z: Tensor, c: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        loss, latents, by_z, by_c = bowl(rows, z, c, noise)
        if calls == 5:  # the fifth iteration: the middle sample's gradient
            by_z = torch.where((rows == 1).view(-1, 1, 1, 1), torch.nan, by_z)
        return loss, latents, by_z, by_c

    z = torch.tensor([3.0, 3.0, 2.0]).view(3, 1, 1, 1)
    found, calm = bowls(breaks, z, patience=0, keep=keep), bowls(bowl, z, patience=0, keep=keep)
    assert found.diverged.tolist() == [0, 5, 0]
    assert int(found.kept[1]) == 3, "the last one with a finite gradient, counted from 0"
    assert torch.equal(found.z[[0, 2]], calm.z[[0, 2]])
    assert float(found.z[1]) == pytest.approx(3.0 - 3 * 0.1, abs=1e-3)
    assert found.losses[5:, 1].isnan().all()


def test_a_loss_that_runs_away_counts_as_diverged() -> None:
    z = torch.full((1, 1, 1, 1), 1.0)
    uphill = lambda *a: (*bowl(*a)[:2], -bowl(*a)[2], -bowl(*a)[3])  # noqa: E731
    found = bowls(uphill, z, patience=0, keep="last", iterations=200)
    assert int(found.diverged) > 1
    assert torch.equal(found.z, z), "the first iterate was the best"


def test_relative_rates_move_z_and_c_by_the_same_share_of_their_sizes() -> None:
    z = torch.full((1, 4, 2, 2), 0.01)
    found = bowls(bowl, z, patience=0, keep="last", iterations=1, relative=True)
    by_z, by_c = (size_of(now - begun) / size_of(begun) for now, begun in ((found.z, z), (found.c, 2 * z)))
    assert float(by_z) == pytest.approx(0.1, rel=1e-3)
    assert float(by_c) == pytest.approx(0.1, rel=1e-3)


# ---- the generator -----------------------------------------------------------------------------------------------


def test_the_loss_falls_and_images_do_not_depend_on_the_batch(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    z, c, g = inputs(3)
    generator = MindDiffuser(sampler(backbone, iterations=3, patience=0), seed=1, repeats=2)
    generator.use(Plan(4, 4, 4))
    assert isinstance(generator, PlannedGenerator)
    seen: list[float] = []
    generator.watch = seen.append
    with caplog.at_level(logging.INFO):
        (made,) = generator([4, 9, 2], {"z": z, "c": c, "g": g})
    assert "fell in 6 of 6 images" in caplog.text
    assert made.images.shape == (3, 2, 16, 16, 3)
    assert not made.failed
    assert seen == sorted(seen) and 0 < seen[0] < seen[-1] <= 1  # noqa: PT018
    (alone,) = generator([9], {"z": z[1:2], "c": c[1:2], "g": g[1:2]})
    assert np.array_equal(alone.images[0], made.images[1])
    assert not np.array_equal(made.images[:, 0], made.images[:, 1]), "repeats have noise of their own"
    stage_1 = MindDiffuser(sampler(backbone, optimise="none"), seed=1, repeats=2)
    (before,) = stage_1([4, 9, 2], {"z": z, "c": c})
    assert not np.array_equal(before.images, made.images)


def test_without_z_a_latent_is_drawn_for_every_image_and_repeat(backbone: Backbone) -> None:
    cfg = settings(backbone, start="random", optimise="none")
    kind = component("generator", "minddiffuser")
    assert kind.wants(cfg) == ["c"]
    assert kind.wants(settings(backbone)) == ["z", "c", "g"]
    z, c, _ = inputs(2)
    drawn = MindDiffuser(ImageToImage(backbone, cfg), seed=1, repeats=2)
    (one,), (other,) = (drawn([4, 9], {"z": value, "c": c}) for value in (z, -z))
    assert np.array_equal(one.images, other.images), "z is not looked at"
    assert len({image.tobytes() for image in one.images.reshape(4, -1)}) == 4


def test_an_image_that_diverges_is_named_with_its_iteration(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    z, c, g = inputs(2)
    wild = MindDiffuser(sampler(backbone, learning_rate=1e30, patience=0), seed=1, repeats=1)
    calm = MindDiffuser(sampler(backbone, optimise="none"), seed=1, repeats=1)
    (made,), (stage_1,) = (one([4, 9], {"z": z, "c": c, "g": g}) for one in (wild, calm))
    assert "image 9, repeat 0: stage 2 diverged at iteration 2 of 4; its best iterate, number 0, is kept" in caplog.text
    assert "method.learning_rate" in caplog.text
    assert not made.failed
    assert np.abs(made.images.astype(int) - stage_1.images).max() <= 1, "the iterate before the first update"


def test_an_image_of_which_nothing_is_finite_fails_alone(backbone: Backbone) -> None:
    z, c, g = inputs(2)
    c[1] = torch.nan
    (made,) = MindDiffuser(sampler(backbone), seed=1, repeats=1)([4, 9], {"z": z, "c": c, "g": g})
    assert list(made.failed) == [9]
    assert "image 9, repeat 0" in made.failed[9]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("c", (8, 16), r"decoded c has 8 tokens of width 16 .* ask for 6 of width 16.*target\.tokens"),
        ("z", (4, 8, 8), r"decoded z has shape \(4, 8, 8\)"),
        ("g", (6, 50, 16), r"decoded g has shape \(6, 50, 16\).*another tower"),
    ],
)
def test_targets_of_another_backbone_are_refused(
    backbone: Backbone, name: str, shape: tuple[int, ...], message: str
) -> None:
    given = dict(zip("zcg", inputs(1), strict=True)) | {name: torch.zeros(1, *shape)}
    with pytest.raises(UserError, match=message):
        MindDiffuser(sampler(backbone), seed=1, repeats=1)([4], given)


def test_curves_have_no_rows_after_an_image_has_stopped() -> None:
    losses = torch.tensor([[2.0, 4.0], [1.0, torch.nan]])
    assert curves([5], 2, losses) == "image_id,repeat,iteration,loss\n5,0,0,2.0\n5,0,1,1.0\n5,1,0,4.0\n"


# ---- full size ---------------------------------------------------------------------------------------------------


def full_size() -> ImageToImage:
    """Stable Diffusion 1.4 and ViT-B/32 without contents, at 512 px."""
    config = BackboneConfig(name="sd14", image_size=512, tower_size=224)
    backbone = Backbone(config, "meta")
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        )  # fmt: skip
        vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
        text = {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
        clip = CLIP(embed_dim=512, vision_cfg=vision, text_cfg=text)
    modules = {"unet": unet, "vae": vae, "clip": clip}
    vars(backbone).update({name: module.eval().requires_grad_(False) for name, module in modules.items()})
    vars(backbone)["scheduler"] = DDIMScheduler(**SD_SCHEDULE)
    method = method_settings("minddiffuser", targets=["z", "c", "g"])
    return ImageToImage(
        backbone, Config(method=method, backbone=config), uncond_1TD=torch.empty(1, 15, 768, device="meta")
    )


def test_memory_decides_how_many_images_move_together(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nd.generate.plan.needs_of", lambda engine, checkpoint=0: {"guided": Need(1e6, 1e8)})
    engine = sampler(backbone)
    budget = (1.15 * (1e6 + 3.5 * 1e8) + weight_bytes(engine)) / 1e9
    assert plan_for(engine, budget, [20]).guided == 3
    with pytest.raises(UserError, match=r"cannot hold one sample: .* method\.optimise=none"):
        plan_for(engine, 1e-5, [20])


def test_activations_are_kept_where_memory_allows_and_computed_again_where_not(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {checkpoint: Need(0, each) for checkpoint, each in enumerate((1e9, 1e8, 1e7))}
    monkeypatch.setattr("nd.generate.plan.needs_of", lambda engine, checkpoint=0: {"guided": needs[checkpoint]})
    monkeypatch.setattr("nd.generate.plan.weight_bytes", lambda engine: 0)
    engine, found = sampler(backbone), {}
    for room in (2.5e9, 1.5e9, 1.5e8, 5e7):
        engine.use(plan_for(engine, 1.15 * room / 1e9, [20]))
        found[room] = engine.plan.guided, engine.recompute, bool(backbone.unet.mid_block.gradient_checkpointing)
    assert found == {2.5e9: (2, False, False), 1.5e9: (10, True, False), 1.5e8: (10, True, True), 5e7: (5, True, True)}
    engine.use(Plan.for_speed())


@pytest.mark.slow
def test_one_image_of_512_px_fits_40_gb() -> None:
    engine = full_size()
    needs = needs_of(engine, checkpoint=1)
    held = 1.15 * (needs["guided"].fixed + needs["guided"].each) + weight_bytes(engine)
    assert 10e9 < held < 40e9  # more than the weights, so that something was counted
    assert 859e6 < sum(p.numel() for p in engine.backbone.unet.parameters()) < 860e6
