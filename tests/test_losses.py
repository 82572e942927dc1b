"""Losses of the trained mapper against their formulas in plain loops, in half precision, and in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.mappers.training import losses
from nd.mappers.training.losses import (
    absolute_error,
    mixco_nce,
    soft_clip,
    soft_contrastive,
    soft_temperature,
    squared_error,
)

Array = NDArray[np.float64]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x: Tensor) -> Array:
    rows = x.detach().double().numpy().reshape(len(x), -1)
    return np.array([row / math.sqrt(sum(v * v for v in row)) for row in rows])


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(v - max(row)) for v in row]
    return [w / sum(weights) for w in weights]


def cross_entropy(logits: list[float], labels: list[float]) -> float:
    total = math.log(sum(math.exp(v - max(logits)) for v in logits)) + max(logits)
    return -sum(y * (v - total) for y, v in zip(labels, logits, strict=True))


def by_temperature(queries: Array, keys: Array, temperature: float) -> list[list[float]]:
    return [[sum(a * b for a, b in zip(q, k, strict=True)) / temperature for k in keys] for q in queries]


def plain_mixco(predicted: Tensor, target: Tensor, temperature: float, labels: Tensor) -> float:
    logits, n = by_temperature(unit(predicted), unit(target), temperature), len(predicted)
    forward = [cross_entropy(logits[i], labels[i].tolist()) for i in range(n)]
    backward = [cross_entropy([logits[i][j] for i in range(n)], labels[:, j].tolist()) for j in range(n)]
    return (sum(forward) / n + sum(backward) / n) / 2


def plain_soft(student: Array, teacher: Array, augmented: Array, temperature: float) -> float:
    forward, backward = (
        [
            cross_entropy(row, softmax(like))
            for row, like in zip(by_temperature(*shown, temperature), by_temperature(*taught, temperature), strict=True)
        ]
        for shown, taught in (
            ((student, augmented), (teacher, augmented)),
            ((augmented, student), (augmented, teacher)),
        )
    )
    return (sum(forward) + sum(backward)) / 2 / len(student)


# ---- errors per sample ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4), (5, 2, 3, 3)])
def test_errors_are_the_plain_formulas_per_sample(shape: tuple[int, ...]) -> None:
    predicted, target = drawn(*shape), drawn(*shape, seed=1)
    p, t = (x.numpy().reshape(5, -1) for x in (predicted, target))
    n = p.shape[1]
    for i in range(5):
        pairs = list(zip(p[i], t[i], strict=True))
        assert squared_error(predicted, target)[i] == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / n, rel=1e-12)
        assert absolute_error(predicted, target)[i] == pytest.approx(sum(abs(a - b) for a, b in pairs) / n, rel=1e-12)


@pytest.mark.parametrize("error", [squared_error, absolute_error])
def test_errors_of_no_sample_are_none_and_best_predictions_have_none(error: Callable[..., Tensor]) -> None:
    assert error(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)).shape == (0,)
    x = drawn(4, 6)
    torch.testing.assert_close(error(x, x), torch.zeros(4, dtype=torch.float64), atol=1e-14, rtol=0)
    assert error(x.bfloat16(), x.bfloat16() + 1).dtype == torch.float32


# ---- contrastive ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.006, 0.1, 2.0])
@pytest.mark.parametrize("shape", [(1, 3), (6, 10), (5, 3, 4)])
def test_mixco_nce_is_the_plain_formula(temperature: float, shape: tuple[int, ...]) -> None:
    predicted, target = drawn(*shape), drawn(*shape, seed=1)
    labels = torch.rand(len(predicted), len(predicted), generator=torch.Generator().manual_seed(2)).double()
    found = mixco_nce(predicted, target, temperature, labels)
    assert found.item() == pytest.approx(plain_mixco(predicted, target, temperature, labels), rel=1e-10, abs=1e-12)


def test_mixco_nce_with_plain_labels_is_cross_entropy_both_ways() -> None:
    predicted, target = drawn(6, 10), drawn(6, 10, seed=1)
    logits = torch.nn.functional.normalize(predicted) @ torch.nn.functional.normalize(target).T / 0.05
    one = torch.nn.functional.cross_entropy
    wanted = (one(logits, torch.arange(6)) + one(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(mixco_nce(predicted, target, 0.05, torch.eye(6)), wanted)


@pytest.mark.parametrize("temperature", [0.004, 0.0075, 1.0])
@pytest.mark.parametrize("shape", [(1, 3), (6, 10), (5, 3, 4)])
def test_soft_clip_is_the_plain_formula(temperature: float, shape: tuple[int, ...]) -> None:
    predicted, target = drawn(*shape), drawn(*shape, seed=1)
    wanted = plain_soft(unit(predicted), unit(target), unit(target), temperature)
    assert soft_clip(predicted, target, temperature).item() == pytest.approx(wanted, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("shape", [(6, 10), (3, 4, 5)])
def test_soft_contrastive_takes_the_tokens_of_all_samples_as_one_set(shape: tuple[int, ...]) -> None:
    parts = [drawn(*shape, seed=seed) for seed in range(3)]
    wanted = plain_soft(*(unit(x.flatten(0, -2)) for x in parts), 0.075)
    assert soft_contrastive(*parts, 0.075).item() == pytest.approx(wanted, rel=1e-10)


def test_scale_changes_no_contrastive_loss_and_the_truth_is_the_best_prediction() -> None:
    target, other = drawn(6, 10), drawn(6, 10, seed=1)
    for loss in (lambda p: mixco_nce(p, target, 0.05, torch.eye(6)), lambda p: soft_clip(p, target, 0.05)):
        torch.testing.assert_close(loss(other * 7), loss(other))
        assert loss(target) < loss(0.5 * target + 0.5 * other) < loss(other)


def gradients(loss: Callable[[Tensor], Tensor], x: Tensor, autocast: bool = False) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert (torch.eye(2) @ torch.eye(2)).dtype == (torch.bfloat16 if autocast else torch.float32)
        value = loss(x)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


CONTRASTIVE: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda p, t: mixco_nce(p, t, 0.006, torch.eye(len(p))),
    lambda p, t: soft_clip(p, t, 0.004),
    lambda p, t: soft_contrastive(p, t, t.flip(0), 0.075),
]


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_autocast_changes_nothing(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    predicted, target = drawn(16, 64).bfloat16(), drawn(16, 64, seed=1).float()
    value, gradient = gradients(lambda p: loss(p.float(), target), predicted)
    again, same = gradients(lambda p: loss(p, target), predicted, autocast=True)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(same, gradient)
    exact, _ = gradients(lambda p: loss(p, target.double()), predicted.double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_far_predictions_stay_finite(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    target = drawn(8, 5).float()
    for predicted in (-target, target.roll(1, 0), torch.zeros(8, 5), target * 1e-20, target.half() * 1000):
        value, gradient = gradients(lambda p: loss(p, target), predicted)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("members_at_once", [1, 3, 12])
def test_blocks_of_a_large_set_give_the_same_loss_and_gradient(
    monkeypatch: pytest.MonkeyPatch, members_at_once: int
) -> None:
    student, teacher, augmented = (drawn(5, 4, 6, seed=seed) for seed in range(3))
    value, gradient = gradients(lambda s: soft_contrastive(s, teacher, augmented, 0.075), student)
    calls = []
    plain = losses._cross_entropy
    monkeypatch.setattr(losses, "_cross_entropy", lambda q, *rest: (calls.append(len(q)), plain(q, *rest))[1])
    monkeypatch.setattr(losses, "BLOCK_NUMBERS", members_at_once * 20)
    again, same = gradients(lambda s: soft_contrastive(s, teacher, augmented, 0.075), student, autocast=True)
    assert max(calls) == members_at_once
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(same, gradient)
    taught = teacher.float(), augmented.float()
    _, single = gradients(lambda s: soft_contrastive(s, *taught, 0.075), student.float(), autocast=True)
    torch.testing.assert_close(single, gradient.float(), rtol=1e-4, atol=1e-6)  # what is computed again, likewise


# ---- schedule ------------------------------------------------------------------------------------------------------


def test_temperature_runs_half_a_cosine() -> None:
    steps = 101
    found = [soft_temperature(k / (steps - 1), 0.004, 0.0075) for k in range(steps)]
    wanted = [0.0075 + (0.004 - 0.0075) / 2 * (1 + math.cos(math.pi * k / (steps - 1))) for k in range(steps)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert (found[0], found[50], found[-1]) == (0.004, pytest.approx(0.00575), 0.0075)
    assert (np.diff(found) > 0).all()
    assert (soft_temperature(-1, 0.004, 0.0075), soft_temperature(1.2, 0.004, 0.0075)) == (0.004, 0.0075)
