"""Variants of z, z40, edge and colour against plain re-statements, and the guards of images and features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from helpers_backbone import IMAGE_SIZE
from helpers_config import data_settings, with_fields
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torchvision.transforms.v2 import functional as tv

from nd.backbone.loading import Backbone, load_backbone
from nd.backbone.pillow import lanczos
from nd.config import BackboneConfig, Config
from nd.data.digits69 import read_digits69
from nd.data.image_checks import SATURATED, check_images, checked, saturated_share
from nd.errors import UserError
from nd.scenes.world import World
from nd.targets.base import Items
from nd.targets.components import build_extractor
from nd.targets.unfinished import check_features
from nd.targets.vae_latent import SmallLatent, VaeLatent, small_size

SCALING = 0.3  # the fixture's VAE
Z_SEED = 0x7A206C6174656E74  # part of every stored sample: changing it changes published features


@pytest.fixture(scope="module")
def backbone(tiny_backbone_config: BackboneConfig) -> Backbone:
    return load_backbone(tiny_backbone_config)


def noisy(size: int, n: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def items(images: NDArray[np.uint8], first: int = 0) -> Items:
    return Items(np.arange(first, first + len(images), dtype=np.int32), images)


def moments(backbone: Backbone, images_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the VAE's posterior, from its parts."""
    with torch.no_grad():
        mean, logvar = backbone.vae.quant_conv(backbone.vae.encoder(images_B3HW * 2 - 1)).chunk(2, 1)
    return mean, logvar.clamp(-30, 20).div(2).exp()


def as_floats(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def pil_lanczos(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.stack([np.array(Image.fromarray(i).resize((size, size), Image.LANCZOS)) for i in images])


# ---- z -------------------------------------------------------------------------------------------------------------


def direct(images: NDArray[np.uint8]) -> torch.Tensor:
    return tv.resize(as_floats(images), [IMAGE_SIZE] * 2, antialias=True)


def by_lanczos(images: NDArray[np.uint8]) -> torch.Tensor:
    return as_floats(pil_lanczos(images, IMAGE_SIZE))


def via224(images: NDArray[np.uint8]) -> torch.Tensor:
    small = as_floats(images) if images.shape[1] <= 224 else tv.resize(as_floats(images), [224, 224], antialias=True)
    halves = small.clamp(0, 1).numpy().astype(np.float16)
    return tv.resize(torch.from_numpy(halves).float(), [IMAGE_SIZE] * 2, antialias=True)


@pytest.mark.parametrize("size", [300, 24])
@pytest.mark.parametrize(("picture", "way"), [("direct", direct), ("lanczos", by_lanczos), ("via224", via224)])
def test_z_of_each_way_to_the_backbones_size(picture: str, way: Any, size: int, backbone: Backbone) -> None:
    images = noisy(size)
    expected = moments(backbone, way(images))[0] * SCALING
    found = VaeLatent(backbone, picture)(items(images))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_z_of_the_three_ways_differ(backbone: Backbone) -> None:
    images = noisy(300)
    ways = [VaeLatent(backbone, picture)(items(images)) for picture in ("direct", "lanczos", "via224")]
    assert np.abs(ways[0] - ways[1]).max() > 1e-3
    assert np.abs(ways[0] - ways[2]).max() > 1e-4


def test_half_precision_of_via224_is_seen_where_nothing_else_differs(backbone: Backbone) -> None:
    images = noisy(IMAGE_SIZE)
    via, plain = (VaeLatent(backbone, picture)(items(images)) for picture in ("via224", "direct"))
    assert 0 < np.abs(via - plain).max() < 1e-3


def test_z_sample_is_mean_and_deviation_times_the_images_own_noise(backbone: Backbone) -> None:
    images = noisy(IMAGE_SIZE)
    mean, std = moments(backbone, as_floats(images))
    expected = []
    for row, image_id in enumerate((7, 8, 9)):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([Z_SEED, image_id, 0])))
        noise = generator.standard_normal((4, 4, 4), dtype=np.float32)
        expected.append((mean[row].numpy() + std[row].numpy() * noise) * SCALING)
    found = VaeLatent(backbone, posterior="sample")(items(images, first=7))
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("name", ["z", "z40"])
def test_samples_belong_to_the_image_id_alone(name: str, backbone: Backbone) -> None:
    cfg = Config(backbone=backbone.config)
    cfg = with_fields(cfg, posterior="sample")
    extractor, images = build_extractor(name, cfg, backbone), np.repeat(noisy(IMAGE_SIZE, 1), 3, axis=0)
    together = extractor(items(images, first=4))
    turned = extractor(Items(np.array([6, 4], np.int32), images[:2]))
    np.testing.assert_allclose(turned, together[[2, 0]], atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.01  # the same image under two ids


# ---- z40 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "factor", "wanted"), [(512, 8, 320), (64, 4, 40), (28, 4, 16), (16, 4, 12), (8, 8, 8), (768, 8, 480)]
)
def test_z40_takes_five_eighths_of_the_picture(image_size: int, factor: int, wanted: int) -> None:
    assert small_size(image_size, factor) == wanted


def test_z40_is_the_latent_of_a_smaller_lanczos_picture(backbone: Backbone) -> None:
    images = noisy(40)
    expected = moments(backbone, as_floats(pil_lanczos(images, 12)))[0] * SCALING
    extractor = SmallLatent(backbone)
    assert extractor.shape == (4, 3, 3)
    np.testing.assert_allclose(extractor(items(images)), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_z40_of_stable_diffusions_layout_is_4_40_40(posterior: str) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215,
    )  # fmt: skip
    backbone = Backbone(BackboneConfig(image_size=512))
    backbone.__dict__["vae"] = vae.eval().requires_grad_(False)
    extractor = SmallLatent(backbone, posterior)
    assert extractor.shape == (4, 40, 40)
    assert VaeLatent(backbone).shape == (4, 64, 64)
    images = noisy(425, n=1)
    found = extractor(items(images))
    mean, std = moments(backbone, as_floats(pil_lanczos(images, 320)))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([Z_SEED, 0, 1])))
    noise = generator.standard_normal((4, 40, 40), dtype=np.float32) * (posterior == "sample")
    np.testing.assert_allclose(found, (mean + std * torch.from_numpy(noise)).numpy() * 0.18215, atol=1e-5)


# ---- all latents ---------------------------------------------------------------------------------------------------


def test_unknown_settings(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"unknown target.picture 'lanczo'. Did you mean 'lanczos'"):
        VaeLatent(backbone, "lanczo")
    with pytest.raises(UserError, match=r"unknown target.posterior 'modes'. Did you mean 'mode'"):
        VaeLatent(backbone, posterior="modes")
    with pytest.raises(UserError, match=r"unknown target.posterior 'mean'"):
        SmallLatent(backbone, "mean")


@pytest.mark.parametrize(
    ("name", "setting", "changed"),
    [
        ("z", {"picture": "lanczos"}, {"picture"}),
        ("z", {"posterior": "sample"}, {"posterior", "noise_seed"}),
        ("z40", {"posterior": "sample"}, {"posterior", "noise_seed"}),
        ("z40", {"picture": "lanczos"}, set()),
        ("edge", {"picture": "lanczos"}, set()),
    ],
)
def test_fingerprint_names_what_changed_and_loads_nothing(
    name: str, setting: dict[str, Any], changed: set[str], tiny_backbone_config: BackboneConfig
) -> None:
    fresh, cfg = Backbone(tiny_backbone_config), Config(backbone=tiny_backbone_config)
    before = build_extractor(name, cfg, fresh).fingerprint()
    after = build_extractor(name, with_fields(cfg, **setting), fresh).fingerprint()
    assert {key for key in {*before, *after} if before.get(key) != after.get(key)} == changed
    assert "vae" not in fresh.__dict__


@pytest.mark.parametrize("name", ["z", "z40", "g"])
def test_networks_in_half_precision_give_float32_features_near_the_exact_ones(name: str, backbone: Backbone) -> None:
    cfg = Config(backbone=replace(backbone.config, image_size=32))  # the tower's images are resized too
    exact = build_extractor(name, cfg, load_backbone(cfg.backbone))(items(noisy(40)))
    halved = build_extractor(name, cfg, load_backbone(cfg.backbone, dtype="bfloat16"))(items(noisy(40)))
    assert halved.dtype == np.float32
    assert 0 < np.linalg.norm(halved - exact) / np.linalg.norm(exact) < 0.03


@pytest.mark.parametrize(("pixels", "sizes"), [(2 * IMAGE_SIZE**2, [2, 2, 1]), (7, [1] * 5), (1 << 16, [5])])
def test_large_batches_pass_the_vae_in_parts(
    pixels: int, sizes: list[int], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, seen = noisy(IMAGE_SIZE, n=5), []
    expected = moments(backbone, as_floats(images))[0] * SCALING
    monkeypatch.setattr("nd.backbone.loading.CPU_PIXELS", pixels)
    handle = backbone.vae.encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    found = VaeLatent(backbone)(items(images))
    handle.remove()
    assert seen == sizes
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_lanczos_of_a_batch_is_pillows_and_leaves_fitting_pictures_alone() -> None:
    images = noisy(30, n=9)
    np.testing.assert_array_equal(lanczos(images, 17), pil_lanczos(images, 17))
    assert lanczos(images, 30) is images


# ---- edge, colour --------------------------------------------------------------------------------------------------


def extract(name: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    extractor = build_extractor(name, Config(), Backbone(BackboneConfig()))
    found = extractor(items(images))
    assert found.shape == (len(images), *extractor.shape)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    return found


def luma64(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    red, green, blue = tv.resize(as_floats(image[None]), [64, 64], antialias=True)[0].double().numpy()
    return 0.299 * red + 0.587 * green + 0.114 * blue


@pytest.mark.parametrize("size", [64, 28, 100])
def test_edge_equals_scipys_sobel(size: int) -> None:
    images = noisy(size)
    for image, found in zip(images, extract("edge", images), strict=True):
        along = [ndimage.sobel(luma64(image), axis=axis, mode="nearest") for axis in (0, 1)]
        np.testing.assert_allclose(found, np.hypot(*along) / 20**0.5, atol=1e-5)


def test_edge_equals_plain_loops() -> None:
    image = noisy(64, n=1)[0]
    luma = luma64(image)
    kernel = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
    expected = np.zeros((64, 64))
    for y in range(64):
        for x in range(64):
            gx = gy = 0.0
            for i in range(3):
                for j in range(3):
                    value = luma[min(max(y + i - 1, 0), 63), min(max(x + j - 1, 0), 63)]
                    gx, gy = gx + kernel[i][j] * value, gy + kernel[j][i] * value
            expected[y, x] = (gx**2 + gy**2) ** 0.5 / 20**0.5
    np.testing.assert_allclose(extract("edge", image[None])[0], expected, atol=1e-5)


def test_edge_reaches_one_at_the_steepest_corner_and_nothing_beyond() -> None:
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 2, (2000, 3, 3))
    patches[0] = [[0, 0, 1], [0, 0, 1], [0, 1, 1]]  # 4 along the columns, 2 along the rows
    images = np.zeros((len(patches), 64, 64, 3), np.uint8)
    images[:, 10:13, 20:23] = 255 * patches[..., None]
    found = extract("edge", images)[:, 11, 21]
    assert found[0] == pytest.approx(1.0, abs=1e-6)
    assert found.max() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("size", [64, 28, 100, 425])
def test_colour_is_the_mean_of_each_cell(size: int) -> None:
    images = noisy(size, n=2)
    fine = np.repeat(np.repeat(images.astype(np.float64) / 255, 8, axis=1), 8, axis=2)  # cells end between fine pixels
    expected = [
        [fine[:, k * size : (k + 1) * size, m * size : (m + 1) * size].mean((1, 2)) for m in range(8)] for k in range(8)
    ]
    np.testing.assert_allclose(extract("colour", images), np.array(expected).transpose(2, 0, 1, 3), atol=1e-6)


def test_colour_keeps_rows_columns_and_channels_apart() -> None:
    images = np.zeros((1, 16, 16, 3), np.uint8)
    images[0, 2:4, 6:8, 1] = 255
    found = extract("colour", images)[0]
    assert found[1, 3].tolist() == [0, 1, 0]
    assert found.sum() == 1


# ---- guards --------------------------------------------------------------------------------------------------------


def test_sound_pictures_pass() -> None:
    check_images(noisy(20), np.arange(3))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_refused_with_the_reason(dtype: Any) -> None:
    with pytest.raises(UserError, match=r"wanted uint8 .* floats in \[0, 1\] would be scaled twice"):
        check_images(noisy(8).astype(dtype) / 255, np.arange(3))


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 1), (2, 3, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"wanted uint8 RGB \(B, H, W, 3\)"):
        check_images(np.zeros(shape, np.uint8), np.arange(2))
    with pytest.raises(UserError, match="images are int32"):
        check_images(np.zeros((2, 8, 8, 3), np.int32), np.arange(2))


def test_saturated_pictures_are_named() -> None:
    images = noisy(40, n=9)
    images[2] = np.where(images[2] > 128, 255, 0)
    with pytest.raises(UserError, match=r"^image 102: at least 99.9% of the image's values are exactly 0 or 255"):
        check_images(images, np.arange(100, 109))
    images[1:8] = images[2]
    with pytest.raises(UserError, match=r"^7 of 9 images \(101, 102, 103, 104, 105, \.\.\.\): at least"):
        check_images(images, np.arange(100, 109))


def test_drawings_in_black_and_white_pass_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """All channels alike, with black and white in them; the bytes of floats that were cast are 0 and 1."""
    drawn = np.repeat(np.where(noisy(40, n=4)[..., :1] > 128, np.uint8(255), np.uint8(0)), 3, axis=3)
    check_images(drawn, np.arange(4))
    list(checked(enumerate(drawn), np.arange(4)))
    assert "4 of 4 images (0, 1, 2, 3): every value is 0 or 255" in caplog.text
    caplog.clear()
    list(checked(enumerate(noisy(40, n=4)), np.arange(4)))
    assert caplog.text == ""
    rare = np.where(np.arange(40 * 40) == 7, 1, 0).astype(np.uint8).reshape(1, 40, 40, 1)
    with pytest.raises(UserError, match=r"at least 99.9% of the image's values are exactly 0 or 255"):
        check_images(np.repeat(rare, 3, axis=3), np.arange(1))


def test_constant_pictures_are_named() -> None:
    images = noisy(40, n=4)
    images[1], images[3] = 127, 0
    with pytest.raises(UserError, match=r"^2 of 4 images \(11, 13\): every value of the image is the same"):
        check_images(images, np.arange(10, 14))


def test_share_of_saturated_values() -> None:
    images = np.full((1, 2, 2, 3), 7, np.uint8)
    images[0, 0, 0], images[0, 1, 1, 0] = (0, 255, 254), 1
    assert saturated_share(images)[0] == pytest.approx(2 / 12)


def test_digits_white_on_black_pass(digits69_file: Path) -> None:
    images = read_digits69(digits69_file).images
    assert saturated_share(images).max() == pytest.approx(0.944, abs=1e-3)
    check_images(images, np.arange(len(images)))


def test_scenes_pass() -> None:
    images = World(data_settings(n_train=150, n_val=10, n_test=10)).images
    assert saturated_share(images).max() < SATURATED / 2
    check_images(images, np.arange(len(images)))


def test_features_that_are_not_finite_are_named() -> None:
    features = np.ones((4, 2, 3), np.float32)
    check_features("z", features, np.arange(4))
    features[2, 1, 0] = np.nan
    with pytest.raises(UserError, match=r"the features 'z' of image 22 are not finite"):
        check_features("z", features, np.arange(20, 24))
    features[0, 0, 0] = -np.inf
    with pytest.raises(UserError, match=r"the features 'z' of 2 of 4 images \(20, 22\) are not finite"):
        check_features("z", features, np.arange(20, 24))
