"""mapper=cycle: fitted on one subject in three stages, kept as a decoder from voxels to one target's maps.

Shapes: N images, V voxels, P numbers of a flattened target, C colours, S side of a map.
"""

from __future__ import annotations

from dataclasses import asdict
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from nd.data.scaling import Scaler
from nd.errors import UserError
from nd.mappers.base import FoldData, Mapper
from nd.mappers.cycle.components import CycleSettings
from nd.mappers.cycle.networks import MapsToVoxels, VoxelsToMaps
from nd.mappers.cycle.stages import Outcome, Pairs, cycle, decode, encode
from nd.mappers.network.draws import key_of
from nd.mappers.statistics import TargetScale
from nd.mappers.validation import target_scores

IMAGES_AT_ONCE = 256


class Cycle(Mapper):
    """Voxels to maps, trained in three stages (``nd.mappers.cycle.stages``); keeps the decoder's weights."""

    name = "cycle"
    config: CycleSettings

    def fit(self, data: FoldData, scratch: Path | None = None) -> None:
        """Train encoder and decoder on a fold's training images; validation images say when to stop.

        Args:
            data: one row per image; its `unlabelled_ids` are seen by stage 3 where `unlabelled` is set.
            scratch: not used.

        Raises:
            UserError: the target is no square map, or a loss is not finite.
        """
        side, colours = map_shape(data.targets.size)
        scaler, scale = Scaler.fit(data.train_voxels), TargetScale.fit(data.targets, data.train_ids)
        # One scale for all columns: where a map hardly varies, an error counts as little as it is seen.
        scale = TargetScale(scale.mean, np.full_like(scale.scale, scale.scale.mean()))

        def maps(ids: NDArray[np.int32]) -> Tensor:
            standard = (data.targets.columns(ids, 0, data.targets.size) - scale.mean) / scale.scale
            return as_maps(torch.from_numpy(standard), side, colours).to(self.device)

        def pairs(voxels_NV: NDArray[np.float32], ids: NDArray[np.int32]) -> Pairs:
            return Pairs(torch.from_numpy(scaler.transform(voxels_NV)).to(self.device), maps(ids))

        train, held = pairs(data.train_voxels, data.train_ids), pairs(data.val_voxels, data.val_ids)
        others = data.unlabelled_ids if self.config.unlabelled else data.unlabelled_ids[:0]
        known = torch.cat([train.maps, maps(others)]) if self.config.cycle_steps else train.maps
        decoder, outcomes = self._trained(train, held, known, (side, colours))
        weights = {f"decoder.{name}": value.cpu().numpy() for name, value in decoder.state_dict().items()}
        statistics = {"voxel_mean": scaler.mean, "voxel_scale": scaler.scale}
        self._arrays = weights | statistics | {"target_mean": scale.mean, "target_scale": scale.scale}
        self._details = {
            "stages": {stage: asdict(outcome) for stage, outcome in outcomes.items()},
            "n_images": len(data.train_ids),
            "n_unlabelled": len(others) if self.config.cycle_steps else 0,
        }
        predicted = torch.from_numpy(self.predict(data.val_voxels))
        self._details["scores"] = target_scores(predicted, torch.from_numpy(data.val_ids), data.targets, scale)

    def _trained(
        self, train: Pairs, held: Pairs, known_MCSS: Tensor, shape: tuple[int, int]
    ) -> tuple[VoxelsToMaps, dict[str, Outcome]]:
        """The decoder after all stages, and how each went."""
        how, n_voxels = self.config, train.voxels.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_of(how.seed, "encoder"))
            encoder = MapsToVoxels(*shape, n_voxels, how.channels).to(self.device)
            torch.manual_seed(key_of(how.seed, "decoder"))
            decoder = VoxelsToMaps(*shape, n_voxels, how.channels, how.voxel_dropout).to(self.device)
            total = how.decode_steps + (how.encode_steps + how.cycle_steps if how.cycle_steps else 0)
            with tqdm(total=total, unit="step", disable=None, leave=False) as bar:

                def tell(stage: str, step: int) -> None:
                    bar.set_description(stage, refresh=False)
                    bar.update()

                outcomes = {}
                if how.cycle_steps:
                    outcomes["encode"] = encode(encoder, train, held, how, tell)
                outcomes["decode"] = decode(decoder, train, held, how, tell)
                if how.cycle_steps:
                    outcomes["cycle"] = cycle(encoder, decoder, train, held, known_MCSS, how, tell)
        return decoder, outcomes

    def predict(self, voxels_NV: NDArray[np.float32], image_ids: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Return predicted targets (N, P) float32 of responses (N, V) as measured; `image_ids` make no difference."""
        side, colours = map_shape(len(self._arrays["target_mean"]))
        how, scaled = self.config, torch.from_numpy(self.scaler.transform(voxels_NV))
        with torch.device("meta"):  # first weights would be drawn, from the caller's generator
            decoder = VoxelsToMaps(side, colours, scaled.shape[1], how.channels, how.voxel_dropout).eval()
        weights = {n: v for n, v in self._arrays.items() if n.startswith("decoder.")}
        decoder.load_state_dict({n.removeprefix("decoder."): torch.tensor(v) for n, v in weights.items()}, assign=True)
        with torch.inference_mode():
            rows = [flattened(decoder(part)).numpy() for part in scaled.split(IMAGES_AT_ONCE)]
        columns = np.concatenate(rows) if rows else np.empty((0, len(self._arrays["target_mean"])), np.float32)
        return np.asarray(columns * self._arrays["target_scale"] + self._arrays["target_mean"], np.float32)

    def centre(self) -> NDArray[np.float32]:
        """Return the mean (P,) of the training targets; of mean voxels the decoder, which bends, predicts another."""
        return np.asarray(self._arrays["target_mean"])


def map_shape(size: int) -> tuple[int, int]:
    """Return side and number of colours of a square map of so many numbers, one or three per place.

    Args:
        size: numbers of the flattened target.

    Raises:
        UserError: there is no such map.
    """
    for colours in (1, 3):
        side = isqrt(size // colours)
        if side * side * colours == size:
            return side, colours
    raise UserError(
        f"mapper=cycle decodes square maps, and a target of {size} numbers is none. Give mapper=ridge for it."
    )


def as_maps(flat_NP: Tensor, side: int, colours: int) -> Tensor:
    """Return flattened maps, colours last, as (N, C, S, S).

    Args:
        flat_NP: (N, S * S * C).
        side: S.
        colours: C.
    """
    return flat_NP.unflatten(1, (side, side, colours)).movedim(3, 1).contiguous()


def flattened(maps_NCSS: Tensor) -> Tensor:
    """Return maps (N, C, S, S) flattened, colours last: what ``as_maps`` was given."""
    return maps_NCSS.movedim(1, 3).flatten(1)
