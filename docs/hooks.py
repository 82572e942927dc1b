"""What the site shows of the repository beside docs/: experiments with their records and images, and the notebooks.

Experiments keep their paths below experiments/. A notebook is shown as its text and code, without outputs; the tests
run it. Pages link to both as they lie in the repository, where pages are read too; on the site both lie inside docs/.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

from schema_tables import tables

ROOT = Path(__file__).parent.parent
FIELDS = "<!-- fields -->"  # where a page shows all fields of the configuration
BESIDE = re.compile(r"\]\(((?:\.\./)*)\.\./((?:experiments|notebooks)/[^)]+)\)")  # a link out of docs/
KINDS = (".md", ".png", ".json", ".jsonl", ".py", ".yaml", ".txt")


def on_files(files: Files, config: Any) -> Files:
    """Add the files; mkdocs calls this once it has found those of docs/."""
    for path in tracked("experiments"):
        if path.suffix in KINDS:
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    for path in tracked("notebooks"):
        if path.suffix == ".ipynb":
            files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page_of(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Put the fields where a page asks for them, and lead links where the site has files; called for every page."""
    if not page.file.src_uri.startswith(("experiments/", "notebooks/")):
        markdown = BESIDE.sub(lambda link: f"]({link[1]}{link[2].replace('.ipynb', '.md')})", markdown)
    return markdown.replace(FIELDS, tables()) if FIELDS in markdown else markdown


def tracked(folder: str) -> list[Path]:
    """Return the files of a folder that belong to the repository; all where there is no git."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def page_of(path: Path) -> str:
    """Return a notebook as Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = ["".join(cell["source"]) for cell in cells]
    parts = [
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, shown, strict=True)
    ]
    return "\n\n".join([*parts, f"*This page is `notebooks/{path.name}` of the repository, where it can be run.*\n"])
