"""Retrieval against plain loops, at chance, at best, and with its directions the right way round."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from nd.errors import UserError
from nd.metrics.retrieval import cosines, draws, retrieval, top1

RNG = np.random.default_rng(3)


def pair(n: int, shape: tuple[int, ...] = (5, 8), noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded embeddings and those of the images, related as strongly as ``noise`` allows."""
    image = RNG.normal(size=(n, *shape))
    brain = image + noise * RNG.normal(size=image.shape)
    return torch.from_numpy(brain).float(), torch.from_numpy(image).float()


def plain(given: NDArray[np.float64], candidates: NDArray[np.float64]) -> float:
    """Share of rows for which, of all candidates, their own has the largest cosine: one comparison at a time."""
    right = 0
    for i, query in enumerate(given):
        values = [query @ c / np.linalg.norm(query) / np.linalg.norm(c) for c in candidates]
        right += int(np.argmax(values)) == i
    return right / len(given)


def flat(x: torch.Tensor) -> NDArray[np.float64]:
    return x.double().flatten(1).numpy()


def test_as_plain_loops_do() -> None:
    brain, image = pair(40, noise=3.0)
    found = retrieval(brain, image, n_candidates=15, n_loops=6, seed=4)
    rng = np.random.default_rng(4)
    by_hand: dict[str, list[float]] = {"image": [], "brain": []}
    for _ in range(6):
        chosen = rng.choice(40, 15, replace=False)
        by_hand["image"].append(plain(flat(brain)[chosen], flat(image)[chosen]))
        by_hand["brain"].append(plain(flat(image)[chosen], flat(brain)[chosen]))
    assert by_hand["image"] != by_hand["brain"]
    for name, shares in by_hand.items():
        result = found[name]
        assert result.mean == pytest.approx(np.mean(shares))
        lo, hi = norm.interval(0.95, loc=np.mean(shares), scale=np.std(shares) / np.sqrt(6))
        assert (result.lo, result.hi) == pytest.approx((lo, hi))
        assert (result.chance, result.n_candidates, result.n_images, result.n_loops) == (1 / 15, 15, 40, 6)
        assert not result.all_images


def test_fwd_of_mindeye2_is_brain_and_bwd_is_image() -> None:
    """Its notebook once more: top-1 over axis 1 of a similarity that is transposed once too often."""

    def similarity(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
        length = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(columns, axis=1)[None]
        return (rows @ columns.T / length).T

    brain, image = pair(30, noise=4.0)
    image += 3 * image[:1]  # images alike, so that the two directions differ
    found = retrieval(brain, image, n_candidates=30)
    fwd = (similarity(flat(brain), flat(image)).argmax(1) == np.arange(30)).mean()
    bwd = (similarity(flat(image), flat(brain)).argmax(1) == np.arange(30)).mean()
    assert fwd != bwd
    assert (found["brain"].mean, found["image"].mean) == (fwd, bwd)


def test_the_name_is_that_of_the_candidates() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    brain = torch.tensor([[1.0, 0.2], [1.0, 0.1]])  # both brains are nearest to image 0; image 1 is nearest to brain 0
    found = retrieval(brain, image)
    assert found["image"].mean == 0.5, "brain 0 finds its image, brain 1 does not"
    assert found["brain"].mean == 0, "image 0 finds brain 1, image 1 finds brain 0"


def test_chance_for_embeddings_that_have_nothing_in_common() -> None:
    n, loops = 600, 30
    brain, image = torch.randn(2, n, 64, generator=torch.Generator().manual_seed(0))
    for result in retrieval(brain, image, n_loops=loops).values():
        assert result.chance == 1 / 300
        # Every draw has 300 items of probability 1/300; draws share images, so the 600 items count, not 30 x 300.
        standard_error = np.sqrt(1 / 300 * 299 / 300 / n)
        assert abs(result.mean - result.chance) < 3 * standard_error


def test_perfect_embeddings() -> None:
    brain, image = pair(320, noise=0.0)
    for result in retrieval(7 * brain, image).values():
        assert (result.mean, result.lo, result.hi) == (1, 1, 1)


def test_all_images_where_there_are_fewer_than_candidates() -> None:
    brain, image = pair(20, noise=2.0)
    found = retrieval(brain, image)
    assert found["image"].mean == pytest.approx(plain(flat(brain), flat(image)))
    for result in found.values():
        assert (result.n_candidates, result.n_loops, result.all_images, result.chance) == (20, 1, True, 1 / 20)
        assert result.summary()["better"] == "higher"


def test_equal_predictions_are_chance_both_ways() -> None:
    image = torch.from_numpy(RNG.normal(size=(50, 12))).float()
    for brain in (image[:1].expand(50, -1), torch.zeros(50, 12)):
        for result in retrieval(brain, image).values():
            assert result.mean == pytest.approx(1 / 50)
    assert top1(np.array([[1.0, 1.0], [0.0, 1.0]])) == 0.75


def test_seeded_and_without_replacement() -> None:
    brain, image = pair(60, noise=4.0)
    one, two = (retrieval(brain, image, 20, seed=seed)["image"] for seed in (1, 2))
    assert retrieval(brain, image, 20, seed=1)["image"] == one
    assert one != two
    for chosen in draws(60, 20, 5, seed=0):
        assert len(set(chosen.tolist())) == 20


def test_long_embeddings_in_chunks_as_in_one() -> None:
    brain, image = pair(6, shape=(40_000,))
    wanted = torch.nn.functional.cosine_similarity(brain.double()[:, None], image.double()[None], dim=-1)
    np.testing.assert_allclose(cosines(brain, image), wanted, atol=1e-6)


def test_refusals() -> None:
    brain, image = pair(10)
    with pytest.raises(UserError, match=r"retrieval: \(10, 40\) against \(9, 40\)"):
        retrieval(brain, image[:9])
    with pytest.raises(UserError, match="1 images, n_candidates=300 and n_loops=30 were given; at least 2"):
        retrieval(brain[:1], image[:1])
    with pytest.raises(UserError, match="n_candidates=1 "):
        retrieval(brain, image, n_candidates=1)
    with pytest.raises(UserError, match="n_loops=0 were given"):
        retrieval(brain, image, n_loops=0)
    image[2, 1, 1] = torch.nan
    with pytest.raises(UserError, match=r"retrieval \(embeddings of the images\): 1 values are NaN"):
        retrieval(brain, image)
