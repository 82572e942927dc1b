"""Points of a sweep over guidance: sampled together they are what each is alone, and shared steps run once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers_backbone import tiny_backbone
from helpers_config import method_settings
from torch import Tensor

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config, GuidanceConfig
from nd.config.application import compose
from nd.errors import UserError
from nd.generate import plan as plans
from nd.generate.memory import Need, empty_copy, need_of, needs_of
from nd.generate.parts import Parts
from nd.generate.plan import Plan, fitted, in_parts, plan_for, size_for
from nd.generate.sampler import GuidedSampler, point_of
from nd.generate.trajectories import Point, Track, Trajectories, noise_for
from nd.reconstruct import sweeps

SHAPE = (4, 4, 4)
GRID = [(kappa, eta) for kappa in (0.2, 0.8) for eta in (0.0, 0.34, 0.5, 1.0)] + [(0.0, 0.5)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def cfg(backbone: Backbone) -> Config:
    return Config(
        method=method_settings(steps=8, strength=0.75, cfg_scale=3.0, repeats=2),
        guidance=GuidanceConfig(kappa=0.5, eta=0.5, normalise=True, schedule="falling"),
        backbone=backbone.config,
    )


def at(cfg: Config, kappa: float, eta: float) -> Config:
    return replace(cfg, guidance=replace(cfg.guidance, kappa=kappa, eta=eta))


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    z, c, g = (torch.randn(n, *shape, generator=random) for shape in (SHAPE, (8, 16), (6, 17, 16)))
    return z, c, 0.1 * g, noise_for(1, range(n), 2, SHAPE)


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(z: Tensor, *rest: Any, **more: Any) -> Any:
        calls.append(len(z))
        return function(z, *rest, **more)

    return call


# ---- points of a sweep -------------------------------------------------------------------------------------------


def test_points_together_are_what_each_is_alone(backbone: Backbone, cfg: Config) -> None:
    given = inputs(3)
    together = GuidedSampler(backbone, cfg, [point_of(at(cfg, *point)) for point in GRID]).sample(*given)
    assert len(together) == len(GRID)
    for point, found in zip(GRID, together, strict=True):
        (alone,) = GuidedSampler(backbone, at(cfg, *point)).sample(*given)
        assert torch.allclose(found.images, alone.images, atol=1e-4)
    distinct = {found.images.numpy().round(3).tobytes() for found in together}
    assert len(distinct) == 7  # kappa 0 and both etas of 0 guide nothing


def test_shared_steps_run_once(backbone: Backbone, cfg: Config) -> None:
    sampler = GuidedSampler(backbone, cfg, [point_of(at(cfg, *point)) for point in GRID])
    gradients: list[int] = []
    sampler._gradient = counted(sampler._gradient, gradients)  # type: ignore[method-assign]
    sampler.sample(*inputs(1))
    # Two kappas, each guided for up to six steps, all samples in one part; the first step is the same for both.
    assert len(gradients) == 1 + 5 * 2


def test_one_sample_that_breaks_leaves_the_other_points_alone(backbone: Backbone, cfg: Config) -> None:
    plain = replace(cfg, guidance=replace(cfg.guidance, normalise=False))
    sampler = GuidedSampler(backbone, plain, [Point(1e38, 2), Point(0.0, 0)])
    wild, calm = sampler.sample(*inputs(2))
    assert (wild.stopped > 0).all()
    assert not calm.stopped.any()
    (alone,) = GuidedSampler(backbone, at(plain, 0.0, 0.0)).sample(*inputs(2))
    assert torch.allclose(calm.images, alone.images, atol=1e-5)


def test_a_track_that_broke_rests_and_remembers_the_first_step() -> None:
    track = Track(torch.ones(2, 1, 1, 1), torch.zeros(2, dtype=torch.long))
    broken = track.moved(torch.tensor([1.0, float("nan")]).view(2, 1, 1, 1), step=3)
    assert (broken.stopped.tolist(), broken.z.flatten().tolist()) == ([0, 4], [1, 0])
    later = broken.moved(torch.full((2, 1, 1, 1), 2.0), step=4)
    assert (later.stopped.tolist(), later.z.flatten().tolist()) == ([0, 4], [2, 0])


def test_guided_tracks_end_when_nobody_needs_them() -> None:
    walk = Trajectories([Point(1.0, 1), Point(2.0, 3), Point(5.0, 0)], torch.zeros(1, 1, 1, 1))
    assert (set(walk.guided), set(walk.plain)) == ({1.0, 2.0}, {Point(0.0, 0)})
    walk.branch(1)
    assert (set(walk.guided), set(walk.plain)) == ({2.0}, {Point(0.0, 0), Point(1.0, 1)})


def test_configurations_that_differ_in_more_are_no_sweep() -> None:
    base = compose(["data=scenes"])
    two = [at(base, 1.0, 0.2), at(base, 3.0, 0.4)]
    assert [len(group) for group in sweeps([*two, replace(base, seed=7)])] == [2]
    assert sweeps([base, replace(base, seed=7)]) == []


# ---- plan and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_parts_join_to_the_whole(n: int) -> None:
    x, y = torch.randn(9, 2), torch.randn(9)
    sizes: list[int] = []

    def work(x: Tensor, y: Tensor, nothing: None) -> tuple[Tensor, Tensor]:
        sizes.append(len(x))
        return x * 2, y + 1

    doubled, raised = in_parts(work, n, x, y, None)
    assert torch.equal(doubled, x * 2)
    assert torch.equal(raised, y + 1)
    assert set(sizes) == {n}  # the last part is filled up


@pytest.mark.parametrize(
    ("batches", "size"),
    [([1], 1), ([3], 3), ([5], 5), ([7], 8), ([16], 8), ([20], 20), ([25], 5), ([80], 40), ([80] * 61 + [30], 40)],
)
def test_parts_are_as_large_as_the_job_fills(batches: list[int], size: int) -> None:
    assert size_for(batches, 40) == size


def test_at_most_a_sixth_more_is_computed_than_wanted() -> None:
    for n in range(1, 200):
        size = size_for([n], 40)
        assert -(-n // size) * size <= 7 / 6 * n
    assert size_for([80], 13) == 10  # what memory allows
    assert size_for([80], 0) == 0


def test_who_watches_sees_every_part_and_the_end(backbone: Backbone, cfg: Config) -> None:
    sampler, seen = GuidedSampler(backbone, cfg, [point_of(at(cfg, *point)) for point in GRID]), list[float]()
    sampler.watch = seen.append
    sampler.sample(*inputs(1))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert seen[0] < 0.1
    single = GuidedSampler(backbone, cfg)
    single.use(Plan(1, 2, 2))
    seen = []
    single.watch = seen.append
    single.sample(
        *inputs(2)
    )  # 4 samples, 3 guided of 6 steps: 4 and 2 parts; 2 parts in each other step and at the end
    assert len(seen) == 3 * (4 + 2) + 3 * 2 + 2
    assert seen[-1] == pytest.approx(1)


def test_plans_change_no_picture(backbone: Backbone, cfg: Config) -> None:
    given = inputs(3)
    (whole,) = GuidedSampler(backbone, cfg).sample(*given)
    for plan in (Plan(1, 1, 1), Plan(4, 3, 2, checkpoint=1)):
        sampler = GuidedSampler(backbone, cfg)
        sampler.use(plan)
        (cut,) = sampler.sample(*given)
        assert torch.allclose(cut.images, whole.images, atol=1e-4)
    GuidedSampler(backbone, cfg).use(Plan(6, 6, 6))
    assert not backbone.unet.mid_block.gradient_checkpointing


def test_need_is_what_stays_alive_for_the_backward_pass() -> None:
    def work(n: int) -> None:
        x = torch.zeros(n, 1000, requires_grad=True, device="meta")  # 4 kB each
        (x.exp().exp().sum()).backward()

    # Alive at the peak: x, both powers, kept for the backward pass, and gradients on their way.
    need = need_of(work)
    assert 3 * 4000 <= need.each <= 6 * 4000
    assert need.fixed <= 100


@pytest.mark.slow
def test_budget_decides_batches_and_recomputing(backbone: Backbone, cfg: Config) -> None:
    sampler = GuidedSampler(backbone, cfg)
    assert plan_for(sampler, 0) == sampler.plan  # room enough
    needs, lean = (needs_of(empty_copy(sampler), checkpoint=again) for again in (0, 1))
    assert lean["guided"].each < needs["guided"].each
    tight = plan_for(sampler, (1.15 * (needs["guided"].fixed + 1.2 * needs["guided"].each) + weights(backbone)) / 1e9)
    assert tight.checkpoint
    assert tight.guided >= 1
    with pytest.raises(UserError, match=r"trainer\.memory_gb: 1e-05 GB cannot hold one sample: .* at least"):
        plan_for(sampler, 1e-5)


def weights(backbone: Backbone) -> int:
    return sum(p.numel() * 4 for m in (backbone.unet, backbone.vae, backbone.clip) for p in m.parameters())


def test_fitted_takes_the_least_of_speed_and_room() -> None:
    plan = fitted(Plan(8, 8, 8), {"guided": Need(100, 50), "plain": Need(0, 10), "decode": Need(0, 1)}, 310)
    assert plan == Plan(4, 8, 8)


# ---- run folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, backbone: Backbone) -> list[str]:
    from nd.data.prepared import stimuli_path, write_stimuli
    from nd.runs.folder import RunFolder

    where = str(Path(backbone.config.weights))
    overrides = [
        f"paths.root={tmp_path}", f"backbone.weights={where}", f"backbone.image_tower={where}/image_tower",
        "backbone.image_size=16", "backbone.tower_size=16", "data.image_size=16", "data.n_train=8", "data.n_val=2",
        "data.n_test=5", "method.steps=4", "method.repeats=2", "guidance.normalise=true", "trainer.accelerator=cpu",
        "trainer.batch_size=4", "trainer.progress=false",
    ]  # fmt: skip
    cfg, random = compose(overrides), np.random.default_rng(0)
    images = random.integers(0, 256, (13, 16, 16, 3)).astype(np.uint8)
    write_stimuli(stimuli_path(cfg), images=images, captions=[["it"]] * 13, image_id=np.arange(13))
    run = RunFolder.open(cfg, "predict")
    with run.writing(cfg), h5py.File(run.path / "predictions.h5", "w") as file:
        file["image_id"] = np.arange(8, 13)
        for name, shape in {"z": SHAPE, "c": (8, 16), "g": (6, 17, 16)}.items():
            file[name] = random.standard_normal((5, *shape)).astype(np.float32)
    return overrides


def pictures(cfg: Config) -> np.ndarray:
    from nd.runs.folder import RunFolder

    run = RunFolder.open(cfg, "reconstruct")
    assert run.done
    with h5py.File(run.path / "images.h5") as file:
        return file["images"][:].astype(int)


@pytest.mark.slow
def test_multirun_samples_the_grid_at_once_and_equals_single_runs(
    folder: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nd import reconstruct as verb

    batches: list[int] = []
    sample = GuidedSampler.sample
    monkeypatch.setattr(GuidedSampler, "sample", counted_method(sample, batches))
    with pytest.raises(SystemExit) as left:
        verb.main([*folder, "-m", "guidance.kappa=0.3,0.6", "guidance.eta=0.4,1"])
    assert left.value.code == 0
    assert batches == [4, 4, 4]  # three batches of images, four points each: nothing was sampled a second time
    monkeypatch.setattr(GuidedSampler, "sample", sample)
    points = {(kappa, eta): [*folder, f"guidance.kappa={kappa}", f"guidance.eta={eta}"]
              for kappa in (0.3, 0.6) for eta in (0.4, 1)}  # fmt: skip
    together = {values: pictures(compose(point)) for values, point in points.items()}
    assert len({images.tobytes() for images in together.values()}) == 4
    for values in ((0.3, 1), (0.6, 0.4)):
        alone = verb.reconstruct(compose([*points[values], f"paths.runs={copied_runs(tmp_path)}"]))
        with h5py.File(alone / "images.h5") as file:
            assert np.abs(file["images"][:].astype(int) - together[values]).max() <= 1


def counted_method(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def sample(self: GuidedSampler, *args: Any, **more: Any) -> Any:
        calls.append(len(self.points))
        return function(self, *args, **more)

    return sample


def copied_runs(root: Path) -> Path:
    """Runs of their own, with the same predictions."""
    import shutil

    if not (root / "alone").exists():
        shutil.copytree(root / "runs" / "predict", root / "alone" / "predict")
    return root / "alone"


def test_a_point_that_explodes_leaves_the_others_done(folder: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from nd import reconstruct as verb

    wild = [*folder[:-1], "trainer.progress=false", "guidance.normalise=false", "guidance.eta=0.4"]
    with pytest.raises(SystemExit) as left:
        verb.main([*wild, "-m", "guidance.kappa=1e38,0.5"])
    assert left.value.code == 2
    assert "kappa=1e+38" in capsys.readouterr().err
    assert pictures(compose([*wild, "guidance.kappa=0.5"])).shape == (5, 2, 16, 16, 3)


def test_runs_of_a_sweep_keep_the_plans_they_began_with(folder: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from nd import reconstruct as verb
    from nd.runs.folder import RunFolder

    begun, fresh = (compose([*folder, f"guidance.kappa={kappa}"]) for kappa in (0.3, 0.6))
    parts = Parts(RunFolder.open(begun, "reconstruct").path / "parts")
    with suppress(KeyboardInterrupt), RunFolder.open(begun, "reconstruct").writing(begun):
        parts.record(Plan(1, 2, 1, checkpoint=1))
        parts.write([8], np.zeros((1, 2, 16, 16, 3), np.uint8))
        raise KeyboardInterrupt
    verb.reconstruct_together([begun, fresh])
    assert not pictures(begun)[0].any()  # finished before
    assert all(made.any() for made in pictures(begun)[1:])
    used = [Plan(**RunFolder.open(one, "reconstruct").manifest["execution"]["plan"]) for one in (begun, fresh)]
    assert used == [Plan(1, 2, 1, checkpoint=1), Plan(2, 2, 2)]


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "free_bytes", lambda device: 4_096_000)
    assert plans.free_share(torch.device("cpu")) == 4_096_000
    monkeypatch.setattr(plans.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(plans.dist, "get_world_size", lambda: 4)
    assert plans.free_share(torch.device("cpu")) == 1_024_000
