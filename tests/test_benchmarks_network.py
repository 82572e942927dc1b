"""The benchmark of the trained network at tiny sizes: it trains the real module, and its figures are those of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nd.errors import UserError

SCRIPTS = Path(__file__).parents[1] / "experiments" / "benchmarks"
TINY = [
    "--hidden", "8", "--voxels", "30", "--trials", "90", "--batch-size", "4", "--steps", "2", "--device", "cpu",
    "network.prior=false", "network.blocks=1", "network.latent_channels=4", "network.decoder_channels=[4,4]",
]  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark, beside the ones it imports; none of their names stays behind."""
    import importlib

    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    found = importlib.import_module("network")
    monkeypatch.setattr(found, "matmul_rate", lambda device, dtype: 1e9)  # a second of large products
    yield found
    for name in set(sys.modules) - before:
        if str(SCRIPTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def linear(n_in: int, n_out: int, bias: bool = True) -> int:
    return n_in * n_out + bias * n_out


def test_figures_are_those_of_the_network(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "work").mkdir()
    given = ["--parts", "c", "z", *TINY, "--folder", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    figures = script.main(given)
    assert figures["parts"] == ["c", "z"]
    assert not list((tmp_path / "work").iterdir())  # the files of noise are gone
    assert 0 < figures["waiting"] < 1
    assert figures["samples_per_s"] == pytest.approx(4 / figures["s_per_step"])
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["parameters"] == figures["parameters"]
    said = capsys.readouterr().out
    assert "network.share=part, hidden 8, parts c z" in said
    assert "steps of 4 samples, 32-true; 2 steps timed" in said


def test_operations_are_those_of_a_step_by_hand(script: ModuleType, tmp_path: Path) -> None:
    given = ["--parts", "c", *TINY, "network.projector=false", "training.contrast_weight=0", "--folder", str(tmp_path)]
    figures = script.main(given)
    subject, block, tokens = 30 * 8, 2 * 8 * 8, 8 * 77 * 768
    assert figures["parameters"] == subject + 8 + block + 2 * 8 + 2 * 8 + tokens + 77 * 768
    # Forward, and backward to weights and inputs, 2 operations a product; nothing wants the gradient of the voxels.
    assert figures["flop_per_step"] == 4 * 2 * (2 * subject + 3 * block + 3 * tokens)


def test_parts_and_who_shares_a_trunk(script: ModuleType) -> None:
    assert [part.name for part in script.parts_asked(["c", "g", "z"])] == ["c", *(f"g_{k}" for k in range(6)), "z"]
    assert [part.name for part in script.parts_asked(["g_1", "z"])] == ["g_1", "z"]
    sizes = {
        share: script.estimated(cfg, script.parts_asked(asked.parts), asked).parameters
        for share in ("part", "target", "all")
        for asked in [script.parsed([*TINY, "--share", share])]
        for cfg in [script.configured(asked)]
    }
    trunk = linear(30, 8) + 2 * 8 + 2 * linear(8, 8)
    assert sizes["part"] - sizes["target"] == 5 * trunk  # six layers of g have one
    assert sizes["target"] - sizes["all"] == 2 * trunk


def test_by_default_it_is_the_published_size(script: ModuleType) -> None:
    asked = script.parsed([])
    cfg = script.configured(asked)
    assert (cfg.network.hidden, cfg.network.share, cfg.training.batch_size, asked.voxels) == (4096, "part", 42, 15_724)
    assert (cfg.network.prior_depth, cfg.network.prior_heads, cfg.network.prior_head_width) == (6, 14, 52)
    assert cfg.training.precision == ("bf16-mixed" if torch.cuda.is_available() else "32-true")
    assert script.configured(script.parsed(["--precision", "bf16"])).training.precision == "bf16-mixed"
    with pytest.raises(UserError, match=r"network\.hiden"):
        script.configured(script.parsed(["network.hiden=3"]))
