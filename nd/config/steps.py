"""How steps are counted, in the schedule and in the identity of a run alike."""

from __future__ import annotations

# 50 * 0.58 is 28.999999999999996 in floating point; a share that is meant to give a whole number must give it.
ROUNDING = 1e-9


def share_of(n: int, share: float) -> int:
    """Return ``int(n * share)``, the rule by which the released code counts steps."""
    return int(n * share + ROUNDING)
