"""Presets that follow released code: what each sets, against plain restatements of what that code does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers_training import SMALL, curve_of, finetuned, stage_of

from nd.config import Config, NetworkConfig, TrainingConfig
from nd.config.application import compose
from nd.data.epoch import DrawnPlan, Pool
from nd.errors import UserError
from nd.generate.trajectories import build_schedule
from nd.mappers.network.heads import TargetSlice
from nd.mappers.network.network import Network
from nd.mappers.network.prior_network import HalfNorm
from nd.mappers.training.module import decay_groups
from nd.tables.table import follows_release

NEURALDIFFUSER = ["method=neuraldiffuser_released", "guidance=released"]


@pytest.fixture(scope="module")
def neuraldiffuser() -> Config:
    return compose(NEURALDIFFUSER)


# ---- NeuralDiffuser's targets --------------------------------------------------------------------------------------


def test_neuraldiffuser_decodes_the_released_targets(neuraldiffuser: Config) -> None:
    z, c, g = (neuraldiffuser.decodings[name].target for name in "zcg")
    assert (z.picture, z.posterior) == ("via224", "mode")
    assert c.max_captions == 0
    assert (g.direct, g.dtype, g.layers) == (True, "float16", [0, 1, 2, 3, 4, 5])
    assert neuraldiffuser.decodings["z"].mapper.rescale == "test"
    assert [neuraldiffuser.decodings[name].mapper.rescale for name in "cg"] == ["none", "none"]
    assert neuraldiffuser.transductive
    assert (follows_release(neuraldiffuser), follows_release(compose([]))) == (True, False)


def test_targets_stay_released_under_another_mapper() -> None:
    cfg = compose([*NEURALDIFFUSER, "mapper=ridge"])
    assert (cfg.decodings["c"].target.max_captions, cfg.decodings["g"].target.direct) == (0, True)
    assert not cfg.transductive


# ---- NeuralDiffuser's training -------------------------------------------------------------------------------------


def test_neuraldiffuser_trains_by_the_released_numbers(neuraldiffuser: Config) -> None:
    """Sizes as src/train_c.py and src/train_z.py work them out: 40 sessions of 750 trials, 150 epochs."""
    for name, gpus, batch in (("c", 1, 42), ("g", 1, 42), ("z", 6, 14)):
        training, network = (getattr(neuraldiffuser.decodings[name], part) for part in ("training", "network"))
        assert training.batch_size == gpus * batch
        assert training.epoch_steps == (750 * 40 // gpus) // batch == {1: 714, 6: 357}[gpus]
        assert training.batch_size // 7 == gpus * (batch // 7)  # of each of seven subjects
        assert (training.epochs, training.pretrain_epochs, training.warmup) == (150, 150, 2 / 150)
        assert (training.lr, training.finetune_lr, training.keep, training.clip_norm) == (3e-4, 0, "last", 0)
        assert (training.weight_decay, training.subject_decay, training.precision) == (0.01, 0.01, "16-mixed")
        assert network.hidden == 4096
    c, z = (neuraldiffuser.decodings[name].training for name in "cz")
    assert (c.prior_weight, c.contrast_weight, c.token_weight) == (30, 1, 0)
    assert (z.latent_weight, z.aux_weight, z.aux_target) == (1 / 0.18215, 0.1, "")
    assert neuraldiffuser.decodings["c"].network.prior_half_eps == 1e-3


def pools(*counts: int) -> dict[str, Pool]:
    return {f"subj{k:02d}": Pool(np.arange(n) + 1000 * k, np.arange(n)) for k, n in enumerate(counts)}


def test_drawn_epochs_have_as_many_samples_of_each_subject_whatever_their_number() -> None:
    plan = DrawnPlan(pools(30, 90, 7), 20, 5, 11)
    steps = list(plan.steps(2))
    assert len(steps) == plan.n_steps() == 11
    assert {tuple(len(part) for part in step.samples.values()) for step in steps} == {(6, 6, 6)}
    for rank in range(3):
        for mine, whole in zip(plan.steps(2, rank, 3), steps, strict=True):
            assert {len(part) for part in mine.samples.values()} == {2}
            for name, part in mine.samples.items():
                assert part.tolist() == whole.samples[name][2 * rank : 2 * rank + 2].tolist()
    again = [step.samples["subj01"].tolist() for step in DrawnPlan(pools(30, 90, 7), 20, 5, 11).steps(2)]
    assert again == [step.samples["subj01"].tolist() for step in steps]
    assert again != [step.samples["subj01"].tolist() for step in plan.steps(3)]


def test_samples_are_drawn_with_replacement_and_alike_often() -> None:
    """Counts of 50 samples in n draws: chi-square has mean 49 and standard deviation sqrt(2 * 49)."""
    plan = DrawnPlan(pools(50), 42, 1, 714)
    drawn = np.concatenate([step.samples["subj00"] for step in plan.steps(0)])
    counts = np.array(list(Counter(drawn.tolist()).values()))
    assert (len(counts), counts.sum()) == (50, 714 * 42)
    chi_square = (np.square(counts - counts.mean()) / counts.mean()).sum()
    assert abs(chi_square - 49) < 4 * np.sqrt(2 * 49)  # a shuffle of every sample as often would give 0 or near
    first = next(iter(plan.steps(0))).samples["subj00"].tolist()
    assert len(set(first)) < len(first)


def test_a_step_too_small_for_its_subjects_is_named() -> None:
    with pytest.raises(UserError, match=r"batch_size=2 leaves no sample for each of 3 subjects .* Use 3 or more"):
        DrawnPlan(pools(9, 9, 9), 2, 0, 4)
    with pytest.raises(UserError, match=r"as few as 3 for a step, but each of 4 processes"):
        DrawnPlan(pools(9, 9, 9), 3, 0, 4).n_steps(4)


def test_an_epoch_has_the_steps_asked_for_and_the_cycle_is_as_long(linear_world: list[str], tmp_path: Path) -> None:
    """The rate ends at lr / 25 / 1000 after epochs x steps, not before."""
    given = [*linear_world, *SMALL, "target=c", "training.epoch_steps=7", "training.batch_size=10", "training.epochs=2"]
    cfg = compose([*given, "training.least_steps=50"])
    stage = stage_of(cfg, "c")
    assert (stage.batch_size, len(stage.data().train_dataloader())) == (10, 7)
    finetuned(cfg, tmp_path, "c")
    assert curve_of(tmp_path)[-1]["lr"] == pytest.approx(cfg.training.lr / 25 / 1000)


def test_decay_spares_whatever_is_called_bias() -> None:
    """no_decay of src/train_c.py is looked for inside names: the table of relative biases is spared, gains are not."""
    config = NetworkConfig(hidden=8, prior=True, prior_depth=1, prior_heads=14, share="part", trunk="mixer")
    for variant, spared in (("released", True), ("nd", False)):
        network = Network(config, [TargetSlice("c", "c", 0, 24, (3, 8))], {"a": 5}, variant)
        names = {id(weight): name for name, weight in network.named_parameters()}
        groups = decay_groups(network, TrainingConfig())
        found = {names[id(weight)]: group["weight_decay"] for group in groups for weight in group["params"]}
        (table,) = (name for name in found if "relative_bias" in name)
        assert network.get_parameter(table).numel() == 448
        assert (found[table] == 0) == spared
        gains = {found[name] for name in found if "norm" in name and name.endswith("weight") and ".prior." in name}
        assert gains == ({TrainingConfig().weight_decay} if spared else {0})
        if spared:
            no_decay = {name for name in found if "bias" in name and "subject_layers" not in name}
            assert {name for name, decay in found.items() if decay == 0} == no_decay


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-3), (torch.float32, 1e-5)])
def test_norm_behind_attention_has_another_epsilon_in_half_precision(dtype: torch.dtype, eps: float) -> None:
    """Of variance 1e-3, which the larger epsilon doubles. Half precision rounds the quotient to 2^-11 (bf16: 2^-8)."""
    norm = HalfNorm(12, 1e-3).requires_grad_(False)
    norm.weight.copy_(torch.linspace(0.5, 2, 12))
    x = (1e-3**0.5 * torch.randn(4, 12, generator=torch.Generator().manual_seed(0))).to(dtype)
    wide = x.double()
    variance = wide.var(dim=-1, correction=0, keepdim=True)
    wanted = (wide - wide.mean(-1, keepdim=True)) / (variance + eps).sqrt() * norm.weight.double()
    found = norm.to(dtype)(x).double()
    tolerance = {torch.float16: 2**-9, torch.bfloat16: 2**-6, torch.float32: 1e-5}[dtype]
    assert (found - wanted).abs().max() < tolerance * wanted.abs().max()


# ---- NeuralDiffuser's sampler --------------------------------------------------------------------------------------


def test_released_steps_are_counted_in_binary() -> None:
    """int(.58 * 50) of src/recon.py:112 is 28, since .58 * 50 is 28.999999999999996."""
    for name, steps in (("neuraldiffuser_released", 28), ("neuraldiffuser", 29), ("neuraldiffuser_paper", 29)):
        cfg = compose([f"method={name}", "method.steps=50", "method.strength=0.58", "guidance.eta=0.25"])
        assert cfg.sampled_steps == steps
        assert cfg.guided_steps == 7
    scheduler = DDIMScheduler(num_train_timesteps=1000, steps_offset=1)
    assert len(build_schedule(scheduler, 50, 0.58, matched_start=False)) == 28
    assert len(build_schedule(scheduler, 50, 0.58)) == 29
    cfg = compose([*NEURALDIFFUSER, "method.steps=100", "method.strength=1", "guidance.eta=0.29"])
    assert cfg.guided_steps == 28  # .29 * 100 is 28.999999999999996
