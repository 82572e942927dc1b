"""The style of plots that matplotlib draws."""

from __future__ import annotations

from typing import Any

INK, FAINT = "#2b2f36", "#c9ced6"
STYLE: Any = {
    "font.size": 9, "font.family": "sans-serif", "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "nd",
    "text.parse_math": False,
}  # fmt: skip
