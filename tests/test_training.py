"""Steps of training: losses against their formulas, the optimiser, and what training is a function of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_training import N_VAL, SMALL, Weights, curve_of, finetuned, identical, linear_target, stage_of
from pytorch_lightning import Callback
from torch import Tensor

import nd.mappers.training.fit as fit
from nd.config.application import compose
from nd.data.batch import Batch
from nd.mappers.network.draws import Draws
from nd.mappers.training.fit import Files, build_trainer
from nd.mappers.training.losses import mixco_nce, soft_clip, soft_contrastive
from nd.mappers.training.mixco import draw_mix, mix_labels, mix_targets, mixed_voxels
from nd.mappers.training.module import MapperTraining, Recipe
from nd.mappers.training.objective import StepLosses, pooled_tokens


@pytest.fixture(scope="module")
def given(linear_world: list[str]) -> list[str]:
    return [*linear_world, *SMALL, "target=c", "trainer.checkpoint_minutes=0"]


# ---- a step --------------------------------------------------------------------------------------------------------


class Lent:
    """What a module asks its trainer for."""

    def __init__(self, epoch: int) -> None:
        self.current_epoch, self.global_step = epoch, 0


def module_and_batch(cfg: Any, targets: tuple[str, ...], epoch: int) -> tuple[MapperTraining, Batch]:
    stage = stage_of(cfg, *targets)
    if cfg.training.aux_target:
        stage = replace(stage, teacher=stage_of(cfg, cfg.training.aux_target).stores[cfg.training.aux_target])
    module = MapperTraining(stage.network(), stage.scales(), Recipe(cfg.training, cfg.seed, 4, 1e-3))
    module._trainer = Lent(epoch)  # type: ignore[assignment]
    return module, next(iter(stage.data().train_dataloader()))


def unit(x: Tensor) -> Tensor:
    return x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True)


@pytest.mark.parametrize("epoch", [0, 3])
def test_losses_of_a_step_are_the_weighted_formulas(given: list[str], epoch: int) -> None:
    """All parts at once: errors of standardised targets, contrasts of raw spread without the mean."""
    weights = {"prior": 3.0, "token": 0.5, "contrast": 0.25, "latent": 2.0, "aux": 0.7}
    more = [f"training.{name}_weight={value}" for name, value in weights.items()]
    more += ["network.prior=true", "network.share=all", "training.mixco_share=0.5", "training.aux_target=g"]
    cfg = compose([*given, *more])
    module, batch = module_and_batch(cfg, ("c", "z"), epoch)
    total = module.training_step(batch, 2)
    draws = Draws(cfg.seed, epoch, 2, torch.arange(len(batch)), len(batch))
    mix = draw_mix(draws, [len(batch)], cfg.training.mixco_beta, cfg.training.mixco_select) if epoch == 0 else None
    voxels = {"subj01": batch.subjects["subj01"].voxels} if mix is None else mixed_voxels(batch, mix)
    outputs = module.network(voxels, draws)
    ids, train_ids = batch.image_id.numpy(), stage_of(cfg, "c").train_ids
    wanted = {}
    for name, shape in (("c", (3, 4)), ("z", (2, 4, 4))):
        true, seen = (torch.from_numpy(linear_target(name, which)).double() for which in (ids, train_ids))
        spread = seen.std(0, unbiased=False)
        spread[0] = 1  # constant
        goal = ((true - seen.mean(0)) / spread).float().view(-1, *shape)
        raw = (true - seen.mean(0)).float()
        aim = goal if mix is None else mix_targets(goal, mix, torch.arange(len(goal)))
        output, head = outputs[name], module.network.heads[name]
        if name == "z":
            wanted["z/latent"] = 2.0 * (output.predicted - aim).abs().mean()
            taught = pooled_tokens(batch.target("g"), (2, 2))
            aux = soft_contrastive(output.projected, taught, taught, cfg.training.aux_temperature)
            wanted["z/aux"] = 0.7 * aux * (mix is None)
            continue
        wanted["c/tokens"] = 0.5 * (output.predicted - aim).square().mean()
        wanted["c/prior"] = 3.0 * head.prior.error(output.predicted, aim, draws).mean()
        if mix is None:
            wanted["c/contrast"] = 0.25 * soft_clip(output.projected, raw, 0.0075)  # the last epoch's temperature
        else:
            labels = mix_labels(mix)
            wanted["c/contrast"] = 0.25 * mixco_nce(output.projected, raw, cfg.training.mixco_temperature, labels)
    found = {name: values[0] for name, values in module.losses.items()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(total, sum(wanted.values()), rtol=1e-5, atol=1e-6)


def test_published_code_mixes_voxels_and_not_what_they_are_to_become(given: list[str]) -> None:
    more = ["mapper.variant=released", "network.trunk=mixer", "training.align=false", "training.mixco_share=1"]
    cfg = compose([*given, *more])
    module, batch = module_and_batch(cfg, ("c",), 0)
    module.training_step(batch, 0)
    draws = Draws(cfg.seed, 0, 0, torch.arange(len(batch)), len(batch))
    mix = draw_mix(draws, [len(batch)], cfg.training.mixco_beta, cfg.training.mixco_select)
    output = module.network(mixed_voxels(batch, mix), draws)["c"]
    raw = torch.from_numpy(linear_target("c", batch.image_id.numpy()))  # as extracted: nothing is standardised
    error = (output.predicted.flatten(1) - raw).square().mean()
    torch.testing.assert_close(module.losses["c/tokens"][0], error.detach(), rtol=1e-5, atol=1e-6)
    contrast = mixco_nce(output.projected, raw, 0.006, mix_labels(mix, "released")) * cfg.training.contrast_weight
    torch.testing.assert_close(module.losses["c/contrast"][0], contrast.detach(), rtol=1e-5, atol=1e-6)


def test_losses_over_one_process_are_as_they_are() -> None:
    losses = StepLosses({"a": torch.tensor(1.5)}, {"b": torch.tensor(2.0, requires_grad=True)})
    assert {name: float(value) for name, value in losses.over_processes(1).items()} == {"a": 1.5, "b": 2.0}
    assert not any(value.requires_grad for value in losses.over_processes(1).values())
    assert StepLosses({}, {"b": torch.tensor(2.0)}).over_processes(1) == {"b": torch.tensor(2.0)}


# ---- optimiser -----------------------------------------------------------------------------------------------------


def test_running_mean_of_the_weights_is_what_is_kept(given: list[str], tmp_path: Path, watched: list[Callback]) -> None:
    """After every step of the optimiser, of which the last of an epoch comes from fewer batches."""
    weights = Weights()
    watched.append(weights)
    more = ["training.ema=0.7", "training.accumulate=2", "training.keep=last", "training.epochs=3"]
    trained = finetuned(compose([*given, *more]), tmp_path, "c")
    assert len(weights.copies) == 3 * 2  # 3 batches are 2 steps
    mean = dict(weights.copies[0])
    for copy in weights.copies[1:]:
        mean = {name: 0.7 * value + 0.3 * copy[name] for name, value in mean.items()}
    for name, value in trained.network.state_dict().items():
        torch.testing.assert_close(value, mean[name], rtol=1e-5, atol=1e-6)
    assert trained.details["epoch"] == 2


@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_gradients_are_clipped_to_their_norm(
    given: list[str], clip: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, closure: Any = None) -> Any:
        def whole() -> Any:
            loss = closure()
            gradients = [w.grad for group in self.param_groups for w in group["params"]]
            norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
            return loss

        assert self.defaults["fused"], "which a CPU without mixed precision takes"
        return step(self, whole)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    finetuned(compose([*given, f"training.clip_norm={clip}", "training.epochs=1"]), tmp_path, "c")
    assert len(norms) == 3
    if clip:
        assert norms == pytest.approx([clip] * 3, rel=1e-3)
    else:
        assert min(norms) > 0.05


@pytest.mark.parametrize(("warmup", "epochs"), [(0.0, 4), (0.25, 4), (1 / 12, 4), (0.99, 4), (0.3, 1)])
def test_learning_rate_goes_through_one_cycle(given: list[str], warmup: float, epochs: int, tmp_path: Path) -> None:
    """From lr / 25 up to lr in the warm-up, then down to lr / 25000; no warm-up is lost by rounding."""
    rates: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    cfg = compose([*given, f"training.warmup={warmup}", f"training.epochs={epochs}", "training.lr=0.01"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "TrainingProgress", lambda *_: Rates())
        cfg.trainer.progress = True
        finetuned(cfg, tmp_path, "c")
    n = 3 * epochs
    assert len(rates) == n
    up = warmup * n - 1 if warmup * n > 1 else -1.0

    def cosine(a: float, b: float, share: float) -> float:
        return b + (a - b) / 2 * (1 + np.cos(np.pi * share))

    low = 0.01 / 25
    wanted = [
        cosine(low, 0.01, k / up) if up > 0 and k <= up else cosine(0.01, low / 1000, (k - up) / (n - 1 - up))
        for k in range(n)
    ]
    assert rates == pytest.approx(wanted, rel=1e-6)
    assert curve_of(tmp_path)[-1]["lr"] == pytest.approx(rates[-1])


def test_settings_reach_the_trainer(given: list[str], tmp_path: Path) -> None:
    cfg = compose([*given, "training.accumulate=3", "training.clip_norm=0.5", "training.precision=bf16-mixed"])
    module, _ = module_and_batch(cfg, ("c",), 0)
    kept = fit.Kept("best", 0, {}, {})
    trainer = build_trainer(module, kept, Files(tmp_path, 0), cfg.trainer, "c", False)
    assert (trainer.accumulate_grad_batches, trainer.gradient_clip_val) == (3, 0.5)
    assert (trainer.precision, trainer.max_epochs, trainer.num_devices) == ("bf16-mixed", 4, 1)
    assert trainer.gradient_clip_algorithm in (None, "norm")
    assert trainer.loggers == []


def test_half_precision_trains(given: list[str], tmp_path: Path) -> None:
    trained = finetuned(compose([*given, "training.precision=bf16-mixed", "network.prior=true"]), tmp_path, "c")
    assert all(value.dtype == torch.float32 for value in trained.network.state_dict().values())
    finetuned(compose([*given, "network.prior=true"]), tmp_path / "whole", "c")
    first, exact = curve_of(tmp_path)[0], curve_of(tmp_path / "whole")[0]
    assert first["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert first["loss"] != exact["loss"]


# ---- chance --------------------------------------------------------------------------------------------------------


def test_shuffled_labels_are_at_chance_and_true_ones_are_not(given: list[str], tmp_path: Path) -> None:
    """Two-way identification of validation images, whose standard error over images is at most .5 / sqrt(N)."""
    long = ["training.epochs=30", "network.subject_dropout=0.2", "training.contrast_weight=0", "training.trials=mean"]
    found: dict[str, list[float]] = {}
    for control in ("none", "shuffled_labels"):
        for seed in range(3 if control != "none" else 1):
            cfg = compose([*given, *long, "training.batch_size=16", f"control={control}", f"seed={seed}"])
            scores = finetuned(cfg, tmp_path / f"{control}{seed}", "c").details["scores"]["c"]
            found.setdefault(control, []).append(scores["identification"])
    assert abs(np.mean(found["shuffled_labels"]) - 0.5) < 3 * 0.5 / np.sqrt(3 * N_VAL)
    assert found["none"][0] > 0.5 + 3 * 0.5 / np.sqrt(N_VAL)


@pytest.mark.parametrize(
    ("least", "trials", "wanted"), [(0, "single", 32), (2, "single", 32), (4, "single", 20), (99, "single", 16),
                                    (2, "mean", 20), (2, "random", 20)],
)  # fmt: skip
def test_an_epoch_has_a_least_number_of_steps(given: list[str], least: int, trials: str, wanted: int) -> None:
    """80 trials of 40 images: a step has fewer of them where there would be too few steps, but 16 at least."""
    stage = stage_of(compose([*given, f"training.least_steps={least}", f"training.trials={trials}"]), "c")
    assert stage.batch_size == wanted
    assert stage.data().batch_size == wanted


def test_training_is_a_function_of_the_seed(given: list[str], tmp_path: Path) -> None:
    """Whatever global generators did before; another seed gives other weights."""
    first = finetuned(compose(given), tmp_path / "a", "c").network
    torch.manual_seed(99)
    np.random.seed(3)
    assert identical(first, finetuned(compose(given), tmp_path / "b", "c").network)
    assert not identical(first, finetuned(compose([*given, "seed=7"]), tmp_path / "c", "c").network)
    starts = [stage_of(compose([*given, f"seed={seed}"]), "c").network() for seed in (7, 7, 8)]
    assert identical(*starts[:2])
    assert not identical(*starts[1:])
