"""Targets block by block, so that no more than a few columns of all images are in memory."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK_NUMBERS = 1 << 24  # numbers of one block: 64 MiB in float32
ALIGNED = 16  # rows of 64 bytes or a multiple: matrix products took a third longer with 599 columns than with 600


def column_blocks(start: int, stop: int, n_rows: int) -> Iterator[slice]:
    """Columns `start` to `stop` in blocks that hold `BLOCK_NUMBERS` numbers when each column has `n_rows` of them."""
    step = columns_at_once(n_rows)
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def columns_at_once(n_rows: int) -> int:
    """How many columns of `n_rows` numbers make a block; at least one, and where possible a multiple of `ALIGNED`."""
    columns = max(1, BLOCK_NUMBERS // max(1, n_rows))
    return columns - columns % ALIGNED if columns > ALIGNED else columns
