"""Docstrings as the site shows them: examples stand in a section of their own, and ``::`` before code is a colon."""

from __future__ import annotations

import re
from typing import Any

import griffe

PROMPT = re.compile(r"^>>> ", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Makes an ``Examples`` section of every example at the margin of a docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object; griffe calls this for each."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)


def shown(text: str) -> str:
    """Return a docstring with its examples as a section.

    >>> shown("Add.\\n\\n>>> 1 + 1\\n2\\n\\nThat is all.")
    'Add.\\n\\nExamples:\\n    >>> 1 + 1\\n    2\\n\\nThat is all.'
    """
    blocks = text.replace("::\n\n", ":\n\n").split("\n\n")
    return "\n\n".join(
        "Examples:\n" + "\n".join(f"    {line}" for line in block.splitlines()) if PROMPT.match(block) else block
        for block in blocks
    )
