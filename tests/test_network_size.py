"""Parameters and memory of a network that was not made, against one that was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nd.config import NetworkConfig
from nd.mappers.network.draws import Draws
from nd.mappers.network.heads import TargetSlice, slices_of
from nd.mappers.network.network import Network
from nd.mappers.network.prior import DiffusionPrior
from nd.mappers.network.trunk import SubjectLayers
from nd.mappers.training import memory
from nd.mappers.training.losses import absolute_error, soft_clip, soft_contrastive, squared_error
from nd.mappers.training.memory import Estimate, largest_levers, training_bytes

N_VOXELS = {"subj01": 300, "subj02": 200}
PARTS = [*slices_of("c", (12, 48)), *slices_of("g", (2, 9, 32)), *slices_of("z", (4, 16, 16))]
SMALL = NetworkConfig(hidden=64, decoder_channels=[16, 16], latent_channels=16, prior_head_width=16, prior=True)


def counted(config: NetworkConfig, parts: list[TargetSlice], batch_size: int, variant: str, mixed: bool = False) -> int:
    """Bytes that autograd keeps of a real step with the real losses, weights left out."""
    net = Network(config, parts, N_VOXELS, variant, aux_width=24)
    draws, first = Draws.alone(batch_size), batch_size // 2
    weights = {weight.data_ptr() for weight in net.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    voxels = {"subj01": torch.randn(first, 300), "subj02": torch.randn(batch_size - first, 200)}
    losses = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", enabled=mixed):
        for name, output in net(voxels, draws).items():
            goal, prior, shown = torch.randn_like(output.predicted), net.heads[name].prior, output.projected
            losses.append((absolute_error if goal.ndim == 4 else squared_error)(output.predicted, goal).sum())
            if isinstance(prior, DiffusionPrior):
                losses.append(prior.error(output.predicted, goal, draws).sum())
            if shown is not None:
                teacher = torch.randn_like(shown)
                loss = (
                    soft_contrastive(shown, teacher, teacher, 0.1) if goal.ndim == 4 else soft_clip(shown, teacher, 0.1)
                )
                losses.append(loss)
    torch.stack(losses).sum().backward()
    return sum(storage.nbytes() for storage in kept.values())


KINDS = {
    "everything": (SMALL, PARTS, 6, "nd"),
    "tokens": (replace(SMALL, prior=False), PARTS[:3], 32, "nd"),
    "prior": (replace(SMALL, prior_depth=4), PARTS[:1], 16, "nd"),
    "latent": (SMALL, PARTS[-1:], 6, "released"),
    "mixer": (replace(SMALL, trunk="mixer", blocks=4), PARTS[:1], 16, "released"),
    "trunk": (replace(SMALL, prior=False, projector=False, blocks=16), slices_of("c", (1, 8)), 48, "nd"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_that_autograd_keeps(kind: str) -> None:
    config, parts, batch_size, variant = KINDS[kind]
    found = training_bytes(config, parts, N_VOXELS, batch_size, variant=variant, aux_width=24)
    assert found.activations == pytest.approx(counted(config, parts, batch_size, variant), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_keeps_about_what_is_estimated(kind: str) -> None:
    config, parts, batch_size, variant = KINDS[kind]
    found = training_bytes(config, parts, N_VOXELS, batch_size, variant=variant, aux_width=24, precision="bf16-mixed")
    real = counted(config, parts, batch_size, variant, mixed=True)
    assert 0.85 * real < found.activations < 1.5 * real


def test_double_precision_takes_twice_as_much() -> None:
    single, double = (training_bytes(SMALL, PARTS, N_VOXELS, 4, precision=name) for name in ("32-true", "64-true"))
    assert (double.states, double.activations) == (2 * single.states, 2 * single.activations)


def test_parameters_and_states() -> None:
    net = Network(SMALL, PARTS, N_VOXELS, aux_width=24)
    n_parameters = sum(weights.numel() for weights in net.parameters())
    found = training_bytes(SMALL, PARTS, N_VOXELS, 8, aux_width=24)
    assert (found.parameters, found.states) == (n_parameters, 16 * n_parameters)
    assert found.total == found.states + found.activations
    assert training_bytes(SMALL, PARTS, N_VOXELS, 8, aux_width=24, ema=True).states == 20 * n_parameters


def test_a_network_is_counted_once_for_equal_settings_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    count = memory.activation_bytes
    monkeypatch.setattr(memory, "activation_bytes", lambda *given: made.append(0) or count(*given))
    memory._counted_once.cache_clear()
    one = training_bytes(SMALL, PARTS, N_VOXELS, 4)
    assert training_bytes(replace(SMALL), list(PARTS), dict(N_VOXELS), 4) == one
    assert training_bytes(SMALL, PARTS, N_VOXELS, 4, ema=True).states > one.states
    assert len(made) == 1
    others = [
        training_bytes(SMALL, PARTS, N_VOXELS, 5),
        training_bytes(SMALL, PARTS, N_VOXELS | {"subj02": 201}, 4),
        training_bytes(SMALL, PARTS[:-1], N_VOXELS, 4),
        training_bytes(SMALL, PARTS, N_VOXELS, 4, variant="released"),
        training_bytes(SMALL, PARTS, N_VOXELS, 4, aux_width=24),
        training_bytes(replace(SMALL, hidden=65), PARTS, N_VOXELS, 4),
    ]
    assert len(made) == 7
    assert len({one, *others}) == 7
    of_its_own = SubjectLayers(N_VOXELS, shape={"said by": lambda: 0})
    assert training_bytes(SMALL, PARTS, of_its_own, 4) == one
    assert len(made) == 8


def test_states_are_what_adam_holds() -> None:
    net = Network(SMALL, PARTS, N_VOXELS)
    optimiser = torch.optim.AdamW(net.parameters())
    for weights in net.parameters():
        weights.grad = torch.zeros_like(weights)
    optimiser.step()
    moments = [
        value for state in optimiser.state.values() for value in state.values() if value.ndim or value.numel() > 1
    ]
    tensors = [*net.parameters(), *(weights.grad for weights in net.parameters()), *moments]
    held = sum(value.nbytes for value in tensors if value is not None)
    assert training_bytes(SMALL, PARTS, N_VOXELS, 8).states == pytest.approx(held, rel=1e-3)


def test_a_full_size_network_is_estimated_without_being_made() -> None:
    config = NetworkConfig(hidden=4096, blocks=4, prior=True, prior_depth=6, prior_heads=14, prior_head_width=52)
    found = training_bytes(config, slices_of("c", (77, 768)), {f"subj0{k}": 15000 for k in range(1, 8)}, 42)
    ridge, backbone, prior = 7 * (15000 * 4096 + 4096), 378e6, 55e6
    assert found.parameters == pytest.approx(ridge + backbone + prior, rel=0.01)
    assert isinstance(found, Estimate)


def test_levers_name_settings_by_what_training_would_take_with_them() -> None:
    sizes = replace(SMALL, share="part", hidden=512)
    text = largest_levers(sizes, PARTS, N_VOXELS, 64)
    now = training_bytes(sizes, PARTS, N_VOXELS, 64)
    assert text.startswith(f"Training takes about {now.total / 1e6:.1f} MB")
    assert f"for {now.parameters / 1e6:,.0f} million parameters" in text
    halved = training_bytes(sizes, PARTS, N_VOXELS, 32)
    shared = training_bytes(replace(sizes, share="all"), PARTS, N_VOXELS, 64)
    for setting, total in (("training.batch_size=32", halved.total), ("network.share=all", shared.total)):
        assert f"{total / 1e6:.1f} MB with {setting}" in text
    for setting in ("network.share=target", "network.hidden=256", "network.prior_depth=1", "precision=bf16-mixed"):
        assert setting in text
    offered = [float(offer.split()[0]) for offer in text.split("It would take ")[1].split(", ")]
    assert offered == sorted(offered)


def test_levers_are_only_those_that_help() -> None:
    text = largest_levers(replace(SMALL, share="all", prior=False), PARTS[:1], N_VOXELS, 4, precision="16-mixed")
    assert "share" not in text
    assert "prior_depth" not in text
    assert "precision" not in text
    assert "network.hidden=32" in text


def test_levers_of_a_network_that_cannot_be_smaller() -> None:
    """One number in, one out: nothing is offered."""
    tiny = NetworkConfig(hidden=1, blocks=0, share="all", projector=False, prior=False)
    text = largest_levers(tiny, slices_of("c", (1, 1)), {"subj01": 1}, 1, precision="bf16-mixed")
    assert "It would take" not in text
