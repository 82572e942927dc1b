"""HDF5 files that hold digests of their own content: a change since they were written is told, and what to do."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_files import edited

from nd import sealed
from nd.digests import digest_file, digest_rows
from nd.errors import UserError
from nd.h5_values import attribute, check_all, dataset_of, read_whole
from nd.hdf5 import allocate, open_h5
from nd.sealed import RECORDED, ROWS, content_digest, recorded_of, seal

AGAIN = "Write it again."
ROWS_OF = np.arange(24, dtype=np.float32).reshape(8, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with whole numbers, text, a group, an attribute, and rows."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as handle:
        handle["ids"] = np.arange(8, dtype=np.int32)
        handle["masks/V1"] = np.array([True, False, True])
        handle.create_dataset("texts", data=np.array(["a", "é", ""], dtype=object), dtype=h5py.string_dtype())
        handle["values"] = ROWS_OF
        handle.attrs.update({"name": "anna", "sizes": "[3]", "n": 4})
        seal(handle, AGAIN, {"values": digest_rows(ROWS_OF)})
    return path


def everything(path: Path) -> None:
    """Read all there is."""
    with open_h5(path) as handle:
        for name in ("ids", "masks/V1", "texts", "values"):
            read_whole(handle, name)


def change(path: Path, how: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "r+") as handle:
        how(handle)


def one_value(handle: h5py.File) -> None:
    handle["values"][5, 1] = 1e30


def rows_exchanged(handle: h5py.File) -> None:
    handle["values"][[2, 6]] = handle["values"][()][[6, 2]]


def both_exchanged(handle: h5py.File) -> None:
    """Rows with their digests, as only a program would do it."""
    for name in ("values", f"{ROWS}/values"):
        handle[name][[2, 6]] = handle[name][()][[6, 2]]


def id_doubled(handle: h5py.File) -> None:
    handle["ids"][3] = 4


def mask_removed(handle: h5py.File) -> None:
    del handle["masks/V1"]


def mask_flipped(handle: h5py.File) -> None:
    handle["masks/V1"][1] = True


def text_changed(handle: h5py.File) -> None:
    handle["texts"][0] = "b"


def attribute_changed(handle: h5py.File) -> None:
    handle.attrs["name"] = "otto"


def attribute_added(handle: h5py.File) -> None:
    handle.attrs["layout"] = "CHW"


def shape_changed(handle: h5py.File) -> None:
    del handle["ids"]
    handle["ids"] = np.arange(7, dtype=np.int32)


def shape_folded(handle: h5py.File) -> None:
    """The same bytes."""
    del handle["ids"]
    handle["ids"] = np.arange(8, dtype=np.int32).reshape(2, 4)


def sign_lost(handle: h5py.File) -> None:
    """The same bytes."""
    del handle["ids"]
    handle["ids"] = np.arange(8, dtype=np.uint32)


def digests_garbled(handle: h5py.File) -> None:
    handle[RECORDED][3:9] = 0


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (one_value, r"row 5 of values changed since the file was written\. Write it again\."),
        (rows_exchanged, "row 2 of values changed"),
        (both_exchanged, "its group 'digests' is damaged"),
        (id_doubled, "ids changed"),
        (mask_flipped, "masks/V1 changed"),
        (mask_removed, "masks/V1 changed"),
        (text_changed, "texts changed"),
        (attribute_changed, "its attributes changed"),
        (attribute_added, "its attributes changed"),
        (shape_changed, "ids changed"),
        (shape_folded, "ids changed"),
        (sign_lost, "ids changed"),
        (digests_garbled, "its group 'digests' is damaged"),
    ],
)
def test_a_change_is_told(path: Path, how: Callable[[h5py.File], None], said: str) -> None:
    everything(path)
    check_all(path)
    change(path, how)
    for read in (everything, check_all):
        with pytest.raises(UserError, match=rf"x\.h5: {said}"):
            read(path)


def test_what_is_changed_on_purpose_passes(path: Path) -> None:
    with edited(path) as handle:
        handle["ids"][3] = 4
    everything(path)
    assert content_digest(path) == digest_file(path)


def test_content_is_told_by_what_it_is_not_by_how_it_lies(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.h5"
    with h5py.File(again, "w", libver="latest") as handle:
        handle.attrs.update({"n": 4, "sizes": "[3]", "name": "anna"})
        handle.create_dataset("values", data=ROWS_OF, chunks=(2, 3), compression="gzip")
        handle.create_dataset("texts", data=np.array(["a", "é", ""], dtype=object), dtype=h5py.string_dtype())
        handle["masks/V1"], handle["ids"] = np.array([True, False, True]), np.arange(8, dtype=np.int32)
        seal(handle, AGAIN, {"values": digest_rows(ROWS_OF)})
    assert digest_file(again) != digest_file(path)
    assert content_digest(again) == content_digest(path)


def test_rows_are_compared_once_as_long_as_the_file_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counted(values: np.ndarray) -> np.ndarray:
        compared.append(len(values))
        return digest_rows(values)

    monkeypatch.setattr(sealed, "digest_rows", counted)
    recorded, read = recorded_of(path), ROWS_OF.__getitem__
    recorded.check_before("values", np.array([6, 1, 6]), read)
    recorded.check_rows("values", np.array([1, 2]), ROWS_OF[[1, 2]])
    recorded_of(path).check_before("values", np.arange(8), read)
    assert compared == [2, 1, 5]
    change(path, one_value)
    with h5py.File(path) as handle, pytest.raises(UserError, match="row 5 of values"):
        recorded_of(path).check_before("values", np.arange(8), handle["values"].__getitem__)


def test_rows_beyond_those_recorded_are_a_change(path: Path) -> None:
    with pytest.raises(UserError, match="values changed"):
        recorded_of(path).check_rows("values", np.array([8]), ROWS_OF[:1])


def test_a_file_that_is_filled_bit_by_bit_keeps_its_structure(tmp_path: Path) -> None:
    """A process that is killed while it seals leaves nothing broken: only numbers are written by then."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as handle:
        allocate(handle, "values", (4, 2), np.dtype(np.float32))[:] = 0
        allocate(handle, f"{ROWS}/values", (4,), np.dtype(np.uint64))[:] = 0
        seal(handle, AGAIN)
        place, size = handle[RECORDED].id.get_offset(), handle.id.get_filesize()
        values = np.ones((4, 2), np.float32)
        handle["values"][:], handle[f"{ROWS}/values"][:] = values, digest_rows(values)
        seal(handle, AGAIN)
        assert (handle[RECORDED].id.get_offset(), handle.id.get_filesize()) == (place, size)
    check_all(path)


# ---- what is no file of the kind -------------------------------------------------------------------------------------


def test_terabytes_are_refused_before_room_is_made(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as handle:
        handle.create_dataset("v", (1 << 42, 3), np.float64, chunks=(1024, 3))
        handle.create_dataset("zeros", data=np.zeros((1000, 1000)), compression="gzip")  # packs 8 MB into 8 kB
    with open_h5(tmp_path / "x.h5") as handle:
        with pytest.raises(UserError, match=r"x.h5: v claims to be float64 .*, more than the file can hold"):
            read_whole(handle, "v")
        assert read_whole(handle, "zeros").shape == (1000, 1000)


@pytest.mark.parametrize(
    ("kinds", "shape", "said"),
    [
        ("f", None, r"ids is int32 \(8,\), wanted floats"),
        ("O", None, r"ids is int32 \(8,\), wanted text"),
        ("iu", (7,), r"ids is int32 \(8,\), wanted whole numbers \(7\)"),
        ("", (None, 2), r"ids is int32 \(8,\), wanted \(any, 2\)"),
    ],
)
def test_datasets_of_another_kind(path: Path, kinds: str, shape: Any, said: str) -> None:
    with open_h5(path) as handle, pytest.raises(UserError, match=rf"x.h5: {said}\. Write it again\."):
        read_whole(handle, "ids", kinds, shape)


def test_a_group_and_a_broken_link_are_no_dataset(path: Path) -> None:
    with edited(path) as handle:
        handle["gone"] = h5py.SoftLink("/nowhere")
    with open_h5(path) as handle:
        for name in ("masks", "gone", "absent"):
            with pytest.raises(UserError, match=rf"x.h5 holds no dataset {name}, but gone, ids, masks, texts, values"):
                read_whole(handle, name)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("absent", str, "lacks its attribute absent"),
        ("n", str, "attribute n is 4, wanted str"),
        ("name", int, "attribute name is 'anna', wanted int"),
        ("name", list[int], "attribute name is 'anna', wanted JSON"),
        ("sizes", list[str], "attribute sizes does not hold what it should: 0: input should be a valid string"),
    ],
)
def test_attributes_of_another_kind(path: Path, name: str, kind: Any, said: str) -> None:
    with open_h5(path) as handle, pytest.raises(UserError, match=said):
        attribute(handle, name, kind)


def test_attributes(path: Path) -> None:
    with open_h5(path) as handle:
        found = [attribute(handle, "n", int), attribute(handle, "sizes", list[int]), attribute(handle, "x", str, "y")]
    assert found == [4, [3], "y"]


def test_words_of_hdf5_stay_inside(tmp_path: Path) -> None:
    """Bytes of a small file overwritten in turn: what fails is told in our words, everything else is the same."""
    path, spoilt = tmp_path / "x.h5", tmp_path / "spoilt.h5"
    with h5py.File(path, "w") as handle:
        handle.create_dataset("v", data=np.arange(64.0).reshape(8, 8), chunks=(4, 8), compression="gzip")
        handle.attrs["name"] = "anna"
        seal(handle, AGAIN)
    content, said = path.read_bytes(), []
    for place in range(0, len(content), 31):
        spoilt.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        try:
            with open_h5(spoilt) as handle:
                values, name = read_whole(handle, "v", "f", (8, 8)), attribute(handle, "name", str)
        except UserError as error:
            said.append(str(error))
        else:
            np.testing.assert_array_equal(values, np.arange(64.0).reshape(8, 8))
            assert name == "anna"
    assert len(said) > 10
    assert [text for text in said if "spoilt.h5" not in text] == []
    foreign = ("synchronously", "errno", "Can't", "H5", "header")
    assert [text for text in said if any(word in text for word in foreign)] == []


def test_a_dataset_without_a_shape_is_told(path: Path) -> None:
    with edited(path) as handle:
        handle.create_dataset("nothing", data=h5py.Empty("f4"))
    with open_h5(path) as handle, pytest.raises(UserError, match=r"x\.h5: its dataset nothing is empty\. "):
        dataset_of(handle, "nothing")


def test_zeros_where_texts_lie_are_told(path: Path) -> None:
    """HDF5 itself reads them without end."""
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL") + 64
    content[place : place + 2000] = bytes(2000)
    path.write_bytes(content)
    faulthandler.dump_traceback_later(60, exit=True)  # nothing else ends what hangs inside the library
    with pytest.raises(UserError, match=r"x\.h5 is damaged: texts in it cannot be read"):
        everything(path)
    faulthandler.cancel_dump_traceback_later()


def test_a_text_that_claims_to_reach_around_is_told(path: Path) -> None:
    """The size of the first object of the texts' heap, modulo 2 ** 64, leads HDF5 back to it, without end."""
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL") + 16 + 8
    content[place : place + 8] = (2**64 - 16).to_bytes(8, "little")
    path.write_bytes(content)
    faulthandler.dump_traceback_later(60, exit=True)
    with pytest.raises(UserError, match=r"x\.h5 is damaged: texts in it cannot be read"):
        everything(path)
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("layout", ["earliest", "latest"])
@pytest.mark.parametrize("held", ["attribute", "list", "of a dataset", "dataset"])
def test_a_text_that_claims_gigabytes_is_told(layout: str, held: str, tmp_path: Path) -> None:
    """HDF5 makes room for what is claimed where a text is used, 4 GB at most, and reads it."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=layout) as handle:
        handle["texts"] = np.array([["a"], ["twelve bytes" if held == "dataset" else "b"]], dtype=object)
        of = handle["texts"].attrs if held == "of a dataset" else handle.attrs
        if held != "dataset":
            of.create("name", ["a", "twelve bytes"] if held == "list" else "twelve bytes", dtype=h5py.string_dtype())
    with open_h5(path) as handle:
        assert handle["texts"].asstr()[0, 0] == "a"
    content = path.read_bytes()
    place = (12).to_bytes(4, "little") + content.index(b"GCOL").to_bytes(8, "little")
    assert content.count(place) == 1
    path.write_bytes(content.replace(place, (len(content) + 1).to_bytes(4, "little") + place[4:]))
    # what is written as "latest" has sums over attributes, which HDF5 checks itself
    told = r"x\.h5 is damaged: texts in it cannot be read" + r"|x\.h5 is damaged: a part of it" * (layout == "latest")
    with pytest.raises(UserError, match=told), open_h5(path):
        pass


def test_linked_texts_are_looked_for_in_no_wrong_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "texts.h5", "w") as handle:
        handle["texts"] = np.array(["a", "b"], dtype=object)
        place = handle["texts"].id.get_offset()
    with h5py.File(tmp_path / "x.h5", "w") as handle:
        handle["texts"] = h5py.ExternalLink("texts.h5", "texts")
        handle["bytes"] = np.full(2 * place, 255, np.uint8)
        assert handle["bytes"].id.get_offset() <= place, "the place in the other file is of these here"
    with open_h5(tmp_path / "x.h5") as handle:
        assert handle["texts"].asstr()[:].tolist() == ["a", "b"]


def test_an_attribute_of_texts_without_any_is_none(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as handle:
        handle.attrs["none"] = h5py.Empty(h5py.string_dtype())
        handle.attrs["next"] = np.full(8, 255, np.uint8)
    with open_h5(tmp_path / "x.h5") as handle:
        assert handle.attrs["none"].shape is None


def test_names_and_shapes_like_an_attributes_are_no_text(tmp_path: Path) -> None:
    """What describes a type lies among other bytes too, where nothing follows that could be read."""
    from nd.hdf5_texts import TEXT_TYPE

    path = tmp_path / "x.h5"
    for before in (b"", b"\0" * 9, b"\x03\0\x02\0\x08\0\xff\xff\x01n\0", b"\x01\0\xff\xff\x08\0\x08\0n\0\0\0\0\0\0\0"):
        with h5py.File(path, "w") as handle:
            handle["bytes"] = np.frombuffer(before + TEXT_TYPE, np.uint8)
        with open_h5(path) as handle:
            assert len(handle["bytes"][()]) == len(before) + 8


def test_a_text_whose_characters_are_large_is_told(path: Path) -> None:
    """HDF5 makes room for its length times their size."""
    content, name = bytearray(path.read_bytes()), b"name\0\0\0\0"
    variable, character = b"\x19\x01\x01\0\x10\0\0\0", b"\x10\0\0\0\x01\0\0\0"
    place = content.index(name + variable + character) + len(name + variable)
    content[place : place + 8] = b"\x13\0\0\0" + (1 << 20).to_bytes(4, "little")  # themselves texts, of 1 MB
    path.write_bytes(content)
    with open_h5(path) as handle, pytest.raises(UserError, match=r"x\.h5: its attribute name holds neither a number"):
        attribute(handle, "name", str)


def test_errors_of_our_own_pass_through_an_open_file(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_h5(path):
        _ = 1 / 0
    with pytest.raises(KeyError), open_h5(path):
        _ = {}["absent"]
