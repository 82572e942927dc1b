"""The diffusion prior: its blocks and schedule against plain re-statements, its training error, its samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from nd.config import NetworkConfig
from nd.errors import UserError
from nd.mappers.network.draws import Draws, key_of
from nd.mappers.network.prior import DiffusionPrior, cosine_alpha_bar, ddim_steps, released_steps
from nd.mappers.network.prior_network import (
    Attention,
    FeedForward,
    PriorNetwork,
    RelativeBias,
    Rotary,
    StableNorm,
    bucket_of,
    sines,
)

T, D = 3, 12  # tokens, numbers of a token
SMALL: dict[str, Any] = {"prior_depth": 2, "prior_heads": 3, "prior_head_width": 10, "prior_growth": 2}
RELEASED_TIMES = [94, 89, 84, 79, 74, 69, 64, 59, 54, 49, 44, 39, 34, 29, 24, 19, 14, 9, 4]


def prior_of(seed: int = 0, n_tokens: int = T, width: int = D, **fields: Any) -> DiffusionPrior:
    """A random prior; gains are random too, for gains of one could not show that they are used."""
    torch.manual_seed(seed)
    prior = DiffusionPrior(NetworkConfig(**{**SMALL, **fields}), n_tokens, width, "c")
    for name, value in prior.named_parameters():
        if "norm" in name:
            value.data = 1 + 0.3 * torch.randn_like(value)
    return prior


def numbers(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise_of(n: int, seed: int = 3) -> Callable[[str, Sequence[int]], Tensor]:
    """Noise of samples 0 to n - 1, a function of the sample and the stream."""

    def draw(stream: str, shape: Sequence[int]) -> Tensor:
        keys = [key_of(seed, k, stream) for k in range(n)]
        return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(key)) for key in keys])

    return draw


# ---- plain re-statements -------------------------------------------------------------------------------------------


def plain_norm(x: Tensor, gain: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * gain


def plain_bucket(query: int, key: int) -> int:
    """Both from 0; key 0 is the null key."""
    distance = max(query - key, 0)
    return distance if distance < 16 else min(31, 16 + int(math.log(distance / 16) / math.log(128 / 16) * 16))


def plain_turn(x: Tensor, place: int) -> Tensor:
    """One query or key (W,), its pairs of numbers as complex numbers turned by place / 10000^(2 k / R)."""
    turned = min(32, len(x))
    pairs = torch.view_as_complex(x[:turned].reshape(-1, 2).contiguous())
    angles = torch.tensor([place / 10000 ** (2 * k / turned) for k in range(turned // 2)], dtype=x.dtype)
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([torch.view_as_real(pairs).flatten(), x[turned:]])


def plain_attention(block: Attention, x_BND: Tensor, table: Tensor) -> Tensor:
    """One sample, head and query at a time."""
    n, heads = x_BND.shape[1], block.heads
    normed = plain_norm(x_BND, block.norm_in.weight)
    queries, keys_values = normed @ block.to_queries.weight.T, normed @ block.to_key_value.weight.T
    width = keys_values.shape[-1] // 2
    out = []
    for b in range(len(x_BND)):
        keys = [block.null_key_value[0]] + [plain_turn(keys_values[b, k, :width], k) for k in range(n)]
        values = torch.stack([block.null_key_value[1], *keys_values[b, :, width:]])
        for q in range(n):
            mixed = []
            for head in range(heads):
                query = plain_turn(queries[b, q, head * width : (head + 1) * width], q)
                logits = torch.stack([16 * (query @ k) / (query.norm() * k.norm()) for k in keys])
                bias = torch.stack([table[plain_bucket(q, k), head] for k in range(n + 1)])
                mixed.append(torch.softmax(logits + bias, 0) @ values)
            out.append(torch.cat(mixed))
    projected = torch.stack(out).reshape(len(x_BND), n, -1) @ block.to_out.weight.T
    return plain_norm(projected, block.norm_out.weight)


def plain_feed_forward(block: FeedForward, x: Tensor) -> Tensor:
    wide = plain_norm(x, block.norm.weight) @ block.widen.weight.T
    value, gate = wide[..., : wide.shape[-1] // 2], wide[..., wide.shape[-1] // 2 :]
    return (value * gate / (1 + torch.exp(-gate))) @ block.narrow.weight.T


def plain_time(network: PriorNetwork, time: float, width: int) -> Tensor:
    """Sines, then cosines of time / 10000^(k / (D / 2 - 1)), and three layers."""
    angles = [time / 10000 ** (k / (width // 2 - 1)) for k in range(width // 2)]
    x = torch.tensor([*(math.sin(a) for a in angles), *(math.cos(a) for a in angles)])
    linears = [layer for layer in network.time.layers if isinstance(layer, nn.Linear)]
    for k, linear in enumerate(linears):
        x = linear.weight @ x + linear.bias
        x = x / (1 + torch.exp(-x)) if k < len(linears) - 1 else x
    return x


def plain_network(network: PriorNetwork, condition_BTD: Tensor, noisy_BTD: Tensor, time_B: Tensor) -> Tensor:
    """Every layer on every token; the last T are kept at the end."""
    n_tokens, width = condition_BTD.shape[1:]
    times_BD = torch.stack([plain_time(network, float(time), width) for time in time_B])
    x = torch.cat([condition_BTD, times_BD[:, None], noisy_BTD + network.positions], dim=1)
    for layer in network.layers:
        x = x + plain_attention(layer.attention, x, network.relative_bias.table.weight)
        x = x + plain_feed_forward(layer.feed_forward, x)
    x = plain_norm(x / x.max(dim=-1, keepdim=True).values.detach(), network.norm.weight)
    return (x @ network.to_out.weight.T)[:, -n_tokens:]


# ---- blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_width", [4, 10, 36])  # all numbers turned, no multiple of 8, more than are turned
def test_attention_equals_a_loop_over_samples_heads_and_queries(head_width: int) -> None:
    torch.manual_seed(1)
    block, bias, x = Attention(D, 3, head_width), RelativeBias(20, 3), 2 * numbers(2, 20, D)
    block.norm_in.weight.data, block.norm_out.weight.data = 1 + 0.3 * numbers(D), 1 + 0.3 * numbers(D, seed=8)
    expected = plain_attention(block, x, bias.table.weight)
    rotary = Rotary(20, head_width)
    torch.testing.assert_close(block(x, bias(), rotary), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(block(x, bias(), rotary, first=13), expected[:, 13:], atol=2e-5, rtol=1e-4)


def test_buckets_are_those_of_the_reference_for_every_pair() -> None:
    bias = RelativeBias(155, 2)  # of 77 tokens
    expected = [[plain_bucket(q, k) for k in range(156)] for q in range(155)]
    assert bias.buckets.tolist() == expected
    assert bias.buckets[40, 41:].unique().tolist() == [0]  # a token's own key and all behind it
    torch.testing.assert_close(bias()[1, 30, 4], bias.table.weight[plain_bucket(30, 4), 1])


def test_buckets_begin_where_their_logarithm_does() -> None:
    starts = [*range(16), *(math.ceil(16 * 8 ** (k / 16)) for k in range(16))]
    found = bucket_of(torch.arange(1000))
    assert [int((found == bucket).nonzero()[0]) for bucket in range(32)] == starts
    assert found[128:].unique().tolist() == [31]


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary, query, key = Rotary(40, 48), numbers(48), numbers(48, seed=2)
    queries, keys = rotary(query.expand(40, 48)), rotary(key.expand(40, 48))
    torch.testing.assert_close(queries[25] @ keys[20], queries[7] @ keys[2], atol=1e-4, rtol=0)
    assert abs(float(queries[25] @ keys[20] - queries[25] @ keys[2])) > 1e-2
    torch.testing.assert_close(queries[:, 32:], query[32:].expand(40, 16))
    torch.testing.assert_close(queries[9], plain_turn(query, 9), atol=1e-5, rtol=0)


def test_feed_forward_gates_with_its_second_half() -> None:
    block, x = FeedForward(D, 4), numbers(2, 5, D)
    block.norm.weight.data = 1 + 0.3 * numbers(D)
    torch.testing.assert_close(block(x), plain_feed_forward(block, x))


def test_stable_norm_divides_by_the_largest_number_and_survives_zeros() -> None:
    norm, x = StableNorm(D, bias=False), numbers(4, D)
    x[1] = -x[1].abs()  # its largest is negative: the sign turns
    expected = plain_norm(x / x.max(dim=-1, keepdim=True).values, norm.weight)
    torch.testing.assert_close(norm(x), expected)
    assert norm(torch.zeros(1, D)).tolist() == [[0.0] * D]


@pytest.mark.parametrize("width", [1, 2, 3, 12])
def test_sines_of_every_width(width: int) -> None:
    found = sines(torch.tensor([0, 5]), width)
    assert found.shape == (2, width)
    half = (width + 1) // 2
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, math.sin(5)]))
    torch.testing.assert_close(found[0, half:], torch.ones(width - half))


def test_network_equals_the_plain_one_in_output_and_gradients() -> None:
    network = prior_of().network
    condition, noisy, time = numbers(2, T, D), numbers(2, T, D, seed=8), torch.tensor([94, 0])
    found, expected = network(condition, noisy, time), plain_network(network, condition, noisy, time)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weights, names = list(network.parameters()), [name for name, _ in network.named_parameters()]
    ours = torch.autograd.grad((found * condition).sum(), weights, allow_unused=True)
    plain = torch.autograd.grad((expected * condition).sum(), weights, allow_unused=True)
    for name, one, other in zip(names, ours, plain, strict=True):
        if one is None or other is None:
            assert one is other is None
            assert name in ("null_condition", "null_target")
        else:
            torch.testing.assert_close(one, other, atol=2e-5 * float(other.abs().max()), rtol=1e-3, msg=name)


def test_parameters_of_the_published_size() -> None:
    config = NetworkConfig(prior_depth=6, prior_heads=14, prior_head_width=52)
    with torch.device("meta"):
        prior = DiffusionPrior(config, 77, 768, "c")
    attention = 768 + 768 * 14 * 52 + 768 * 2 * 52 + 2 * 52 + 14 * 52 * 768 + 768
    feed_forward = 768 + 768 * 2 * 3072 + 3072 * 768
    time = (768 + 1) * 1536 + (1536 + 1) * 1536 + (1536 + 1) * 768
    tokens = 3 * 77 * 768  # null condition, null target, positions
    expected = 6 * (attention + feed_forward) + time + tokens + 32 * 14 + 768 + 768 * 768
    assert expected == 55_161_136
    assert sum(value.numel() for value in prior.parameters()) == expected


def test_weights_alone_are_saved() -> None:
    prior = prior_of()
    assert set(prior.state_dict()) == {name for name, _ in prior.named_parameters()}


# ---- schedule ------------------------------------------------------------------------------------------------------


def test_schedule_is_the_capped_cosine_one() -> None:
    reference = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    found = torch.tensor(cosine_alpha_bar(100))
    torch.testing.assert_close(found, reference, atol=1e-6, rtol=1e-5)
    assert round(float(found[94]), 4) == 0.0061
    torch.testing.assert_close(found[99] / found[98], torch.tensor(0.001))  # the largest beta, .999


def test_published_sampling_evaluates_nineteen_times() -> None:
    assert [step.time for step in released_steps(cosine_alpha_bar(100), 20)] == RELEASED_TIMES


def test_ddim_goes_from_the_noisiest_level_to_none() -> None:
    steps = ddim_steps(cosine_alpha_bar(100), 20)
    assert [step.time for step in steps] == [round(99 - 100 * k / 19) for k in range(19)]
    assert (steps[-1].signal, steps[-1].noise) == (1, 0)
    assert len(ddim_steps(cosine_alpha_bar(10), 2)) == 1
    assert [step.time for step in ddim_steps(cosine_alpha_bar(4), 5)] == [3, 2, 1, 0]


@pytest.mark.parametrize(("timesteps", "levels"), [(100, 20), (100, 100), (100, 2), (10, 7), (2, 2)])
def test_steps_are_finite_and_descend_at_every_spacing(timesteps: int, levels: int) -> None:
    alpha_bar = cosine_alpha_bar(timesteps)
    for steps in (released_steps(alpha_bar, levels), ddim_steps(alpha_bar, levels)):
        times = [step.time for step in steps]
        assert len(times) == levels - 1
        assert times == sorted({time for time in times if time >= 0}, reverse=True)
        assert all(math.isfinite(step.signal + step.noise + step.fresh) for step in steps)
        assert (steps[-1].signal, steps[-1].noise, steps[-1].fresh) == (1, 0, 0)


# ---- sampling ------------------------------------------------------------------------------------------------------


def published_loop(prior: DiffusionPrior, condition: Tensor, noise: Callable[[str, Sequence[int]], Tensor]) -> Tensor:
    """DDIM with eta 1; coefficients one index before the predicted noise's."""
    alpha_bar = torch.tensor(cosine_alpha_bar(100))
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    x = noise("start", (T, D))
    for k, time in enumerate(RELEASED_TIMES):
        x0 = prior.network(condition, x, torch.full((len(x),), time))
        if time == 4:
            return x0
        eps = (x / alpha_bar[time].sqrt() - x0) / (1 / alpha_bar[time] - 1).sqrt()
        a, after = before[time], before[RELEASED_TIMES[k + 1]]
        c1 = ((1 - a / after) * (1 - after) / (1 - a)).sqrt()
        c2 = (1 - after - c1**2).sqrt()
        x = after.sqrt() * x0 + c1 * noise(f"step {k}", (T, D)) + c2 * eps
    raise AssertionError("the last time returns")


def still_loop(prior: DiffusionPrior, condition: Tensor, noise: Callable[[str, Sequence[int]], Tensor]) -> Tensor:
    """DDIM with eta 0."""
    alpha_bar = [*cosine_alpha_bar(100), 1.0]  # the last is that of time -1
    x, times = noise("start", (T, D)), [round(99 - 100 * k / 19) for k in range(20)]
    for time, after in pairwise(times):
        x0 = prior.network(condition, x, torch.full((len(x),), time))
        eps = (x - math.sqrt(alpha_bar[time]) * x0) / math.sqrt(1 - alpha_bar[time])
        x = math.sqrt(alpha_bar[after]) * x0 + math.sqrt(1 - alpha_bar[after]) * eps
    return x


@pytest.mark.parametrize(("sampling", "loop"), [("released", published_loop), ("ddim", still_loop)])
def test_samples_follow_the_formulas(sampling: str, loop: Callable[..., Tensor]) -> None:
    prior, condition, noise = prior_of(prior_sampling=sampling), numbers(2, T, D), noise_of(2)
    with torch.no_grad():
        expected = loop(prior, condition, noise)
    found = prior.sample(condition, noise)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    other = prior.sample(condition, noise_of(2, seed=4))
    assert float((found - other).abs().max()) > 1e-2  # noise matters


@pytest.mark.parametrize(
    ("sampling", "streams"),
    [("released", ["start", *(f"step {k}" for k in range(18))]), ("ddim", ["start"]), ("mean", [])],
)
def test_streams_of_noise_that_are_asked_for(sampling: str, streams: list[str]) -> None:
    asked: list[tuple[str, Sequence[int]]] = []
    draw = noise_of(2)

    def noise(stream: str, shape: Sequence[int]) -> Tensor:
        asked.append((stream, tuple(shape)))
        return draw(stream, shape)

    found = prior_of(prior_sampling=sampling).sample(numbers(2, T, D), noise)
    assert asked == [(stream, (T, D)) for stream in streams]
    assert (found.shape, found.dtype, found.requires_grad) == ((2, T, D), torch.float32, False)


@pytest.mark.parametrize("sampling", ["released", "ddim", "mean"])
def test_a_sample_is_the_same_in_every_batch(sampling: str) -> None:
    prior, condition = prior_of(prior_sampling=sampling), numbers(5, T, D)
    whole = prior.sample(condition, noise_of(5))
    alone = prior.sample(condition[:1], noise_of(1))
    torch.testing.assert_close(whole[:1], alone, atol=1e-4, rtol=1e-3)  # rounding of products of other shapes
    torch.testing.assert_close(whole, prior.sample(condition, noise_of(5)), atol=0, rtol=0)


def test_the_mean_is_the_estimate_without_any_target() -> None:
    condition = numbers(2, T, D)
    prior = prior_of(prior_sampling="mean")
    network = prior.network
    with torch.no_grad():
        from_null = network(condition, network.null_target.expand(2, -1, -1), torch.tensor([50, 50]))
        from_zeros = network(condition, torch.zeros(2, T, D), torch.tensor([99, 99]))
    torch.testing.assert_close(prior.sample(condition, noise_of(2)), from_null, atol=0, rtol=0)
    prior.config.prior_drop = 0.0  # the null target was never trained
    torch.testing.assert_close(prior.sample(condition, noise_of(2)), from_zeros, atol=0, rtol=0)


def test_an_unknown_sampling_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown network\.prior_sampling 'dddim'\. Did you mean 'ddim'.*released"):
        prior_of(prior_sampling="dddim")


# ---- training ------------------------------------------------------------------------------------------------------


class Given(Draws):
    """Draws as given, all samples kept unless their number is below the share that is dropped."""

    def __init__(self, time: Tensor, noise: Tensor, condition: float = 1.0, target: float = 1.0) -> None:
        self.time, self.noise, self.drop = time, noise, {"condition": condition, "target": target}

    def integers(self, name: str, high: int) -> Tensor:
        assert high == 100
        return self.time

    def normal(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        assert tuple(shape) == self.noise.shape[1:]
        return self.noise

    def uniform(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        return torch.full((len(self.time),), self.drop[name.split()[-1]])


@pytest.mark.parametrize(("condition_drawn", "target_drawn"), [(1.0, 1.0), (0.1, 1.0), (1.0, 0.1), (0.1, 0.1)])
def test_error_is_the_squared_error_of_the_clean_target(condition_drawn: float, target_drawn: float) -> None:
    prior, condition, target, noise = prior_of(), numbers(2, T, D), numbers(2, T, D, seed=1), numbers(2, T, D, seed=2)
    time, alpha_bar = torch.tensor([60, 3]), torch.tensor(cosine_alpha_bar(100))[[60, 3], None, None]
    noisy = alpha_bar.sqrt() * target + (1 - alpha_bar).sqrt() * noise
    network = prior.network
    used = condition if condition_drawn >= 0.2 else network.null_condition.expand(2, T, D)
    noisy = noisy if target_drawn >= 0.2 else network.null_target.expand(2, T, D)
    expected = ((network(used, noisy, time) - target) ** 2).flatten(1).mean(1)
    found = prior.error(condition, target, Given(time, noise, condition_drawn, target_drawn))
    torch.testing.assert_close(found, expected)


def test_whole_samples_are_dropped_independently_and_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, n = prior_of(), 4000
    seen: dict[str, Tensor] = {}

    def network(condition_BTD: Tensor, noisy_BTD: Tensor, time_B: Tensor) -> Tensor:
        seen.update(condition=condition_BTD, noisy=noisy_BTD, time=time_B)
        return torch.zeros_like(noisy_BTD)

    monkeypatch.setattr(prior.network, "forward", network)
    condition = numbers(n, T, D)
    prior.error(condition, condition, Draws.alone(n))
    dropped_condition = (seen["condition"] == prior.network.null_condition).all(-1)
    dropped_target = (seen["noisy"] == prior.network.null_target).all(-1)
    for dropped_BT in (dropped_condition, dropped_target):
        assert torch.equal(dropped_BT.any(1), dropped_BT.all(1))  # all tokens of a sample or none
        assert abs(float(dropped_BT[:, 0].float().mean()) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)
    both = float((dropped_condition & dropped_target)[:, 0].float().mean())
    assert abs(both - 0.04) < 4 * math.sqrt(0.04 * 0.96 / n)
    torch.testing.assert_close(seen["condition"][~dropped_condition], condition[~dropped_condition], atol=0, rtol=0)
    counts = torch.bincount(seen["time"], minlength=100)
    assert len(counts) == 100
    assert counts.min() > 10, "some levels are rare"
    assert counts.max() < 80, "some levels are frequent"


def test_halves_of_a_batch_are_the_whole() -> None:
    prior, condition, target = prior_of(), numbers(8, T, D), numbers(8, T, D, seed=1)
    whole = prior.error(condition, target, Draws(5, 1, 2, torch.arange(8), 8))
    for rows in (torch.arange(4), torch.arange(4, 8), torch.tensor([6, 1])):
        half = prior.error(condition[rows], target[rows], Draws(5, 1, 2, rows, 8))
        torch.testing.assert_close(half, whole[rows], atol=1e-6, rtol=1e-6)
    other = prior.error(condition, target, Draws(5, 1, 3, torch.arange(8), 8))
    assert not torch.allclose(other, whole, rtol=1e-2)


def test_priors_of_two_parts_draw_apart() -> None:
    drawn = {}
    for name in ("g_0", "g_1"):
        torch.manual_seed(0)
        prior = DiffusionPrior(NetworkConfig(**SMALL), T, D, name)
        drawn[name] = prior.error(numbers(4, T, D), numbers(4, T, D), Draws.alone(4))
    assert not torch.allclose(drawn["g_0"], drawn["g_1"])


@pytest.mark.parametrize("half", [False, True])
def test_gradients_reach_every_weight_and_are_finite(half: bool) -> None:
    prior, condition, target = prior_of(), numbers(64, T, D), numbers(64, T, D, seed=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        error = prior.error(condition, target, Draws.alone(64))
    assert (error.dtype, error.shape) == (torch.float32, (64,))
    error.mean().backward()
    for name, value in prior.named_parameters():
        assert value.grad is not None, name
        assert bool(value.grad.isfinite().all()), name
        assert bool(value.grad.any()), name


def test_half_precision_stays_near() -> None:
    prior, condition, target = prior_of(), numbers(16, T, D), numbers(16, T, D, seed=1)
    exact = prior.error(condition, target, Draws.alone(16))
    with torch.autocast("cpu", torch.bfloat16):
        near = prior.error(condition, target, Draws.alone(16))
        sampled = prior.sample(condition, noise_of(16))
    torch.testing.assert_close(near, exact, atol=0.03, rtol=0.03)
    assert sampled.dtype == torch.float32


def test_a_known_conditional_mean_is_learned() -> None:
    """Of targets that are a function of the condition plus noise; the function keeps what the last norm keeps."""

    def mean_of(condition_BTD: Tensor) -> Tensor:
        return nn.functional.layer_norm(condition_BTD, (8,)).flip(-1)

    def error_of(found_BTD: Tensor) -> float:
        return float((found_BTD - mean_of(unseen)).square().mean())  # 1 if nothing is known

    prior = prior_of(n_tokens=1, width=8, prior_depth=1, prior_heads=2, prior_head_width=8, prior_growth=4)
    optimiser = torch.optim.AdamW(prior.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=200)
    for step in range(200):
        condition = numbers(64, 1, 8, seed=step)
        target = mean_of(condition) + 0.5 * numbers(64, 1, 8, seed=1000 + step)
        optimiser.zero_grad()
        prior.error(condition, target, Draws(0, 0, step, torch.arange(64), 64)).mean().backward()
        optimiser.step()
        schedule.step()
    unseen = numbers(256, 1, 8, seed=5000)
    noise = noise_of(256)
    assert error_of(prior.sample(unseen, noise)) < 0.25
    assert error_of(prior.sample(prior.network.null_condition.expand(256, 1, 8), noise)) > 0.8
    for sampling in ("ddim", "released"):
        prior.config.prior_sampling = sampling
        assert error_of(prior.sample(unseen, noise)) < 0.35


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu() -> None:
    prior, condition, target = prior_of(prior_head_width=52), numbers(4, T, D), numbers(4, T, D, seed=1)
    given = (torch.tensor([3, 50, 94, 99]), numbers(4, T, D, seed=2))
    expected = prior.error(condition, target, Given(*given))
    prior.cuda()
    found = prior.error(condition.cuda(), target.cuda(), Given(given[0].cuda(), given[1].cuda()))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        prior.error(condition.cuda(), target.cuda(), Draws.alone(4, device="cuda")).mean().backward()
    assert all(bool(value.grad.isfinite().all()) for value in prior.parameters() if value.grad is not None)
