"""Captions of images, in the three forms in which people have them.

- COCO annotations: ``captions_train2017.json`` and ``captions_val2017.json``, the folder that holds them or one such
  file, ``{"annotations": [{"image_id": 391895, "caption": "a man ..."}, ...]}``.
- A table, ``{"391895": ["a man ...", ...]}`` (nsd_captions.json).
- A .npy of text (N, K), K captions per image and '' where there are fewer; row = image id
  (COCO_73k_annots_curated.npy: row = 0-based number of the NSD image).

The JSON forms are keyed by COCO id where images have one, else by image id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nd.data.npy import open_npy
from nd.errors import UserError
from nd.files import parsed_by_others, unreadable

COCO_FILES = ("captions_train2017.json", "captions_val2017.json")
FORMS = (
    "Wanted COCO annotations ({'annotations': [{'image_id': 1, 'caption': 'a cat'}]}) or a table "
    "({'1': ['a cat', 'a black cat']})."
)

Captions = dict[int, list[str]]


def captions_for(source: Path, ids: Sequence[int], coco_ids: Sequence[int] | None = None) -> list[list[str]]:
    """The captions of every image, stripped and none of them blank, in the order of ``ids``.

    Args:
        source: a file of one of the forms above, or the folder of the COCO files.
        ids: 0-based image ids.
        coco_ids: the COCO id of each of them, where there are any.

    Raises:
        UserError: missing or damaged files, another form, or images without a caption.
    """
    files = files_of(Path(source))
    keys = ids if coco_ids is None or files[0].suffix == ".npy" else coco_ids
    table = read_rows(files[0], keys) if files[0].suffix == ".npy" else _read_all(files)
    found = [table.get(int(key), []) for key in keys]
    lacking = [position for position, texts in enumerate(found) if not texts]
    if lacking:
        first = f"image {ids[lacking[0]]}" + (f", COCO id {coco_ids[lacking[0]]}" if coco_ids is not None else "")
        raise UserError(
            f"{len(lacking)} of {len(ids)} images have no caption in {' and '.join(map(str, files))} "
            f"(first: {first}). {_remedy(files, coco_ids is not None)}"
        )
    return found


def files_of(source: Path) -> list[Path]:
    """The files behind ``source``: itself, or those of COCO that a folder holds. UserError where there is none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(
            f"{source} does not exist. Captions are read from the folder of {' and '.join(COCO_FILES)}, from a JSON "
            "table, or from a .npy of text."
        )
    files = [source / name for name in COCO_FILES if (source / name).is_file()]
    if not files:
        raise UserError(
            f"the folder {source} holds neither {' nor '.join(COCO_FILES)}. Fetch COCO's 2017 annotations and give the "
            "folder of these files, or give a single file of captions."
        )
    return files


def files_if_there(source: Path | None) -> list[Path]:
    """The files behind ``source``; none where it is not there or holds none."""
    try:
        return files_of(source) if source is not None else []
    except (UserError, OSError):
        return []


def read_coco(path: Path, content: dict[str, Any]) -> Captions:
    """COCO id to captions, in the order of the annotations. ``content`` is that of the JSON file ``path``."""
    annotations = content["annotations"]
    if not isinstance(annotations, list):
        raise UserError(f"{path}: its annotations are a {type(annotations).__name__}. {FORMS}")
    table: Captions = {}
    for number, entry in enumerate(annotations):
        if not _is_annotation(entry):
            raise UserError(f"{path}: annotation {number} has no image_id and caption but {str(entry)[:80]}. {FORMS}")
        table.setdefault(entry["image_id"], []).extend(_cleaned([entry["caption"]]))
    return table


def _is_annotation(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("image_id")) is int and isinstance(entry.get("caption"), str)


def read_table(path: Path, content: dict[str, Any]) -> Captions:
    """Image to captions of a table; one text stands for a list of one."""
    table: Captions = {}
    for key, texts in content.items():
        texts = [texts] if isinstance(texts, str) else texts
        if not key.isdecimal():
            raise UserError(f"{path}: {key!r} is not an image number. {FORMS}")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}: image {key} has no list of texts. {FORMS}")
        table.setdefault(int(key), []).extend(_cleaned(texts))
    return table


def read_rows(path: Path, ids: Iterable[int]) -> Captions:
    """Return the captions of some images from a .npy of text.

    Args:
        path: of text (N, K), whose row is the image id.
        ids: the images wanted.

    Returns:
        Captions by image id; those of images beyond N are left out.

    Raises:
        UserError: a file of another form.
    """
    texts = open_npy(path, "str")
    if texts.ndim != 2 or texts.dtype.kind != "U":
        raise UserError(
            f"{path} is {texts.dtype} {texts.shape}; wanted text (images, captions per image), '' where there are "
            "fewer: np.save(path, np.array(lists_of_equal_length, dtype=str))."
        )
    with parsed_by_others(path, f"{path} holds no text", FORMS):
        return {int(i): _cleaned(texts[i].tolist()) for i in ids if 0 <= i < len(texts)}


def _read_all(files: Sequence[Path]) -> Captions:
    """The tables of all JSON files in one."""
    table: Captions = {}
    for path in files:
        content = _load(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} holds a {type(content).__name__} at its top. {FORMS}")
        one = read_coco(path, content) if "annotations" in content else read_table(path, content)
        for key, texts in one.items():
            table.setdefault(key, []).extend(texts)
    return table


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise unreadable(path, error) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read. {FORMS}") from None
    except ValueError as error:  # JSON's own and that of bytes which are not UTF-8
        raise UserError(
            f"{path} is not valid JSON in UTF-8 ({error}): truncated? Fetch it again, or give a .json or .npy file."
        ) from None


def _cleaned(texts: Iterable[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


def _remedy(files: Sequence[Path], coco: bool) -> str:
    """What to do about images without a caption."""
    absent = [name for name in COCO_FILES if name not in {path.name for path in files}]
    if files[0].suffix == ".npy":
        return "Its row is the image id, and images count from 0; give every one of these rows a text."
    if len(absent) == 1:
        return f"Fetch {absent[0]} into the same folder and give that folder."
    return f"Its images are keyed by {'COCO id' if coco else 'image id'}; add a caption for each."
