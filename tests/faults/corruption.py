"""Ways to spoil a file, each a function of a path and a random generator: what disks, copies and people do to files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = np.random.Generator
Spoil = Callable[[Path, Rng], str]  # returns what was done, "" where there was nothing to spoil

DEPTH = 5_000
TERABYTES = 1 << 42


# ---- any file


def bit_flipped(path: Path, rng: Rng) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        return ""
    place, bit = int(rng.integers(len(content))), int(rng.integers(8))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} flipped"


def bytes_overwritten(path: Path, rng: Rng) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        return ""
    n_bytes = int(rng.integers(1, min(64, len(content)) + 1))
    place = int(rng.integers(len(content) - n_bytes + 1))
    content[place : place + n_bytes] = rng.bytes(n_bytes)
    path.write_bytes(content)
    return f"{n_bytes} bytes from {place} on overwritten"


def block_zeroed(path: Path, rng: Rng) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        return ""
    place = int(rng.integers(len(content))) // 512 * 512
    n_bytes = min(4096, len(content) - place)
    content[place : place + n_bytes] = bytes(n_bytes)
    path.write_bytes(content)
    return f"{n_bytes} bytes from {place} on zeroed"


def truncated(path: Path, rng: Rng) -> str:
    content = path.read_bytes()
    length = int(rng.integers(len(content))) if content else 0
    path.write_bytes(content[:length])
    return f"cut from {len(content)} to {length} bytes"


def emptied(path: Path, rng: Rng) -> str:
    path.write_bytes(b"")
    return "emptied"


def made_a_folder(path: Path, rng: Rng) -> str:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def removed(path: Path, rng: Rng) -> str:
    path.unlink()
    return "removed"


def exchanged(path: Path, rng: Rng) -> str:
    """Put another file of the same kind in its place, a whole one."""
    root = next(one for one in path.parents if (one / "runs").is_dir())
    others = sorted(
        one for one in root.rglob(f"*{path.suffix}")
        if one.is_file() and one != path and not one.name.startswith(".") and one.read_bytes() != path.read_bytes()
    )  # fmt: skip
    if not others:
        return ""
    other = others[int(rng.integers(len(others)))]
    shutil.copyfile(other, path)
    return f"{other.relative_to(root)} in its place"


# ---- JSON


def another_json(path: Path, rng: Rng) -> str:
    text = ["null", "[]", "{}", "3", '"x"', "[null]", "true", "NaN", "{", '{"a": {}}'][int(rng.integers(10))]
    path.write_text(text, encoding="utf-8")
    return f"{text} instead"


def no_utf8(path: Path, rng: Rng) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        return ""
    content[int(rng.integers(len(content)))] = 0xFF
    path.write_bytes(content)
    return "not UTF-8"


def nested(path: Path, rng: Rng) -> str:
    path.write_text("[" * DEPTH + "]" * DEPTH, encoding="utf-8")
    return f"nested {DEPTH} deep"


def entry_changed(path: Path, rng: Rng) -> str:
    """Drop an entry of a JSON file, or give it another value."""
    content = json.loads(path.read_text(encoding="utf-8"))
    places = list(_places(content))
    if not places:
        return ""
    holder, key = places[int(rng.integers(len(places)))]
    if rng.random() < 0.3:
        del holder[key]
        done = f"{key} dropped"
    else:
        holder[key] = _another(holder[key], rng)
        done = f"{key} is {str(holder[key])[:40]}"
    path.write_text(json.dumps(content), encoding="utf-8")
    return done


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def _another(value: Any, rng: Rng) -> Any:
    choices: list[Any] = [None, [], {}, "text", -1, True, 1e30]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        choices += [value + 1, value * 1.25, -value] * 3
    elif isinstance(value, str):
        choices += [value[::-1], value + "x"] * 3
    return choices[int(rng.integers(len(choices)))]


# ---- CSV and other text


def lines_changed(path: Path, rng: Rng) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) < 2:
        return ""
    n = int(rng.integers(len(lines)))
    kind = int(rng.integers(6))
    if kind == 0:
        lines[1], lines[-1] = lines[-1], lines[1]
        done = "first and last line exchanged"
    elif kind == 1:
        lines[n] = lines[n].rpartition(",")[0]
        done = f"line {n} shortened"
    elif kind == 2:
        lines[n] = "garbled \x00 ,,,"
        done = f"line {n} garbled"
    elif kind == 3:
        lines = lines[:1]
        done = "the first line alone"
    elif kind == 4:
        lines.append(lines[-1])
        done = "last line doubled"
    else:
        changed = lines[n].translate(str.maketrans("0123456789", "1234567890"))
        lines[n], done = changed, f"digits of line {n} changed"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return done


# ---- HDF5


def _datasets(handle: h5py.File) -> list[str]:
    found: list[str] = []
    handle.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return [name for name in found if not name.startswith("digests") and handle[name].size]


def dataset_changed(path: Path, rng: Rng) -> str:
    """Change the content of a dataset: rows in another order, one twice, one number."""
    with h5py.File(path, "r+") as handle:
        names = _datasets(handle)
        if not names:
            return ""
        dataset = handle[names[int(rng.integers(len(names)))]]
        values = dataset[()]
        if np.ndim(values) == 0 or len(values) < 2:
            return ""
        before, kind = np.array(values, copy=True), int(rng.integers(4))
        if kind == 0:
            values, done = values[::-1], "rows reversed"
        elif kind == 1:
            values[0], done = values[-1], "first row is the last"
        elif values.dtype.kind == "O":
            values.reshape(-1)[0], done = b"another text", "a text changed"
        else:
            place = int(rng.integers(values.size))
            number: Any = values.reshape(-1)[place]
            floats = (1e30, float("nan"), 1.5) if values.dtype.kind == "f" else ()
            values.reshape(-1)[place] = floats[int(rng.integers(3))] if floats else int(number) ^ 1
            done = f"number {place} changed"
        if np.array_equal(before, values):
            return ""
        dataset[()] = values
        return f"{dataset.name}: {done}"


def dataset_replaced(path: Path, rng: Rng) -> str:
    """Give a dataset another shape or type, leave it out, or let it claim terabytes."""
    with h5py.File(path, "r+") as handle:
        names = _datasets(handle)
        if not names:
            return ""
        name = names[int(rng.integers(len(names)))]
        values, kind = handle[name][()], int(rng.integers(6))
        del handle[name]
        if kind == 0:
            return f"{name} left out"
        if kind == 1:
            handle.create_group(name)
            return f"{name} is a group"
        if kind == 2:
            handle.create_dataset(name, (TERABYTES, 3), np.float64, chunks=(1024, 3))
            return f"{name} claims terabytes"
        if kind == 3:
            handle[name] = np.array([b"a", b"b"])
            return f"{name} is text"
        if kind == 4:
            handle.create_dataset(name, data=h5py.Empty("f4"))
            return f"{name} is empty"
        handle[name] = values[:-1] if np.ndim(values) else np.zeros((2, 2))
        return f"{name} has another shape"


def attribute_changed(path: Path, rng: Rng) -> str:
    with h5py.File(path, "r+") as handle:
        names = sorted(handle.attrs)
        if not names:
            return ""
        name, kind = names[int(rng.integers(len(names)))], int(rng.integers(5))
        value: Any = handle.attrs[name]
        del handle.attrs[name]
        if kind == 0:
            return f"attribute {name} left out"
        odd = [np.array([1.5, 2.5]), "null", -7, h5py.Empty("i4"), f"{value}x"][kind]
        handle.attrs[name] = odd
        return f"attribute {name} is {odd!r:.30}"


def link_broken(path: Path, rng: Rng) -> str:
    with h5py.File(path, "r+") as handle:
        names = sorted(set(handle) - {"digests"})
        if not names:
            return ""
        name = names[int(rng.integers(len(names)))]
        del handle[name]
        handle[name] = [h5py.SoftLink("/nowhere"), h5py.ExternalLink("nowhere.h5", "x")][int(rng.integers(2))]
        return f"{name} is a link to nowhere"


ANY: tuple[Spoil, ...] = (
    bit_flipped, bit_flipped, bit_flipped, bytes_overwritten, block_zeroed, truncated, emptied, made_a_folder, removed,
    exchanged,
)  # fmt: skip
JSON: tuple[Spoil, ...] = (another_json, another_json, no_utf8, nested, entry_changed, entry_changed, entry_changed)
TEXT: tuple[Spoil, ...] = (lines_changed, lines_changed, lines_changed, no_utf8)
HDF5: tuple[Spoil, ...] = (
    dataset_changed, dataset_changed, dataset_changed, dataset_replaced, dataset_replaced, attribute_changed,
    link_broken,
)  # fmt: skip
BY_SUFFIX = {".json": JSON, ".h5": HDF5, ".csv": TEXT, ".txt": TEXT, ".yaml": TEXT, ".jsonl": TEXT}


def ways_for(path: Path) -> tuple[Spoil, ...]:
    """Return the ways in which a file of this kind can be spoilt."""
    return ANY + BY_SUFFIX.get(path.suffix, ())
