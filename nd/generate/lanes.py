"""Parts of a batch side by side on a CPU, each on its own share of the threads.

Threads that work on one operation together wait for each other at its end, thousands of times a second. Beside other
programs one of them is always late, and those that wait keep their cores from it. Parts that run by themselves meet
once for all (experiments/benchmarks/waiting.py measures it).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

IDLE = 0.1  # the share of their time that lanes may stand idle, for want of parts


def lanes_for(n_parts: Sequence[int], threads: int) -> int:
    """Return how many lanes share the threads evenly and are busy nearly all the time.

    Args:
        n_parts: parts of each piece of work, which is done before the next one begins.
        threads: of this process.

    >>> [lanes_for([4, 2], threads) for threads in (1, 2, 3, 16)], lanes_for([5, 3], 2), lanes_for([9], 2)
    ([1, 2, 1, 2], 1, 2)
    """
    fit = (
        lanes
        for lanes in range(1, threads + 1)
        if threads % lanes == 0 and sum(-(-n // lanes) * lanes for n in n_parts) * (1 - IDLE) <= sum(n_parts)
    )
    return max(fit, default=1)


def side_by_side(function: Callable[..., Any], parts: Sequence[Iterable[Any]], lanes: int) -> Iterator[Any]:
    """Apply a function to parts, ``lanes`` at a time; what it returns comes in the order of the parts.

    The function finds grad and inference mode as they are here. Where it raises, the parts not yet begun are left out.

    Args:
        function: of a part's columns; called from other threads where lanes > 1.
        parts: each the arguments of one call.
        lanes: parts at a time; each has this process's threads divided by it.
    """
    if lanes == 1:
        return (function(*part) for part in parts)
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def in_lane(part: Iterable[Any]) -> Any:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(*part)

    return _pool(lanes, torch.get_num_threads(), os.getpid()).map(in_lane, parts)


@cache
def _pool(lanes: int, threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that have begun, with their share of PyTorch's threads each; a forked process has none of its parent's.

    What one thread sets holds for itself and for threads that begin later, so it is set back when all have begun.
    """
    all_there = threading.Barrier(lanes)

    def begin(_: int) -> None:
        torch.set_num_threads(max(1, threads // lanes))
        torch.get_num_threads()  # without it the thread asks later, and is told what holds then
        all_there.wait()

    pool = ThreadPoolExecutor(lanes, "lane")
    list(pool.map(begin, range(lanes)))
    torch.set_num_threads(threads)
    return pool
