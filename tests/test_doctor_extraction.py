"""What the doctor says of the cost of extraction: operations as PyTorch counts them, a rate, images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nd.config.application import compose
from nd.doctor import extraction
from nd.doctor.extent import Extent
from nd.doctor.extraction import encoder_flops, extraction_lines, target_flops, transformer_flops

VAE: dict[str, Any] = {"block_out_channels": [32, 64, 64], "layers_per_block": 2, "latent_channels": 4}


def counted(work: Any, *given: Any, **more: Any) -> tuple[float, float]:
    """Operations in convolutions, and in everything else."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work(*given, **more)
    convolutions = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0)
    return convolutions, counter.get_total_flops() - convolutions


def test_operations_of_the_vae_are_those_that_are_counted() -> None:
    from diffusers import AutoencoderKL

    levels = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE, **levels).eval()
        assert encoder_flops(VAE, 48) == counted(vae.encode, torch.empty(1, 3, 48, 48))


def test_operations_of_a_transformer_are_those_that_are_counted() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
    with torch.device("meta"):
        model = CLIPTextModel(config).eval()
        found = counted(model, input_ids=torch.zeros(1, 20, dtype=torch.long))
    assert found == (0, transformer_flops(3, 48, 20, ratio=2))


def test_days_for_a_data_set_follow_from_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("conv_rate", "product_rate"):
        monkeypatch.setattr(extraction, kind, lambda *_: 1e11)
    cfg = compose(["experiment=nsd", "data.subjects=[subj01]"])
    assert sum(target_flops(cfg)["z"]) == pytest.approx(1.117e12, rel=1e-3)  # Stable Diffusion v1.4 at 512 px
    lines = list(extraction_lines(cfg, Extent(images=73_000)))
    assert lines[0] == " 9.4 days  target z: 73,000 images, 1,117 GFLOP and 11.2 s an image"
    assert lines[-1] == "at 100 and 100 GFLOP/s in convolutions and matrix products, measured now on this cpu"


def test_what_little_an_image_costs_is_not_said_to_be_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose()  # Scenes' small networks
    for kind in ("conv_rate", "product_rate"):
        monkeypatch.setattr(extraction, kind, lambda *_: 1e10)
    lines = list(extraction_lines(cfg, Extent(images=70_000)))
    assert lines[0] == f"{extraction.duration(70_000 * sum(target_flops(cfg)['z']) / 1e10):>9}  target z: 70,000 " + (
        f"images, {sum(target_flops(cfg)['z']) / 1e9:.2f} GFLOP and {sum(target_flops(cfg)['z']) / 1e10:.3g} s an image"
    )
    assert " 0 GFLOP" not in lines[0]


def test_rates_are_not_said_where_no_target_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("conv_rate", "product_rate"):
        monkeypatch.setattr(extraction, kind, lambda *_: 1e12)
    assert list(extraction_lines(compose(), Extent(images=70_000))) == []


def test_nothing_is_measured_where_extraction_is_a_matter_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "conv_rate", lambda *_: pytest.fail("not needed"))
    assert list(extraction_lines(compose(["experiment=nsd"]), Extent(images=0))) == []
    assert list(extraction_lines(compose(["method=mean_image"]), Extent(images=10_000))) == []


def test_rates_are_of_this_machine() -> None:
    for rate in (extraction.conv_rate, extraction.product_rate):
        assert 1e7 < rate(torch.device("cpu"), torch.float32) < 1e14
