"""The volumetric encoder: recurrence, mixers and tokens against plain ones, and what places of voxels mean to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_config import mapper_settings
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nd.config import NetworkConfig, TrainingConfig
from nd.errors import UserError
from nd.mappers.network.draws import Draws
from nd.mappers.network.trunk import key_of
from nd.mappers.training.module import decay_groups
from nd.mappers.volumetric.components import VolumetricSettings
from nd.mappers.volumetric.encoder import Volume, Volumetric, VolumetricTrunk
from nd.mappers.volumetric.recurrence import recurrence
from nd.mappers.volumetric.sequence_mixers import AttentionBlock, Mixer, SelectiveStateSpace
from nd.mappers.volumetric.tokenizers import CubeTokenizer, RegionTokenizer, SubjectVoxels, cells_of
from nd.mappers.volumetric.voxel_layout import Layout

SIZES = {"a": 40, "b": 25}  # voxels of the subjects
NETWORK = NetworkConfig(hidden=12, blocks=1)
MIXERS = ("state_space", "transformer")
KINDS = [{"tokenizer": tokenizer, "mixer": mixer} for tokenizer in ("regions", "cubes") for mixer in MIXERS]


def settings(**changes: Any) -> VolumetricSettings:
    """Small ones: three named regions, and one of the rest."""
    small = {"regions": ["V1", "V2", "V3"], "region_tokens": 2, "width": 8, "heads": 2, "cubes": [2, 2, 2], "cube": 3}
    found = mapper_settings("volumetric", **{**small, **changes})
    assert isinstance(found, VolumetricSettings)
    return found


def layout_of(n_voxels: int, seed: int = 0, n_regions: int = 4) -> Layout:
    """Different places of a 6 x 5 x 4 grid in random order, cut into regions at random."""
    rng = np.random.default_rng(seed)
    ijk = np.stack(np.unravel_index(rng.permutation(120)[:n_voxels], (6, 5, 4)), 1).astype(np.int32)
    return Layout(ijk, rng.integers(0, n_regions, n_voxels).astype(np.int32))


def trunk_of(config: VolumetricSettings, layouts: dict[str, Layout] | None = None) -> VolumetricTrunk:
    """A trunk whose weights are all random: what starts at zero would hide what it is given."""
    layouts = layouts or {name: layout_of(n, n) for name, n in SIZES.items()}
    torch.manual_seed(0)
    trunk = VolumetricTrunk(NETWORK, Volume(config, layouts), "t")
    with torch.no_grad():
        for weights in trunk.parameters():
            weights.add_(0.2 * torch.randn(weights.shape))
    return trunk.double()


def voxels_of(*names: str, n: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(n, SIZES[name], generator=generator, dtype=torch.float64) for name in names}


def permuted(layout: Layout, order: NDArray[Any]) -> Layout:
    return Layout(layout.ijk[order] if layout.has_places else layout.ijk, layout.region[order])


# ---- the recurrence ------------------------------------------------------------------------------------------------


def plain_recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    state, states = torch.zeros_like(drive[:, 0]), []
    for a, b in zip(decay.unbind(1), drive.unbind(1), strict=True):
        state = a * state + b
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13, 300])
def test_recurrence_is_that_of_a_plain_loop_in_single_precision(length: int) -> None:
    """Forward and both gradients, with decays from nearly 0 to nearly 1."""
    generator = torch.Generator().manual_seed(length)
    inputs = [torch.rand(2, length, 5, generator=generator), torch.randn(2, length, 5, generator=generator)]
    weights = torch.randn(2, length, 5, generator=generator)
    found = [x.clone().requires_grad_() for x in inputs]
    wanted = [x.clone().requires_grad_() for x in inputs]
    states, plain = recurrence(*found), plain_recurrence(*wanted)
    (states * weights).sum().backward()
    (plain * weights).sum().backward()
    torch.testing.assert_close(states, plain, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_recurrence_over_a_long_sequence_that_forgets_does_not_break() -> None:
    """The product of all decays is far below the smallest number."""
    decay = torch.full((1, 4000, 1), 0.5, requires_grad=True)
    states = recurrence(decay, torch.ones(1, 4000, 1))
    states.sum().backward()
    torch.testing.assert_close(states[0, 100:, 0], torch.full((3900,), 2.0))
    assert decay.grad is not None
    assert torch.isfinite(decay.grad).all()


class Multiplied(TorchDispatchMode):
    """Counts the numbers that multiplications make, and how many multiplications there are."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.rounds = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mul, torch.ops.aten.addcmul):
            self.numbers, self.rounds = self.numbers + out.numel(), self.rounds + 1
        return out


def test_work_of_the_recurrence_grows_with_its_length_and_its_depth_with_the_logarithm() -> None:
    counts = {}
    for length in (256, 4096):
        with Multiplied() as counts[length]:
            recurrence(torch.rand(1, length, 1), torch.rand(1, length, 1))
        assert 2 * length < counts[length].numbers < 3 * length
    assert counts[4096].rounds - counts[256].rounds == 3 * 4  # three in each of four further halvings


@pytest.mark.parametrize(("mixer", "is_linear"), [("state_space", True), ("transformer", False)])
def test_cost_of_a_state_space_grows_with_its_tokens_alone(mixer: str, is_linear: bool) -> None:
    """Counted, forward and backward: operations of matrix products, and numbers that other products make."""
    net, costs = Mixer(settings(mixer=mixer), 1, 0.0, "m"), {}
    for length in (256, 4096):
        tokens = torch.randn(1, length, 8).requires_grad_()
        with FlopCounterMode(display=False) as products, Multiplied() as others:
            net(tokens, None).sum().backward()
        costs[length] = np.array([products.get_total_flops(), others.numbers])
    growth = costs[4096] / costs[256]
    assert (growth[1] if is_linear else growth.min()) <= 16.2
    assert (growth[0] <= 16.2) == is_linear


# ---- mixers --------------------------------------------------------------------------------------------------------


def test_state_space_is_that_of_transformers() -> None:
    """Mamba's layer with the same weights, which carry over by name; output and gradients."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    other = MambaMixer(MambaConfig(hidden_size=12, state_size=5, num_hidden_layers=1), layer_idx=0).eval()
    own = SelectiveStateSpace(12, 5, 2)
    own.load_state_dict(other.state_dict())
    inputs = [torch.randn(2, 9, 12).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0])
    outputs = [own(inputs[0]), other(inputs[1])]
    for one, output in zip((own, other), outputs, strict=True):
        output.square().sum().backward()
        assert one.A_log.grad is not None
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.A_log.grad, other.A_log.grad, rtol=1e-4, atol=1e-5)


def test_step_sizes_start_in_their_range() -> None:
    torch.manual_seed(0)
    steps = functional.softplus(SelectiveStateSpace(64, 4).dt_proj.bias).detach()
    assert 0.001 <= float(steps.min()) < 0.01 < 0.05 < float(steps.max()) <= 0.1


def test_weights_of_a_state_space_are_decayed_and_its_rates_are_not() -> None:
    network = torch.nn.ModuleDict({"mixer": SelectiveStateSpace(8)})
    network.variant = "nd"  # type: ignore[assignment]
    decayed = {
        id(weight)
        for group in decay_groups(network, TrainingConfig())  # type: ignore[arg-type]
        for weight in group["params"]
        if group["weight_decay"]
    }
    names = {name.removeprefix("mixer.") for name, weight in network.named_parameters() if id(weight) in decayed}
    assert names == {f"{name}.weight" for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")}


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    block, x = AttentionBlock(8, 2, 2), torch.randn(3, 5, 8)
    oracle = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        block.to_out.weight.normal_()
        oracle.in_proj_weight.copy_(block.to_qkv.weight)
        oracle.out_proj.weight.copy_(block.to_out.weight)
    torch.testing.assert_close(block(x), oracle(x, x, x)[0])  # the feed-forward layer still adds nothing


@pytest.mark.parametrize("mixer", ["state_space", "transformer"])
def test_mixer_passes_tokens_on_until_it_is_trained(mixer: str) -> None:
    net, x = Mixer(settings(mixer=mixer), 2, 0.5, "m"), torch.randn(2, 7, 8)
    torch.testing.assert_close(net(x, Draws.alone(2)), x, rtol=0, atol=0)
    net(x, None).square().sum().backward()
    assert all(block.weight.grad.abs().sum() > 0 for block in [getattr(net.blocks[0], LAST[mixer])])
    assert Mixer(settings(mixer=mixer), 0, 0.5, "m")(x, None) is x


LAST = {"state_space": "out_proj", "transformer": "to_out"}


# ---- tokens --------------------------------------------------------------------------------------------------------


def test_tokens_of_a_region_by_hand() -> None:
    """Voxel by voxel and head by head, from the formula."""
    config, layout = settings(region_blocks=0, voxel_numbers=True), layout_of(40)
    torch.manual_seed(0)
    net = RegionTokenizer(config, 0.0, "t").double()
    own = net.subject(layout).double()
    assert own.own is not None
    torch.nn.init.normal_(own.own)
    x = torch.randn(2, 40, dtype=torch.float64)
    tokens = net(x, own, None)
    assert tokens.shape == (2, 4 * 2, 8)
    for region in range(4):
        rows = np.flatnonzero(layout.region == region)
        e = [net.out(functional.gelu(net.embed(own.places[v]) + net.region[region])) + own.own[v] for v in rows]
        for k in range(2):
            wanted = net.tag[region, k] + torch.zeros(2, 8)
            for head in (slice(0, 4), slice(4, 8)):
                logits = [net.query[region, k, head] @ net.to_key(one)[head] / 4**0.5 for one in e]
                share = torch.stack(logits).softmax(0)
                for n, v in enumerate(rows):
                    wanted[:, head] += len(rows) ** 0.5 * share[n] * x[:, v, None] * net.to_weight(e[n])[head]
                    wanted[:, head] += share[n] * net.to_tag(e[n])[head]
            torch.testing.assert_close(tokens[:, 2 * region + k], wanted)


def test_tokens_of_cubes_are_a_convolution_of_the_volume() -> None:
    """Every cube's cells times one set of weights, where no two voxels meet in a cell."""
    config = settings(tokenizer="cubes")
    ijk = np.stack(np.unravel_index(np.random.default_rng(0).permutation(216)[:40], (6, 6, 6)), 1).astype(np.int32)
    ijk[0], ijk[1] = 0, 5  # the box is the grid itself
    ijk = np.unique(ijk, axis=0)
    layout = Layout(ijk, np.zeros(len(ijk), np.int32))
    net = CubeTokenizer(config).double()
    own = net.subject(layout).double()
    x = torch.randn(2, len(ijk), dtype=torch.float64)
    volume = torch.zeros(2, 1, 6, 6, 6, dtype=torch.float64)
    volume[:, 0, ijk[:, 0], ijk[:, 1], ijk[:, 2]] = x
    weights = net.cells.weight.view(8, 1, 3, 3, 3)
    wanted = functional.conv3d(volume, weights, stride=3).flatten(2).mT[:, own.present]
    wanted = wanted * (3 * 27 / (len(ijk) / len(own.present))) ** 0.5  # of size 1, however full the cubes are
    torch.testing.assert_close(net(x, own, None), wanted + net.place(own.places), rtol=1e-6, atol=1e-6)


def test_voxels_that_meet_in_a_cell_are_averaged_and_empty_cubes_dropped() -> None:
    """Twice as many voxels along each axis as there are cells; nothing lies in the middle of the first."""
    config = settings(tokenizer="cubes", cubes=[3, 1, 1], cube=1)
    ijk = np.array([[0, 0, 0], [1, 0, 1], [5, 1, 1]], np.int32)
    layout = Layout(ijk, np.zeros(3, np.int32))
    assert cells_of(layout, config)[0].tolist() == [0, 0, 2]
    net = CubeTokenizer(config).double()
    own = net.subject(layout).double()
    assert own.present == [0, 2]
    tokens = net(torch.tensor([[1.0, 4.0, 7.0]], dtype=torch.float64), own, None) - net.place(own.places)
    found = tokens[0, :, 0] / net.cells.weight[0, 0] / 3**0.5
    torch.testing.assert_close(found, torch.tensor([2.5, 7.0], dtype=torch.float64), rtol=1e-6, atol=1e-6)


# ---- subjects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_subjects_of_different_voxel_counts_share_all_weights(kind: dict[str, str]) -> None:
    """Each gives in company what it gives alone, in their order; one may have no samples."""
    trunk, x = trunk_of(settings(**kind)), voxels_of("a", "b")
    together = trunk(x, None)
    assert together.shape == (6, 12)
    torch.testing.assert_close(together, torch.cat([trunk({name: x[name]}, None) for name in x]))
    empty = {"a": x["a"][:0], "b": x["b"]}
    torch.testing.assert_close(trunk(empty, None), together[3:])
    own = {name for name, _ in trunk.named_parameters() if ".subject_layers." in f".{name}"}
    assert own == set()
    trunk(empty, None).sum().backward()
    assert all(weights.grad is not None for weights in trunk.parameters())  # as processes that share a step need


@pytest.mark.parametrize("kind", KINDS)
def test_voxels_in_another_order_with_their_places_are_the_same(kind: dict[str, str]) -> None:
    config, layout, x = settings(**kind), layout_of(40), voxels_of("a")
    order = np.random.default_rng(3).permutation(40)
    first = trunk_of(config, {"a": layout})
    second = trunk_of(config, {"a": permuted(layout, order)})
    torch.testing.assert_close(second({"a": x["a"][:, order]}, None), first(x, None))
    assert (second(x, None) - first(x, None)).abs().max() > 1e-2
    shuffled = trunk_of(config, {"a": Layout(layout.ijk[order], layout.region)})
    assert (shuffled(x, None) - first(x, None)).abs().max() > 1e-3


def test_numbers_of_voxels_go_with_the_voxels() -> None:
    """They belong to the subject, and start at nothing."""
    config, layout, x = settings(voxel_numbers=True), layout_of(40), voxels_of("a")
    order = np.random.default_rng(3).permutation(40)
    first, second = trunk_of(config, {"a": layout}), trunk_of(config, {"a": permuted(layout, order)})
    name = "subject_layers.a.own"
    assert name in dict(first.named_parameters())
    with torch.no_grad():
        dict(second.named_parameters())[name].copy_(dict(first.named_parameters())[name][order])
    torch.testing.assert_close(second({"a": x["a"][:, order]}, None), first(x, None))
    assert float(RegionTokenizer(config, 0, "t").subject(layout).own.detach().abs().max()) == 0


def test_without_places_regions_and_numbers_are_all_there_is() -> None:
    config = settings(coordinates="none", voxel_numbers=True)
    layout = layout_of(40)
    blind = Layout(layout.ijk[:0], layout.region)
    assert not RegionTokenizer(config, 0, "t").subject(blind).places.any()
    assert trunk_of(config, {"a": blind})(voxels_of("a"), None).shape == (3, 12)


def test_draws_of_a_step_do_not_depend_on_who_else_is_in_it() -> None:
    """Rows of a process are dropped as they are where one process has all of them."""
    trunk, x = trunk_of(settings()), voxels_of("a", "b")
    whole = trunk(x, Draws.alone(6, seed=3))
    rows = torch.tensor([1, 2, 3])
    part = {"a": x["a"][1:], "b": x["b"][:1]}
    torch.testing.assert_close(trunk(part, Draws(3, 0, 0, rows, 6)), whole[rows])
    assert (whole - trunk(x, None)).abs().max() > 1e-3


def test_regions_that_nobody_has_wait_for_no_gradient() -> None:
    """And their places stay empty in what is read out."""
    layout = layout_of(40, n_regions=2)
    trunk = trunk_of(settings(), {"a": layout, "b": layout_of(25, n_regions=1)})
    assert [any(w.requires_grad for w in mixer.parameters()) for mixer in trunk.tokenizer.mixers] == [
        True,
        True,
        False,
        False,
    ]
    trunk(voxels_of("a", "b"), None).sum().backward()
    read = trunk.readout.weight.grad.view(12, 8, 8).abs().sum((0, 2))
    assert (read > 0).tolist() == [True] * 4 + [False] * 4
    assert all(w.grad is not None for w in trunk.parameters() if w.requires_grad)


def test_unknown_subject_and_other_voxels_are_refused() -> None:
    trunk = trunk_of(settings())
    with pytest.raises(UserError, match=r"no layer for subject 'c'.* It has one for: a, b"):
        trunk({"c": torch.zeros(1, 5)}, None)
    with pytest.raises(UserError, match=r"41 voxels of subject 'a' arrived, but its layer expects 40"):
        trunk({"a": torch.zeros(1, 41)}, None)
    assert isinstance(trunk.subject_layers[key_of("a")], SubjectVoxels)


# ---- layouts -------------------------------------------------------------------------------------------------------


def subject_of(small_world: Any, roi: str = "all", **attributes: Any) -> Any:
    from nd.data.prepared import open_subject

    subject = open_subject(replace(small_world, subject=replace(small_world.subject, roi=roi)))
    subject.attributes = {**subject.attributes, **attributes}
    return subject


def test_a_voxel_is_of_the_first_region_that_holds_it(small_world: Any) -> None:
    subject = subject_of(small_world)
    names = ["V1", "early", "ventral+lateral"]
    layout = Layout.of(subject, settings(regions=names), 0)
    for k, name in enumerate([*names, "all"]):
        before = [subject.inside(other) for other in names[:k]]
        mask = subject.inside(name) & ~np.any([np.zeros(subject.n_voxels, bool), *before], axis=0)
        np.testing.assert_array_equal(layout.region == k, mask)
    assert (layout.region == 3).any()
    np.testing.assert_array_equal(layout.ijk, subject.ijk)
    assert set(Layout.of(subject, settings(regions=[]), 0).region.tolist()) == {0}
    inside = subject_of(small_world, "V1")
    assert set(Layout.of(inside, settings(regions=names), 0).region.tolist()) == {0}


def test_shuffled_places_are_a_permutation_that_seed_and_subject_fix(small_world: Any) -> None:
    subject, config = subject_of(small_world), settings(coordinates="shuffled")
    one, again, other = (Layout.of(subject, config, seed).ijk for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one != subject.ijk).any()
    np.testing.assert_array_equal(np.unique(one, axis=0), np.unique(subject.ijk, axis=0))
    subject.name = "someone else"
    assert (Layout.of(subject, config, 1).ijk != one).any()


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("own", r"Prepare it again with data.volume=<mask.nii.gz>"),
        ("mindeye2", r"prepare data=nsd, which does"),
        ("digits69", r"They were not published"),
        ("lab", r"Write ijk \(voxels, 3\) into it"),
    ],
)
def test_data_without_coordinates_are_refused_with_what_to_do(small_world: Any, source: str, remedy: str) -> None:
    subject = subject_of(small_world, source=source)
    subject.ijk = np.where(np.arange(subject.n_voxels)[:, None] == 3, -1, subject.ijk)
    with pytest.raises(
        UserError, match=rf"subj01.h5 has no coordinates of 1 of \d+ voxels .*{remedy}.*coordinates=none"
    ):
        Layout.of(subject, settings(), 0)
    assert not Layout.of(subject, settings(coordinates="none"), 0).has_places


def test_unknown_region_names_those_there_are(small_world: Any) -> None:
    with pytest.raises(
        UserError, match=r"mapper.regions: unknown ROI of subj01.h5 'V9'.* Allowed: .*V1, V2.*mapper.regions="
    ):
        Layout.of(subject_of(small_world), settings(regions=["V1", "V9"]), 0)


def test_layout_comes_back_from_a_checkpoint() -> None:
    layout = layout_of(25)
    for one in (layout, Layout(layout.ijk[:0], layout.region)):
        back = Layout.restore(one.arrays())
        np.testing.assert_array_equal(back.ijk, one.ijk)
        np.testing.assert_array_equal(back.region, one.region)


@pytest.mark.parametrize("kind", KINDS)
def test_stand_in_is_as_large_as_the_network(kind: dict[str, str]) -> None:
    """For estimates of memory, which know the number of voxels alone."""
    config = settings(**kind)
    front = Volumetric.stand_in(config, {"a": 40, "b": 7})
    assert front.n_voxels == {"a": 40, "b": 7}
    sizes = [
        sum(w.numel() for w in trunk.parameters())
        for trunk in (trunk_of(config), front.trunk(NETWORK, "t", for_map=True, variant="nd"))
    ]
    assert sizes[0] == sizes[1]
