"""What HTML pages are made of: templates of this folder, and images that stand in the page itself.

H W image.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).parent


def template(name: str) -> Any:
    """Return a template of this folder, which escapes all that is put in and can ask for files beside it."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    found = templates.get_template(name)
    found.globals["asset"] = lambda asset: (FOLDER / asset).read_text(encoding="utf-8")
    return found


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as a URI that a page can hold in itself; ``kind`` as in ``png`` or ``svg+xml``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png(image_HW3: NDArray[np.uint8]) -> bytes:
    """Return an image as PNG."""
    out = io.BytesIO()
    Image.fromarray(image_HW3).save(out, format="PNG", optimize=True)
    return out.getvalue()
