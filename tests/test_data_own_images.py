"""People's own images: the right image for every image, one size, and messages that name the file."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from nd.data.own_images import open_images, squared, write_images
from nd.data.stimuli import Stimuli
from nd.errors import UserError

RNG = np.random.default_rng(11)
SIDE = 12


def noise(*shape: int) -> Any:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def written(source: Path, target: Path, side: int = SIDE) -> Stimuli:
    images = open_images(source)
    write_images(target, images, side, [["x"]] * len(images.ids))
    return Stimuli(target)


def test_a_folder_by_number_whatever_else_lies_there(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    arrays = {i: noise(SIDE, SIDE, 3) for i in (0, 7, 12, 100)}
    for name in ("0.png", "0007.PNG", "12.png", "000100.png"):
        Image.fromarray(arrays[int(name.split(".")[0])]).save(folder / name, format="PNG")
    for other in ("notes.txt", "._12.png", ".DS_Store", "img_9.png", "mask.jpg", "12.5.png", "-3.png"):
        (folder / other).write_text("not a image", encoding="utf-8")
    (folder / "5").mkdir()
    stimuli = written(folder, tmp_path / "stimuli.h5")
    np.testing.assert_array_equal(stimuli.image_id, [0, 7, 12, 100])
    for i, image in arrays.items():
        np.testing.assert_array_equal(stimuli.images(np.array([i]))[0], image)
    images = open_images(folder)
    assert images.ignored == ("-3.png", "12.5.png", "img_9.png", "mask.jpg")
    assert "ignored: 4, such as -3.png" in images.said_of_names()


def test_an_array_whose_row_is_the_image(tmp_path: Path) -> None:
    array = noise(5, SIDE, SIDE, 3)
    np.save(tmp_path / "images.npy", array)
    stimuli = written(tmp_path / "images.npy", tmp_path / "stimuli.h5")
    np.testing.assert_array_equal(stimuli.images(np.arange(5)), array)


def test_a_image_that_fits_keeps_every_pixel() -> None:
    array = noise(SIDE, SIDE, 3)
    image, done = squared(Image.fromarray(array), SIDE)
    np.testing.assert_array_equal(image, array)
    assert done == []


def test_the_central_square_is_kept() -> None:
    array = noise(SIDE, SIDE + 7, 3)
    for given, wanted in ((array, array[:, 3:15]), (array.transpose(1, 0, 2), array.transpose(1, 0, 2)[3:15])):
        image, done = squared(Image.fromarray(np.ascontiguousarray(given)), SIDE)
        np.testing.assert_array_equal(image, wanted)
        assert done == ["cut to the central square"]


def test_resizing_is_that_of_lanczos() -> None:
    array = noise(30, 30, 3)
    image, done = squared(Image.fromarray(array), SIDE)
    np.testing.assert_array_equal(image, np.asarray(Image.fromarray(array).resize((SIDE, SIDE), Image.LANCZOS)))
    assert done == ["resized"]
    assert (
        squared(Image.fromarray(np.full((5, 5, 3), 77, np.uint8)), SIDE)[0].tolist()
        == np.full((SIDE, SIDE, 3), 77).tolist()
    )


def test_grey_is_repeated_over_the_channels() -> None:
    grey = noise(SIDE, SIDE)
    image, done = squared(Image.fromarray(grey), SIDE)
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))
    assert done == ["grey turned into RGB"]


def test_transparent_parts_become_black() -> None:
    colours, alpha = noise(SIDE, SIDE, 3), noise(SIDE, SIDE)
    layered = Image.fromarray(np.dstack([colours, alpha]))
    image, done = squared(layered, SIDE)
    wanted = colours * (alpha[..., None] / 255)
    np.testing.assert_allclose(image, wanted, atol=1)
    assert done == ["set on black"]
    opaque = Image.fromarray(np.dstack([colours, np.full_like(alpha, 255)]))
    image, done = squared(opaque, SIDE)
    np.testing.assert_array_equal(image, colours)
    assert done == []


def test_palette_and_grey_with_transparency(tmp_path: Path) -> None:
    grey = noise(SIDE, SIDE)
    Image.fromarray(grey).convert("P").save(tmp_path / "1.png")
    alpha = np.where(np.arange(SIDE) < 6, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([grey, np.broadcast_to(alpha, grey.shape)])).save(tmp_path / "2.png")
    stimuli = written(tmp_path, tmp_path / "stimuli.h5")
    np.testing.assert_array_equal(stimuli.images(np.array([1]))[0], np.repeat(grey[..., None], 3, axis=2))
    layered = stimuli.images(np.array([2]))[0]
    np.testing.assert_array_equal(layered[:, :6], np.repeat(grey[:, :6, None], 3, axis=2))
    assert not layered[:, 6:].any()


def test_what_was_done_is_recorded_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(noise(SIDE, SIDE, 3)).save(tmp_path / "1.png")
    Image.fromarray(noise(SIDE, 2 * SIDE)).save(tmp_path / "2.jpg")
    Image.fromarray(noise(30, 30, 3)).save(tmp_path / "3.jpeg")
    with caplog.at_level(logging.INFO):
        written(tmp_path, tmp_path / "stimuli.h5")
    said = "1 of 3 cut to the central square; 1 of 3 grey turned into RGB; 1 of 3 resized"
    with h5py.File(tmp_path / "stimuli.h5") as handle:
        assert handle.attrs["altered"] == said
        assert handle["images"].chunks == (1, SIDE, SIDE, 3)
    assert said in caplog.text


def test_the_hash_follows_pixels_ids_and_captions(tmp_path: Path) -> None:
    array = noise(3, SIDE, SIDE, 3)
    np.save(tmp_path / "a.npy", array)
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(array):
        Image.fromarray(image).save(folder / f"{i}.png")
    hashes = [written(source, tmp_path / "s.h5").hash for source in (tmp_path / "a.npy", folder)]
    assert hashes[0] == hashes[1]
    write_images(tmp_path / "s.h5", open_images(folder), SIDE, [["x"], ["x"], ["y"]])
    hashes.append(Stimuli(tmp_path / "s.h5").hash)
    (folder / "2.png").rename(folder / "3.png")
    hashes.append(written(folder, tmp_path / "s.h5").hash)
    np.save(tmp_path / "a.npy", array[:, ::-1])
    hashes.append(written(tmp_path / "a.npy", tmp_path / "s.h5").hash)
    assert len(set(hashes)) == 4


def test_the_fingerprint_follows_content_and_not_dates(tmp_path: Path) -> None:
    for i in (1, 2):
        Image.fromarray(noise(SIDE, SIDE, 3)).save(tmp_path / f"{i}.png")
    before = open_images(tmp_path).fingerprint()
    os.utime(tmp_path / "1.png", (1, 1))
    assert open_images(tmp_path).fingerprint() == before
    (tmp_path / "1.png").rename(tmp_path / "3.png")
    assert open_images(tmp_path).fingerprint() != before


def test_two_files_for_one_image(tmp_path: Path) -> None:
    for name in ("012.png", "12.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"012.png and 12.jpg are both image 12. Keep one of them"):
        open_images(tmp_path)


def test_a_number_too_large(tmp_path: Path) -> None:
    (tmp_path / "20240131123456.png").touch()
    with pytest.raises(
        UserError, match=r"20240131123456.png names image 20240131123456; image ids are at most 21474836"
    ):
        open_images(tmp_path)


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no image \(.png, .jpg, .jpeg\) of an image. Name images by image id"):
        open_images(tmp_path)
    (tmp_path / "img_12.png").touch()
    with pytest.raises(
        UserError, match=r"such as 12.png or 000012.jpg. Not named so and ignored: 1, such as img_12.png"
    ):
        open_images(tmp_path)


@pytest.mark.parametrize("name", ["3.png", "3.jpg"])
@pytest.mark.parametrize("keep", [0, 20, 60, 0.5, 0.9])
def test_a_damaged_image_is_named(tmp_path: Path, name: str, keep: float) -> None:
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(UserError, match=rf"{name} cannot be read as an image \(.*Write it again, as PNG or JPEG"):
        written(tmp_path, tmp_path / "stimuli.h5")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_bytes_turned_over_in_a_png_are_met(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "3.png")
    content = bytearray((tmp_path / "3.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "3.png").write_bytes(content)
    with pytest.raises(UserError, match=r"3.png cannot be read as an image"):
        written(tmp_path, tmp_path / "stimuli.h5")


def test_images_of_16_bits_are_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 30_000, np.uint16)).save(tmp_path / "3.png")
    with pytest.raises(UserError, match=r"3.png has pixels of mode I(;16)?; wanted 8 bits per channel"):
        written(tmp_path, tmp_path / "stimuli.h5")


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 4), np.uint8), noise(0, 4, 4, 3)],
)
def test_arrays_of_another_form(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(UserError, match=r"images.npy is \w+ \(.*\); wanted images \(images, height, width, 3\) uint8"):
        open_images(tmp_path / "images.npy")


# ---- what a file holds beyond its pixels -----------------------------------------------------------------------------


def save(path: Path, image: Image.Image, orientation: int = 0, **more: Any) -> Path:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif, **more)
    return path


def said_of(folder: Path, target: Path, **more: Any) -> str:
    images = open_images(folder)
    write_images(target, images, SIDE, [["x"]] * len(images.ids), **more)
    with h5py.File(target) as handle:
        return str(handle.attrs["altered"])


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_orientation_tags_are_counted_and_followed_where_asked(
    tmp_path: Path, orientation: int, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "images").mkdir()
    array = np.zeros((SIDE, SIDE, 3), np.uint8)
    array[:3, :5] = 200
    path = save(tmp_path / "images" / f"1.{suffix}", Image.fromarray(array), orientation)
    save(tmp_path / "images" / "2.png", Image.fromarray(array), 1)
    stored, turned = np.asarray(Image.open(path)), np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert (stored != turned).any()
    said = said_of(tmp_path / "images", tmp_path / "s.h5")
    assert said.startswith("1 of 2 kept as stored, although their orientation tag turns them (data.orientation=tag")
    assert said in caplog.text
    np.testing.assert_array_equal(Stimuli(tmp_path / "s.h5").images(np.array([1]))[0], stored)
    assert said_of(tmp_path / "images", tmp_path / "t.h5", turn=True) == "1 of 2 turned by their orientation tag"
    np.testing.assert_array_equal(Stimuli(tmp_path / "t.h5").images(np.array([1, 2])), [turned, array])


def png_of_16_bits(values: Any) -> bytes:
    """A PNG of (H, W, 3) uint16, which Pillow reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_every_loss_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = Image.fromarray(noise(SIDE, SIDE, 3))
    image.convert("CMYK").save(folder / "1.jpg")
    (folder / "2.png").write_bytes(png_of_16_bits(RNG.integers(0, 65536, (SIDE, SIDE, 3))))
    image.convert("P").save(folder / "3.png")
    other, standard = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
    image.save(folder / "4.png", icc_profile=ImageCms.ImageCmsProfile(other).tobytes())
    image.save(folder / "5.png", icc_profile=ImageCms.ImageCmsProfile(standard).tobytes())
    image.save(folder / "6.png", save_all=True, append_images=[Image.fromarray(noise(SIDE, SIDE, 3))])
    image.putalpha(Image.fromarray(noise(SIDE, SIDE)))
    image.save(folder / "7.png")
    with caplog.at_level(logging.WARNING):
        said = said_of(folder, tmp_path / "s.h5")
    assert said in caplog.text
    assert said.split("; ") == [
        "1 of 7 CMYK or YCbCr (by plain formula, without colour profile) turned into RGB",
        "1 of 7 cut from 16 to 8 bits",
        "1 of 7 palette turned into RGB",
        "1 of 7 read without their colour profile, which is not sRGB",
        "1 of 7 set on black",
        "1 of 7 the first of several frames",
    ]


def test_blank_images_are_refused_as_they_are_prepared(tmp_path: Path) -> None:
    Image.fromarray(noise(SIDE, SIDE, 3)).save(tmp_path / "1.png")
    Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(tmp_path / "7.png")
    with pytest.raises(UserError, match=r"^image 7: every value .* catch trial.* leave it and its trials out"):
        written(tmp_path, tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()


@pytest.mark.parametrize("how", ["folder", "link", "loop"])
def test_what_is_no_file_is_called_what_it_is(tmp_path: Path, how: str) -> None:
    path = tmp_path / "4.png"
    if how == "folder":
        path.mkdir()
    else:
        path.symlink_to("gone.png" if how == "link" else "4.png")
    message = {"folder": "4.png is a folder", "link": r"4.png is a link to gone.png, which is not there"}
    with pytest.raises(UserError, match=message.get(how, r"4.png is a link to 4.png, which is not there")) as error:
        open_images(tmp_path)
    assert "owner" not in str(error.value)
