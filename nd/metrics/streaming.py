"""torchmetrics classes over the metric functions: fed batch by batch, on any number of processes, in any order.

Every value is kept under its image id and repeat. The images that a distributed sampler hands out twice to fill the
last batch therefore count once, and the result does not depend on how the images were divided.

B batch, R repeats, N images, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from nd.errors import UserError
from nd.metrics.identification import two_way_identification

PairScore = Callable[[Tensor, Tensor], Tensor]


class PerImageMetric(Metric):
    """What the classes share: values by image and repeat; ``compute`` is the mean over images of means over repeats."""

    full_state_update = False
    image_id: list[Tensor]
    repeat: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("image_id", "repeat"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _remember(self, image_id: Tensor, repeat: Tensor | int, n: int) -> None:
        """Keep the key of each of ``n`` items."""
        if len(image_id) != n:
            raise UserError(f"{type(self).__name__}: {len(image_id)} image ids for {n} images; one each is wanted.")
        self.image_id.append(image_id.long())
        self.repeat.append(torch.as_tensor(repeat, device=image_id.device).long().expand(n).clone())

    def _items(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and repeats of the items, each once, sorted by id and then repeat, and where each lies in the states."""
        keys = torch.stack([dim_zero_cat(self.image_id), dim_zero_cat(self.repeat)]).cpu().numpy()
        unique, index = np.unique(keys, axis=1, return_index=True)
        return torch.from_numpy(unique[0]), torch.from_numpy(unique[1]), torch.from_numpy(index)

    def _scores(self) -> tuple[Tensor, Tensor]:
        """Ids and scores of the items."""
        raise NotImplementedError

    def _averaged(self) -> tuple[Tensor, Tensor]:
        if not len(self.image_id):
            raise UserError(f"{type(self).__name__}: no image has been given; call update first.")
        ids, scores = self._scores()
        unique, group = ids.unique(return_inverse=True)
        sums = torch.zeros(len(unique), dtype=torch.float64).index_add(0, group, scores)
        return unique, sums / torch.bincount(group)

    def per_image(self) -> tuple[Tensor, Tensor]:
        """Sorted image ids (N,) int64 and their scores (N,) float64, of all processes."""
        with self.sync_context():
            return self._averaged()

    def compute(self) -> Tensor:
        """Mean over images."""
        return self._averaged()[1].nanmean()


class PairMetric(PerImageMetric):
    """A metric whose value for an image needs that image and its reconstruction alone, such as ``PairMetric(ssim)``."""

    value: list[Tensor]

    def __init__(self, score: PairScore) -> None:
        """score: of two batches (B, ...), reconstructions first, to (B,)."""
        super().__init__()
        self.score = score
        self.add_state("value", default=[], dist_reduce_fx="cat")

    def update(self, pred: Tensor, true: Tensor, image_id: Tensor, repeat: Tensor | int = 0) -> None:
        """Add a batch: ``pred`` and ``true`` (B, ...), ``image_id`` (B,), ``repeat`` (B,) or one number."""
        scores = self.score(pred, true)
        self._remember(image_id, repeat, len(scores))
        self.value.append(scores)

    def _scores(self) -> tuple[Tensor, Tensor]:
        ids, _, index = self._items()
        return ids, dim_zero_cat(self.value).cpu()[index]


class TwoWayIdentification(PerImageMetric):
    """Streaming ``two_way_identification``: the features of all images are kept until ``compute``."""

    pred: list[Tensor]
    true: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("pred", "true"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, pred_BD: Tensor, true_BD: Tensor, image_id: Tensor, repeat: Tensor | int = 0) -> None:
        """Add a batch of features (or images): ``image_id`` (B,), ``repeat`` (B,) or one number."""
        self._remember(image_id, repeat, len(pred_BD))
        self.pred.append(pred_BD.flatten(1))
        self.true.append(true_BD.flatten(1))

    def _scores(self) -> tuple[Tensor, Tensor]:
        """Each repeat is identified among the stimuli of all images that have this repeat."""
        ids, repeats, index = self._items()
        pred, true = (dim_zero_cat(states).cpu() for states in (self.pred, self.true))
        scores = torch.empty(len(ids), dtype=torch.float64)
        for repeat in repeats.unique():
            chosen = torch.nonzero(repeats == repeat).flatten()
            scores[chosen] = two_way_identification(pred[index[chosen]], true[index[chosen]])
        return ids, scores
