"""Images read where they lie: both layouts and number types, linked and copied, and files that went astray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_files import edited
from numpy.typing import NDArray

from nd.data.images import ImageFile
from nd.data.linked_stimuli import write_linked_stimuli
from nd.data.prepared import Stimuli
from nd.errors import LeakError, UserError

IDS = np.array([30, 10, 20])
ROWS = np.array([3, 1, 8])
CAPTIONS = [["thirty"], ["ten", "10"], ["twenty"]]
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 6, 10, 3), dtype=np.uint8)


def write_source(path: Path, kind: str = "bytes", chunks: Any = None, images: NDArray[Any] = IMAGES) -> Path:
    """The images as NSD holds them (bytes, channels last) or as MindEye2 does (halves, channels first)."""
    halves = (images / np.float64(255)).astype(np.float16).transpose(0, 3, 1, 2)
    with h5py.File(path, "w") as handle:
        handle.create_dataset("imgBrick", data=images if kind == "bytes" else halves, chunks=chunks)
    return path


def write(folder: Path, source: Path, **changes: Any) -> Path:
    arguments = {"image_id": IDS, "rows": ROWS, "captions": CAPTIONS, "in_place": True, "progress": False}
    write_linked_stimuli(folder / "stimuli.h5", file=source, key="imgBrick", **(arguments | changes))
    return folder / "stimuli.h5"


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path]:
    """(stimuli file, the image file it links to)."""
    source = write_source(tmp_path / "nsd_stimuli.hdf5")
    return write(tmp_path, source), source


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("kind", ["bytes", "halves"])
def test_images_come_back_as_bytes(tmp_path: Path, kind: str, chunked: bool, in_place: bool) -> None:
    chunks = ((4, 6, 5, 1) if kind == "bytes" else (4, 1, 6, 5)) if chunked else None
    read = Stimuli(write(tmp_path, write_source(tmp_path / "images.hdf5", kind, chunks), in_place=in_place))
    assert read.shape == (6, 10, 3)
    asked, rows = np.array([20, 30, 20, 10]), [8, 3, 8, 1]  # 255 levels survive halves: their step is at most 1 / 2048
    np.testing.assert_array_equal(read.images(asked), IMAGES[rows])
    assert read.images(asked).dtype == np.uint8
    assert read.captions(np.array([10, 30])) == [["ten", "10"], ["thirty"]]
    np.testing.assert_array_equal(read.image_id, IDS)


def test_the_hash_is_that_of_the_images_however_they_are_kept(tmp_path: Path) -> None:
    hashes = set()
    for kind in ("bytes", "halves"):
        source = write_source(tmp_path / f"{kind}.hdf5", kind)
        for in_place in (True, False):
            hashes.add(Stimuli(write(tmp_path, source, in_place=in_place)).hash)
    assert len(hashes) == 1
    changed = IMAGES.copy()
    changed[8, 5, 9, 2] ^= 1
    source = write_source(tmp_path / "changed.hdf5", images=changed)
    assert Stimuli(write(tmp_path, source)).hash not in hashes
    source = write_source(tmp_path / "same.hdf5")
    assert Stimuli(write(tmp_path, source, captions=[["thirty"], ["ten"], ["twenty"]])).hash not in hashes
    assert Stimuli(write(tmp_path, source, image_id=IDS + 1)).hash not in hashes


def test_the_hash_says_that_it_is_of_a_sample(tmp_path: Path) -> None:
    many = np.random.default_rng(1).integers(0, 256, (200, 2, 2, 3), dtype=np.uint8)
    source, everything = write_source(tmp_path / "many.hdf5", images=many), np.arange(200)
    arguments = {"image_id": everything, "rows": everything, "captions": [["x"]] * 200}
    path = write(tmp_path, source, **arguments)
    with h5py.File(path) as handle:
        assert handle.attrs["hash_of"] == "ids, captions, shape and the pixels of 64 of 200 images"
        assert "image_row" not in handle  # row = position
    first = Stimuli(path).hash
    many[199] ^= 1  # the ends are always looked at
    assert Stimuli(write(tmp_path, write_source(source, images=many), **arguments)).hash != first


def test_a_link_copies_nothing(tmp_path: Path) -> None:
    big = np.random.default_rng(1).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    source = write_source(tmp_path / "nsd_stimuli.hdf5", images=big)
    path = write(tmp_path, source)
    assert path.stat().st_size < 30_000 < source.stat().st_size / 20
    with h5py.File(path) as handle:
        assert handle.attrs["layout"] == "HWC"
        assert handle.get("images", getlink=True).filename == str(source)
        assert handle.attrs["linked_bytes"] == source.stat().st_size


@pytest.mark.parametrize("in_place", [True, False])
def test_equal_images_are_named_and_blank_ones_refused(
    tmp_path: Path, in_place: bool, caplog: pytest.LogCaptureFixture
) -> None:
    images = IMAGES.copy()
    images[8] = images[1]
    source = write_source(tmp_path / "images.hdf5", images=images)
    prints = Stimuli(write(tmp_path, source, in_place=in_place)).prints()
    assert "1 images are equal to an image of another id (10 and 20)" in caplog.text
    np.testing.assert_array_equal(prints.image_id, IDS)
    assert prints.pixels[1] == prints.pixels[2] != prints.pixels[0]
    images[8] = 128
    with pytest.raises(UserError, match=r"image 20: every value of the image is the same. A blank stimulus"):
        write(tmp_path, write_source(source, images=images), in_place=in_place)


def test_a_copy_needs_the_image_file_no_more(tmp_path: Path) -> None:
    source = write_source(tmp_path / "images.hdf5", "halves")
    path = write(tmp_path, source, in_place=False)
    source.unlink()
    np.testing.assert_array_equal(Stimuli(path).images(IDS), IMAGES[ROWS])
    with h5py.File(path) as handle:
        assert handle["images"].chunks == (1, 6, 10, 3)


def test_linked_images_are_guarded_too(linked: tuple[Path, Path]) -> None:
    read = Stimuli(linked[0], allowed_ids=np.array([10, 20]))
    assert len(read.images(np.array([20, 10]))) == 2
    with pytest.raises(LeakError, match="first: image 30"):
        read.images(np.array([10, 30]))


def bytes_read() -> int:
    """Bytes that this process has read from files so far."""
    counters = Path("/proc/self/io")
    if not counters.is_file():
        pytest.skip("needs /proc/self/io, which this system does not have")
    return int(counters.read_text(encoding="utf-8").split()[1])


def test_a_cache_holds_the_chunks_of_one_image(tmp_path: Path) -> None:
    """Asked for in any order, every chunk is read from the file once."""
    images = np.random.default_rng(1).integers(0, 256, (64, 256, 256, 3), dtype=np.uint8)
    source = write_source(tmp_path / "images.hdf5", images=images, chunks=(64, 32, 32, 3))
    rows = np.random.default_rng(2).permutation(64)
    read = ImageFile(source, "imgBrick")
    out, before = np.empty_like(images), bytes_read()
    for position, image in read.each(rows, rows):
        out[position] = image
    n_read = bytes_read() - before
    np.testing.assert_array_equal(out, images[rows])
    assert images.nbytes < n_read < 1.5 * images.nbytes  # 64 times as much where nothing is kept


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.25, 1.5])
@pytest.mark.parametrize("in_place", [True, False])
def test_floats_that_are_no_image_are_named(tmp_path: Path, value: float, in_place: bool) -> None:
    source = write_source(tmp_path / "images.hdf5", "halves")
    with edited(source) as handle:
        handle["imgBrick"][1, 2, 0, 0] = value
    match = r"images.hdf5: image 10 has values from .* to .*floats must lie in \[0, 1\]"
    with pytest.raises(UserError, match=match):
        write(tmp_path, source, in_place=in_place)
    assert [p.name for p in tmp_path.iterdir()] == ["images.hdf5"]
    good = write(tmp_path, write_source(tmp_path / "images.hdf5", "halves"))
    with edited(source) as handle:
        handle["imgBrick"][1, 2, 0, 0] = value
    with pytest.raises(UserError, match=match):
        Stimuli(good).images(np.array([20, 10]))


@pytest.mark.parametrize("how", ["missing", "foreign", "truncated"])
def test_an_image_file_that_is_gone_or_damaged(linked: tuple[Path, Path], how: str) -> None:
    path, source = linked
    content = source.read_bytes()
    source.unlink() if how == "missing" else source.write_bytes(b"x" * len(content))
    if how == "truncated":
        source.write_bytes(content[:-200])
        match = (
            rf"nsd_stimuli.hdf5 has {len(content) - 200} bytes, but had {len(content)} when .*stimuli.h5 was prepared"
        )
    elif how == "missing":
        match = r"stimuli.h5 reads images from .*nsd_stimuli.hdf5, which is not there or cannot be read. Put it back"
    else:
        match = r"nsd_stimuli.hdf5 is not a whole HDF5 file"
    with pytest.raises(UserError, match=match):
        Stimuli(path)


def test_an_image_file_changed_for_another(linked: tuple[Path, Path]) -> None:
    path, source = linked
    write_source(source, images=IMAGES[:5])
    with pytest.raises(UserError, match=r"bytes, but had .* remove .*stimuli.h5 and run `nd prepare` again"):
        Stimuli(path)
    with edited(path) as handle:
        handle.attrs["linked_bytes"] = source.stat().st_size
    with pytest.raises(UserError, match=r"its 3 images are not among the 5 images of .*nsd_stimuli.hdf5"):
        Stimuli(path)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    source = tmp_path / "images.hdf5"
    with h5py.File(source, "w") as handle:
        dataset = handle.create_dataset("imgBrick", data=IMAGES, chunks=(1, 6, 10, 3), compression="gzip")
        chunk = dataset.id.get_chunk_info(8)
    path = write(tmp_path, source)
    with open(source, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    assert len(Stimuli(path).images(np.array([10]))) == 1
    with pytest.raises(UserError, match=r"images.hdf5 is damaged at image 20, image row 8"):
        Stimuli(path).images(np.array([20]))


def test_the_source_must_be_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the image file .*absent.hdf5 is not there. Fetch it; `nd doctor`"):
        write(tmp_path, tmp_path / "absent.hdf5")
    source = tmp_path / "other.hdf5"
    source.write_bytes(b"no HDF5 at all")
    with pytest.raises(UserError, match=r"other.hdf5 is not a whole HDF5 file"):
        write(tmp_path, source)
    with h5py.File(source, "w") as handle:
        handle["betas"] = np.zeros(3)
    with pytest.raises(UserError, match=r"other.hdf5 holds no images 'imgBrick' but betas"):
        write(tmp_path, source)


@pytest.mark.parametrize("values", [np.zeros((9, 6, 10)), np.zeros((9, 6, 10, 4)), np.zeros((9, 6, 10, 3), np.int32)])
def test_datasets_that_are_no_images(tmp_path: Path, values: NDArray[Any]) -> None:
    source = tmp_path / "other.hdf5"
    with h5py.File(source, "w") as handle:
        handle["imgBrick"] = values
    with pytest.raises(UserError, match=r"/imgBrick is \w+ \(9, 6, .*; wanted images .N, H, W, 3. or .N, 3, H, W."):
        write(tmp_path, source)


@pytest.mark.parametrize("layout", ["CHW", "other"])
def test_a_layout_that_the_images_do_not_have(linked: tuple[Path, Path], layout: str) -> None:
    with edited(linked[0]) as handle:
        handle.attrs["layout"] = layout
    with pytest.raises(UserError, match=r"nsd_stimuli.hdf5: /imgBrick is uint8 \(9, 6, 10, 3\); wanted images"):
        Stimuli(linked[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.array([3, 1, 9])}, r"holds 9 images in imgBrick; rows 1..9 are asked for"),
        ({"rows": np.array([3, -1, 8])}, r"rows -1..8 are asked for"),
        ({"image_id": np.array([1, 2, 1])}, "the same image twice"),
        ({"captions": [["one"], [], ["two"]]}, "image 10 has no caption"),
        ({"captions": [["one"]]}, "3 images but 1 captions"),
        ({"rows": [], "image_id": [], "captions": []}, "no image is given"),
    ],
)
def test_entries_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = write_source(tmp_path / "nsd_stimuli.hdf5")
    with pytest.raises(UserError, match=message):
        write(tmp_path, source, **change)
    assert not (tmp_path / "stimuli.h5").exists()
