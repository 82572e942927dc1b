"""Time and memory of the volumetric encoder's mixers by the number of tokens, forward and backward.

    python experiments/benchmarks/recurrence.py [--tokens 256 512 1024 2048 4096] [--out FILE.json]

Prints, for the recurrence alone, a selective state space and a transformer, processor seconds of one step and how they
grow when the tokens double: 2 is linear, 4 quadratic. On a machine that others use, processor seconds are steadier than
those on the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rows import Asked, Row
from torch import Tensor, nn

from nd.mappers.volumetric.recurrence import recurrence
from nd.mappers.volumetric.sequence_mixers import AttentionBlock, SelectiveStateSpace

HEADS, EXPAND = 4, 2


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return seconds by mixer and number of tokens."""
    asked = parsed(given)
    torch.manual_seed(0)
    torch.set_num_threads(asked.threads)
    seconds = {
        name: {n: timed(step, n, asked) for n in asked.tokens}
        for name, step in steps_of(asked.width, asked.state).items()
    }
    slopes = {name: slope(values) for name, values in seconds.items()}
    print(f"{asked.batch} samples, width {asked.width}, {asked.state} numbers of a state, {asked.threads} thread(s)\n")
    print("processor seconds of a step, forward and backward" + "".join(f"{n:>10}" for n in asked.tokens) + "    power")
    for name, values in seconds.items():
        print(f"{name:49}" + "".join(f"{value:10.3f}" for value in values.values()) + f"{slopes[name]:9.2f}")
    figures = {"sizes": vars(asked), "seconds": seconds, "power": slopes, "torch": torch.__version__}
    if asked.out:
        Path(asked.out).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def measure(asked: Asked) -> list[Row]:
    """Return the rows of the state space against the transformer by the number of tokens."""
    sizes = parsed(["--tokens", *asked.pick(["64"], ["512", "1024", "2048"]), "--repeats", str(asked.pick(1, 5))])
    torch.manual_seed(0)
    steps = steps_of(sizes.width, sizes.state)
    return [
        Row(case=f"a step over {n} tokens, width {sizes.width}", unit="s",
            ours=all_times(steps["selective state space"], n, sizes), peer="transformer",
            theirs=all_times(steps["transformer"], n, sizes))
        for n in sizes.tokens
    ]  # fmt: skip


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--state", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed; the quickest counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="", help="JSON file for the figures")
    return parser.parse_args(given)


def steps_of(width: int, state: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is timed, by name: functions of tokens (B, L, D)."""
    space, attention = SelectiveStateSpace(width, state, EXPAND), AttentionBlock(width, HEADS, EXPAND)
    nn.init.normal_(attention.to_out.weight)  # zeros would be no cheaper, but look so
    decays = lambda x: x.sigmoid().repeat(1, 1, state)  # noqa: E731
    return {
        "recurrence alone": lambda x: recurrence(decays(x), x.repeat(1, 1, state)),
        "selective state space": space,
        "transformer": attention,
    }


def timed(step: Callable[[Tensor], Tensor], n_tokens: int, asked: argparse.Namespace) -> float:
    """Processor seconds of the quickest of some steps."""
    return min(all_times(step, n_tokens, asked))


def all_times(step: Callable[[Tensor], Tensor], n_tokens: int, asked: argparse.Namespace) -> list[float]:
    """Processor seconds of some steps, after one that is not counted."""
    x, found = torch.randn(asked.batch, n_tokens, asked.width, requires_grad=True), []
    for _ in range(asked.repeats + 1):
        begun = time.process_time()
        step(x).sum().backward()
        found.append(time.process_time() - begun)
    return found[1:]


def slope(seconds: dict[int, float]) -> float:
    """The power of the number of tokens by which time grows, from the smallest to the largest; NaN for one number."""
    (first, *_), (*_, last) = seconds.items(), seconds.items()
    ratio = math.log(last[0] / first[0])
    return math.log(last[1] / first[1]) / ratio if ratio else math.nan


if __name__ == "__main__":
    main()
