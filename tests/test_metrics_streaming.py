"""The torchmetrics classes: batches in any order, on one process or two, give what the functions give at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nd.errors import UserError
from nd.metrics.correlation import feature_distance, pixcorr
from nd.metrics.identification import two_way_identification
from nd.metrics.ssim import ssim
from nd.metrics.streaming import PairMetric, PerImageMetric, TwoWayIdentification

N, R, SIZE = 11, 2, 16


def images(seed: int, repeats: int = R) -> Tensor:
    return torch.rand(N, repeats, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


PRED, TRUE = images(0), images(1, 1)[:, 0]
FUNCTIONS = [pixcorr, ssim, feature_distance, two_way_identification]


def streaming(function: object) -> PairMetric | TwoWayIdentification:
    return TwoWayIdentification() if function is two_way_identification else PairMetric(function)  # type: ignore[arg-type]


def one_shot(function: object) -> Tensor:
    return torch.stack([function(PRED[:, r], TRUE) for r in range(R)]).mean(0)  # type: ignore[operator]


def fed(metric: PairMetric | TwoWayIdentification, items: list[tuple[int, int]], batch: int) -> PerImageMetric:
    """Give a metric these (image, repeat) items in batches."""
    for start in range(0, len(items), batch):
        image, repeat = torch.tensor(items[start : start + batch]).T
        metric.update(PRED[image, repeat], TRUE[image], image + 100, repeat)
    return metric


def shuffled_items() -> list[tuple[int, int]]:
    order = torch.randperm(N * R, generator=torch.Generator().manual_seed(2)).tolist()
    return [divmod(k, R) for k in order]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("batch", [1, 4, N * R])
def test_streaming_equals_one_shot_in_any_order(function: object, batch: int) -> None:
    metric = fed(streaming(function), shuffled_items(), batch)
    ids, scores = metric.per_image()
    wanted = one_shot(function)
    assert ids.tolist() == list(range(100, 100 + N))
    torch.testing.assert_close(scores, wanted)
    torch.testing.assert_close(metric.compute(), wanted.mean())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_image_given_twice_counts_once(function: object) -> None:
    metric = fed(streaming(function), [*shuffled_items(), (0, 0), (0, 0), (3, 1)], 5)
    torch.testing.assert_close(metric.per_image()[1], one_shot(function))


def test_reset_forgets() -> None:
    metric = fed(PairMetric(pixcorr), shuffled_items(), 4)
    metric.reset()
    with pytest.raises(UserError, match="PairMetric: no image has been given"):
        metric.per_image()


def test_wrong_ids_are_refused() -> None:
    with pytest.raises(UserError, match="3 image ids for 2 images"):
        PairMetric(pixcorr).update(TRUE[:2], TRUE[:2], torch.arange(3))


RANK_SCRIPT = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_metrics_streaming import FUNCTIONS, fed, one_shot, shuffled_items, streaming
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
items = shuffled_items()
mine = items[:5] if rank else items[5:] + items[:1]  # unequal shares, one item on both
for function in FUNCTIONS:
    metric = fed(streaming(function), mine, 4)
    ids, scores = metric.per_image()
    torch.testing.assert_close(scores, one_shot(function))
    torch.testing.assert_close(metric.compute(), one_shot(function).mean())
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    script = RANK_SCRIPT.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
