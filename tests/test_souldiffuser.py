"""SoulDiffuser: adapters and what they add, words from training captions, a plain statement, sweeps and messages."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, T2IAdapter, UNet2DConditionModel
from helpers_backbone import tiny_backbone
from helpers_config import mapper_settings, method_settings
from helpers_files import edited, left_so
from helpers_results import config as results_config
from helpers_results import fake_scores
from helpers_scripts import load_script
from helpers_training import write_store
from numpy.typing import NDArray
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import BackboneConfig, Config
from nd.config.application import compose, derive
from nd.config.rules import without_effect
from nd.data.prepared import stimuli_path, write_stimuli
from nd.doctor.weights import weight_needs
from nd.errors import LeakError, UserError
from nd.generate.image_to_image import unguided
from nd.generate.inputs import PredictedFeatures
from nd.generate.parts import captions_of
from nd.generate.sampler import GuidedSampler
from nd.generate.souldiffuser.adapters import block_shapes, check_adapter, colour_image, edge_image, weighed
from nd.generate.souldiffuser.generator import SoulDiffuser, build
from nd.generate.souldiffuser.semantics import TrainingCaptions, shares
from nd.generate.trajectories import noise_for
from nd.reconstruct import reconstruct, reconstruct_together, sweeps
from nd.runs.folder import RunFolder
from nd.runs.inputs import input_files
from nd.tables.specs import Column, Entry, Row, TableSpec
from nd.tables.table import collect
from nd.targets.base import Items
from nd.targets.store import store_path
from nd.targets.text_condition import TextCondition

N_TRAIN, N_TEST, SIZE = 6, 5, 16
SHAPES = {"z": (4, 4, 4), "c": (8, 16), "edge": (64, 64), "colour": (8, 8, 3)}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CAPTIONS = ["hat", "dogs", "sea", "box", "fish", "tree"]  # the tiny tokenizer cuts after six letters


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    return tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def adapters(backbone: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the tiny UNet, made by the training script."""
    out = tmp_path_factory.mktemp("adapters")
    script = load_script("scenes-adapters/train.py")
    words = ["--backbone", backbone.weights, "--image-size", str(SIZE), "--work", str(out / "work"), "--quick"]
    script.main(["--out", str(out), *words])
    return out


@pytest.fixture
def overrides(backbone: BackboneConfig, adapters: Path, tmp_path: Path) -> list[str]:
    """What all runs here share; stimuli, predictions and the target c are there."""
    shared = [
        f"paths.root={tmp_path}", f"backbone.weights={backbone.weights}",
        f"backbone.image_tower={backbone.image_tower}",
        f"backbone.image_size={SIZE}", f"data.image_size={SIZE}", f"data.n_train={N_TRAIN}", "data.n_val=2",
        f"data.n_test={N_TEST}", "method=souldiffuser", "method.steps=5", "method.cfg_scale=3", "method.repeats=2",
        f"method.edge_adapter={adapters}/edge", f"method.colour_adapter={adapters}/colour",
        "trainer.accelerator=cpu", "trainer.batch_size=8", "trainer.progress=false",
    ]  # fmt: skip
    n = N_TRAIN + N_TEST
    images = np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3)).astype(np.uint8)
    said = [[text, f"o{text}"] for text in CAPTIONS] + [[f"q{i}"] for i in range(N_TEST)]
    cfg = compose(shared)
    write_stimuli(stimuli_path(cfg), images=images, captions=said, image_id=np.arange(n))
    condition = TextCondition(load_backbone(cfg.backbone), 5)(Items(np.arange(n, dtype=np.int32), captions=said))
    write_store(store_path(cfg, "c"), "c", condition.reshape(n, -1), SHAPES["c"])
    return shared


def predicted(cfg: Config, **changed: Any) -> Config:
    """Write predictions that are the same for all configurations; those of edge and colour lie in [0, 1]."""
    folder, random = RunFolder.open(cfg, "predict"), np.random.default_rng(1)
    if not folder.done:
        with folder.writing(cfg), h5py.File(folder.path / "predictions.h5", "w") as file:
            file["image_id"] = np.arange(N_TRAIN, N_TRAIN + N_TEST)
            for name, shape in (SHAPES | changed).items():
                draw = random.standard_normal if name in "zc" else random.random
                file[name] = draw((N_TEST, *shape)).astype(np.float32)
    return cfg


def images_of(path: Path) -> NDArray[np.uint8]:
    with h5py.File(path / "images.h5") as file:
        found: NDArray[np.uint8] = file["images"][:]
    return found


# ---- what adapters read and add -------------------------------------------------------------------------------------


def test_maps_become_images_without_blur_between_cells_or_values_out_of_range() -> None:
    random = torch.Generator().manual_seed(0)
    edge = torch.rand(2, 64, 64, generator=random) * 1.4 - 0.2
    assert torch.equal(edge_image(edge, 64)[:, 0], edge.clamp(0, 1))
    grey = edge_image(edge, 128, 3)
    assert grey.shape == (2, 3, 128, 128)
    assert torch.equal(grey[:, 0], grey[:, 2])
    colour = torch.rand(2, 8, 8, 3, generator=random)
    image = colour_image(colour, 64)
    assert torch.equal(image, colour.permute(0, 3, 1, 2).repeat_interleave(8, 2).repeat_interleave(8, 3))


def unet_like_xl() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_shapes_are_those_that_the_unet_adds(backbone: BackboneConfig, kind: str) -> None:
    unet, side = (load_backbone(backbone).unet, 4) if kind == "sd" else (unet_like_xl(), 16)
    z, c = torch.randn(2, 4, side, side), torch.randn(2, 8, 16)
    plain = unet(z, 500, encoder_hidden_states=c).sample
    shapes = block_shapes(unet, side)
    assert len(shapes) == len(unet.down_blocks) + 1
    for k in range(len(shapes)):
        added = [torch.full((2, *shape), float(i == k)) for i, shape in enumerate(shapes)]
        found = unet(z, 500, encoder_hidden_states=c, down_intrablock_additional_residuals=added).sample
        assert added == [], "the UNet takes all of them"
        assert (found - plain).abs().max() > 1e-4, f"block {k}"
    zeros = [torch.zeros(2, *shape) for shape in shapes]
    same = unet(z, 500, encoder_hidden_states=c, down_intrablock_additional_residuals=zeros).sample
    torch.testing.assert_close(same, plain, atol=1e-6, rtol=0)


def test_adapters_of_the_published_layouts_fit_stable_diffusion() -> None:
    """Sizes of TencentARC/t2iadapter_sketch_sd14v1 and _color_sd14v1, and of an adapter of XL, which does not."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        fitting = (
            T2IAdapter(in_channels=1),
            T2IAdapter(channels=[320, 640, 1280], num_res_blocks=4, adapter_type="light_adapter"),
        )
        trap = T2IAdapter(num_res_blocks=4, adapter_type="light_adapter")  # makes a fifth map, which is dropped
    assert [shape[1] for shape in block_shapes(unet, 64)] == [64, 32, 16, 8, 8]
    for adapter, channels in zip(fitting, ((1, 3), (3,)), strict=True):
        check_adapter(adapter, "field", unet, 512, 64, channels)
    with pytest.raises(UserError, match=r"field: the adapter makes features of shape .*1280, 4, 4"):
        check_adapter(trap, "field", unet, 512, 64, (3,))
    with pytest.raises(UserError, match="reads images of 1 channels, but these have 3"):
        check_adapter(fitting[0], "field", unet, 512, 64, (3,))
    with pytest.raises(UserError, match="squares of 8 x 8 pixels"):
        check_adapter(fitting[0], "field", unet, 500, 64, (1,))


def test_features_are_weighed_and_summed_block_by_block() -> None:
    one, other = [torch.ones(1, 2), torch.ones(1, 3)], [torch.ones(1, 2), torch.ones(1, 3), torch.ones(1, 4)]
    first, second, third = weighed([one, other], [0.5, 2.0])
    assert (first.unique(), second.unique(), third.unique()) == (
        torch.tensor(2.5),
        torch.tensor(2.5),
        torch.tensor(2.0),
    )
    assert weighed([], []) == []


# ---- the whole, once more and slowly --------------------------------------------------------------------------------


@torch.no_grad()
def test_sampling_is_its_plain_statement(overrides: list[str], adapters: Path) -> None:
    omegas = {"edge": 0.7, "colour": 1.3}
    cfg = predicted(compose([*overrides, "method.omega_edge=0.7", "method.omega_colour=1.3", "method.text=direct"]))
    found = images_of(reconstruct(cfg))
    assert found.shape == (N_TEST, 2, SIZE, SIZE, 3)
    model = load_backbone(cfg.backbone)
    source = PredictedFeatures(RunFolder.open(cfg, "predict").path / "predictions.h5")
    both = {name: T2IAdapter.from_pretrained(adapters / name, low_cpu_mem_usage=False).float() for name in omegas}
    scheduler = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(5)
    for image_id, repeat in ((N_TRAIN, 1), (N_TRAIN + 3, 0)):
        z, c, edge, colour = (torch.from_numpy(source.rows(name, [image_id])) for name in SHAPES)
        small = torch.nn.functional.interpolate(edge[None], (SIZE, SIZE), mode="bilinear", antialias=True)
        cells = torch.nn.functional.interpolate(colour.permute(0, 3, 1, 2), (SIZE, SIZE), mode="nearest")
        maps = {"edge": both["edge"](small), "colour": both["colour"](cells)}
        added = [sum(omegas[name] * maps[name][k] for name in omegas) for k in range(2)]
        z = scheduler.add_noise(
            z, noise_for(cfg.seed, [image_id], 2, (4, 4, 4))[0, repeat : repeat + 1], scheduler.timesteps[-3:-2]
        )
        for t in scheduler.timesteps[-3:]:
            given, without = (
                model.unet(
                    z, t, encoder_hidden_states=text, down_intrablock_additional_residuals=[m.clone() for m in added]
                ).sample
                for text in (c, model.encode_text([""]))
            )
            z = scheduler.step(without + 3.0 * (given - without), t, z).prev_sample
        image = (model.vae.decode(z / model.scaling_factor).sample[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
        assert np.abs(found[image_id - N_TRAIN, repeat] - image.numpy()).max() <= 0.51  # rounding to bytes


def test_omega_zero_is_the_plain_unet(overrides: list[str]) -> None:
    cfg = compose([*overrides, "method.text=direct", "method.omega_edge=0", "method.omega_colour=0"])
    generator = build([cfg], torch.device("cpu"))
    assert generator.acting == []
    model = load_backbone(cfg.backbone)
    plain = GuidedSampler(model, unguided(cfg))
    random = torch.Generator().manual_seed(0)
    z, c = torch.randn(3, 4, 4, 4, generator=random), torch.randn(3, 8, 16, generator=random)
    noise = noise_for(1, range(3), 2, (4, 4, 4))
    (wanted,) = plain.sample(z, c, None, noise)
    (found,) = generator.sampler.sample_under(z, c, {}, noise)
    assert (found.images - wanted.images).abs().max() <= 1e-6
    # A weight near 0 is near the same; it runs the adapters.
    tiny = build([derive(cfg, "method.omega_edge=1e-7")], torch.device("cpu"))
    features = tiny._features("edge", torch.rand(3, 64, 64, generator=random))
    (near,) = tiny.sampler.sample_under(z, c, {"edge": features}, noise)
    assert (near.images - wanted.images).abs().max() <= 1e-5
    strong = build([derive(cfg, "method.omega_edge=1")], torch.device("cpu"))
    (far,) = strong.sampler.sample_under(z, c, {"edge": features}, noise)
    assert (far.images - wanted.images).abs().max() > 1e-3


def test_points_of_a_sweep_share_what_they_have_in_common(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = predicted(compose(overrides))
    points = ["0.5,0,1", "0.5,0,0.4", "0,0,1", "0.5,1,1"]  # omega_edge, omega_colour, adapter_share
    given = [
        derive(
            cfg,
            *(
                f"method.{key}={value}"
                for key, value in zip(("omega_edge", "omega_colour", "adapter_share"), point.split(","), strict=True)
            ),
        )
        for point in points
    ]
    (group,) = sweeps(given)
    assert group == given
    alone = [images_of(reconstruct(one)) for one in given]
    words, steps = 0, []
    plain, spoken = GuidedSampler._plain_step, TrainingCaptions.__call__

    def counted_words(self: TrainingCaptions, ids: Any, c: Tensor) -> Any:
        nonlocal words
        words += len(ids)
        return spoken(self, ids, c)

    def counted(self: Any, track: Any, step: int, *rest: Any) -> Any:
        steps.append(step)
        return plain(self, track, step, *rest)

    monkeypatch.setattr(TrainingCaptions, "__call__", counted_words)
    monkeypatch.setattr(GuidedSampler, "_plain_step", counted)
    again = [derive(one, f"paths.runs={tmp_path}/again", "trainer.batch_size=4") for one in given]
    predicted(again[0])
    together = [images_of(path) for path in reconstruct_together(again)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert words == N_TEST  # once for four points
    # Of three steps: one with (.5, 0) that two points share, two more of one of them, the other's two without; (0, 0)
    # and (.5, 1) three each. Three batches.
    assert len(steps) == 3 * (1 + 2 + 2 + 3 + 3)
    assert len({images.tobytes() for images in alone}) == 4


def test_a_point_keeps_only_the_adapters_it_weighs(overrides: list[str], adapters: Path) -> None:
    cfg = compose([*overrides, "method.omega_colour=0"])
    generator = build([cfg], torch.device("cpu"))
    assert generator.acting == ["edge"]
    assert generator.sampler.networks == ("unet", "vae", "edge_adapter")
    assert generator.plan_for([4]).plain == 8
    assert {need.name for need in weight_needs(cfg)} >= {"edge adapter"}
    both = {path.parent.name for path in input_files("reconstruct", compose(overrides))}
    assert {"edge", "colour"} <= both


# ---- words ----------------------------------------------------------------------------------------------------------


def test_the_caption_is_the_nearest_of_those_trained_on(overrides: list[str]) -> None:
    cfg = compose([*overrides, "method.text_images=3"])
    model = load_backbone(cfg.backbone)
    wanted = model.encode_text(["odogs", "fish", "q1"]).detach()
    captions = TrainingCaptions(cfg, model)
    noise = 0.05 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
    found, said = captions([N_TRAIN, N_TRAIN + 1, N_TRAIN + 2], wanted + noise)
    assert [one.captions for one in said[:2]] == [["odogs"], ["fish"]]
    torch.testing.assert_close(found[:2], wanted[:2], atol=1e-6, rtol=0)
    assert said[2].captions[0].removeprefix("o") in CAPTIONS  # nothing that was said of a test image
    turned, _ = captions([N_TRAIN + 2, N_TRAIN], (wanted + noise)[[2, 0]])
    assert torch.equal(turned, found[[2, 0]])


def test_a_mixture_weighs_captions_by_their_correlation(overrides: list[str]) -> None:
    cfg = compose([*overrides, "method.text=mixture", "method.text_images=2", "method.text_temperature=0.2"])
    model = load_backbone(cfg.backbone)
    decoded = model.encode_text(["sea"]).detach()
    (found,), (said,) = TrainingCaptions(cfg, model)([N_TRAIN], decoded)
    assert len(said.captions) == 4
    assert said.captions[0] == "sea"
    assert said.weights == sorted(said.weights, reverse=True)
    mean = np.stack([model.encode_text([t, f"o{t}"]).detach().numpy().mean(0) for t in CAPTIONS]).mean(0).ravel()
    encoded = model.encode_text(said.captions).detach().numpy().reshape(4, -1)
    correlations = [np.corrcoef(row - mean, decoded.numpy().ravel() - mean)[0, 1] for row in encoded]
    weights = np.exp(np.array(correlations) / 0.2)
    np.testing.assert_allclose(said.weights, weights / weights.sum(), rtol=1e-3)
    np.testing.assert_allclose(found.ravel().numpy(), weights @ encoded / weights.sum(), atol=1e-4)
    assert shares(np.array([0.9, -0.9], np.float32), 1e-3).tolist() == [1.0, 0.0]


def test_captions_stand_beside_the_previews(overrides: list[str], tmp_path: Path) -> None:
    cfg = predicted(compose([*overrides, f"trainer.previews={tmp_path}/previews"]))
    reconstruct(cfg)
    with open(tmp_path / "previews" / "captions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image_id"]) for row in rows] == [N_TRAIN + i for i in range(4)]  # of the first batch
    assert {row["weight"] for row in rows} == {"1.0000"}


@pytest.mark.parametrize("text", ["nearest", "mixture", "direct"])
def test_the_nearest_caption_is_kept_beside_the_images(overrides: list[str], text: str) -> None:
    cfg, decoded = predicted(compose([*overrides, f"method.text={text}"])), ["fish", "ohat", "sea", "otree", "box"]
    folder = RunFolder.open(cfg, "predict").path
    with edited(folder / "predictions.h5") as file:
        file["c"][:] = load_backbone(cfg.backbone).encode_text(decoded).detach().numpy()
    left_so(folder)
    with h5py.File(reconstruct(cfg) / "images.h5") as file:
        assert captions_of(file) == ([] if text == "direct" else decoded)


def test_test_captions_are_out_of_reach(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose(overrides)
    captions = TrainingCaptions(cfg, load_backbone(cfg.backbone))
    with pytest.raises(LeakError):
        captions._captions_of(0, np.array([N_TRAIN], np.int32))


# ---- recipes, pages and messages ------------------------------------------------------------------------------------


def test_recipes_differ_in_what_they_leave_out() -> None:
    whole = compose(["method=souldiffuser"])
    assert whole.method.variant == "figure"
    assert (whole.decoding("c").roi, whole.decoding("edge").roi) == ("ventral", "early+ventral")
    assert whole.decoding("colour").mapper.name == "cycle"
    for left, name in (("edge", "without_edge"), ("colour", "without_colour")):
        cfg = compose([f"method=souldiffuser_{name}"])
        assert cfg.method.acting == [one for one in ("edge", "colour") if one != left]
    for roi in ("ventral", "early"):
        cfg = compose([f"method=souldiffuser_{roi}_only"])
        assert {cfg.decoding(name).roi for name in cfg.method.targets} == {roi}
        assert cfg.decoding("edge").mapper == whole.decoding("edge").mapper


def test_recipes_without_places_differ_from_the_whole_in_how_voxels_come_to_z_alone() -> None:
    """The same target, heads, losses and length of training; of the mapper, its front or the places alone."""
    whole, *others = (compose([f"method=souldiffuser{n}"]) for n in ("", "_flattened", "_shuffled_coordinates"))
    flattened, shuffled = (cfg.decoding("z") for cfg in others)
    z = whole.decoding("z")
    assert (z.mapper.name, z.mapper.rescale) == ("volumetric", "train")
    assert shuffled == replace(z, mapper=replace(z.mapper, coordinates="shuffled"))
    assert flattened == replace(z, mapper=mapper_settings("two_stage", rescale="train"))
    for cfg in others:
        assert {name: cfg.decoding(name) for name in ("c", "edge", "colour")} == {
            name: whole.decoding(name) for name in ("c", "edge", "colour")
        }
        assert replace(cfg.method, name="", targets={}) == replace(whole.method, name="", targets={})


def test_every_table_says_that_it_is_built_from_a_figure(tmp_path: Path) -> None:
    cfg = results_config(tmp_path)
    cfg.method = method_settings("souldiffuser", targets=["z", "c", "edge", "colour"])
    fake_scores(cfg, {"pixcorr": np.full(8, 0.5)})
    row = Row(label="Soul")
    columns = [Column(metric="pixcorr")]
    spec = TableSpec(
        name="t", folder=Path(), title="T", experiment="scenes", subjects=["subj01"], columns=columns, rows=[row]
    )
    table = collect(spec, [Entry(row, "subj01", cfg)], "nd run")
    assert table.notes == ["Soul: variant figure, built from README and figure; no paper or code public"]
    assert table.rows[0].label == "Soul (figure)"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["method.omega_edge=-1"], r"omega_edge: -1.0 is negative"),
        (["method.targets=[z,c,colour]"], r"omega_edge: 1.0 needs target edge.* or set method.omega_edge=0"),
        (["method.adapter_share=1.5"], r"adapter_share: 1.5 lies outside \[0, 1\]"),
        (["method.text=gpt"], r"method.text: 'gpt' is not allowed.* nearest, mixture, direct"),
        (["method.text=mixture", "method.text_temperature=0"], "text_temperature: 0.0 must be positive"),
        (["method.text_images=0"], "text_images: 0 was given, wanted 1 or more"),
        (["method.variant=paper"], "method.variant: 'paper' is not allowed.* Allowed: figure"),
        (["method.targets=[z,edge,colour]"], r"generator souldiffuser needs \['c'\]"),
    ],
)
def test_settings_that_contradict_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose(["method=souldiffuser", *given])


@pytest.mark.parametrize(
    ("given", "key", "why"),
    [
        ("method.omega_edge=0", "method.edge_adapter", "method.omega_edge is 0"),
        ("method.adapter_share=0.01", "method.edge_adapter", "method.adapter_share=0.01 of 37 steps is none"),
        ("method.adapter_share=0.01", "method.omega_edge", "method.adapter_share=0.01 of 37 steps is none"),
        ("method.adapter_share=0.5", "method.omega_edge", ""),
    ],
)
def test_why_an_adapter_does_not_act_is_told(given: str, key: str, why: str) -> None:
    warned = without_effect(compose(["method=souldiffuser", given]), [key])
    assert warned == ([f"{key} has no effect: {why}."] if why else [])


def test_adapters_that_do_not_fit_are_named(overrides: list[str], tmp_path: Path) -> None:
    T2IAdapter(in_channels=1, channels=[8, 24], num_res_blocks=1, downscale_factor=4).save_pretrained(tmp_path / "wide")
    T2IAdapter(in_channels=1, channels=[8, 16], num_res_blocks=1, downscale_factor=4).save_pretrained(
        tmp_path / "pickled", safe_serialization=False
    )
    for given, said in (
        (
            f"{tmp_path}/wide",
            r"method.edge_adapter: .* \(24, 2, 2\)\], but the UNet of this backbone takes .*\(16, 2, 2\)",
        ),
        (
            f"{tmp_path}/pickled",
            r"method.edge_adapter=.*pickled: the folder has no diffusion_pytorch_model.safetensors",
        ),
        ("package://nowhere", r"method.edge_adapter.*package://nowhere"),
        (f"{tmp_path}/absent", r"method.edge_adapter=.*absent: no such folder"),
    ):
        with pytest.raises(UserError, match=said):
            build([compose([*overrides, f"method.edge_adapter={given}"])], torch.device("cpu"))


def test_maps_of_another_size_are_named(overrides: list[str], tmp_path: Path) -> None:
    for name, shape in (("edge", (32, 32)), ("colour", (4, 4, 3)), ("c", (7, 16))):
        cfg = predicted(compose([*overrides, f"paths.runs={tmp_path}/{name}"]), **{name: shape})
        with pytest.raises(UserError, match=rf"decoded {name} has shape \({shape[0]}, .* takes"):
            reconstruct(cfg)


def test_trained_adapters_lower_the_error_where_they_act(
    adapters: Path, backbone: BackboneConfig, tmp_path: Path
) -> None:
    """A few more steps than --quick: the training of both moves the right way, and goes on where it was stopped."""
    script = load_script("scenes-adapters/train.py")
    assert {path.name for path in adapters.iterdir()} == {"edge", "colour", "work", "quality.json"}
    model = Backbone(backbone)
    how = script.Optimisation(steps=60, batch=8, learning_rate=3e-3, warmup=5, average=0.9, bf16=False)
    plan = script.Plan(images=24, held_out=16, layers={"edge": 1, "colour": 1}, how=how)
    drawn = script.scenes(model, range(plan.images))
    empty = script.encode_captions(model.text_encoder, model.tokenizer, [[""]])[0, 0]
    torch.manual_seed(0)
    both = script.build(model, plan)
    before = script.errors(model, both, drawn, plan)
    script.fit_adapters(model, both, drawn, empty, plan, script.Begin(0, tmp_path / "a.pt", tmp_path))
    after = script.errors(model, both, drawn, plan)
    assert after["without"] == before["without"]
    for name in ("edge", "colour", "both"):
        assert after[name] < before[name]


def test_captions_of_no_use_to_direct_text_are_never_read(overrides: list[str]) -> None:
    cfg = compose([*overrides, "method.text=direct"])
    generator = build([cfg], torch.device("cpu"))
    assert isinstance(generator, SoulDiffuser)
    assert generator.captions is None


def test_shipped_adapters_fit_the_shipped_backbone() -> None:
    cfg = compose(["method=souldiffuser", "experiment=scenes", "method.text=direct"])
    generator = build([cfg], torch.device("cpu"))
    assert generator.acting == ["edge", "colour"]
    sizes = [path.stat().st_size for path in input_files("reconstruct", cfg) if "scenes-adapters" in str(path)]
    assert 0 < sum(sizes) <= 6e6
