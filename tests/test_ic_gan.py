"""The instance-conditioned GAN: its published names and sizes, its arithmetic, how weights are read, its inputs.

Sizes of icgan_biggan_imagenet_res256: counted on the authors' class (facebookresearch/ic_gan@8eff2f7).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_backbone import tiny_backbone
from helpers_config import method_settings, target_settings
from helpers_scripts import load_script
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torchvision.models import resnet50

from nd.backbone.loading import Backbone, load_backbone
from nd.config import Config
from nd.config.schema import Decoding
from nd.doctor.weights import weight_needs
from nd.errors import UserError
from nd.generate.ic_gan.generator import AT_ONCE, InstanceGan, load_generator
from nd.generate.ic_gan.network import IMAGENET256, Attention, Block, Conv, Generator, Shape
from nd.targets.base import Items
from nd.targets.instance import InstanceFeatures, load_swav
from nd.targets.noise import keyed_normal

TINY = Shape((8, 8, 4), chunk=3, features=5, shared=4, attention=0)
CPU = torch.device("cpu")


def tiny(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    network = Generator(TINY).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("stored_mean", "gamma", "output_layer.0.gain", "output_layer.0.bias", ".bias")):
                value.copy_(0.3 + torch.rand(value.shape))
    return network


# ---- the published state dict ------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_published_weights() -> None:
    with torch.device("meta"):
        network = Generator(IMAGENET256)
    state, parameters = network.state_dict(), dict(network.named_parameters())
    assert (len(state), len(parameters)) == (198, 74)
    assert sum(value.numel() for value in parameters.values()) == 90_014_340
    assert sum(value.numel() for value in state.values()) - 90_014_340 == 72_948
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {
        "shared.weight": (1000, 128), "shared_feat.weight": (512, 2048), "shared_feat.bias": (512,),
        "shared_feat.u0": (1, 512), "shared_feat.sv0": (1,), "linear.weight": (24576, 17), "linear.bias": (24576,),
        "blocks.0.0.conv1.weight": (1536, 1536, 3, 3), "blocks.1.0.conv_sc.weight": (768, 1536, 1, 1),
        "blocks.5.0.conv2.bias": (96,), "blocks.2.0.bn1.gain.weight": (768, 529), "blocks.3.0.bn2.stored_var": (384,),
        "blocks.3.0.bn1.bias.weight": (768, 529), "blocks.3.1.gamma": (), "blocks.3.1.theta.weight": (48, 384, 1, 1),
        "blocks.3.1.g.weight": (192, 384, 1, 1), "blocks.3.1.o.weight": (384, 192, 1, 1),
        "output_layer.0.gain": (96,), "output_layer.0.stored_mean": (96,), "output_layer.2.weight": (3, 96, 3, 3),
        "output_layer.2.u0": (1, 3),
    }  # fmt: skip
    assert {name: shapes.get(name) for name in wanted} == wanted
    assert not {name for name in shapes if name.startswith(("shared.u", "blocks.0.1", "output_layer.1"))}
    assert (IMAGENET256.noise, IMAGENET256.side) == (119, 256)
    assert Shape.of(state) == IMAGENET256


# ---- arithmetic --------------------------------------------------------------------------------------------------


def by_hand(state: dict[str, Tensor], name: str) -> Tensor:
    """A weight over the singular value that one power iteration from the stored vector estimates."""
    w = state[f"{name}.weight"].flatten(1)
    v = state[f"{name}.u0"][0] @ w
    v = v / v.norm()
    return state[f"{name}.weight"] / (w @ v).norm()


def test_a_pass_is_its_plain_statement() -> None:
    network, random = tiny(), torch.Generator().manual_seed(1)
    noise, h = torch.randn(2, 9, generator=random), functional.normalize(torch.randn(2, 5, generator=random))
    s = network.state_dict()

    def conv(x: Tensor, name: str) -> Tensor:
        w = by_hand(s, name)
        return functional.conv2d(x, w, s.get(f"{name}.bias"), padding=w.shape[-1] // 2)

    def norm(x: Tensor, y: Tensor, name: str) -> Tensor:
        x = (x - s[f"{name}.stored_mean"][:, None, None]) / (s[f"{name}.stored_var"][:, None, None] + 1e-5).sqrt()
        gain, bias = (y @ by_hand(s, f"{name}.{part}").T for part in ("gain", "bias"))
        return x * (1 + gain)[:, :, None, None] + bias[:, :, None, None]

    def twice(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    e = h @ by_hand(s, "shared_feat").T + s["shared_feat.bias"]
    x = (noise[:, :3] @ by_hand(s, "linear").T + s["linear.bias"]).view(2, 8, 4, 4)
    for block in (0, 1):
        y, at = torch.cat([e, noise[:, 3 * block + 3 : 3 * block + 6]], 1), f"blocks.{block}.0"
        inner = conv(
            norm(conv(twice(norm(x, y, f"{at}.bn1").relu()), f"{at}.conv1"), y, f"{at}.bn2").relu(), f"{at}.conv2"
        )
        x = inner + conv(twice(x), f"{at}.conv_sc")
        if block == 0:
            theta, phi, g = (conv(x, f"blocks.0.1.{part}") for part in ("theta", "phi", "g"))
            phi, g = (functional.max_pool2d(part, 2).flatten(2) for part in (phi, g))
            attention = torch.einsum("bcn,bcm->bnm", theta.flatten(2), phi).softmax(2)
            gathered = torch.einsum("bnm,bcm->bcn", attention, g).view(2, 4, 8, 8)
            x = x + s["blocks.0.1.gamma"] * conv(gathered, "blocks.0.1.o")
    at = "output_layer.0"
    x = (x - s[f"{at}.stored_mean"][:, None, None]) / (s[f"{at}.stored_var"][:, None, None] + 1e-5).sqrt()
    x = (x * s[f"{at}.gain"][:, None, None] + s[f"{at}.bias"][:, None, None]).relu()
    with torch.no_grad():
        found = network(noise, h)
    assert found.shape == (2, 3, 16, 16)
    assert torch.allclose(found, conv(x, "output_layer.2").tanh(), atol=1e-5)


def test_the_stored_vector_moves_in_training_alone() -> None:
    layer = Conv(4, 6, 3)
    with torch.no_grad():
        layer.weight.normal_()
    before, x = layer.u0.clone(), torch.randn(1, 4, 5, 5)
    layer.eval()(x)
    assert torch.equal(layer.u0, before)
    layer.train()
    for _ in range(50):
        layer(x)
    largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
    assert float(layer.sv0) == pytest.approx(float(largest), rel=1e-3)
    assert torch.allclose(torch.linalg.svdvals(layer.normalised().flatten(1))[0], torch.ones(()), rtol=1e-3)


def test_blocks_double_the_side_and_attention_begins_as_nothing() -> None:
    x, y = torch.randn(2, 8, 4, 4), torch.randn(2, 7)
    assert Block(8, 6, 7).eval()(x, y).shape == (2, 6, 8, 8)
    assert torch.equal(Attention(8).eval()(x), x)


# ---- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_back_with_their_sizes(tmp_path: Path, suffix: str) -> None:
    network, file = tiny(), tmp_path / f"G_ema{suffix}"
    state = network.state_dict()
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file({name: value.half() for name, value in state.items()}, file)
    read = load_generator(file, CPU)
    assert read.shape == TINY
    assert not read.training and not any(p.requires_grad for p in read.parameters())  # noqa: PT018
    noise, h = torch.randn(2, 9), torch.randn(2, 5)
    with torch.no_grad():
        assert torch.allclose(read(noise, h), network(noise, h), atol=1e-6 if suffix == ".pth" else 1e-2)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method\.weights='': no such file.*icgan_biggan_imagenet_res256"):
        load_generator("", CPU)
    state, file = tiny().state_dict(), tmp_path / "G.pth"
    torch.save({"weight": torch.ones(2)}, file)
    with pytest.raises(UserError, match=r"1 entries, but none of 'linear\.weight'"):
        load_generator(file, CPU)
    other = {name: value for name, value in state.items() if name != "blocks.1.0.bn1.gain.weight"}
    torch.save(other | {"blocks.0.0.conv2.bias": torch.ones(3), "extra": torch.ones(1)}, file)
    with pytest.raises(UserError) as caught:
        load_generator(file, CPU)
    for said in ("1 missing (blocks.1.0.bn1.gain.weight)", "1 not expected (extra)", "shape (blocks.0.0.conv2.bias)"):
        assert said in str(caught.value)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"linear.weight": Path("x")}, tmp_path / "G.pth")
    with pytest.raises(UserError, match="cannot read the weights of generator ic_gan"):
        load_generator(tmp_path / "G.pth", CPU)


# ---- images ------------------------------------------------------------------------------------------------------


def test_images_belong_to_image_and_repeat_and_not_to_the_batch() -> None:
    gan, h = InstanceGan(tiny(), seed=3, repeats=2), torch.randn(AT_ONCE, 5)
    (made,) = gan(range(AT_ONCE), {"instance": h})
    (alone,) = gan([4], {"instance": h[4:5]})
    assert made.images.shape == (AT_ONCE, 2, 16, 16, 3)
    assert np.array_equal(alone.images[0], made.images[4])
    assert not np.array_equal(made.images[:, 0], made.images[:, 1])
    noise = torch.from_numpy(keyed_normal(3, [4], 1, (9,)))
    with torch.no_grad():
        wanted = gan.network(noise, functional.normalize(h[4:5]))[0].permute(1, 2, 0)
    assert np.abs(made.images[4, 1] - 127.5 * (wanted.numpy() + 1)).max() < 0.51


def test_images_that_are_not_finite_are_told() -> None:
    h = torch.randn(2, 5)
    h[1, 0] = torch.nan
    (made,) = InstanceGan(tiny(), seed=3, repeats=1)([6, 7], {"instance": h})
    assert list(made.failed) == [7]


def test_decoded_features_are_brought_to_length_1_or_left() -> None:
    h = torch.randn(2, 5)
    ours, asis = (InstanceGan(tiny(), seed=3, repeats=1, normalise=on) for on in (True, False))
    (one,), (other,) = (ours([1, 2], {"instance": scale * h}) for scale in (1, 7))
    assert np.array_equal(one.images, other.images)
    (one,), (other,) = (asis([1, 2], {"instance": scale * h}) for scale in (1, 7))
    assert not np.array_equal(one.images, other.images)


def test_features_of_another_network_are_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(7,\) per image, but method\.weights .* for 5 .*target\.network"):
        InstanceGan(tiny(), seed=3, repeats=1)([1], {"instance": torch.ones(1, 7)})


# ---- instance features -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny_backbone(tmp_path_factory.mktemp("tiny")))


def images(n: int) -> Items:
    shown = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
    return Items(np.arange(n, dtype=np.int32), shown)


def test_features_of_the_tower_are_its_embedding_at_length_1(backbone: Backbone) -> None:
    extractor, items = InstanceFeatures(backbone, target_settings("instance")), images(3)  # type: ignore[arg-type]
    found = extractor(items)
    assert found.shape == (3, *extractor.shape) == (3, 8)
    with torch.no_grad():
        plain = backbone.clip.encode_image(backbone.tower_input(backbone.to_float(items.images)), normalize=True)
    np.testing.assert_allclose(found, plain.numpy(), atol=1e-6)


def test_features_of_swav(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target\.swav is not set.*swav_800ep_pretrain\.pth\.tar"):
        load_swav("", CPU)
    torch.manual_seed(0)
    network, file = resnet50(weights=None).eval(), tmp_path / "swav.pth.tar"
    state = {f"module.{name}": value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    torch.save(
        state | {"module.prototypes.weight": torch.ones(2), "module.projection_head.0.bias": torch.ones(2)}, file
    )
    settings = target_settings("instance", network="swav", swav=str(file))
    extractor, items = InstanceFeatures(backbone, settings), images(1)  # type: ignore[arg-type]
    found = extractor(items)
    assert found.shape == (1, 2048)
    pixels = functional.interpolate(
        torch.from_numpy(items.images).permute(0, 3, 1, 2) / 255, (256, 256), mode="bilinear", antialias=True
    )
    pixels = functional.interpolate(pixels.clamp(0, 1), (224, 224), mode="bicubic", align_corners=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        plain = functional.normalize(network((pixels - mean[:, None, None]) / std[:, None, None]))
    np.testing.assert_allclose(found, plain.numpy(), atol=1e-5)
    torch.save({"module.conv1.weight": torch.ones(2)}, file)
    with pytest.raises(UserError, match="cannot read SwAV's ResNet-50"):
        load_swav(str(file), CPU)


def test_the_doctor_names_what_is_missing(backbone: Backbone) -> None:
    method = method_settings("ic_gan", targets=["instance"])
    swav = Decoding(target=target_settings("instance", network="swav"), mapper=Config().mapper)
    needs = weight_needs(Config(method=method, backbone=backbone.config, decodings={"instance": swav}))
    found = {need.what: need for need in needs}
    assert "method.weights=<path>; icgan_biggan_imagenet_res256" in found["IC-GAN generator"].note
    assert "target.swav=<path>; https" in found["SwAV's ResNet-50"].note
    assert found["SwAV's ResNet-50"].state == "missing"


# ---- the small generator of Scenes -------------------------------------------------------------------------------


def test_the_training_of_the_small_generator_runs_and_goes_on(tmp_path: Path) -> None:
    train = load_script("scenes-instance-generator/train.py")
    out, work = tmp_path / "generator.safetensors", tmp_path / "work.pt"
    train.main(["--quick", "--out", str(out), "--work", str(work)])
    network = load_generator(out, CPU)
    assert (network.shape.side, network.shape.channels) == (64, train.QUICK.channels)
    assert torch.load(work, weights_only=True)["done"] == train.QUICK.iterations
    first = out.read_bytes()
    train.main(["--quick", "--out", str(out), "--work", str(work)])  # everything is done: the same generator
    assert out.read_bytes() == first
    with torch.device("meta"):
        full = Generator(Shape(train.Recipe().channels, 16, network.shape.features, 64, attention=1))
    assert 2 * sum(value.numel() for value in full.state_dict().values()) < 4e6, "bytes as fp16"
