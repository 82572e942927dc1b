"""JSON files: read once for all, checked, and told where they are not what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NotRequired

import pytest
from typing_extensions import TypedDict

from nd.errors import UserError
from nd.files import json_line, misfit, read_json, read_lines, write_json


class Inner(TypedDict):
    """An entry."""

    mean: float


class Kind(TypedDict):
    """A record."""

    name: str
    n: int
    scores: dict[str, Inner]
    note: NotRequired[str | None]


GOOD: dict[str, Any] = {"name": "a", "n": 3, "scores": {"x": {"mean": 1}}, "more": [1, None]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, GOOD | {"path": tmp_path, 3: "three", 10: float("inf")})
    assert read_json(path, Kind) == GOOD | {"path": str(tmp_path), "3": "three", "10": float("inf")}
    assert len(json.loads(path.read_text(encoding="utf-8"))["digest"]) == 16
    write_json(path, ["a", "b"])
    assert read_json(path, list[str]) == ["a", "b"]


@pytest.mark.parametrize(("before", "after"), [('"n": 3', '"n": 4'), ('"mean": 1', '"mean": 1.5'), ('"a"', '"b"')])
def test_a_change_is_told(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "a.json"
    write_json(path, GOOD)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\n", "\n "), encoding="utf-8")
    assert read_json(path, Kind) == GOOD  # blanks say nothing
    path.write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(UserError, match=r"a.json was changed since it was written: .* Make it again\."):
        read_json(path, Kind, "Make it again.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"null", "does not hold what it should: it is null, wanted an object"),
        (b"[]", "it is a list, wanted an object"),
        (b'"text"', "it is a text, wanted an object"),
        (b"3", "it is a number, wanted an object"),
        (b"true", "it is true or false, wanted an object"),
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b'{"a": \xff}', "is not UTF-8 from byte 6 on"),
        (b"[" * 200_000 + b"]" * 200_000, r"is not valid JSON \(nested too deeply\)"),
        (b'{"a":' * 700 + b"1" + b"}" * 700, r"wanted|is not valid JSON|$"),
        (b"1" * 5000, "is not valid JSON"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    if said.endswith("$"):  # what Python can still read is read
        assert isinstance(read_json(path), dict)
        return
    with pytest.raises(UserError, match=rf"a.json {said}|a.json .*{said}"):
        read_json(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": None}, "name: input should be a valid string"),
        ({"n": "3"}, "n: input should be a valid integer"),
        ({"n": 3.5}, "n: "),
        ({"n": True}, "n: "),
        ({"scores": []}, "scores: "),
        ({"scores": {"x": {}}}, r"scores\.x\.mean: is missing"),
        ({"scores": {"x": {"mean": "high"}}}, r"scores\.x\.mean: input should be a valid number"),
        ({"note": 3}, "note"),
    ],
)
def test_entries_of_another_kind_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "a.json"
    write_json(path, GOOD | changes)
    with pytest.raises(UserError, match=rf"a.json does not hold what it should: {said}"):
        read_json(path, Kind)


def test_a_missing_entry_is_named() -> None:
    assert misfit({name: value for name, value in GOOD.items() if name != "n"}, Kind) == "n: is missing"
    assert misfit(GOOD, Kind) == misfit(GOOD | {"note": None}, Kind) == ""


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; wanted a file"):
        read_json(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "absent.json")


def test_lines_are_checked_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json_line(GOOD) + json_line(GOOD | {"n": 4}), encoding="utf-8")
    assert [line["n"] for line in read_lines(path, Kind)] == [3, 4]
    path.write_text(json_line(GOOD) + json_line(GOOD | {"n": 4}).replace('"n": 4', '"n": 5'), encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 was changed since it was written"):
        read_lines(path, Kind)
