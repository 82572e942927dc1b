"""The features of one target for all stimuli, on disk: written once, read by rows or columns through a memory map.

One HDF5 file: `features` (N, P), `image_id` (N,) int32, `reference` (4, P) features of four fixed images, attributes,
and digests of them all (`nd.sealed`). The features are uncompressed and contiguous, not chunked: only then can a file
be memory-mapped, and a row is one stretch of it however many there are, while columns, which ridge regression reads,
cost no more than their pages. A row is compared with its digest when anything of it is first read.
Shapes: N images of the stimuli file, n images asked for, P numbers per image (the product of the target's shape).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nd.backbone.loading import Backbone
from nd.config import Config
from nd.data.prepared import Stimuli, check_allowed, stimuli_path
from nd.errors import UserError
from nd.files import HASH_CHARS, sha256_json
from nd.h5_values import attribute, dataset_of, read_whole
from nd.hdf5 import open_h5
from nd.sealed import recorded_of
from nd.targets.base import Extractor
from nd.targets.components import build_extractor

LAYOUT_VERSION = 2
AGAIN = "Remove it and run `nd extract` again."
FINGERPRINT = re.compile(f"[0-9a-f]{{{HASH_CHARS}}}")


def store_path(cfg: Config, target_name: str = "") -> Path:
    """Where the store of a target lies: `<paths.cache>/targets/<data>-<target>-<fingerprint>.h5`.

    Args:
        cfg: configuration; `cfg.target` gives the target's settings whatever its own name is.
        target_name: target, by default `cfg.target.name`.

    Raises:
        UserError: the stimuli or the backbone's weights, whose contents are part of the name, are absent.
    """
    name = target_name or cfg.target.name
    return store_of(cfg, name, wanted_fingerprint(cfg, name))


def store_of(cfg: Config, target_name: str, fingerprint: str) -> Path:
    """Where the store of a target with that fingerprint lies, whatever the present settings and weights are."""
    return Path(cfg.paths.cache) / "targets" / f"{cfg.data.name}-{target_name}-{fingerprint}.h5"


def wanted_fingerprint(cfg: Config, target_name: str) -> str:
    """The fingerprint of a target under the present settings, weights and stimuli; loads no model."""
    own = cfg.decoding(target_name).target
    extractor = build_extractor(target_name, cfg, extraction_backbone(cfg, own.precision))
    return store_fingerprint(details_of(extractor, Stimuli(stimuli_path(cfg)), own.dtype, own.precision))


def extraction_backbone(cfg: Config, precision: str, device: Any = "cpu") -> Backbone:
    """Return the backbone as features are extracted with it: in `target.precision`, whatever the sampler's is."""
    return Backbone(cfg.backbone, device, dtype=precision)


def details_of(extractor: Extractor, stimuli: Stimuli, dtype: str, precision: str) -> dict[str, Any]:
    """Everything the stored values depend on, by name."""
    return {
        **extractor.fingerprint(),
        "stimuli": stimuli.hash_of(extractor.needs),
        "dtype": dtype,
        "precision": precision,
    }


def store_fingerprint(details: dict[str, Any]) -> str:
    """12 hexadecimal digits of everything the stored values depend on."""
    return sha256_json([LAYOUT_VERSION, details])


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs between the details of two stores, a text for each: 'tower_mean: [0.5] in the store, [0.4] now'."""
    keys = sorted({*found, *wanted})
    return [f"{k}: {found.get(k)} in the store, {wanted.get(k)} now" for k in keys if found.get(k) != wanted.get(k)]


class TargetStore:
    """A finished store opened for reading; with `allowed_ids` every other image is out of reach (`LeakError`).

    Attributes: `shape` of one image's features; `size` P; `fingerprint`; `details` behind it; `target`; `image_id` (N,)
    int32 of all images; `versions` of the packages it was made with.
    """

    def __init__(self, path: Path, allowed_ids: NDArray[Any] | None = None) -> None:
        """Open the file. UserError: missing, truncated or not a target store."""
        self.path = Path(path)
        self.allowed_ids = None if allowed_ids is None else np.unique(allowed_ids)
        if not self.path.exists():
            target = self.path.stem.rsplit("-", 2)[1] if self.path.stem.count("-") > 1 else "<name>"
            raise UserError(f"the features {self.path} do not exist. Run: nd extract target={target}")
        with open_h5(self.path) as handle:
            if "features" not in handle or "reference" not in handle or "fingerprint" not in handle.attrs:
                raise UserError(f"{self.path} is not a target store. {AGAIN}")
            self.image_id: NDArray[np.int32] = read_whole(handle, "image_id", "iu", (None,))
            self.shape: tuple[int, ...] = tuple(attribute(handle, "shape", list[int]))
            self.fingerprint: str = attribute(handle, "fingerprint", str)
            self.details: dict[str, Any] = attribute(handle, "details", dict)
            self.versions: dict[str, str] = attribute(handle, "versions", dict[str, str])
            self.target: str = attribute(handle, "target", str)
            self.size = math.prod(self.shape)
            self._layout = _layout(dataset_of(handle, "features"), self.path, (len(self.image_id), self.size))
        self._row = {int(i): row for row, i in enumerate(self.image_id)}
        self._check_name()

    def _check_name(self) -> None:
        """Refuse a store that lies under the name of another."""
        named = self.path.stem.rpartition("-")[2]
        if FINGERPRINT.fullmatch(named) and FINGERPRINT.fullmatch(self.fingerprint) and named != self.fingerprint:
            raise UserError(f"{self.path} holds other features than its name says, {self.fingerprint}. {AGAIN}")

    @property
    def reference(self) -> NDArray[np.float32]:
        """(4, P) float32: features of the four reference images when the store was begun."""
        with open_h5(self.path) as handle:
            return np.asarray(read_whole(handle, "reference", "f", (None, self.size)), np.float32)

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Features (n, *shape) float32, in the order of `ids`."""
        return self.columns(ids, 0, self.size).reshape(-1, *self.shape)

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        """Return some of the numbers of the features of some images.

        Args:
            ids: (n,) image ids.
            start: first number of an image's flattened features.
            stop: end of the numbers.

        Returns:
            (n, stop - start) float32, in the units of the target.
        """
        dtype, offset, shape = self._layout
        # Mapped for this call alone: nothing stays resident, and a pickled reader does not carry the features along.
        features, rows = np.memmap(self.path, dtype, "r", offset, shape), self._rows(ids)
        recorded_of(self.path).check_before("features", rows, lambda some: features[some])
        return np.asarray(features[rows, start:stop], np.float32)

    def _rows(self, ids: NDArray[Any]) -> NDArray[np.intp]:
        ids = np.asarray(ids, np.int64).reshape(-1)
        if self.allowed_ids is not None:
            check_allowed(f"target {self.target!r} of {self.path.name}", ids, self.allowed_ids)
        absent = [int(i) for i in ids if int(i) not in self._row]
        if absent:
            raise UserError(f"{self.path} holds no image {absent[0]} ({len(absent)} of {len(ids)} are absent).")
        return np.array([self._row[int(i)] for i in ids], np.intp)


def _layout(features: h5py.Dataset, path: Path, shape: tuple[int, int]) -> tuple[np.dtype[Any], int, tuple[int, ...]]:
    """Type, place in the file and shape of the features. UserError where they are not there as they should be."""
    offset = features.id.get_offset()
    if features.dtype.kind != "f" or features.shape != shape:
        raise UserError(f"{path}: features are {features.dtype} {features.shape}, wanted floats {shape}. {AGAIN}")
    if offset is None or path.stat().st_size < offset + features.size * features.dtype.itemsize:
        raise UserError(f"{path} is truncated. {AGAIN}")
    return features.dtype, offset, features.shape
