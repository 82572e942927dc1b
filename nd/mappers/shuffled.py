"""Control: images that a mapper learns from are paired with the targets of others: there is nothing to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config
from nd.targets.store import TargetStore


def control_of(cfg: Config, store: TargetStore, ids: NDArray[Any]) -> Readable:
    """The store, or under ``control=shuffled_labels`` one whose features of ``ids`` have changed places."""
    return ShuffledTargets(store, ids, cfg.seed) if cfg.control == "shuffled_labels" else store


class ShuffledTargets:
    """A store's features with those of some images exchanged among them, by a function of the seed.

    Attributes: as of ``TargetStore``.
    """

    def __init__(self, store: TargetStore, ids: NDArray[Any], seed: int) -> None:
        """ids: images whose features change places along one random cycle, so that none keeps its own."""
        self.store, self.size, self.shape = store, store.size, store.shape
        self.fingerprint, self.target = store.fingerprint, store.target
        order = np.random.default_rng([seed, len(ids)]).permutation(np.unique(ids))
        self._other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """(n, *shape) float32."""
        return self.store.rows(self._exchanged(ids))

    def columns(self, ids: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
        """(n, stop - start) float32."""
        return self.store.columns(self._exchanged(ids), start, stop)

    def _exchanged(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        return np.array([self._other.get(int(i), int(i)) for i in np.asarray(ids).reshape(-1)], np.int64)


Readable = TargetStore | ShuffledTargets
