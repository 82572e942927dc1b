"""What every reader gives of the files of a finished table, so that it can be compared with what a spoilt file gives.

A reader takes a tree and the place of a file in it, and returns something that is equal where the file says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from tree import Tree

import nd
from nd.data.piece_records import check_piece, manifest_of, recorded_hash
from nd.data.prepared import Stimuli, Subject
from nd.digests import digest_array, digest_bytes
from nd.errors import UserError
from nd.evaluation.reconstructions import check_ids, read_images
from nd.evaluation.scores import read_per_image, read_scores
from nd.generate.inputs import PredictedFeatures
from nd.mappers.checkpoint import Origin, load, read_details
from nd.metrics.features import cached
from nd.runs.catalogue import known_runs, scores_of
from nd.runs.folder import RunFolder
from nd.sealed import recorded_of
from nd.targets.store import TargetStore

Reader = Callable[[Tree, Path], Any]
COMPUTED = "computed again"


def reader_of(place: Path) -> Reader | None:
    """Return the reader of a file by its place in a tree; None for those that are for people."""
    kind, name = place.parts[0], place.name
    if kind == "data":
        return {"stimuli.h5": stimuli, "manifest.json": prepared_manifest}.get(name, subject)
    if kind == "cache":
        return {"targets": store}.get(place.parts[1], kept_features) if place.suffix == ".h5" else None
    if kind != "runs":
        return None
    own = {"predictions.h5": predictions, "images.h5": images, "per_image.csv": per_image, "manifest.json": manifest}
    own |= {"config.yaml": config}
    if name == "scores.json":
        return scores if place.parts[1] == "evaluate" else None
    return own.get(name) or (checkpoint if "checkpoint" in place.parts else None)


# ---- data


def stimuli(tree: Tree, place: Path) -> Any:
    check_piece(tree.root / place)
    found = Stimuli(tree.root / place)
    ids = found.image_id
    prints = found.prints()
    kept = [digest_array(values) for values in (ids, found.images(ids), prints.pixels, prints.small)]
    return kept, found.captions(ids), found.hash, found.shape


def subject(tree: Tree, place: Path) -> Any:
    check_piece(tree.root / place)
    found = Subject(tree.root / place)
    rows = np.arange(len(found.image_id))
    columns = [found.image_id, found.session, found.repeat, found.trial, found.held_out, found.ijk, found.voxels(rows)]
    rois = {name: digest_array(mask) for name, mask in found.rois.items()}
    noise = None if found.ncsnr is None else digest_array(found.ncsnr)
    return [digest_array(np.asarray(one)) for one in columns], rois, noise, found.name, found.attributes


def prepared_manifest(tree: Tree, place: Path) -> Any:
    folder = (tree.root / place).parent
    content = manifest_of(folder)["files"]
    hashes = {name: recorded_hash(folder / name) for name in ("stimuli.h5", "subj01.h5")}
    return {name: (entry["bytes"], entry["sha256"], entry["settings"]) for name, entry in content.items()}, hashes


# ---- cache


def store(tree: Tree, place: Path) -> Any:
    found = TargetStore(tree.root / place)
    known = found.shape, found.fingerprint, found.details, found.versions, found.target
    values = [found.image_id, found.rows(found.image_id), found.reference, found.columns(found.image_id[::2], 1, 5)]
    return known, [digest_array(one) for one in values]


def kept_features(tree: Tree, place: Path) -> Any:
    layers = [name for name in recorded_of(REFERENCE.root / place).of if name]
    try:
        found = cached(tree.root / place, layers, _no_compute)
    except LookupError:
        return COMPUTED
    return {name: digest_array(values.numpy()) for name, values in found.items()}


def _no_compute() -> dict[str, torch.Tensor]:
    raise LookupError(COMPUTED)


# ---- runs


def run_of(tree: Tree, place: Path) -> RunFolder:
    """The folder of a run, through whose record everything in it is reached."""
    folder = tree.root / Path(*place.parts[:3])
    return RunFolder(place.parts[1], folder, folder.name.rpartition("-")[2])


def predictions(tree: Tree, place: Path) -> Any:
    path = run_of(tree, place).output(place.name)
    ids = _ids(REFERENCE.root / place)
    found = PredictedFeatures(path)
    targets = list(recorded_of(REFERENCE.root / place).rows)
    return {name: digest_array(found.rows(name, ids.tolist())) for name in targets}


def images(tree: Tree, place: Path) -> Any:
    path = run_of(tree, place).output(place.name)
    found, ids, facts = read_images(path)
    check_ids(ids, _ids(REFERENCE.root / place), path)
    return digest_array(np.asarray(found[:])), digest_array(ids), facts


def _ids(path: Path) -> NDArray[np.int32]:
    with h5py.File(path) as handle:
        return handle["image_id"][()]


def checkpoint(tree: Tree, place: Path) -> Any:
    run = run_of(tree, place)
    run.outputs_below("checkpoint")
    path = (tree.root / place).with_suffix(".safetensors")
    origin = Origin(**read_details((REFERENCE.root / place).with_suffix(".safetensors"))["origin"])
    mapper = load(path, origin, "nd train")
    voxels = np.random.default_rng(0).standard_normal((3, origin.n_voxels)).astype(np.float32)
    return digest_array(mapper.predict(voxels)), read_details(path)["shape"], mapper.details()


def manifest(tree: Tree, place: Path) -> Any:
    run = run_of(tree, place)
    content = run.manifest
    known = [one for one in known_runs(tree.root / "runs") if one.path == run.path]
    listed = [(one.state, one.identity, sorted(scores_of(one))) for one in known]
    return {key: value for key, value in content.items() if key != "device"}, run.fingerprint, listed


def scores(tree: Tree, place: Path) -> Any:
    return {**vars(read_scores((tree.root / place).parent)), "path": ""}


def per_image(tree: Tree, place: Path) -> Any:
    return {name: digest_array(values) for name, values in read_per_image(tree.root / place).items()}


def config(tree: Tree, place: Path) -> Any:
    return str(nd.read_run((tree.root / place).parent).config)


# ---- outcomes

REFERENCE = Tree(Path())  # becomes the finished tree


def outcome(read: Reader, tree: Tree, place: Path, wanted: Any) -> tuple[str, str]:
    """Read a spoilt file; return what became of it, and what was said.

    ``refused`` with a message, ``the same`` content, ``computed again``, ``SILENT``: other content without a word, or
    ``TRACEBACK``: any other error.
    """
    try:
        found = read(tree, place)
    except UserError as error:
        return ("refused" if not FOREIGN(str(error)) else "FOREIGN WORDS"), str(error)
    except Exception as error:
        return "TRACEBACK", f"{type(error).__name__}: {error}"
    if found == COMPUTED:
        return COMPUTED, ""
    return ("the same" if equal(found, wanted) else "SILENT"), ""


def equal(found: Any, wanted: Any) -> bool:
    """Whether two contents say the same; NaN is equal to itself."""
    return digest_bytes(repr(found).encode()) == digest_bytes(repr(wanted).encode())


def FOREIGN(text: str) -> bool:  # noqa: N802
    """Whether HDF5's own words are in a message."""
    return any(word in text for word in ("synchronously", "errno =", "slist", "H5", "B-tree", "object header"))
