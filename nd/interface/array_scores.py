"""Arrays of images scored under a named protocol, as `nd evaluate` scores a run: no data set, no run folder.

N images, R repeats, H W image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nd.config import ProtocolConfig
from nd.config.check import build
from nd.config.composition import assemble
from nd.config.conf_files import search_folders
from nd.config.overrides import read
from nd.errors import UserError, report
from nd.metrics.measures import caption_measures

CHANNELS_LAST, CHANNELS_FIRST = -1, -3
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ArrayScores:
    """Scores of a set of reconstructions.

    Attributes:
        summary: by metric its ``mean`` over images, the ends ``lo`` and ``hi`` of a 95% bootstrap interval over images,
            the images ``n`` it is over, its value by ``chance`` (None: there is none) and which way is ``better``.
        per_image: by metric (N,) float64, repeats made one as the protocol says; NaN where an image has no value.
        protocol: name, version, hash and settings; a changed setting shows in the name.
    """

    summary: dict[str, dict[str, Any]]
    per_image: dict[str, NDArray[np.float64]]
    protocol: dict[str, Any]

    @property
    def means(self) -> dict[str, float]:
        """Mean over images by metric."""
        return {name: one["mean"] for name, one in self.summary.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Ends of the 95% interval over images by metric."""
        return {name: (one["lo"], one["hi"]) for name, one in self.summary.items()}


def score_arrays(
    reconstructions: Any,
    stimuli: Any,
    protocol: str = "nd",
    *,
    labels: NDArray[Any] | None = None,
    accelerator: str = "auto",
    **settings: Any,
) -> ArrayScores:
    """Score reconstructions against their stimuli, row by row.

    Args:
        reconstructions: (N, H, W, 3) uint8 or (N, 3, H, W) float in [0, 1], RGB, square; or with repeats of every image
            (N, R, H, W, 3) or (N, R, 3, H, W). An array or a tensor; which axis holds the colours is seen by its 3.
        stimuli: (N, H, W, 3) uint8 or (N, 3, H, W) float in [0, 1], of any side, in the same order.
        protocol: a name of conf/protocol: scenes, digits69, nd, brain_diffuser, mindeye1, mindeye2, minddiffuser.
        labels: (N,) whole numbers, for protocols that identify within the images of a class.
        accelerator: where networks run: auto, cpu, gpu or mps.
        settings: fields of the protocol to be changed (``nd evaluate --help`` lists them): ``n_images=0`` scores
            another number of images than it is defined on, ``weights=<folder>`` says where its networks lie.

    Returns:
        Means, intervals and values of every image.

    Raises:
        UserError: images of other shapes, kinds or ranges, unknown protocol or setting, weights that are not installed.

    >>> import numpy as np, nd
    >>> stimuli = np.random.default_rng(0).integers(256, size=(5, 64, 64, 3), dtype=np.uint8)
    >>> scores = nd.score_arrays(stimuli, stimuli, "scenes", network="none")
    >>> round(scores.means["pixcorr"], 6), scores.intervals["two_way_pixels"]
    (1.0, (1.0, 1.0))
    """
    from nd.evaluation.scores import one_metric
    from nd.machine import pick_device
    from nd.metrics.protocol import describe
    from nd.metrics.score import score_images

    chosen, shown = _protocol(protocol, settings), channels_last(stimuli, "stimuli", 4)
    images = channels_last(reconstructions, "reconstructions", 4, 5)
    images = images if images.ndim == 5 else images[:, None]
    found = score_images(images, shown, chosen, labels, device=pick_device(accelerator)).scores
    summary = {name: one_metric(name, values, chosen.n_boot) for name, values in found.items()}
    return ArrayScores(summary, found, describe(chosen))


def _protocol(name: str, settings: dict[str, Any]) -> ProtocolConfig:
    """A named protocol with some settings changed; without brain correlation, which takes a subject's voxels."""
    reading = read([f"protocol={name}"], search_folders())
    named = assemble(reading.single())
    config, checked = build({"protocol": asdict(named.config.protocol) | settings | {"brain": []}})
    texts = ", ".join(caption_measures(config.protocol))
    problems = [*reading.problems, *named.problems, *checked.all]
    problems += [f"measures: {texts} judge decoded captions, and these are images. Leave them out."] if texts else []
    if problems:
        raise UserError(report(problems))
    return config.protocol


def channels_last(images: Any, what: str, *dimensions: int) -> NDArray[Any]:
    """(..., H, W, 3) of an array or tensor with its colours there or in front of H and W."""
    if hasattr(images, "detach"):  # a tensor; NumPy has no bfloat16
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() and images.itemsize < FLOAT32_BYTES else images
    array = np.asarray(images)
    if array.ndim not in dimensions or 3 not in (array.shape[CHANNELS_LAST], array.shape[CHANNELS_FIRST]):
        repeats = ", with repeats (N, R, H, W, 3) or (N, R, 3, H, W)" if len(dimensions) > 1 else ""
        raise UserError(
            f"{what}: shape {array.shape} was found, (N, H, W, 3) or (N, 3, H, W) was wanted{repeats}. Repeat the "
            "channel of grey images three times."
        )
    return array if array.shape[CHANNELS_LAST] == 3 else np.moveaxis(array, CHANNELS_FIRST, CHANNELS_LAST)
