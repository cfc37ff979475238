"""The reader of safetensors headers believes no size before it has checked it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from zmqpp.checkpoint.header import read_header
from zmqpp.errors import ConfigError


def file_of(path: Path, header: Any, body: bytes = b"", announced: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if announced is None else announced) + text + body)
    return path


def tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_names_types_shapes_and_places_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(5, dtype=np.int8)}
    save_file(values, path, metadata={"format": "pt"})
    found = {entry.name: entry for entry in read_header(path)}
    assert {name: (e.dtype, e.shape) for name, e in found.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("I8", (5,)),
    }
    whole = path.read_bytes()
    for name, entry in found.items():
        assert whole[entry.offset_bytes : entry.offset_bytes + entry.size_bytes] == values[name].tobytes()


@pytest.mark.parametrize(
    ("header", "body", "announced", "words"),
    [
        (b"", b"", 0, "announce a header of 0 bytes"),
        (b"{}", b"", 2**63, "announce a header of 9 223 372 036 854 775 808 bytes"),
        (
            b"{}",
            b"",
            99,
            r"is truncated: its header alone takes 107 bytes, the file has 10; download it again",
        ),
        (b"{nonsense}", b"", None, "its header is not JSON"),
        (b'{"a\\ud800": 1}', b"", None, "its header is not JSON"),
        ('{"a": 1}'.encode("utf-16"), b"", None, "its header is not JSON"),
        (b"[" * 50_000, b"", None, "its header is not JSON"),
        (["a"], b"", None, "its header is not a JSON object"),
        (
            {"a": tensor(0, 1_234_500)},
            b"x" * 9,
            None,
            r"its header describes 1 234 5\d\d bytes, the file has \d\d;",
        ),
        ({"a": tensor(0, 4)}, b"x" * 9, None, "has 5 bytes behind its last tensor"),
        ({"a": tensor(0, 4), "b": tensor(2, 6)}, b"x" * 6, None, "b overlaps a"),
        ({"a": tensor(0, 4), "b": tensor(6, 8)}, b"x" * 8, None, "b leaves a gap after a"),
        ({"a": tensor(4, 8)}, b"x" * 8, None, "a leaves a gap after the header"),
        ({"a": tensor(0, 8, [3], "F32")}, b"x" * 8, None, r"a is F32 \[3\], which does not take the 8 bytes"),
        ({"a": tensor(8, 0, [0])}, b"x" * 8, None, "which does not take the -8 bytes"),
        ({"a": tensor(0, 8, [2**40, 2**40])}, b"x" * 8, None, "which does not take the 8 bytes"),
        ({"a": {"dtype": "U8"}}, b"", None, "entry of a lacks a dtype, shape or data_offsets"),
        ({"a": {**tensor(0, 1), "shape": [-1]}}, b"x", None, "entry of a lacks"),
        ({"a": {**tensor(0, 1), "data_offsets": [0, True]}}, b"x", None, "entry of a lacks"),
        ({"a": 7}, b"", None, "entry of a lacks"),
    ],
)
def test_a_broken_file_is_one_clear_line(
    tmp_path: Path, header: Any, body: bytes, announced: int | None, words: str
) -> None:
    path = file_of(tmp_path / "model-00002-of-00003.safetensors", header, body, announced)
    with pytest.raises(ConfigError, match=words) as caught:
        read_header(path)
    assert "model-00002-of-00003.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match="not a safetensors file: it has 5 bytes"):
        read_header(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("dtype", "shape", "size_bytes"),
    [("BF16", [3, 2], 12), ("F8_E4M3", [5], 5), ("F4", [3], 2), ("F6_E2M3", [4], 3), ("F99_NEW", [2], 7)],
)
def test_types_that_numpy_lacks_are_read(
    tmp_path: Path, dtype: str, shape: list[int], size_bytes: int
) -> None:
    path = file_of(tmp_path / "a.safetensors", {"a": tensor(0, size_bytes, shape, dtype)}, b"x" * size_bytes)
    (entry,) = read_header(path)
    assert (entry.dtype, entry.size_bytes) == (dtype, size_bytes)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_any_changed_byte_gives_a_header_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    save_file({"layer.a": np.ones((2, 3)), "layer.b": np.ones(5, np.int8)}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content[: len(content) - cut] if cut < len(content) else content)
    size_bytes = path.stat().st_size
    try:
        entries = read_header(path)
    except ConfigError:
        return
    assert all(entry.offset_bytes + entry.size_bytes <= size_bytes for entry in entries)
