"""The trained mapper: what `nd train mapper=two_stage` leaves, and how it predicts.

Shapes: N images, V voxels, P numbers of a flattened target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.config import MapperConfig, NetworkConfig
from nd.data.scaling import Scaler
from nd.mappers.base import Mapper
from nd.mappers.network.heads import TargetSlice
from nd.mappers.network.network import Network, predict_slices
from nd.mappers.network.trunk import Front, SubjectLayers
from nd.mappers.statistics import TargetScale

if TYPE_CHECKING:
    from nd.data.subject import Subject

IMAGES_AT_ONCE = 64


class TwoStage(Mapper):
    """One subject's voxels to one target through a trained network; made by `of` or `restore`, never by `fit`."""

    name = "two_stage"

    def __init__(
        self, network: Network, subject: str, seed: int, scaler: Scaler, scale: TargetScale, details: dict[str, Any]
    ) -> None:
        """Wrap a network that knows `subject` and predicts one target.

        Args:
            seed: of the prior's noise.
            scaler: of the voxels.
            scale: of the target.
            details: plain JSON values, as `of` makes them.
        """
        self.network, self.subject, self.seed, self.scale = network.eval(), subject, seed, scale
        self._arrays = {"voxel_mean": scaler.mean, "voxel_scale": scaler.scale}
        self._details, self._kept = details, None
        self.device = torch.device("cpu")  # whoever knows the settings says where it predicts

    # ---- how voxels come in: what mappers of another front end replace -----------------------------------------------

    @classmethod
    def front(cls, config: MapperConfig, subjects: Sequence[Subject], seed: int) -> Front:
        """Return how the voxels of some subjects come into a network that is to be trained.

        Args:
            config: of the mapper.
            subjects: seen through their ROI.
            seed: of what is drawn.
        """
        return SubjectLayers({subject.name: subject.n_voxels for subject in subjects})

    @classmethod
    def stand_in(cls, config: MapperConfig, n_voxels: Mapping[str, int]) -> Front:
        """Return a front for estimates of memory, of which the numbers of voxels by subject are known alone."""
        return SubjectLayers(n_voxels)

    @classmethod
    def restored_front(
        cls, config: MapperConfig, subject: str, n_voxels: int, state: Mapping[str, NDArray[Any]]
    ) -> Front:
        """Return the front of a checkpoint, whose arrays are `state`."""
        return SubjectLayers({subject: n_voxels})

    # ---- made, stored, restored --------------------------------------------------------------------------------------

    @classmethod
    def of(
        cls,
        network: Network,
        target: str,
        subject: str,
        seed: int,
        scaler: Scaler,
        scale: TargetScale,
        details: dict[str, Any],
    ) -> Self:
        """Return the mapper of one target and subject, out of a network that may know several.

        Args: as of the class; details: how it was trained, to which what `restore` needs is added.
        """
        slices = [part for part in network.slices if part.target == target]
        own = Network(network.config, slices, network.front.of(subject), network.variant)
        weights = {name: value for name, value in network.state_dict().items() if name in own.state_dict()}
        own.load_state_dict(weights)
        known = {"network": asdict(network.config), "variant": network.variant, "subject": subject, "seed": seed}
        return cls(own, subject, seed, scaler, scale, {**details, **known, "parts": [asdict(part) for part in slices]})

    @classmethod
    def restore(cls, config: MapperConfig, state: Mapping[str, NDArray[Any]], details: dict[str, Any]) -> Self:
        """Return a trained mapper from what `state` and `details` gave."""
        slices = [TargetSlice(**{**part, "shape": tuple(part["shape"])}) for part in details["parts"]]
        scaler = Scaler(mean=np.asarray(state["voxel_mean"]), scale=np.asarray(state["voxel_scale"]))
        scale = TargetScale(np.asarray(state["target_mean"]), np.asarray(state["target_std"]))
        subject = details["subject"]
        front = cls.restored_front(config, subject, len(scaler.mean), state)
        network = Network(NetworkConfig(**details["network"]), slices, front, details["variant"])
        weights = {name: value for name, value in state.items() if name.startswith("network.")}
        network.load_state_dict({n.removeprefix("network."): torch.tensor(v) for n, v in weights.items()})
        return cls(network, subject, details["seed"], scaler, scale, details)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return weights, statistics of voxels and target, and what the front keeps of the subject."""
        weights = {f"network.{name}": value.cpu().numpy() for name, value in self.network.state_dict().items()}
        return (
            weights
            | self._arrays
            | self.network.front.arrays(self.subject)
            | {"target_mean": self.scale.mean, "target_std": self.scale.scale}
        )

    def predict(self, voxels_NV: NDArray[np.float32], image_ids: NDArray[Any] | None = None) -> NDArray[np.float32]:
        """Return predicted targets (N, P) float32.

        Args:
            voxels_NV: (N, V) float32 responses as measured.
            image_ids: (N,) of the images, which fix the prior's noise; by default their places.
        """
        ids = np.arange(len(voxels_NV)) if image_ids is None else np.asarray(image_ids)
        scaled = torch.from_numpy(self.scaler.transform(voxels_NV))
        network = self.network.to(self.device)
        blocks = [slice(start, start + IMAGES_AT_ONCE) for start in range(0, len(ids), IMAGES_AT_ONCE)]
        with torch.inference_mode():
            rows = [self._block(network, scaled[block], torch.from_numpy(ids[block])) for block in blocks]
        self.network.cpu()
        return np.concatenate(rows) if rows else np.empty((0, len(self.scale.mean)), np.float32)

    def projected(self, voxels_NV: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return what the contrastive heads make of responses as measured: (N, T * D) float32 by slice that has one.

        They are trained to lie nearest to their own target, less the training mean: made for retrieval.
        """
        scaled = torch.from_numpy(self.scaler.transform(voxels_NV))
        with torch.inference_mode():
            outputs = self.network.cpu()({self.subject: scaled})
        found = {name: output.projected for name, output in outputs.items()}
        return {name: value.flatten(1).numpy() for name, value in found.items() if value is not None}

    def _block(self, network: Network, voxels_NV: Tensor, ids: Tensor) -> NDArray[np.float32]:
        predicted = predict_slices(network, {self.subject: voxels_NV.to(self.device)}, ids, self.seed)
        columns = torch.cat([predicted[part.name].flatten(1) for part in network.slices], 1).float().cpu().numpy()
        return np.asarray(columns * self.scale.scale + self.scale.mean, np.float32)
