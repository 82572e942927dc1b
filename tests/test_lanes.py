"""Parts side by side: in the same order, to the same bits, on their share of the threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers_backbone import tiny_backbone
from helpers_config import method_settings

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config, GuidanceConfig
from nd.config.application import compose
from nd.doctor.extent import Extent
from nd.doctor.memory import memory_estimate
from nd.generate.lanes import lanes_for, side_by_side
from nd.generate.memory import Need
from nd.generate.plan import Plan, in_parts, plan_for
from nd.generate.sampler import GuidedSampler
from nd.generate.trajectories import noise_for


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch on two threads, as on a machine of two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def cfg(backbone: Backbone) -> Config:
    guidance = GuidanceConfig(kappa=0.5, eta=0.5, normalise=True)
    method = method_settings(steps=8, strength=0.75, cfg_scale=3.0, repeats=2)
    return Config(method=method, guidance=guidance, backbone=backbone.config)


def test_lanes_share_the_threads_evenly_and_are_seldom_idle() -> None:
    for threads in range(1, 9):
        for n_parts in ([1], [2, 1], [3], [4, 2, 4], [7, 5], [100]):
            lanes = lanes_for(n_parts, threads)
            assert threads % lanes == 0
            assert sum(-(-n // lanes) * lanes for n in n_parts) * 0.9 <= sum(n_parts)
    assert lanes_for([4, 2, 4], 2) == 2
    assert lanes_for([4, 2, 4], 4) == 2  # of [2] two lanes would stand idle
    assert lanes_for([3], 2) == 1
    assert lanes_for([], 2) == 2


def test_each_lane_has_its_share_of_the_threads_and_others_keep_theirs(two_threads: None) -> None:
    counts = list(side_by_side(lambda _: torch.get_num_threads(), [(k,) for k in range(6)], lanes=2))
    assert counts == [1] * 6
    later: list[int] = []
    begun = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    begun.start()
    begun.join()
    assert (torch.get_num_threads(), later) == (2, [2])


def test_results_come_in_order_and_modes_are_those_of_the_caller(two_threads: None) -> None:
    def late_first(k: int) -> tuple[int, bool, bool]:
        time.sleep(0.05 if k == 0 else 0)
        return k, torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    parts = [(k,) for k in range(4)]
    assert list(side_by_side(late_first, parts, lanes=2)) == [(k, True, False) for k in range(4)]
    with torch.no_grad():
        assert list(side_by_side(late_first, parts, lanes=2)) == [(k, False, False) for k in range(4)]
    with torch.inference_mode():
        assert list(side_by_side(late_first, parts, lanes=2)) == [(k, False, True) for k in range(4)]


def test_parts_run_at_the_same_time(two_threads: None) -> None:
    both = threading.Barrier(2)
    assert [*side_by_side(lambda k: both.wait(timeout=20) >= 0 and k, [(1,), (2,)], lanes=2)] == [1, 2]


def test_an_error_reaches_the_caller_and_ends_the_work(two_threads: None) -> None:
    begun: list[int] = []

    def fails(k: int) -> int:
        begun.append(k)
        time.sleep(0.02)
        if k == 0:
            raise MemoryError("no room")
        return k

    with pytest.raises(MemoryError, match="no room"):
        in_parts(lambda x: torch.tensor([fails(int(x[0]))]), 1, torch.arange(50), lanes=2)
    assert len(begun) < 50


def test_images_are_the_same_to_the_last_bit(two_threads: None, backbone: Backbone, cfg: Config) -> None:
    random = torch.Generator().manual_seed(0)
    z, c, g = (torch.randn(4, *shape, generator=random) for shape in ((4, 4, 4), (8, 16), (6, 17, 16)))
    made, shares = {}, []
    for lanes in (1, 2):
        torch.set_num_threads(lanes)  # one for each lane
        sampler = GuidedSampler(backbone, cfg)
        sampler.use(Plan(guided=2, plain=4, decode=1, lanes=lanes))
        sampler.watch = shares.append
        (made[lanes],) = sampler.sample(z, c, 0.1 * g, noise_for(1, range(4), 2, (4, 4, 4)))
        assert shares[-1] == pytest.approx(1)
    assert torch.equal(made[1].images, made[2].images)


def test_a_plan_has_lanes_where_they_can_be_used(
    two_threads: None, backbone: Backbone, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = GuidedSampler(backbone, cfg)
    needs = {"guided": Need(1e6, 1e6)}  # which lanes do not change
    monkeypatch.setattr("nd.generate.plan.needs_of", lambda empty: needs)
    assert plan_for(sampler, 0, [80, 80]) == Plan(20, 40, 20, lanes=2)
    assert plan_for(sampler, 0, [20]).lanes == 1  # one part
    assert plan_for(sampler, 0).lanes == 1  # not known how many
    assert plan_for(sampler, 4.0, [80]).lanes == 1  # a budget is for one part
    for alone in (
        replace(cfg, trainer=replace(cfg.trainer, compile=True)),
        replace(cfg, method=replace(cfg.method, sag_scale=0.75)),
    ):
        monkeypatch.setattr("nd.generate.denoiser.SelfAttention", lambda *_: object())
        assert plan_for(GuidedSampler(backbone, alone), 0, [80]).lanes == 1
    torch.set_num_threads(1)
    assert plan_for(sampler, 0, [80]).lanes == 1


def test_the_doctor_counts_every_lane(two_threads: None) -> None:
    def in_flight(*given: str) -> int:
        return memory_estimate(compose(["experiment=scenes", *given]), Extent()).in_flight

    assert in_flight() == 40
    assert in_flight("debug.limit_images=2") == 4
    assert in_flight("trainer.compile=true") == 20
    assert in_flight("method=vae") == 0
    torch.set_num_threads(1)
    assert in_flight() == 20
