"""Every reader of files meets files that are none: it gives what is there, or one message, and nothing else.

Each begins with a file that it reads, of which bytes are exchanged, put in, cut out or cut off. A few dozen files a
reader here, always the same ones; ``tests/faults/fuzz.py`` goes on with others for as long as wanted, with an eye on
memory.
"""

from __future__ import annotations

import io
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from nd.data.captions import captions_for
from nd.data.mat import read_mat
from nd.data.mindeye2 import tree as mindeye2
from nd.data.mindeye2.trials import read_tar
from nd.data.nsd.betas import read_session
from nd.data.nsd.design import _coco_column
from nd.data.nsd.volumes import Mask, read_labels, read_volume
from nd.data.own_images import open_images
from nd.data.prepared import Stimuli, Subject, write_stimuli, write_subject
from nd.data.rows import RowFile
from nd.data.whole_numbers import read_numbers
from nd.digests import digest_file
from nd.errors import UserError
from nd.evaluation.external_files import read_array, read_folder
from nd.evaluation.reconstructions import Wanted, read_images
from nd.evaluation.scores import read_per_image
from nd.evaluation.summary import Summary
from nd.files import json_line, read_json, read_lines, write_json
from nd.generate.ic_gan.generator import load_generator
from nd.generate.inputs import PredictedFeatures
from nd.generate.parts import Parts
from nd.mappers.checkpoint import checked_arrays
from nd.mappers.training.callbacks import CurveLine
from nd.runs.manifest import Manifest
from nd.tables.specs import load_spec
from nd.targets.store import TargetStore

EXAMPLES = 25
WANTED = Wanted(np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32), "canonical")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
VALUES = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
FOREIGN = ("synchronously", "errno =", "slist", "B-tree", "object header")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


# ---- files that are read, by the name of their reader


def stimuli(path: Path) -> None:
    write_stimuli(path, images=PIXELS, captions=[["a"], ["b", "c"], ["d"], ["e"]], image_id=np.arange(4))


def subject(path: Path) -> None:
    ids = np.arange(4)
    write_subject(
        path, voxels=VALUES, image_id=ids, session=ids // 2, repeat=ids * 0, trial=ids, attributes={"source": "x"},
        rois={"V1": np.arange(6) < 3}, ijk=np.zeros((6, 3), np.int16), ncsnr=np.ones(6, np.float32),
    )  # fmt: skip


def without_digests(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same file as others write it."""

    def plain(path: Path) -> None:
        write(path)
        with h5py.File(path, "r+") as handle:
            del handle["digests"]

    return plain


def store(path: Path) -> None:
    with h5py.File(path, "w") as handle:
        handle["features"], handle["image_id"], handle["reference"] = VALUES, np.arange(4, dtype=np.int32), VALUES
        known = {"shape": "[2, 3]", "target": "z", "fingerprint": "f", "details": "{}", "versions": "{}"}
        handle.attrs.update(known)


def predictions(path: Path) -> None:
    with h5py.File(path, "w") as handle:
        handle["image_id"], handle["z"] = np.arange(4, dtype=np.int32), VALUES


def images(path: Path) -> None:
    with h5py.File(path, "w") as handle:
        handle["image_id"], handle["images"] = np.arange(4, dtype=np.int32), PIXELS[:, None]
        handle.attrs["seed"] = 3


def betas(path: Path) -> None:
    with h5py.File(path, "w") as handle:
        handle.create_dataset("betas", data=(300 * VALUES.reshape(4, 1, 2, 3)).astype(np.int16), compression="gzip")


def nifti(path: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(VALUES.reshape(4, 3, 2), np.eye(4)), path)


def mat(path: Path) -> None:
    from scipy.io import savemat

    savemat(path, {"a": VALUES, "b": np.arange(5)}, do_compression=True)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for n in range(2):
            content = io.BytesIO()
            np.save(content, np.arange(mindeye2.N_COLUMNS, dtype=float)[None])
            member = tarfile.TarInfo(f"sample{n}.behav.npy")
            member.size = len(content.getvalue())
            archive.addfile(member, io.BytesIO(content.getvalue()))


def image(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(PIXELS[0]).save(path)


def recorded(path: Path, kind: dict[str, Any]) -> None:
    write_json(path, kind)


SUMMARY = {
    "metrics": {"pixcorr": {"mean": 0.5, "lo": 0.4, "hi": 0.6}}, "protocol": {"name": "nd", "version": 1},
    "test_set": "f", "n_images": 4, "n_repeats": 1, "oracle": False, "simulated": True, "control": "none",
}  # fmt: skip
MANIFEST = {
    "verb": "train", "identity": {"seed": 1}, "config": {}, "overrides": [], "seeds": {}, "inputs": {}, "nd": "0",
    "files": {"a": {"size": 1, "mtime_ns": 2, "sha256": "f"}}, "python": "3", "packages": {}, "git": {}, "device": {},
    "seconds": 1.5,
}  # fmt: skip
LINE = {"epoch": 0, "step": 1, "loss": 0.5, "losses": {"z": 0.5}, "lr": 0.1, "samples_per_s": 1.0, "val": {}}
SPEC = """# A table.
title: t
experiment: scenes
subjects: [subj01]
columns: [{metric: pixcorr, name: PixCorr}]
rows: [{label: pixels, overrides: [method=ridge_pixels]}]
"""
MASK = Mask(Path("mask"), (3, 2, 1), np.array([[0, 0, 0], [2, 1, 0]], np.int16))


def read_subject(path: Path) -> Any:
    found = Subject(path)
    return found.voxels(np.arange(len(found.image_id))), found.mask_of("all")


def read_stimuli(path: Path) -> Any:
    found = Stimuli(path)
    return found.images(found.image_id), found.captions(found.image_id), found.prints()


def read_store(path: Path) -> Any:
    found = TargetStore(path)
    return found.rows(found.image_id), found.reference


def read_own(path: Path) -> Any:
    found = open_images(path.parent)
    return [found.image(place, 8, turn=True) for place in range(len(found.ids))]


def read_arrays_of(path: Path) -> Any:
    return checked_arrays(path, digest_file(path), "Again.")


def write_text(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text, encoding="utf-8") and None


READERS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "stimuli": ("stimuli.h5", stimuli, read_stimuli),
    "stimuli of others": ("stimuli.h5", without_digests(stimuli), read_stimuli),
    "subject": ("subj01.h5", subject, read_subject),
    "subject of others": ("subj01.h5", without_digests(subject), read_subject),
    "matrix": ("x.h5", subject, lambda path: RowFile(path).read(np.arange(4))),
    "store": ("x.h5", store, read_store),
    "predictions": ("x.h5", predictions, lambda path: PredictedFeatures(path).rows("z", [0, 2, 3])),
    "images": ("images.h5", images, lambda path: np.asarray(read_images(path)[0][:])),
    "part": ("part-000000.h5", images, lambda path: Parts(path.parent).finished()),
    "images elsewhere .h5": ("x.h5", images, lambda path: read_array(path, Wanted(WANTED.ids))),
    "images elsewhere .npy": ("x.npy", lambda path: np.save(path, PIXELS), lambda path: read_array(path, WANTED)),
    "images elsewhere .pt": (
        "x.pt", lambda path: torch.save(torch.from_numpy(PIXELS), path), lambda path: read_array(path, WANTED),
    ),
    "images elsewhere .png": (
        "folder/0.png", image, lambda path: read_folder(path.parent, Wanted(WANTED.ids, subset=True)),
    ),
    "own images .png": ("folder/0.png", image, read_own),
    "own images .jpg": ("folder/0.jpg", image, read_own),
    "own images .npy": ("x.npy", lambda path: np.save(path, PIXELS), lambda path: open_images(path).image(0, 8)),
    "betas .hdf5": ("x.hdf5", betas, lambda path: read_session(path, MASK)),
    "betas .nii.gz": ("x.nii.gz", nifti, lambda path: read_volume(path)),
    "volume .nii": ("x.nii", nifti, lambda path: read_volume(path)),
    "labels": ("x.ctab", write_text("0 Unknown\n1 V1v\n2 V1d\n"), read_labels),
    "design .mat": ("x.mat", mat, lambda path: read_mat(path, ["a", "b"], "Fetch it again.")),
    "list of images .csv": ("x.csv", write_text("nsdId,cocoId\n0,5\n1,7\n"), _coco_column),
    "trials .tar": ("x.tar", tar, read_tar),
    "numbers": ("x.txt", write_text("image\n1\n2\n# no\n3\n"), read_numbers),
    "numbers .npy": ("x.npy", lambda path: np.save(path, np.arange(5)), read_numbers),
    "captions": ("x.json", write_text('{"0": ["a"], "1": ["b", "c"]}'), lambda path: captions_for(path, [0, 1])),
    "captions of COCO": (
        "x.json", write_text('{"annotations": [{"image_id": 1, "caption": "a"}]}'),
        lambda path: captions_for(path, [0], [1]),
    ),
    "captions .npy": ("x.npy", lambda path: np.save(path, np.array([["a", ""]])), lambda p: captions_for(p, [0])),
    "scores.json": ("x.json", lambda path: recorded(path, SUMMARY), lambda path: read_json(path, Summary)),
    "manifest.json": ("x.json", lambda path: recorded(path, MANIFEST), lambda path: read_json(path, Manifest)),
    "curve": ("x.jsonl", write_text(json_line(LINE) * 2), lambda path: read_lines(path, CurveLine)),
    "per_image.csv": ("per_image.csv", write_text("image_id,pixcorr\n0,0.5\n1,\n"), read_per_image),
    "checkpoint": ("x.safetensors", lambda path: save_file({"a": VALUES}, path), read_arrays_of),
    "generator": (
        "x.safetensors", lambda path: save_file({"a": VALUES}, path),
        lambda path: load_generator(path, torch.device("cpu")),
    ),
    "table": ("x.yaml", write_text(SPEC), lambda path: load_spec(str(path))),
}  # fmt: skip
REFUSED_WHOLE = {"generator"}  # their own files take too long to make: only that nothing else is raised is seen here


def edits(length: int) -> st.SearchStrategy[list[tuple[str, int, bytes]]]:
    """What is done to a file, one after another."""
    place = st.integers(0, max(0, length - 1))
    one = st.tuples(st.sampled_from(["exchange", "put in", "cut out", "cut off"]), place, st.binary(max_size=9))
    return st.lists(one, min_size=1, max_size=4)


def edited(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, put in changes:
        gone = {"exchange": len(put), "put in": 0, "cut out": 1 + 16 * len(put), "cut off": len(content)}[kind]
        content = content[:place] + (put if kind in ("exchange", "put in") else b"") + content[place + gone :]
    return content


def meets(read: Callable[[Path], Any], path: Path) -> None:
    """Read a file that may be anything; a refusal names the file, or its folder, in our words."""
    try:
        read(path)
    except UserError as error:
        said = str(error)
    else:
        return
    assert path.name in said or str(path.parent) in said
    assert [word for word in FOREIGN if word in said] == []


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", READERS)
def test_a_reader_meets_spoilt_files(name: str, lab: Path) -> None:
    file, write, read = READERS[name]
    folder = lab / name.replace(" ", "-").replace(".", "")
    folder.mkdir()
    path = folder / file
    write(path)
    if name not in REFUSED_WHOLE:
        read(path)
    whole = path.read_bytes()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(edits(len(whole)))
    def fuzz(changes: list[tuple[str, int, bytes]]) -> None:
        path.write_bytes(edited(whole, changes))
        meets(read, path)

    fuzz()


@pytest.mark.parametrize("kind", [Summary, Manifest, CurveLine, list[str], dict])
def test_any_json_is_read_or_refused(kind: Any, lab: Path) -> None:
    path = lab / "any.json"

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(JSON)
    def fuzz(value: Any) -> None:
        write_json(path, value)
        meets(lambda one: read_json(one, kind), path)

    fuzz()


# ---- what must not happen whatever a file holds ----------------------------------------------------------------------


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_reader_runs_what_a_file_holds(tmp_path: Path) -> None:
    exploded = tmp_path / "exploded"
    np.save(tmp_path / "x.npy", np.array([Bomb(exploded)], dtype=object), allow_pickle=True)
    torch.save(Bomb(exploded), tmp_path / "x.pt")
    (tmp_path / "x.yaml").write_text(f"!!python/object/apply:pathlib.Path.touch [{exploded}]", encoding="utf-8")
    for path, read in (
        (tmp_path / "x.npy", read_numbers),
        (tmp_path / "x.npy", lambda path: read_array(path, WANTED)),
        (tmp_path / "x.pt", lambda path: read_array(path, WANTED)),
        (tmp_path / "x.pt", lambda path: load_generator(path, torch.device("cpu"))),
        (tmp_path / "x.yaml", lambda path: load_spec(str(path))),
    ):
        with pytest.raises(UserError, match=path.name):
            read(path)
    assert not exploded.exists()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not have."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def test_headers_that_claim_terabytes_take_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.png").write_bytes(png_of(2**20, 2**20))
    nifti(tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()  # dim[1:4]: 140 TB of float32
    (tmp_path / "x.nii").write_bytes(content)
    with h5py.File(tmp_path / "x.hdf5", "w") as handle:
        handle.create_dataset("betas", (4, 1 << 20, 1 << 20, 1 << 10), np.int16, chunks=(4, 1, 1, 64))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776)}"
    (tmp_path / "x.npy").write_bytes(header.ljust(127) + b"\n")
    for path, read in (
        (tmp_path / "folder" / "0.png", read_own),
        (tmp_path / "folder" / "0.png", lambda path: read_folder(path.parent, Wanted(WANTED.ids, subset=True))),
        (tmp_path / "x.nii", read_volume),
        (tmp_path / "x.hdf5", lambda path: read_session(path, MASK)),
        (tmp_path / "x.npy", read_numbers),
    ):
        with pytest.raises(UserError, match=path.name):
            read(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 200 << 20
