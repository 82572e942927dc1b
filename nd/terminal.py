"""Text: what a terminal can show of it, and what no file, page or table can keep; never a traceback."""

from __future__ import annotations

import codecs
import re
import sys

from nd.errors import UserError

PLAIN = {"±": "+-", "↑": "^", "↓": "v"}  # what this package prints beyond ASCII; other characters become "?"
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")  # no part of a line of text


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


def check_text(text: str, what: str) -> None:
    """Refuse text that HDF5 cannot keep: a NUL, or one half of a surrogate pair (broken UTF-16); ``what`` names it."""
    if problem := unstorable(text, what, UNSTORABLE):
        raise UserError(problem)


def unstorable(text: str, what: str, signs: re.Pattern[str] = NO_LINE) -> str:
    """Return what is wrong with a text that holds one of ``signs``, or an empty string.

    Args:
        text: any.
        what: names it.
        signs: control characters, ends of lines and halves of surrogate pairs, unless given: of text that must be
            one line of any file, page or table.
    """
    found = signs.search(text)
    if found is None:
        return ""
    return (
        f"{what} holds U+{ord(found[0]):04X} at character {found.start() + 1}, which cannot be stored: "
        f"{text[:60]!r}. Take it out, or write its file again in UTF-8."
    )
