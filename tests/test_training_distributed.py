"""Two processes with half the batch each train what one process trains, and leave one run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_training import SHAPES, SMALL, assert_close, curve_of, pretrained, weights_of
from torch import Tensor

import nd.launch
import nd.lightning
from nd.config import TrainerConfig
from nd.config.application import compose
from nd.errors import UserError
from nd.launch import n_processes
from nd.mappers.training.fit import Files
from nd.runs.chain import pretrain_of
from nd.runs.folder import RunFolder
from nd.train import train

# Relative, in float64: sums of a step are split differently, which moves weights by 1e-13 of the largest number of a
# tensor; a row, a share or a factor that is wrong moves them by 1e-3 and more. Scores are rounded to 6 digits, what one
# stage hands to the next to float32; where a number falls on the other side of a rounding, later stages carry it on.
TOLERANCE, OF_SCORES, OF_FLOAT32 = 1e-9, 1.1e-6, 1e-6
TWO = ["trainer.devices=2", "trainer.strategy=ddp_spawn"]
# All targets at once, a latent map and its teacher among them; dropout is on. Norms of two channels: a bias in front of
# that of a single one has no gradient but rounding.
ALL = ["network.share=all", "training.aux_target=g", "network.decoder_channels=[34,34]", "training.mixco_share=0.5",
       "training.validate_every=1"]  # fmt: skip
# Some steps have larger gradients and some smaller ones; Adam alone would not notice a factor common to all of them.
CLIPPED = "training.clip_norm=75"
PRIOR = ["network.prior=true", "network.predict=prior", "training.ema=0.9", "training.accumulate=2"]


@pytest.fixture(scope="module")
def given(linear_world: list[str]) -> list[str]:
    """In float64, so that the order in which a processor adds is not seen behind Adam's division by small gradients."""
    few = ["training.pretrain_epochs=3", "training.epochs=3"]
    return [*linear_world, *SMALL, "target=c", "training.precision=64-true", "training.lr=1e-3", *few]


def flat(line: Any) -> dict[str, float]:
    """Numbers of a curve's line by dotted name."""
    if not isinstance(line, dict):
        return {"": line}
    return {f"{name}.{inner}": v for name, value in line.items() for inner, v in flat(value).items()}


def weights_at(path: Path) -> dict[str, Tensor]:
    """But for the biases of attention's keys, which softmax does not see: their gradient is rounding alone."""
    return {name: value for name, value in weights_of(path).items() if not name.endswith("to_k.bias")}


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_processes_equal_one(start: str, given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curve, weights and what is made of them, with several subjects, contrasts, MixCo, dropout and the prior.

    A fork, which has all imported, takes half the time of the process that users get; that one is tested among the
    slow tests.
    """
    if start == "fork":
        monkeypatch.setattr(nd.launch, "_strategy", lambda cfg: "ddp_fork" if n_processes(cfg) > 1 else "auto")
    cfgs = [compose([*given, *ALL, *PRIOR, CLIPPED, *more]) for more in ([], TWO)]
    one, two = (pretrained(cfg, tmp_path / name, *SHAPES) for cfg, name in zip(cfgs, ("one", "two"), strict=True))
    curves = [curve_of(tmp_path / name) for name in ("one", "two")]
    assert len(curves[0]) == len(curves[1]) >= 3
    for single, shared in zip(*curves, strict=True):
        wanted = flat(single)
        assert flat(shared) == pytest.approx(wanted, rel=TOLERANCE, abs=OF_SCORES), single["epoch"]
        assert wanted["val.c.unexplained."] > 0
    kinds = {name.split("/")[1] for name, value in curves[0][-1]["losses"].items() if value > 0}
    assert kinds == {"contrast", "tokens", "prior", "latent", "aux"}
    weights = [weights_at(Files(tmp_path / name, 0).result) for name in ("one", "two")]
    assert_close(weights[1], weights[0], TOLERANCE)
    assert_close(two.anchors, one.anchors, OF_FLOAT32)
    moved = max(float(value.abs().max()) for value in one.weights.values())
    assert moved > 0.1


@pytest.mark.slow
def test_loss_that_is_lost_in_one_process_stops_all(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is the one of that process, in one line, and names the losses."""
    monkeypatch.setattr(nd.lightning, "user_error_of", noted := Noted())
    cfg = compose([*given, *TWO, "training.lr=1e30", "training.clip_norm=0"])
    with pytest.raises(UserError, match=r"not finite .*The last good checkpoint is kept at .*Give a smaller") as caught:
        pretrained(cfg, tmp_path, "c")
    assert "\n" not in str(caught.value)
    assert "Traceback" in noted.texts[0]


class Noted:
    """``user_error_of``, with what it was asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.original = nd.lightning.user_error_of

    def __call__(self, error: Exception) -> Exception:
        self.texts.append(str(error))
        return self.original(error)


# ---- under a launcher ----------------------------------------------------------------------------------------------


def test_further_processes_have_nothing_to_do_where_the_first_has_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever they look: before checkpoints are made of the result, after that, and once the result is gone."""
    from nd.mappers.training.folds import _is_to_do

    files, path = Files(tmp_path, 0), tmp_path / "checkpoint" / "fold-00.safetensors"
    files.curve.parent.mkdir()
    path.parent.mkdir()
    monkeypatch.setattr("nd.mappers.training.folds.is_rank_zero", lambda trainer: False)
    assert _is_to_do(TrainerConfig(), files, [path])
    files.result.with_suffix(".json").write_text("{}", encoding="utf-8")
    assert not _is_to_do(TrainerConfig(), files, [path])
    monkeypatch.setattr("nd.mappers.training.folds.is_rank_zero", lambda trainer: True)
    assert _is_to_do(TrainerConfig(), files, [path])  # of the result the first one makes checkpoints


@pytest.mark.slow
def test_torchrun_through_both_stages(given: list[str], tmp_path: Path) -> None:
    """Every process ends well, there is one run folder for each stage, and it holds what one process would train."""
    common = [*given, *ALL]
    launched = [*common, f"paths.runs={tmp_path / 'two'}", "trainer.devices=2", "trainer.strategy=ddp"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nd.train"]
    done = subprocess.run(
        [*command, *launched], capture_output=True, text=True, timeout=250, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote 1 network at") == 2
    cfg, alone = compose(launched), compose([*common, f"paths.runs={tmp_path / 'one'}"])
    folders = [RunFolder.open(one, "train") for one in (pretrain_of(cfg), cfg)]
    assert sorted((tmp_path / "two" / "train").iterdir()) == sorted(folder.path for folder in folders)
    assert [folder.status for folder in folders] == ["done", "done"]
    train(alone)
    for stage, folder in zip((pretrain_of(alone), alone), folders, strict=True):
        single = RunFolder.open(stage, "train").path / "checkpoint"
        losses = [[line["loss"] for line in curve_of(path)] for path in (folder.path, single.parent)]
        assert losses[0] == pytest.approx(losses[1], rel=OF_FLOAT32)
        names = sorted(path.name for path in single.iterdir())
        assert names == sorted(path.name for path in (folder.path / "checkpoint").iterdir())
        for name in names:
            if name.endswith(".safetensors"):
                found, wanted = (weights_at(where / name) for where in (folder.path / "checkpoint", single))
                assert_close(found, wanted, OF_FLOAT32)
