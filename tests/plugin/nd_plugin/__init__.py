"""What another package adds to nd: target grey, mapper shrunk, generator tiles and measure brightness.

B images, S tiles of a side, V voxels, P numbers of a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import Config, MapperConfig, MethodConfig, TargetConfig
from nd.config.components import Generator, Mapper, Target
from nd.config.fields import opt
from nd.metrics.measures import Measure

# ---- target: the mean grey of square tiles


@dataclass(kw_only=True)
class GreySettings(TargetConfig):
    """grey: the mean grey of square tiles."""

    name: str = opt("grey", "target")
    tiles: int = opt(4, "grey: tiles of a side")


class Grey:
    """The mean grey of tiles, (S, S) in [0, 1]."""

    name = "grey"
    needs = "images"

    def __init__(self, tiles: int) -> None:
        self.shape = (tiles, tiles)

    def fingerprint(self) -> dict[str, Any]:
        """The rule alone."""
        return {"target": "grey", "rule": "mean of RGB over tiles", "tiles": self.shape[0]}

    def __call__(self, items: Any) -> NDArray[np.float32]:
        """(B, S, S) float32."""
        images, tiles = items.images, self.shape[0]
        side = images.shape[1] // tiles
        cut = images[:, : side * tiles, : side * tiles].reshape(len(images), tiles, side, tiles, side, 3)
        return (cut.mean((2, 4, 5)) / 255).astype(np.float32)


GREY = Target(name="grey", settings=GreySettings, build=lambda settings, cfg, backbone: Grey(settings.tiles))

# ---- mapper: ridge regression with one penalty, in five lines


@dataclass(kw_only=True)
class ShrunkSettings(MapperConfig):
    """shrunk: ridge regression with one penalty."""

    name: str = opt("shrunk", "mapper")
    strength: float = opt(100.0, "shrunk: penalty")


class Shrunk:
    """Ridge regression with one penalty."""

    name = "shrunk"
    kept = None

    def __init__(self, config: ShrunkSettings, arrays: dict[str, Any] | None = None) -> None:
        self.config, self.arrays = config, arrays or {}

    @property
    def scaler(self) -> Any:
        """How voxels are scaled."""
        from nd.data.scaling import Scaler

        return Scaler(mean=self.arrays["voxel_mean"], scale=self.arrays["voxel_scale"])

    def fit(self, data: Any, scratch: Path | None = None) -> None:
        """Fit on the training images."""
        x, y = data.train_voxels, data.targets.columns(data.train_ids, 0, data.targets.size)
        self.arrays = {"voxel_mean": x.mean(0), "voxel_scale": x.std(0) + 1e-6, "mean": y.mean(0)}
        x = (x - self.arrays["voxel_mean"]) / self.arrays["voxel_scale"]
        gram = x @ x.T + self.config.strength * np.eye(len(x), dtype=np.float32)
        self.arrays["weights"] = (x.T @ np.linalg.solve(gram, y - self.arrays["mean"])).astype(np.float32)

    def predict(self, voxels_NV: NDArray[np.float32], image_ids: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """(N, P) float32."""
        scaled = (voxels_NV - self.arrays["voxel_mean"]) / self.arrays["voxel_scale"]
        return (scaled @ self.arrays["weights"] + self.arrays["mean"]).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Arrays of the fit."""
        return self.arrays

    def details(self) -> dict[str, Any]:
        """Scores that `nd train` prints."""
        return {"scores": {"correlation": 0.0, "identification": 0.5}}


SHRUNK = Mapper(
    name="shrunk",
    settings=ShrunkSettings,
    build=lambda settings, device: Shrunk(settings),
    restore=lambda settings, state, details: Shrunk(settings, state),
)

# ---- generator: the tiles as an image, with a little noise


@dataclass(kw_only=True)
class TilesSettings(MethodConfig):
    """tiles: the decoded tiles shown as they are, with noise."""

    generator: str = opt("tiles", "what turns targets into images")
    noise: float = opt(0.02, "tiles: standard deviation of the noise")
    repeats: int = opt(2, "images per stimulus")


class Tiles:
    """Decoded tiles as grey images."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg

    def __call__(self, image_ids: Sequence[int], features: Mapping[str, Any]) -> list[Any]:
        """One run's images, (B, R, H, W, 3) uint8; noise is a function of seed, image and repeat."""
        from nd.generate.base import Reconstructions

        method, size = self.cfg.method, self.cfg.data.image_size
        out = np.empty((len(image_ids), method.repeats, size, size, 3), np.uint8)
        for row, image_id in enumerate(image_ids):
            tiles = features["grey"][row].cpu().numpy()
            for repeat in range(method.repeats):
                rng = np.random.default_rng([self.cfg.seed, image_id, repeat])
                grey = np.kron(tiles, np.ones((size // len(tiles),) * 2)) + rng.normal(0, method.noise, (size, size))
                out[row, repeat] = (255 * grey.clip(0, 1))[..., None].round()
        return [Reconstructions(out)]


def build(cfgs: Sequence[Config], device: Any) -> Tiles:
    """The generator of one run."""
    return Tiles(cfgs[0])


COMPONENTS = (Generator(name="tiles", settings=TilesSettings, needs=("grey",), draws=True, build=build),)

# ---- measure: how alike the brightness is


def brightness(preds_B3HW: Any, true_B3HW: Any) -> Any:
    """(B,) 1 - absolute difference of the mean brightness."""
    return 1 - (preds_B3HW.mean((1, 2, 3)) - true_B3HW.mean((1, 2, 3))).abs()


BRIGHTNESS = Measure("brightness", "pixels", score="nd_plugin:brightness")
