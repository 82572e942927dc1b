"""Write constraints.txt: the versions that pip would install today within the bounds of pyproject.toml.

    make lock                                   resolves, then writes; `make test` then says whether they hold
    python scripts/lock.py report.json          from a report of `pip install --dry-run --ignore-installed --report`

The file names packages and versions alone: no place that anything was fetched from, no path.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "constraints.txt"
OWN = "nd"
HEAD = """\
# The exact versions everything was tested with (Python {python}, {system}). make uses them; pip alone may take others
# within the bounds of pyproject.toml.
"""
SYSTEMS = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}


def pins(report: dict[str, Any]) -> list[str]:
    """Return name==version of every package of a report but this one, in the order of their names.

    >>> pins({"install": [{"metadata": {"name": "Torch", "version": "2.6.0+cpu"}}]})
    ['Torch==2.6.0']
    """
    found = [one["metadata"] for one in report["install"] if one["metadata"]["name"] != OWN]
    lines = [
        f"{one['name']}=={one['version'].partition('+')[0]}" for one in found
    ]  # a build's label is a machine's own
    return sorted(lines, key=str.lower)


def locked(report: dict[str, Any]) -> str:
    """Return the text of constraints.txt."""
    known = report["environment"]
    machine = known["platform_machine"].replace("x86_64", "x86-64")
    system = f"{SYSTEMS.get(known['sys_platform'], known['sys_platform'])} {machine}"
    return HEAD.format(python=known["python_version"], system=system) + "\n".join(pins(report)) + "\n"


def main(given: list[str]) -> int:
    """Read a report and write the constraints; returns the exit code."""
    if len(given) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    text = locked(json.loads(Path(given[0]).read_text(encoding="utf-8")))
    changed = len(set(text.splitlines()) - set(TARGET.read_text(encoding="utf-8").splitlines()))
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET.name}: {text.count('==')} packages, {changed} lines new. Now: make test")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
