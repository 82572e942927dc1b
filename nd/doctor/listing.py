"""The files of a tree as lines for people: one heading per folder, files of one kind together in one line."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from nd.doctor.need import byte_text
from nd.doctor.tree import RawFile, Tree

MARKS = {"ok": "ok     ", "wrong": "WRONG  ", "missing": "MISSING", "absent": "absent "}
N_NAMED = 6  # names listed of a group
N_BRACED = 3  # names written out of a group whose files share one state
N_EXPLAINED = 3  # faults explained of a group
WIDTH, LABEL = 118, 44


def tree_lines(tree: Tree) -> Iterator[str]:
    """Every file below its folder: there, missing, of no use, with its size; then the totals."""
    heading = None
    for folder, group in _groups(tree.files):
        if folder != heading:
            yield "./" if folder == "." else f"{folder}/"
        heading = folder
        for state in MARKS:
            yield from _row(folder, group, state)
    if tree.files:
        yield totals(tree)


def totals(tree: Tree) -> str:
    """``there: 3 of 43 files, 1.2 GB; to download: 40 files, about 82.0 GB``."""
    there, lacking = tree.of("ok", "wrong"), tree.of("missing", "absent")
    n_bytes = byte_text(sum(file.n_bytes for file in there))
    text = f"there: {len(there)} of {len(tree.files)} files, {n_bytes}" if there else "nothing is there"
    if lacking and not tree.simulated:
        text += f"; to download: {len(lacking)} files, {download_text(tree)}"
    return text


def download_text(tree: Tree) -> str:
    """``at most 81.6 GB``: the size of what is not there, as far as known; betas as HDF5."""
    n_bytes = sum(file.n_bytes for file in tree.of("missing", "absent"))
    compressed = any(file.entry.choices and file.entry.n_bytes for file in tree.of("missing"))
    return f"{'at most' if compressed else 'about'} {byte_text(n_bytes)}" if n_bytes else "small ones"


def _groups(files: Sequence[RawFile]) -> list[tuple[str, list[RawFile]]]:
    """Files of one kind together, with the folder they share, in the order of the first of each kind."""
    kinds: dict[str, list[RawFile]] = {}
    for file in files:
        kinds.setdefault(file.entry.what, []).append(file)
    parents = ([str(PurePosixPath(f.entry.path).parent) for f in group] for group in kinds.values())
    return [(os.path.commonpath(names) or ".", group) for names, group in zip(parents, kinds.values(), strict=True)]


def _row(folder: str, group: list[RawFile], state: str) -> Iterator[str]:
    files = [file for file in group if file.state == state]
    if not files:
        return
    n_bytes = sum(file.n_bytes for file in files)
    size = byte_text(n_bytes) if n_bytes or files[0].path else "small"
    optional = "" if files[0].entry.needed else " (optional)"
    label, what = _label(folder, group, files, state), f"{files[0].entry.what}{optional}"
    yield from _filled(f"  {MARKS[state]}{size:>9}  {label:<{LABEL}}  {what}")
    faults = [file for file in files if file.fault]
    for file in faults[:N_EXPLAINED]:
        yield from _filled(f"{'':13}{PurePosixPath(str(file.path)).name}: {file.fault}", indent=15)
    if len(faults) > N_EXPLAINED:
        yield f"{'':13}and {len(faults) - N_EXPLAINED} more like these"


def _filled(text: str, indent: int = 21) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2, subsequent_indent=" " * indent, break_on_hyphens=False)


def _label(folder: str, group: list[RawFile], files: list[RawFile], state: str) -> str:
    """The file's name; of several ``3 of 40 betas_session*.nii.gz: 05, 17, 40``."""
    names = [file.entry.path.removeprefix(f"{folder}/") for file in group]
    if len(group) == 1:
        return names[0]
    # Digits are left to the star: 01 to 40 begin alike only by chance.
    start = re.sub(r"\d+$", "", _shared(names))
    end = re.sub(r"^\d+", "", _shared([name[::-1] for name in names])[::-1])
    if len(files) == len(group) <= N_BRACED:
        return f"{start}{{{','.join(name[len(start) :].removesuffix(end) for name in names)}}}{end}"
    other = {PurePosixPath(choice).name for choice in group[0].entry.choices} - {PurePosixPath(names[0]).name}
    forms = f" (or {'.'.join(['', *other.pop().split('.')[1:]])})" if other else ""
    count = "all" if len(files) == len(group) else f"{len(files)} of"
    label = f"{count} {len(group)} {start}*{end}{forms}"
    if state == "ok" or len(files) == len(group):
        return label
    varying = [file.entry.path.removeprefix(f"{folder}/")[len(start) :].removesuffix(end) for file in files]
    more = [f"{len(varying) - N_NAMED} more"] if len(varying) > N_NAMED else []
    return f"{label}: {', '.join([*varying[:N_NAMED], *more])}"


def _shared(names: Sequence[str]) -> str:
    """What all names begin with."""
    first, last = min(names), max(names)
    return first[: next((k for k, letter in enumerate(first) if last[k : k + 1] != letter), len(first))]
