"""Text: what a terminal can show of it, what no file, page or table can keep, and how a command ends."""

from __future__ import annotations

import codecs
import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nd.errors import UNWRITTEN, UnwrittenError, UserError, is_out_of_memory

INTERRUPTED, BROKEN_PIPE = 130, 141  # what shells report: 128 + SIGINT, 128 + SIGPIPE
NOTE = "ND_NOTE"  # names the file in which one of a command's several processes leaves what stopped it, unsaid
PLAIN = {"±": "+-", "↑": "^", "↓": "v"}  # what this package prints beyond ASCII; other characters become "?"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that spreadsheets compute
REFUSALS = {
    errno.ENOSPC: "Free some space, or give another place (paths.root=<folder>).",
    errno.EDQUOT: "Free some space, or give another place (paths.root=<folder>).",
    errno.EFBIG: "Give another place (paths.root=<folder>).",
    errno.EROFS: "Give another place (paths.root=<folder>).",
    errno.EACCES: "Check owner and mode, or give another place (paths.root=<folder>).",
    errno.EPERM: "Check owner and mode, or give another place (paths.root=<folder>).",
    errno.ENAMETOOLONG: "Give a shorter one.",
    errno.ENOMEM: "Close other programs.",
    errno.EMFILE: "Allow more open files (ulimit -n).",
}
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


def exit_with(name: str, answer: Callable[[], int]) -> NoReturn:
    """Leave with the code that ``answer`` returns, or with that of what stops it, said in one message.

    Args:
        name: of the verb, for messages.
        answer: does what the command line asks for.
    """
    show_what_it_can()
    _say_once_what_was_refused()
    if os.environ.get(NOTE):
        sys.exit(_noted(answer, Path(os.environ[NOTE])))
    try:
        code = answer()
    except UserError as error:
        print(f"nd {name}: {error}", file=sys.stderr)
        if isinstance(error, UnwrittenError):
            _leave_at_once(2)
        code = 2
    except BrokenPipeError:  # the reader of a pipe (`nd train --help | head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"\nnd {name}: interrupted. The same command again resumes.", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        said = refused_by_system(error)
        if not said:
            raise
        print(f"nd {name}: {said} What is finished is kept: the same command again resumes.", file=sys.stderr)
        code = 2
    sys.exit(code)


def _say_once_what_was_refused() -> None:
    """Keep h5py from printing, for each part of a file that the system refuses, what the command's message says."""
    printed, unraised = sys.excepthook, sys.unraisablehook

    def print_others(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if UNWRITTEN not in str(error):
            printed(kind, error, trace)

    def show_others(found: Any) -> None:
        if UNWRITTEN not in str(found.exc_value):
            unraised(found)

    sys.excepthook, sys.unraisablehook = print_others, show_others


def _leave_at_once(code: int) -> NoReturn:
    """Leave without the cleaning of libraries; of HDF5 it crashes where a file could not be written."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def refused_by_system(error: Exception) -> str:
    """Say what a machine lacked that stopped a command: memory, room on the disk, leave; empty for other errors."""
    if is_out_of_memory(error):
        reason = " ".join(str(error).split())[:160] or "MemoryError"
        return (
            f"there is not enough memory ({reason}). Close other programs, or give smaller settings; `nd doctor` "
            "estimates what the largest steps take."
        )
    if isinstance(error, OSError) and error.errno in REFUSALS:
        where = f" at {error.filename}" if error.filename else ""
        return f"the system refused to go on{where}: {os.strerror(error.errno).lower()}. {REFUSALS[error.errno]}"
    return ""


def plain_cell(value: Any) -> Any:
    """Return what a table for spreadsheets may hold of a value: text that would be taken for a formula gets a quote.

    >>> plain_cell("=1+1"), plain_cell("ridge"), plain_cell(-1.5)
    ("'=1+1", 'ridge', -1.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _noted(answer: Callable[[], int], note: Path) -> int:
    """Return the exit code of one of several processes; what stops it is written down, for whoever watches them all."""
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    try:
        return answer()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else refused_by_system(error)
        text, code = (said, 2) if said else (traceback.format_exc(), 1)
        note.write_text(text, encoding="utf-8", errors="replace")
        return code


def _end_with_the_input() -> None:
    """End this process once nobody holds the other end of its standard input."""
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read(), whose lock would be held when the interpreter ends
    os._exit(1)
