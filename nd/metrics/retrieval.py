"""Retrieval: which of a few hundred images belongs to this brain activity, and which brain activity to this image?

The rule is MindEye2's (final_evaluations.ipynb): 300 images are drawn without replacement from the test set, 30 times;
embeddings are flattened and compared by cosine; an item is right where its own partner is the most similar candidate.
The interval is the normal one of the mean over draws, with NumPy's standard deviation (divided by the number of draws).
It says how well the draws determine the mean over this test set, not how other test images would score.

Directions have many names. Here the name is that of the candidates: in ``image`` retrieval brain activity is given and
images are ranked, in ``brain`` retrieval an image is given and brain activities are ranked. MindEye2's printed "fwd" is
``brain`` here, its "bwd" ``image``: its notebook means the other pairing, but the function that compares returns the
transpose of what it is asked for (MedARC-AI/MindEyeV2:src/utils.py, batchwise_cosine_similarity).

Ties: an item whose partner is one of k equally similar candidates counts 1/k, what drawing lots among them would give,
so predictions that are all the same score chance in both directions.

N items, D numbers, K candidates, L draws.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from nd.errors import UserError
from nd.metrics.correlation import all_finite, same_shape

N_CANDIDATES, N_LOOPS = 300, 30
LEVEL = 0.95
CHUNK = 1 << 14  # numbers multiplied at a time: in float32, summed in float64
DIRECTIONS = ("image", "brain")


@dataclass(frozen=True)
class Retrieval:
    """Mean share of right items over the draws, and the ends of its interval.

    ``n_candidates`` is smaller than was asked for where there are fewer images; one draw is then all of them, and the
    ends of the interval are the mean.
    """

    mean: float
    lo: float
    hi: float
    chance: float
    n_images: int
    n_candidates: int
    n_loops: int
    all_images: bool

    def summary(self) -> dict[str, Any]:
        """As ``scores.json`` holds it."""
        return asdict(self) | {"better": "higher"}


def retrieval(
    brain_ND: Tensor, image_ND: Tensor, n_candidates: int = N_CANDIDATES, n_loops: int = N_LOOPS, seed: int = 0
) -> dict[str, Retrieval]:
    """Top-1 retrieval in both directions, by the name of the candidates: ``image`` and ``brain``.

    Args:
        brain_ND: embeddings decoded from brain activity, float; further axes are flattened.
        image_ND: those of the images, in the same order.
        n_candidates: images in a draw, the right one included.
        n_loops: draws.
        seed: of the draws.

    Raises:
        UserError: other shapes, values that are not finite, fewer than 2 items or candidates, no draw.

    >>> {name: found.mean for name, found in retrieval(torch.eye(5), torch.eye(5)).items()}
    {'image': 1.0, 'brain': 1.0}
    """
    brain, image = brain_ND.flatten(1), image_ND.flatten(1)
    same_shape(brain, image, "retrieval")
    if min(len(brain), n_candidates) < 2 or n_loops < 1:
        raise UserError(
            f"retrieval: {len(brain)} images, n_candidates={n_candidates} and n_loops={n_loops} were given; at least 2 "
            "images, 2 candidates and 1 draw are wanted."
        )
    similarity_NN = cosines(brain, image).numpy()
    drawn = draws(len(brain), n_candidates, n_loops, seed)
    shares = {
        "image": [top1(similarity_NN[np.ix_(chosen, chosen)]) for chosen in drawn],
        "brain": [top1(similarity_NN[np.ix_(chosen, chosen)].T) for chosen in drawn],
    }
    return {name: _summarised(np.array(values), len(brain), len(drawn[0])) for name, values in shares.items()}


def cosines(brain_ND: Tensor, image_ND: Tensor) -> Tensor:
    """Return the cosine of every brain row with every image row.

    Args:
        brain_ND, image_ND: float embeddings.

    Returns:
        (N, N) float64; 0 where a row is all zeros.

    Raises:
        UserError: values that are not finite.
    """
    for rows, what in ((brain_ND, "decoded"), (image_ND, "of the images")):
        all_finite(rows, f"retrieval (embeddings {what})")
    products = torch.zeros(len(brain_ND), len(image_ND), dtype=torch.float64)
    for start in range(0, brain_ND.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        products += brain_ND[:, part].float() @ image_ND[:, part].float().T
    norms = [rows.norm(dim=1, dtype=torch.float64).clamp_min(1e-300) for rows in (brain_ND, image_ND)]
    return products / norms[0][:, None] / norms[1][None, :]


def draws(n_images: int, n_candidates: int, n_loops: int, seed: int) -> list[NDArray[np.intp]]:
    """The images of each draw, without replacement; one draw of all of them where there are not more than wanted."""
    if n_images <= n_candidates:
        return [np.arange(n_images)]
    rng = np.random.default_rng(seed)
    return [rng.choice(n_images, n_candidates, replace=False) for _ in range(n_loops)]


def top1(similarity_KK: NDArray[np.float64]) -> float:
    """Share of rows whose most similar column is their own; k columns that tie for the most share it."""
    best = similarity_KK.max(1, keepdims=True)
    right = similarity_KK.diagonal() == best[:, 0]
    return float((right / (similarity_KK == best).sum(1)).mean())


def retrieval_lines(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """Summaries by name as text, one line each; a single draw has no interval."""
    lines = []
    for name, one in summaries.items():
        interval = f"[{one['lo']:.4f}, {one['hi']:.4f}]" if one["n_loops"] > 1 else " " * 16
        drawn = f"{one['n_loops']} x {one['n_candidates']} of {one['n_images']}"
        among = f"all {one['n_images']}" if one["all_images"] else drawn
        lines.append(f"  {name:<20} {one['mean']:7.4f}  {interval}  up    chance {one['chance']:.4f}, {among} images")
    return lines


def _summarised(shares_L: NDArray[np.float64], n_images: int, n_candidates: int) -> Retrieval:
    n_loops, mean = len(shares_L), float(shares_L.mean())
    half = float(scipy.special.ndtri((1 + LEVEL) / 2) * shares_L.std() / np.sqrt(n_loops))
    everything = n_candidates == n_images
    return Retrieval(mean, mean - half, mean + half, 1 / n_candidates, n_images, n_candidates, n_loops, everything)
