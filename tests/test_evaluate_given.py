"""`nd evaluate images=...`: reconstructions made elsewhere, in every form, are scored as our own or refused by name."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from nd.config import Config, PathsConfig, ProtocolConfig
from nd.config.application import check, compose
from nd.data.prepared import Stimuli, Subject, stimuli_path, subject_path
from nd.errors import UserError
from nd.evaluate import evaluate
from nd.evaluation.external_files import read_array
from nd.evaluation.external_images import read_external
from nd.evaluation.reconstructions import Wanted
from nd.evaluation.scores import read_scores
from nd.files import read_json, sha256_json
from nd.generate.inputs import part_ids
from nd.runs.folder import RunFolder
from nd.runs.identity import identity_of

Pictures = NDArray[Any]


@pytest.fixture
def cfg(small_world: Config, tmp_path: Path) -> Config:
    """The small world, pixel metrics only, and folders of its own."""
    paths = PathsConfig(
        root=str(tmp_path), data=small_world.paths.data, cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs")
    )
    return replace(small_world, paths=paths, protocol=ProtocolConfig(network="none", n_boot=50))


@pytest.fixture
def ids(cfg: Config) -> list[int]:
    return part_ids(cfg)


@pytest.fixture
def pictures(cfg: Config, ids: list[int]) -> Pictures:
    """(12, 2, 64, 64, 3) uint8: the stimuli under noise."""
    stimuli = Stimuli(stimuli_path(cfg)).images(np.array(ids))
    noise = np.random.default_rng(0).normal(scale=60, size=(len(stimuli), 2, *stimuli.shape[1:]))
    return np.clip(stimuli[:, None] + noise, 0, 255).astype(np.uint8)


def saved(folder: Path, by_name: dict[str, Pictures]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in by_name.items():
        Image.fromarray(picture).save(folder / name)
    return folder


def by_id(pictures: Pictures, ids: list[int]) -> dict[str, Pictures]:
    return {
        f"{i:05d}_{r}.png": picture
        for i, repeats in zip(ids, pictures, strict=True)
        for r, picture in enumerate(repeats)
    }


def given(cfg: Config, source: Path, **more: Any) -> Config:
    return replace(cfg, images=str(source), **more)


def as_h5(path: Path, images: Pictures, ids: list[int] | NDArray[Any] | None = None, **facts: Any) -> Path:
    with h5py.File(path, "w") as handle:
        handle["images"] = images
        if ids is not None:
            handle["image_id"] = np.array(ids)
        handle.attrs.update(facts)
    return path


def as_npy(path: Path, images: Pictures) -> Path:
    np.save(path, images)
    return path


def as_pt(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


# ---- forms


def test_a_folder_scores_as_our_own_pictures_do(
    cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path
) -> None:
    run = RunFolder.open(cfg, "reconstruct")
    with run.writing(cfg):
        as_h5(run.path / "images.h5", pictures, ids, oracle=False)
    own = evaluate(cfg)
    folder = evaluate(given(cfg, saved(tmp_path / "pngs", by_id(pictures, ids))))
    assert folder != own
    assert (folder / "per_image.csv").read_bytes() == (own / "per_image.csv").read_bytes()
    summary = read_json(folder / "scores.json")
    assert (summary["generator"], summary["oracle"], summary["control"]) == ("given", False, "none")
    assert read_scores(folder).comparable == read_scores(own).comparable
    assert folder.name.startswith("scenes-subj01-given-")


FORMS: dict[str, Callable[[Path, Pictures, list[int]], Path]] = {
    "h5": lambda path, x, ids: as_h5(path / "x.h5", x, ids),
    "h5 in another order": lambda path, x, ids: as_h5(path / "x.hdf5", x[::-1], ids[::-1]),
    "h5 channels first": lambda path, x, ids: as_h5(path / "x.h5", np.moveaxis(x, -1, 2), ids),
    "pt with ids": lambda path, x, ids: as_pt(
        path / "x.pt", {"images": torch.from_numpy(x), "image_id": torch.tensor(ids)}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_with_ids(form: str, cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    read = read_external(given(cfg, FORMS[form](tmp_path, pictures, ids)))
    np.testing.assert_array_equal(read.images, pictures)
    assert read.image_ids.tolist() == ids
    assert read.hash == read_external(given(cfg, saved(tmp_path / "pngs", by_id(pictures, ids)))).hash


@pytest.mark.parametrize("write", [as_npy, lambda path, x: as_pt(path.with_suffix(".pt"), torch.from_numpy(x)), as_h5])
@pytest.mark.parametrize("channels_first", [False, True])
def test_files_without_ids_and_repeats(
    write: Callable[[Path, Pictures], Path], channels_first: bool, cfg: Config, pictures: Pictures, tmp_path: Path
) -> None:
    suffix = ".h5" if write is as_h5 else ".npy"
    plain = pictures[:, 0]
    path = write(tmp_path / f"x{suffix}", np.moveaxis(plain, -1, 1) if channels_first else plain)
    read = read_external(given(cfg, path, order="canonical"))
    np.testing.assert_array_equal(read.images, pictures[:, :1])
    assert read.image_ids.tolist() == part_ids(cfg)


def test_floats_are_scored_as_they_are(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    floats = pictures[:, 0].astype(np.float32) / 255
    read = read_external(given(cfg, as_h5(tmp_path / "x.h5", floats, ids)))
    assert read.images.dtype == np.float32
    scores = read_json(evaluate(given(cfg, tmp_path / "x.h5")) / "scores.json")["metrics"]
    evaluated = evaluate(given(cfg, as_h5(tmp_path / "y.h5", pictures[:, 0], ids)))
    assert read_json(evaluated / "scores.json")["metrics"]["ssim"]["mean"] == pytest.approx(
        scores["ssim"]["mean"], abs=1e-6
    )
    halves = as_pt(tmp_path / "x.pt", torch.from_numpy(floats).bfloat16())
    assert read_external(given(cfg, halves, order="canonical")).images.max() <= 1


def test_what_a_file_says_of_itself_is_kept(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    path = as_h5(tmp_path / "x.h5", pictures, ids, oracle=True, control="shuffled_voxels")
    run = read_scores(evaluate(given(cfg, path)))
    assert (run.oracle, run.control) == (True, "shuffled_voxels")


# ---- order


def first_seen(cfg: Config, ids: list[int]) -> list[int]:
    """The plain rule: walk through the trials in order, note each image once."""
    subject, order = Subject(subject_path(cfg)), []
    for k in sorted(range(len(subject.trial)), key=lambda k: subject.trial[k]):
        if subject.image_id[k] in ids and subject.image_id[k] not in order:
            order.append(int(subject.image_id[k]))
    return order


def test_first_appearance_is_the_order_of_the_trials(
    cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path
) -> None:
    order = first_seen(cfg, ids)
    assert order != ids, "this test needs a subject who saw the images in another order"
    in_order = pictures[[ids.index(i) for i in order]]
    source = saved(tmp_path / "pngs", {f"{k:05d}.png": repeats[0] for k, repeats in enumerate(in_order)})
    read = read_external(given(cfg, source, order="first_appearance"))
    np.testing.assert_array_equal(read.images, pictures[:, :1])
    assert read.image_ids.tolist() == ids
    other = read_external(given(cfg, source, order="canonical"))
    np.testing.assert_array_equal(other.images[:, 0], in_order[:, 0])
    assert other.hash != read.hash


def test_positions_are_numbers_not_letters(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    for stem in ("{}", "sub1_picture{}_best", "m²-{}"):
        names = {stem.format(k) + ".png": repeats[0] for k, repeats in enumerate(pictures)}  # 10 after 9
        read = read_external(given(cfg, saved(tmp_path / stem, names), order="canonical"))
        np.testing.assert_array_equal(read.images[:, 0], pictures[:, 0])
    names = {f"{k}_{r}.png": x for k, repeats in enumerate(pictures) for r, x in enumerate(repeats)}
    read = read_external(given(cfg, saved(tmp_path / "repeats", names), order="canonical"))
    np.testing.assert_array_equal(read.images, pictures)


def test_images_the_subject_never_saw_have_no_place(
    cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_npy(tmp_path / "x.npy", pictures)
    seen = Subject(subject_path(cfg))
    fewer = seen.only(seen.image_id != ids[3])
    monkeypatch.setattr("nd.evaluation.external_images.open_subject", lambda _: fewer)
    with pytest.raises(UserError, match=rf"no trial of 1 of the 12 images \[{ids[3]}\], so their place is not known"):
        read_external(given(cfg, path, order="first_appearance"))


# ---- refusals


def refused(cfg: Config, source: Path, match: str, **more: Any) -> None:
    with pytest.raises(UserError, match=match):
        evaluate(given(cfg, source, **more))
    assert not (Path(cfg.paths.runs) / "evaluate").exists()


def test_missing_foreign_and_doubled_images(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    names = by_id(pictures[:, :1], ids)
    fewer = {name: picture for name, picture in names.items() if not name.startswith(f"{ids[4]:05d}")}
    refused(cfg, saved(tmp_path / "fewer", fewer), rf"holds 11 images, the split has 12: 1 missing \[{ids[4]}\]")
    more = saved(tmp_path / "more", names | {"7.png": pictures[0, 0], "12_gt.png": pictures[0, 0]})
    refused(cfg, more, r"1 that do not belong \[7\].* Left out, since not named by image id: 1\.")
    twice = saved(tmp_path / "twice", names | {f"{ids[2]}.jpg": pictures[0, 0]})
    refused(cfg, twice, rf"{ids[2]}.jpg and {ids[2]:05d}_0.png are both repeat 0 of image {ids[2]}\. Keep one")
    refused(cfg, as_h5(tmp_path / "x.h5", pictures, [ids[0], *ids[:-1]]), "12 images for 11 different image ids")
    refused(cfg, as_h5(tmp_path / "y.h5", pictures[1:], ids[1:]), rf"1 missing \[{ids[0]}\]")


def test_some_of_the_images_are_scored_where_that_is_asked_for(
    cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path
) -> None:
    """Identification is among them alone, and the set is named by its hash."""
    some = [ids[k] for k in (1, 4, 5, 9)]
    source = saved(tmp_path / "some", by_id(pictures[[1, 4, 5, 9], :1], some))
    refused(cfg, source, r"8 missing .* \(subset=true scores those there are\)")
    found = read_scores(evaluate(given(cfg, source, subset=True)))
    whole = read_scores(evaluate(given(cfg, saved(tmp_path / "all", by_id(pictures[:, :1], ids)))))
    assert (found.n_images, whole.n_images) == (4, 12)
    assert found.comparable != whole.comparable
    assert found.test_set == sha256_json(some)
    foreign = saved(tmp_path / "foreign", by_id(pictures[:2, :1], [ids[0], 7]))
    refused(
        replace(cfg, paths=replace(cfg.paths, runs=str(tmp_path / "x"))),
        foreign,
        r"1 that do not belong \[7\]",
        subset=True,
    )


def test_an_image_that_lacks_a_repeat(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    names = by_id(pictures, ids)
    del names[f"{ids[5]:05d}_1.png"]
    refused(
        cfg, saved(tmp_path / "pngs", names), rf"image {ids[5]} lacks repeat 1, which others have; 2 of every image"
    )


def test_another_order_that_fits_better_is_named(
    cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images in the order of the trials, read as rising ids: at chance, and said so; of the right order, nothing."""
    in_order = pictures[[ids.index(i) for i in first_seen(cfg, ids)], :1]
    source = as_npy(tmp_path / "x.npy", in_order)
    evaluate(given(cfg, source, order="canonical"))
    said = r"order=canonical: identification by pixels is \d\.\d\d, near chance \(\.50\); by order=first_appearance"
    assert re.search(rf"{said} it is (0\.[89]\d|1\.00)\. .* Give order=first_appearance\.", caplog.text)
    caplog.clear()
    evaluate(given(cfg, source, order="first_appearance"))
    assert "order=" not in caplog.text
    same = np.repeat(in_order[:1], len(ids), axis=0)  # each stimulus has one rank, so every order is at .50
    evaluate(given(cfg, as_npy(tmp_path / "same.npy", same), order="canonical"))
    assert "is 0.50, near chance (.50), and no better in any other known order (first_appearance)." in caplog.text


def test_without_ids_an_order_is_asked_for(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    names = {f"best-{k}.png": repeats[0] for k, repeats in enumerate(pictures)}
    wanted = r"carry no image ids, so nothing says .* order=first_appearance .*Brain-Diffuser.* or order=canonical"
    refused(cfg, saved(tmp_path / "pngs", names), rf"\(such as best-0.png\) {wanted}")
    refused(cfg, as_npy(tmp_path / "x.npy", pictures), wanted)
    # Numbers that are positions look like ids.
    numbered = saved(tmp_path / "numbered", {f"{k:05d}.png": repeats[0] for k, repeats in enumerate(pictures)})
    refused(cfg, numbered, r"12 missing .* positions and no image ids \(0\.png is .*\), give order=first_appearance .*")
    refused(cfg, as_h5(tmp_path / "x.h5", pictures, ids), "leave order=canonical out", order="canonical")


def test_another_count_cannot_be_matched_by_position(cfg: Config, pictures: Pictures, tmp_path: Path) -> None:
    names = {f"p{k}.png": repeats[0] for k, repeats in enumerate(pictures[:-2])}
    wanted = r"images are 10, but the split has 12; matched by position \(order=canonical\)"
    refused(cfg, saved(tmp_path / "pngs", names), wanted, order="canonical")
    refused(cfg, as_npy(tmp_path / "x.npy", pictures[:-2]), wanted, order="canonical")


def test_pixels_that_mean_nothing(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    floats = pictures[:, 0].astype(np.float32)
    refused(cfg, as_h5(tmp_path / "a.h5", floats, ids), rf"image {ids[0]}: pixels run from .* to 255.* Divide 0-255")
    floats /= 255
    floats[3, 5, 5, 0] = np.nan
    refused(cfg, as_h5(tmp_path / "b.h5", floats, ids), rf"image {ids[3]}: 1 pixels are NaN")
    slightly = pictures[:, 0].astype(np.float32) / 255 * 1.2
    refused(cfg, as_h5(tmp_path / "d.h5", slightly, ids), r"pixels run from 0 to 1\.2, .*\. Clamp or rescale them\.")
    whole = pictures[:, 0].astype(np.int64)
    refused(cfg, as_h5(tmp_path / "c.h5", whole, ids), "int64 pixels were found, uint8 or floats")


def test_a_small_overshoot_is_clamped_and_counted(
    cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    floats = pictures[:, 0].astype(np.float32) / 255
    clean = read_json(evaluate(given(cfg, as_h5(tmp_path / "a.h5", floats, ids))) / "scores.json")["metrics"]
    assert "clamped" not in caplog.text
    n_white = int((floats == 1).sum())
    floats[floats == 1] = 1.00002
    found = read_json(evaluate(given(cfg, as_h5(tmp_path / "b.h5", floats, ids))) / "scores.json")["metrics"]
    assert f"b.h5: {n_white} values lie outside [0, 1], by at most a grey level; they are clamped" in caplog.text
    assert (n_white > 0, found) == (True, clean)


def png16(path: Path, side: int) -> None:
    """An RGB image with 16 bits per channel, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(range(6)) * side for _ in range(side))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_sixteen_bits_are_refused(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    folder = saved(tmp_path / "deep", by_id(pictures[:, :1], ids))
    png16(folder / f"{ids[2]:05d}_0.png", 64)
    refused(cfg, folder, rf"{ids[2]:05d}_0.png \(image {ids[2]}\) has 16 bits per channel; RGB with 8 is wanted")


def test_grey_pictures(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    grey = "Greyscale images are wanted as RGB: repeat their channel three times"
    refused(cfg, as_h5(tmp_path / "a.h5", pictures[:, 0, ..., 0], ids), grey)
    refused(cfg, as_h5(tmp_path / "b.h5", pictures[..., :1], ids), grey)
    names = by_id(pictures[:, :1], ids) | {f"{ids[1]:05d}_0.png": pictures[1, 0, ..., 0]}
    refused(cfg, saved(tmp_path / "grey", names), rf"{ids[1]:05d}_0.png \(image {ids[1]}\) is greyscale; RGB")
    alpha = np.concatenate([pictures[1, 0], pictures[1, 0, ..., :1]], -1)
    refused(cfg, saved(tmp_path / "alpha", names | {f"{ids[1]:05d}_0.png": alpha}), "is of mode RGBA; RGB")
    refused(cfg, as_h5(tmp_path / "c.h5", np.zeros((12, 9, 9, 4), np.uint8), ids), r"shape \(12, 9, 9, 4\) was found")


def test_sizes(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    names = by_id(pictures[:, :1], ids) | {f"{ids[1]:05d}_0.png": pictures[1, 0, :32, :32]}
    refused(cfg, saved(tmp_path / "sizes", names), rf"\(image {ids[1]}\) has 32 x 32 pixels, but .* 64 x 64")
    beside = np.concatenate([pictures[:, 0], pictures[:, 1]], 2)
    refused(cfg, as_h5(tmp_path / "a.h5", beside, ids), "128 x 64 pixels; square.* Where they are 2 images in one")
    refused(cfg, as_h5(tmp_path / "b.h5", pictures[..., :50, :], ids), "50 x 64 pixels; square images are wanted")
    half = as_h5(tmp_path / "c.h5", pictures[:, :, ::2, ::2], ids)
    assert evaluate(given(cfg, half)).is_dir(), "another square size is the protocol's business"


def test_files_that_cannot_be_read(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    folder = saved(tmp_path / "pngs", by_id(pictures[:, :1], ids))
    broken = folder / f"{ids[7]:05d}_0.png"
    broken.write_bytes(broken.read_bytes()[:500])
    refused(cfg, folder, rf"{broken.name} \(image {ids[7]}\) cannot be read as an image")
    for path in (as_h5(tmp_path / "x.h5", pictures, ids), as_npy(tmp_path / "x.npy", pictures)):
        path.write_bytes(path.read_bytes()[:5000])
        refused(cfg, path, "not a whole HDF5 file|is truncated", order="canonical")
    for content in (b"nonsense", b""):
        (tmp_path / "x.pt").write_bytes(content)
        refused(cfg, tmp_path / "x.pt", r"x.pt cannot be read as plain tensors", order="canonical")
    as_pt(tmp_path / "code.pt", {"images": Image.fromarray(pictures[0, 0])})
    wanted = r"cannot be read as plain tensors \(it holds PIL\.Image\.Image, which is code\)\. Save the tensor alone"
    refused(cfg, tmp_path / "code.pt", wanted, order="canonical")


@pytest.mark.parametrize(
    "content",
    [
        {"images": torch.zeros(2, 3, 16, 16).to_sparse()},
        {"images": torch.zeros(2, 3, 16, 16, device="meta")},
        {"images": torch.zeros(2, 3, 16, 16).to(torch.float8_e4m3fn)},
        {"images": torch.zeros(2, 3, 16, 16), "image_id": torch.arange(2).bfloat16()},
        {"images": torch.zeros(2, 3, 16, 16), "image_id": [[0], [1, 2]]},
    ],
)
def test_tensors_that_are_no_arrays(content: dict[str, Any], tmp_path: Path) -> None:
    wanted = rf"x\.pt: {list(content)[-1]} cannot be read as an array \(.+\)\. Save plain, dense tensors"
    with pytest.raises(UserError, match=wanted):
        read_array(as_pt(tmp_path / "x.pt", content), Wanted(np.arange(2, dtype=np.int32)))


def test_files_of_another_kind(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    (tmp_path / "x.zip").touch()
    refused(cfg, tmp_path / "x.zip", r"wanted a folder of .png or .jpg, or one file .h5, .hdf5, .npy, .pt")
    (tmp_path / "empty").mkdir()
    refused(cfg, tmp_path / "empty", "empty holds no image")
    refused(cfg, as_pt(tmp_path / "a.pt", {"recons": torch.zeros(1)}), "a.pt holds recons; wanted a tensor, or a dict")
    refused(cfg, as_pt(tmp_path / "b.pt", [torch.zeros(1)]), "b.pt holds list; wanted a tensor")
    refused(cfg, as_h5(tmp_path / "x.h5", pictures, np.array(ids) + 0.5), r"image_id is float64 \(12,\); whole numbers")
    with h5py.File(tmp_path / "y.h5", "w") as handle:
        handle["recons"] = pictures
    refused(cfg, tmp_path / "y.h5", "has no dataset images; it holds recons. Name it so")


def test_a_protocol_of_other_images(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    path = as_h5(tmp_path / "x.h5", pictures, ids)
    refused(
        replace(cfg, protocol=replace(cfg.protocol, n_images=982)), path, "12 images were given, it is defined on 982"
    )
    refused(replace(cfg, protocol=replace(cfg.protocol, label_identification=True)), path, "holds no labels")


# ---- identity


def test_the_folder_belongs_to_the_content(
    cfg: Config,
    pictures: Pictures,
    ids: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = evaluate(given(cfg, as_h5(tmp_path / "x.h5", pictures, ids)))
    other = pictures.copy()
    other[0, 0, 0, 0, 0] ^= 1
    assert evaluate(given(cfg, as_h5(tmp_path / "y.h5", other, ids))) != first
    assert evaluate(given(replace(cfg, part="test", seed=7), tmp_path / "y.h5")) != first
    monkeypatch.setattr("nd.evaluate.compare", lambda *_: pytest.fail("scored again"))
    moved = saved(tmp_path / "moved", by_id(pictures, ids))
    capsys.readouterr()
    assert evaluate(given(replace(cfg, seed=7, features="oracle"), moved)) == first
    assert re.search(r"protocol scenes.*: 12 images, 2 repeats.*\n +pixcorr +0\.\d+", capsys.readouterr().out)
    identity = read_json(first / "manifest.json")["identity"]
    assert not {name for name in identity if name.startswith(("method", "guidance", "target", "mapper", "backbone"))}


def test_data_protocol_and_part_count(cfg: Config) -> None:
    base = replace(cfg, images_hash="abc")
    for other in (
        replace(base, protocol=replace(cfg.protocol, image_size=32)),
        replace(base, data=replace(cfg.data, n_test=11)),
        replace(base, subject=replace(cfg.subject, name="subj02")),
        replace(base, part="val"),
    ):
        assert identity_of("evaluate", other) != identity_of("evaluate", base)


def test_a_hash_that_is_given_is_held_against(cfg: Config, pictures: Pictures, ids: list[int], tmp_path: Path) -> None:
    source = as_h5(tmp_path / "x.h5", pictures, ids)
    right = read_external(given(cfg, source)).hash
    assert read_external(given(cfg, source, images_hash=right)).hash == right
    refused(cfg, source, rf"holds other images \(hash {right}\) than images_hash=abc", images_hash="abc")


# ---- the command line


def test_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"order: it is about images made elsewhere"):
        compose(["order=canonical"])
    with pytest.raises(UserError, match=r"subset: it is about images made elsewhere"):
        compose(["subset=true"])
    with pytest.raises(UserError, match=r"subset: images of some test images have no place in an order; .*canonical"):
        compose([f"images={tmp_path}", "subset=true", "order=canonical"])
    with pytest.raises(UserError, match=r"subset: protocol mindeye2 is defined on all 1000 test images"):
        compose([f"images={tmp_path}", "subset=true", "data=nsd", "protocol=mindeye2"])
    with pytest.raises(UserError, match=r"images: .*nowhere does not exist"):
        compose([f"images={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match=r"images: images made elsewhere are for `nd evaluate`; `nd run` cannot"):
        check("run", [f"images={tmp_path}"])
    allowed = r"Allowed: '' \(none\), first_appearance, canonical\."
    with pytest.raises(UserError, match=rf"order: 'canonicl' is not allowed. Did you mean 'canonical'\? {allowed}"):
        compose([f"images={tmp_path}", "order=canonicl"])
    check("evaluate", [f"images={tmp_path}", "guidance.kappa=3", "part=val"])
    warned = capsys.readouterr().err
    assert "guidance.kappa has no effect: the images are given" in warned
    assert "part" not in warned
