"""The benchmark of one image at tiny sizes: its operations are all found, and made again at their own shapes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nd.backbone.loading import Backbone, load_backbone
from nd.config import BackboneConfig

SCRIPTS = Path(__file__).parents[1] / "experiments" / "benchmarks"
FEW = ["--one", "--steps", "8", "--eta", "0.25", "--sag", "0", "--kappa", "1"]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark and the modules beside it; none of their names stays behind."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.slow
def test_one_image_is_held_against_its_own_operations(scripts: Any, tiny_backbone_config: BackboneConfig) -> None:
    script = scripts("sampler")

    def models(device: str, dtype: str) -> Backbone:
        loaded = load_backbone(tiny_backbone_config, "cpu", dtype=dtype)
        for module in (loaded.unet, loaded.vae, loaded.tower):
            module.to(device)
        uncond = loaded.encode_text([""]).to(device)
        loaded.device = torch.device(device)
        loaded.encode_text = lambda captions, length=0: uncond.expand(len(captions), -1, -1)  # type: ignore[method-assign]
        return loaded

    asked = script.parsed(FEW)
    figures = script.one_image(*script.configured(asked), asked, models)
    sampler = script.GuidedSampler(models("cpu", "float32"), script.configured(asked)[0])
    sampler.use(script.plan_for(sampler, 0.0, [1]))
    z, c, g, noise = script.inputs(sampler, 1, 1)
    with script.Recorder() as on_cpu:
        sampler.sample(z, c, g, noise)
    attention_differs = 0.02  # a CPU's fused attention is counted in another way than its two products
    assert figures["flop"] == pytest.approx(on_cpu.total, rel=attention_differs)
    t, abar, _ = sampler._at(0)
    counters = script.Recorder(), FlopCounterMode(display=False)  # the latter cannot count through autograd.grad
    for counter in counters:
        with torch.no_grad(), counter:
            sampler.denoise(z, t, c, abar)
    assert 0 < counters[0].total == counters[1].get_total_flops() < figures["flop"]
    assert figures["seconds"] > 0
    assert all(turn > 0 for turn in figures["seconds_of_operations"])


def test_calls_are_made_again_as_they_were(scripts: Any) -> None:
    replay = scripts("replay")
    x, w = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(5, 3, 3, 3, device="meta", requires_grad=True)
    x = x.to(memory_format=torch.channels_last)
    with replay.Recorder() as found:
        for _ in range(4):
            functional.conv2d(x, w, padding=1).sum().backward()
        functional.linear(torch.empty(7, 11, device="meta"), torch.empty(13, 11, device="meta"))
    convolution = 2 * 2 * 5 * 3 * 9 * 64
    assert found.total == 8 * convolution + 2 * 7 * 11 * 13  # the image wants no gradient
    (forward,) = [call for call in found.calls if call.operation.overloadpacket is torch.ops.aten.convolution]
    assert found.calls[forward] == 4
    assert forward.prepared()().shape == (2, 5, 8, 8)
    image, weight = (one.filled() for one in forward.given[:2])
    assert (image.stride(), weight.stride()) == (x.stride(), w.stride())
    own = replay.Replay(found)
    assert own.turn(warm=True) > 0
    assert len(own.turns) == 1
