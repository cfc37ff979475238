"""Whatever bytes arrive, a decoder refuses them with one of our errors, on one line, or accepts them: nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import TARGETS, run
from tests.fuzz.mutation import Mutator

ROOT = Path(__file__).resolve().parents[2]
_CORPORA = {name: target.corpus() for name, target in TARGETS.items()}
_QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# What msgpack can say, and what it can say wrongly: scalars, containers, extensions, keys of any type.
_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(),
    st.text(max_size=6),
    st.binary(max_size=6),
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(0, 9), st.floats()), inner, max_size=4),
        st.builds(
            lambda code, value: msgspec.msgpack.Ext(code, msgspec.msgpack.encode(value)),
            st.integers(-128, 127),
            inner,
        ),
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", TARGETS)
@given(content=st.binary(max_size=300))
@_QUICK
def test_any_bytes_are_refused_or_read(name: str, content: bytes) -> None:
    TARGETS[name].accept(content)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "keys"])
@given(tree=_trees, front=st.sampled_from([b"", b"\0", b"\x02"]))
@_QUICK
def test_any_msgpack_is_refused_or_read(name: str, tree: Any, front: bytes) -> None:
    TARGETS[name].accept(front + msgspec.msgpack.encode(tree))


@pytest.mark.parametrize("name", TARGETS)
@given(seed=st.integers(0, 1 << 32))
@_QUICK
def test_changed_messages_are_refused_or_read(name: str, seed: int) -> None:
    mutator = Mutator(_CORPORA[name], seed)
    for _ in range(20):
        TARGETS[name].accept(mutator.next())


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_sent_is_accepted(name: str) -> None:
    assert all(TARGETS[name].accept(content) for content in _CORPORA[name])
    runs, accepted = run(name, 0.2, seed=3)
    assert accepted < runs


def _ext(content: Any) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode(content)))


def _nested_extensions(levels: int) -> bytes:
    body = msgspec.msgpack.encode(None)
    for _ in range(levels):
        inner = b"\x92\xa5tuple" + body
        body = b"\xc9" + len(inner).to_bytes(4, "big") + b"\x01" + inner
    return body


_MANY = 200_000
BOMBS = {
    "lists in lists": b"\x91" * _MANY,
    "maps in maps": b"\x81\xa1a" * _MANY,
    "extensions in extensions": _nested_extensions(3000),
    "a list of 2**32": b"\xdd\xff\xff\xff\xff" + bytes(100),
    "a map of 2**32": b"\xdf\xff\xff\xff\xff" + bytes(100),
    "bytes of 2**32": b"\xc6\xff\xff\xff\xff",
    "an extension of 2**32": b"\xc9\xff\xff\xff\xff\x01",
    "a time out of range": b"\xc7\x0c\xff" + b"\xff" * 12,
    "no UTF-8": b"\xa4\xff\xfe\xfd\xfc",
    "a map as a key": b"\x81\x80\x00",
    "NaN as a key, twice": b"\x82" + b"\xcb\x7f\xf8\0\0\0\0\0\0\x01" * 2,
    "a key twice": b"\x82\xa4verb\xa4stop\xa4verb\xa4exec",
    "a verb of 100 KB": b"\x81\xa4verb\xda\xff\xff" + b"x\n" * 32767 + b"x",
    "a field of 64 KB": b"\x82\xa4verb\xa4stop\xda\xff\xff" + b"\x1b\n" * 32767 + b"x\x01",
    "an int of many digits": _ext(["int", "9" * _MANY]),
    "a shape of many dimensions": _ext(["tensor", "float32", [1 << 62] * _MANY, b""]),
    "a shape of many ones": _ext(["array", "<f4", [1] * _MANY, bytes(4)]),
    "a shape beyond memory without bytes": _ext(["tensor", "float32", [0, 1 << 61, 1 << 61], b""]),
    "a set of lists": _ext(["set", [[]]]),
    "a class that is none": _ext(["vllm.sampling_params:" + "x" * _MANY, {}]),
    "a class with a field that is none": _ext(["vllm.v1.outputs:ModelRunnerOutput", {"x" * _MANY: 1}]),
}
MANIFEST_BOMBS = {
    "many dimensions": [[64], [1, "x", [2, 0, "float32", False, [(1 << 62) - 1] * _MANY]]],
    "no element, beyond memory": [[0], [1, "x", [2, 0, "float32", False, [0, 1 << 61, 1 << 61]]]],
    "no element, in an array": [[0], [1, "x", [3, 0, "<f4", [0, 1 << 61, 1 << 61]]]],
    "one buffer again and again": [[64], [1, "x", [0] + [[6, 0]] * _MANY]],
    "one tensor again and again": [[64], [1, "x", [0] + [[2, 0, "uint8", True, [64]]] * _MANY]],
    "a map": [[], {"x": 1}],
    "a time": [[], [1, "x", msgspec.msgpack.Ext(-1, bytes(4))]],
    "many buffers": [[1 << 61] * _MANY, [1]],
    "a name of 200 KB": [[64], [1, "x", [2, 0, "n\n" * 100_000, False, [1]]]],
}


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "keys"])
@pytest.mark.parametrize("bomb", [*BOMBS, *(f"manifest: {name}" for name in MANIFEST_BOMBS)])
def test_a_bomb_is_refused_without_much_time_or_memory(name: str, bomb: str) -> None:
    kind, _, which = bomb.partition("manifest: ")
    content = BOMBS[bomb] if kind else b"\x01" + msgspec.msgpack.encode(MANIFEST_BOMBS[which])
    if not kind and MANIFEST_BOMBS[which][0] == [0]:
        content = b"\x00" + content[1:]
    began = time.monotonic()
    tracemalloc.start()
    try:
        for front in (b"", b"\0", b"\x01"):
            TARGETS[name].accept(front + content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 * (len(content) + (1 << 20)), f"{peak >> 20} MiB for {len(content)} bytes"
    assert time.monotonic() - began < 60  # a product of all dimensions takes hours


def test_nothing_is_imported_run_or_opened_while_reading_and_memory_is_bounded() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.property.decoding_child"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        cwd=ROOT,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), (
        done.stdout + done.stderr[-3000:]
    )
    assert done.stdout.splitlines() == ["done"]
