"""Files that are whole or absent: atomic writes, content hashes, JSON that is checked when it is read.

Every artifact is written under a temporary name in its own folder, flushed to disk and renamed, so a killed
process or a full disk never leaves a half-written file under a final name. Work that can go on from what a killed
process left (prepared files, target stores) is written the same way, under a name that the next attempt finds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nd.digests import digest_bytes
from nd.errors import UNWRITTEN, UnwrittenError, UserError, is_raised_in

ADVICE = "Free some space or choose another folder."
PACKAGE = "package://"  # before the name of something that nd ships
SHIPPED = Path(__file__).parent / "weights"
PARTIAL = re.compile(r"\..+\.partial", re.DOTALL)  # as partial_path names files
HASH_CHARS = 12  # 48 bits: a collision among 100,000 artifacts has probability 2e-5
AGAIN = "Remove it and run its verb again."
PACKED = 1100  # bytes that one byte of a file can stand for: deflate packs at most 1,032 to 1
DIGEST = "digest"  # of a JSON object's other entries
NAMES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}


@contextmanager
def atomic_path(path: Path, *, alone: bool = False, resume: bool = False, advice: str = ADVICE) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is fsynced and renamed, on any error removed.

    Args:
        path: final name.
        alone: no other process writes it meanwhile (``nd.locks``). The temporary name is then ``partial_path(path)``,
            and what a killed attempt left there is removed.
        resume: keep what is there after an error, and find what an earlier attempt left; needs ``alone``.
        advice: what to do where the system refuses to write.

    Raises:
        UserError: the system refuses to write. Of a path that is itself the temporary one of an outer call, that call
            says so, by the name that the user knows and with its own advice.
    """
    temporary = partial_path(path) if alone else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with nullcontext() if PARTIAL.fullmatch(path.name) else system_errors(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            temporary.unlink(missing_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            if not resume:
                temporary.unlink(missing_ok=True)


def located(text: str | Path) -> Path:
    """Return the place, there or not, that a path given by the user means.

    Args:
        text: 'package://<name>' of what nd ships, or a path, '~' for the home folder.
    """
    given = str(text)
    home = os.path.expanduser(given)  # noqa: PTH111 - Path's own raises where ~<name> is nobody's home
    return SHIPPED / given.removeprefix(PACKAGE) if given.startswith(PACKAGE) else Path(home)


OF_HDF5 = (UNWRITTEN, "slist", "rite failed")  # its words where the system's reason is lost


def partial_path(path: Path) -> Path:
    """Return where a file lies that one process writes, until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def system_errors(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Say of what the system refuses in the body that ``path`` cannot be written, why, and what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in OF_HDF5):
            raise
        kind = UnwrittenError if is_raised_in("h5py", error.__traceback__) else UserError
        raise kind(f"cannot write {path}: {_reason(error)}. {advice}") from error


def _reason(error: OSError | RuntimeError) -> str:
    """Return what the system said, in words."""
    # HDF5 puts the system's reason at the end of a long report; the number is kept only inside the text.
    text, number = str(error), getattr(error, "errno", None)
    if number == errno.ENOSPC or f"errno = {errno.ENOSPC}" in text:
        return "no space left on the device"
    if number == errno.EFBIG or f"errno = {errno.EFBIG}" in text:
        return "the file would be larger than this file system or user may write"
    if any(words in text for words in OF_HDF5):
        return "the system refused a part of it (is the disk full?)"
    return str(getattr(error, "strerror", None) or error)


def check_space(path: Path, n_bytes: float, advice: str) -> None:
    """Raise UserError where ``path``, whose folder is there, would need more bytes than are free."""
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise UserError(
            f"{path} needs {n_bytes / 1e9:.2f} GB more, but only {free / 1e9:.2f} GB are free there. {advice}"
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented and with sorted keys so that files can be compared by eye and by hash.

    An object also gets the digest of its own content, which ``read_json`` compares and takes away again.

    Args:
        path: of the file; its folder is made where it is missing.
        value: of JSON's types; others are written as text.

    Raises:
        UserError: the system refuses to write.
    """
    write_text(path, json.dumps(_with_digest(value), indent=2, sort_keys=True) + "\n")


def json_line(value: dict[str, Any]) -> str:
    """Return an object as one line of JSON, with its digest, for ``read_lines``."""
    return json.dumps(_with_digest(value)) + "\n"


def _with_digest(value: Any) -> Any:
    content = json.loads(json.dumps(value, default=str))
    return content | {DIGEST: _own_digest(content)} if isinstance(content, dict) else content


def _own_digest(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != DIGEST}
    return digest_bytes(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def read_json(path: Path, kind: Any = dict, again: str = AGAIN) -> Any:
    """Read a JSON file and check it.

    Args:
        path: of the file.
        kind: what its content must be: ``dict``, ``list[str]``, a TypedDict. Entries that a TypedDict does not name
            are kept as they are.
        again: what to do about a file that is of no use, for messages.

    Returns:
        The content, without its digest.

    Raises:
        UserError: missing, unreadable, no JSON in UTF-8, of another kind, or changed since ``write_json`` wrote it.
    """
    return _parsed(_text(path, again), str(path), kind, again)


def read_lines(path: Path, kind: Any, again: str = AGAIN) -> list[Any]:
    """Read a file of one JSON object a line; arguments, result and errors as of ``read_json``, for each line."""
    lines = _text(path, again).splitlines()
    return [_parsed(line, f"{path}, line {number}", kind, again) for number, line in enumerate(lines, 1)]


def _text(path: Path, again: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 from byte {error.start} on, so it is no JSON. {again}") from None


def _parsed(text: str, where: str, kind: Any, again: str) -> Any:
    try:
        content = json.loads(text)
        found = _own_digest(content) if isinstance(content, dict) and DIGEST in content else None
    except RecursionError:
        raise UserError(f"{where} is not valid JSON (nested too deeply). {again}") from None
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}). {again}") from None
    if problem := misfit(content, kind):
        raise UserError(f"{where} does not hold what it should: {problem}. {again}")
    if found is not None and content.pop(DIGEST) != found:
        raise UserError(f"{where} was changed since it was written: its digest is of other content. {again}")
    return content


def misfit(value: Any, kind: Any) -> str:
    """Say in a few words where a value read from JSON is not of a kind; an empty string where it is.

    Args:
        value: of JSON's types.
        kind: as of ``read_json``.

    >>> misfit({"n": "3"}, dict[str, int])
    'n: input should be a valid integer'
    """
    if isinstance(kind, type) and kind in NAMES:  # without what is needed for more
        return "" if isinstance(value, kind) else f"it is {_json_name(value)}, wanted {NAMES[kind]}"
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        said = "is missing" if first["type"] == "missing" else first["msg"][0].lower() + first["msg"][1:]
        return f"{place or 'its content'}: {said}"
    return ""


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # takes a tenth of a second, which command lines that read no record do without

    return TypeAdapter(kind)


def _json_name(value: Any) -> str:
    return "null" if value is None else NAMES.get(type(value), type(value).__name__)


def unreadable(path: Path, error: OSError) -> UserError:
    """Return what is said of a file that cannot be read: what stands there, what was wanted, what to do."""
    if path.is_symlink() and not path.exists():
        return UserError(f"{path} is a link to {path.readlink()}, which is not there. Mend the link or remove it.")
    if path.is_dir():
        return UserError(f"{path} is a folder; wanted a file. Move it away, or give another path.")
    if error.errno == errno.ENOENT:
        return UserError(f"{path} does not exist.")
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    denied = error.errno in (errno.EACCES, errno.EPERM)
    remedy = "Check the file's owner and mode." if denied else "Try again, and look after the disk if it stays so."
    return UserError(f"{path} cannot be read: {reason}. {remedy}")


@contextmanager
def parsed_by_others(path: Path, said: str, advice: str) -> Iterator[None]:
    """Turn whatever a library trips over in a file of a user's into one message.

    Args:
        path: of the file.
        said: how the message begins; it names the file.
        advice: what to do.

    Raises:
        UserError: the body failed on what the file holds, or the system does not let it be read.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # parsers of damaged files raise nearly everything, which differs by version
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from None
        reason = "it claims more than fits into memory" if isinstance(error, MemoryError) else _short(error)
        raise UserError(f"{said} ({reason}). {advice}") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def sha256_file(path: Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:HASH_CHARS]


def sha256_json(value: Any) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARS]


def sha256_array(values: np.ndarray) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of an array's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:HASH_CHARS]
