"""How OpenMP's threads wait for each other, set before any library loads them, unless the user has set it."""

from __future__ import annotations

import os

# GNU's OpenMP, which PyTorch brings, lets a thread that waits spin on its core for milliseconds; beside other
# processes it may keep the very thread it waits for from running. Rounds per second of small convolutions on 2 cores,
# by default / with 10000 spins: alone 1459 / 1313, beside two busy loops 305 / 787, beside nine processes 2.6 / 90.
# Fewer spins (1000, 0, OMP_WAIT_POLICY=PASSIVE) cost a third when alone.
SETTING = {"GOMP_SPINCOUNT": "10000"}
CHOSEN_BY_USER = ("OMP_WAIT_POLICY", *SETTING)


def set_up_threads() -> None:
    """Choose how threads wait, for this process and those it starts; without effect once PyTorch is loaded."""
    if not any(name in os.environ for name in CHOSEN_BY_USER):
        os.environ.update(SETTING)
