"""Text for terminals that cannot show every character: what they can show of it, never a traceback."""

from __future__ import annotations

import codecs
import sys

PLAIN = {"±": "+-", "↑": "^", "↓": "v"}  # what this package prints beyond ASCII; other characters become "?"


def show_what_it_can() -> None:
    """Let standard output and error replace the characters that their encoding lacks (latin-1, ASCII, surrogates)."""
    codecs.register_error("nd.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put something else in its place
            stream.reconfigure(errors="nd.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return what stands in for the characters that cannot be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end
