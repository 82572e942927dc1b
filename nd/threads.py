"""How OpenMP's threads wait for each other, set before any library loads them, unless the user has set it."""

from __future__ import annotations

import os

# GNU's OpenMP, which PyTorch brings, lets a thread that waits spin on its core for milliseconds. Beside other
# processes the thread it waits for may be the one it keeps from running.
SETTING = {"GOMP_SPINCOUNT": "1000"}
CHOSEN_BY_USER = ("OMP_WAIT_POLICY", *SETTING)


def set_up_threads() -> None:
    """Choose how threads wait, for this process and those it starts; without effect once PyTorch is loaded."""
    if not any(name in os.environ for name in CHOSEN_BY_USER):
        os.environ.update(SETTING)
