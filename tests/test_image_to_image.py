"""Takagi & Nishimoto and Brain-Diffuser: plain statements of both, runs, ablations, sweeps, statistics and messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers_backbone import tiny_backbone
from helpers_config import mapper_settings
from helpers_versatile import Tiny, tiny_versatile
from numpy.typing import NDArray
from PIL import Image

from nd.backbone.loading import load_backbone
from nd.backbone.vdvae.loading import load_vdvae
from nd.config import Config
from nd.config.application import compose, derive
from nd.config.components import component
from nd.data.prepared import stimuli_path, write_stimuli
from nd.errors import UserError
from nd.generate.brain_diffuser import FirstGuess
from nd.generate.inputs import PredictedFeatures
from nd.generate.trajectories import build_schedule, noise_for
from nd.mappers.base import FoldData, Group
from nd.mappers.ridge import Ridge
from nd.mappers.statistics import TargetStatistics
from nd.reconstruct import reconstruct, reconstruct_together, sweeps
from nd.runs.folder import RunFolder
from nd.runs.inputs import input_files

N_TRAIN, N_TEST, SIZE = 6, 5, 16
SHAPES = {
    "z40": (4, 3, 3), "c": (8, 16), "vdvae": (42,), "clip_vision": (17, 24), "clip_text": (16, 24),
}  # fmt: skip
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_versatile(tmp_path_factory.mktemp("versatile"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_backbone(folder)
    return folder


@pytest.fixture
def overrides(backbone: Path, tiny: Tiny, tmp_path: Path) -> list[str]:
    """What all runs here share; stimuli are there."""
    shared = [
        f"paths.root={tmp_path}", f"backbone.weights={backbone}", f"backbone.image_tower={backbone}/image_tower",
        f"backbone.image_size={SIZE}", f"data.image_size={SIZE}", f"data.n_train={N_TRAIN}", "data.n_val=2",
        f"data.n_test={N_TEST}", "method.steps=5", "trainer.accelerator=cpu", "trainer.batch_size=6",
        "trainer.progress=false",
    ]  # fmt: skip
    n = N_TRAIN + N_TEST
    images = np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3)).astype(np.uint8)
    path = stimuli_path(compose(shared))
    write_stimuli(path, images=images, captions=[[f"{i} is it"] for i in range(n)], image_id=np.arange(n))
    return shared


def configured(overrides: list[str], tiny: Tiny, *more: str) -> Config:
    """Compose a method and write its predictions, the same for all methods."""
    given = [*overrides, *more]
    if any("brain_diffuser" in text for text in more):
        given += [f"target.clip={tiny.clip}"] * (not any("vdvae_only" in text for text in more))
        given += [f"target.vdvae={tiny.vdvae}", "target.vdvae_layers=3"] * (not any("without_vdvae" in t for t in more))
        given += [f"method.versatile={tiny.versatile}"] * (not any("vdvae_only" in text for text in more))
    if any("vdvae_only" in text for text in more):
        given.remove("method.steps=5")
    cfg = compose(given)
    folder, random = RunFolder.open(cfg, "predict"), np.random.default_rng(1)
    if not folder.done:
        with folder.writing(cfg), h5py.File(folder.path / "predictions.h5", "w") as file:
            file["image_id"] = np.arange(N_TRAIN, N_TRAIN + N_TEST)
            for name, shape in SHAPES.items():
                file[name] = random.standard_normal((N_TEST, *shape)).astype(np.float32)
    return cfg


def images_of(path: Path) -> NDArray[np.uint8]:
    with h5py.File(path / "images.h5") as file:
        found: NDArray[np.uint8] = file["images"][:]
    return found


# ---- the algorithms once more, slowly -------------------------------------------------------------------------------


def plain_sampling(
    unet: Any, vae: Any, z: torch.Tensor, c: Sequence[torch.Tensor], noise: torch.Tensor, steps: int, strength: float,
    scale: float,
) -> NDArray[np.float32]:  # fmt: skip
    """One image: noise, DDIM with classifier-free guidance, decode. c: with and without condition."""
    scheduler = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[-int(steps * strength + 1e-9) :]
    z = scheduler.add_noise(z, noise, timesteps[:1])
    for t in timesteps:
        with_it, without = (unet(z, t, encoder_hidden_states=one).sample for one in c)
        z = scheduler.step(without + scale * (with_it - without), t, z).prev_sample
    image = (vae.decode(z / vae.config.scaling_factor).sample[0] / 2 + 0.5).clamp(0, 1)
    return np.asarray(image.permute(1, 2, 0).numpy() * 255)


def encoded(vae: Any, image: NDArray[np.uint8]) -> torch.Tensor:
    enlarged = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(enlarged.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    found: torch.Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return found


@torch.no_grad()
def test_takagi_is_the_published_algorithm(overrides: list[str], tiny: Tiny) -> None:
    cfg = configured(overrides, tiny, "method=takagi", "method.repeats=2")
    assert (cfg.method.strength, cfg.method.cfg_scale) == (0.8, 5.0)
    found = images_of(reconstruct(cfg))
    assert found.shape == (N_TEST, 2, SIZE, SIZE, 3)
    model = load_backbone(cfg.backbone)
    source = PredictedFeatures(RunFolder.open(cfg, "predict").path / "predictions.h5")
    for row, image_id in enumerate((N_TRAIN, N_TRAIN + 3)):
        small = model.vae.decode(torch.from_numpy(source.rows("z40", [image_id])) / model.scaling_factor).sample
        bytes_HW3 = ((small[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        assert bytes_HW3.shape == (12, 12, 3)
        z, c = encoded(model.vae, bytes_HW3), torch.from_numpy(source.rows("c", [image_id]))
        noise = noise_for(cfg.seed, [image_id], 2, (4, 4, 4))[0, 1:]
        wanted = plain_sampling(model.unet, model.vae, z, (c, model.encode_text([""])), noise, 5, 0.8, 5.0)
        assert np.abs(found[(0, 3)[row], 1] - wanted).max() <= 0.51  # rounding to bytes


@torch.no_grad()
def test_brain_diffuser_is_the_published_algorithm(overrides: list[str], tiny: Tiny) -> None:
    cfg = configured(overrides, tiny, "method=brain_diffuser")
    assert (cfg.method.strength, cfg.method.cfg_scale, cfg.method.text_share) == (0.75, 7.5, 0.4)
    found = images_of(reconstruct(cfg))
    assert found.shape == (N_TEST, 1, SIZE, SIZE, 3)
    source = PredictedFeatures(RunFolder.open(cfg, "predict").path / "predictions.h5")
    vdvae, model = load_vdvae(tiny.vdvae), tiny.backbone()
    for row, image_id in enumerate((N_TRAIN, N_TRAIN + 3)):
        latents = vdvae.split(torch.from_numpy(source.rows("vdvae", [image_id])))
        guess = vdvae.picture(vdvae.decode(latents))[0].permute(1, 2, 0).numpy()
        z = encoded(model.vae, ((guess + 1) * 127.5).astype(np.uint8))
        tokens = torch.cat(
            [torch.from_numpy(source.rows(name, [image_id])) for name in ("clip_vision", "clip_text")], 1
        )
        model.unet.mixing.share = 0.4
        noise = noise_for(cfg.seed, [image_id], 1, (4, 4, 4))[0]
        wanted = plain_sampling(model.unet, model.vae, z, (tokens, model.uncond()), noise, 5, 0.75, 7.5)
        assert np.abs(found[(0, 3)[row], 0] - wanted).max() <= 0.51


def test_released_schedules_are_those_of_the_released_code() -> None:
    scheduler = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False)
    for strength, n, start, first in ((0.75, 37, 741, 721), (0.8, 40, 801, 781)):
        schedule = build_schedule(scheduler, 50, strength, slot_above=True)
        assert (len(schedule), schedule.timesteps[0]) == (n, first)
        assert schedule.start == pytest.approx(float(scheduler.alphas_cumprod[start]))
        assert build_schedule(scheduler, 50, strength).start == pytest.approx(float(scheduler.alphas_cumprod[first]))
    assert build_schedule(scheduler, 50, 0.75, slot_above=True).start ** 0.5 == pytest.approx(0.2457, abs=1e-4)
    assert build_schedule(scheduler, 50, 0.8, slot_above=True).start ** 0.5 == pytest.approx(0.1912, abs=1e-4)


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_batches_change_nothing_and_a_sweep_shares_its_first_stage(
    overrides: list[str], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = ["method=brain_diffuser", "method.vdvae_draws=sample", "method.variant=released"]
    cfg = configured(overrides, tiny, *drawn)
    whole = images_of(reconstruct(cfg))
    shares = [derive(cfg, f"method.text_share={share}") for share in (0.4, 0.0, 1.0)]
    (group,) = sweeps(shares)
    assert group == shares
    calls: list[list[int]] = []
    guess = FirstGuess.__call__
    monkeypatch.setattr(
        FirstGuess, "__call__", lambda self, ids, *rest: calls.append(list(ids)) or guess(self, ids, *rest)
    )
    again = [derive(one, f"paths.runs={tmp_path}/again", "trainer.batch_size=2") for one in shares]
    configured(overrides, tiny, *drawn, f"paths.runs={tmp_path}/again")
    paths = reconstruct_together(again)
    assert calls == [[6, 7], [8, 9], [10]]  # once for three points
    found = [images_of(path) for path in paths]
    assert np.array_equal(found[0], whole)
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])


def test_ablations_differ_in_what_they_leave_out(overrides: list[str], tiny: Tiny) -> None:
    found = {}
    for name in ("", "_vdvae_only", "_without_vdvae", "_without_text", "_without_vision"):
        cfg = configured(overrides, tiny, f"method=brain_diffuser{name}", "debug.limit_images=2")
        read = component("generator", cfg.method.generator).wants(cfg)
        found[name] = images_of(reconstruct(cfg)), set(read)
        assert cfg.sampled_steps == {"_vdvae_only": 0, "_without_vdvae": 5}.get(name, 3)
        weights = {path.name for path in input_files("reconstruct", cfg)}
        assert ("vdvae.safetensors" in weights) == (name != "_without_vdvae")
        assert ("diffusion_pytorch_model.safetensors" in weights) == (name != "_vdvae_only")
    everything = {"vdvae", "clip_vision", "clip_text"}
    left_out = {
        "": set(), "_vdvae_only": {"clip_vision", "clip_text"}, "_without_vdvae": {"vdvae"},
        "_without_text": {"clip_text"}, "_without_vision": {"clip_vision"},
    }  # fmt: skip
    assert {name: everything - read for name, (_, read) in found.items()} == left_out
    assert all(images.shape == (2, 1, SIZE, SIZE, 3) for images, _ in found.values())
    assert len({images.tobytes() for images, _ in found.values()}) == 5
    vdvae = load_vdvae(tiny.vdvae)
    latents = torch.from_numpy(
        PredictedFeatures(RunFolder.open(cfg, "predict").path / "predictions.h5").rows("vdvae", [N_TRAIN])
    )
    small = ((vdvae.picture(vdvae.decode(vdvae.split(latents)))[0].permute(1, 2, 0) + 1) * 127.5).byte().numpy()
    wanted = np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    assert np.array_equal(found["_vdvae_only"][0][0, 0], wanted)


def test_drawn_guesses_belong_to_the_image(tiny: Tiny) -> None:
    model = load_vdvae(tiny.vdvae)
    latents = torch.randn(3, 42, generator=torch.Generator().manual_seed(0))
    drawn = FirstGuess(model, 4, sample=True)
    together, turned = drawn([5, 6, 7], latents, 2), drawn([7, 5], latents[[2, 0]], 2)
    assert torch.equal(together[[2, 0]], turned)
    assert not torch.equal(FirstGuess(model, 5, sample=True)([5, 6, 7], latents, 2), together)
    same = latents[:1].expand(2, -1)
    assert not torch.equal(*drawn([5, 6], same, 2))
    assert torch.equal(*FirstGuess(model, 4, sample=False)([5, 6], same, 2))


def test_a_guess_that_is_not_finite_names_its_image(tiny: Tiny) -> None:
    latents = torch.zeros(3, 42)
    latents[1, 0] = torch.nan
    with pytest.raises(UserError, match=r"decoded latents of image 6 is not finite.* target\.precision=float32"):
        FirstGuess(load_vdvae(tiny.vdvae), 4, sample=False)([5, 6, 7], latents, 2)


def test_previews_are_of_the_first_point_of_a_sweep(overrides: list[str], tiny: Tiny, tmp_path: Path) -> None:
    cfg = configured(overrides, tiny, "method=takagi", "method.repeats=2", f"trainer.previews={tmp_path}/shown")
    reconstruct_together([derive(cfg, f"method.strength={strength}") for strength in (0.6, 0.8)])
    names = sorted(path.name for path in (tmp_path / "shown").iterdir())
    assert names == [f"image-{N_TRAIN:05d}-step-{step:03d}.png" for step in (1, 2, 3)]


# ---- statistics of predictions --------------------------------------------------------------------------------------


class InMemory:
    """Targets by row number (``Columns``)."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values, self.size = values, values.shape[1]

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        return self.values[ids, start:stop]


def test_restandardised_as_released_over_test_images_and_ours_without_them() -> None:
    released, ours = compose(["method=brain_diffuser_released"]), compose(["method=brain_diffuser"])
    assert released.transductive
    assert not ours.transductive
    for name, alpha in (("vdvae", 50000.0), ("clip_vision", 60000.0), ("clip_text", 100000.0)):
        assert released.decoding(name).mapper.alphas == [alpha]
        assert (released.decoding(name).mapper.rescale, ours.decoding(name).mapper.rescale) == ("test", "train")
    random = np.random.default_rng(0)
    voxels = random.standard_normal((90, 12)).astype(np.float32)
    values = (3 + voxels @ random.standard_normal((12, 7)) + random.standard_normal((90, 7))).astype(np.float32)
    targets, ids = InMemory(values), np.arange(60, dtype=np.int32)
    mapper = Ridge(mapper_settings(rescale="train", alphas=[10.0, 100.0]))
    mapper.fit(FoldData(voxels[:50], voxels[50:60], ids[:50], ids[50:], targets, (Group("all", 0, 7),)))
    test = voxels[60:]
    predicted = mapper.predict(test)
    other = test.copy()
    other[1:] = 100 * random.standard_normal(other[1:].shape)
    np.testing.assert_allclose(mapper.predict(other)[0], predicted[0], rtol=1e-5)  # no other row was read
    given = TargetStatistics.fit(targets, ids).given_to(predicted)
    np.testing.assert_allclose(given.mean(0), values[:60].mean(0), atol=1e-5)
    np.testing.assert_allclose(given.std(0), values[:60].std(0), atol=1e-5)
    assert np.abs(TargetStatistics.fit(targets, ids).given_to(mapper.predict(other))[0] - given[0]).max() > 0.01


# ---- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["method=brain_diffuser", "method.text_share=1.5"], r"text_share: 1.5 lies outside \[0, 1\]"),
        (
            ["method=brain_diffuser", "method.targets=[vdvae,clip_vision]"],
            r"text_share: 0.4 needs target clip_text, but .* or set method.text_share=0.",
        ),
        *(
            (
                ["method=brain_diffuser", f"method.text_share={share}", "method.targets.clip_text.target.clip=another"],
                r"target.clip: .*'clip_text': 'another'.* must be one model.* left out of method.targets",
            )
            for share in (0.4, 0.0, 1.0)
        ),
        (["method=takagi", "method.strength=0.001"], r"int\(50 \* 0.001\) = 0 steps"),
        (["method=takagi", "method.targets=[z40]"], r"generator takagi needs \['c'\] beside \['z40'\]"),
        (["method=brain_diffuser", "target.vdvae=nowhere.th"], "nowhere.th does not exist"),
    ],
)
def test_settings_that_contradict_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose(given)


def test_features_of_a_wrong_width_are_named(
    overrides: list[str], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method, name, shape, said in (
        ("takagi", "z40", (4, 4, 4), r"decoded z40 has shape \(4, 4, 4\) per image, but the VAE .* takes \(4, 3, 3\)"),
        ("brain_diffuser", "clip_text", (16, 12), r"decoded clip_text has shape \(16, 12\) .* takes \(16, 24\)"),
        ("brain_diffuser", "vdvae", (77,), r"latents of shape \(\d, 77\) fit no number of the VDVAE's layers"),
    ):
        with monkeypatch.context() as patched:
            patched.setitem(SHAPES, name, shape)
            cfg = configured(overrides, tiny, f"method={method}", f"paths.runs={tmp_path}/wrong-{name}")
        with pytest.raises(UserError, match=said):
            reconstruct(cfg)
