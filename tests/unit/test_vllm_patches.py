"""Stages of two patch releases of vLLM work together where its objects look the same in both; else they are refused."""

from __future__ import annotations

import dataclasses
import enum
import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

from zmqpp import control
from zmqpp.errors import UnsupportedError
from zmqpp.vllm import compat
from zmqpp.vllm.greeting import check_versions
from zmqpp.vllm.wire_digest import described, wire_digest

pytestmark = pytest.mark.vllm
PRINT = "from zmqpp.vllm.wire_digest import wire_digest; print(wire_digest())"


def hello(version: str, objects: str) -> control.Hello:
    greeting = control.Hello("s", 0, control.PROTOCOL_VERSION, "0", version, 2, {}, {}, {})
    greeting.objects = objects
    return greeting


STAGE: Any = SimpleNamespace(stage_idx=1, total_stages=2)


def test_another_patch_release_with_the_same_objects_is_taken() -> None:
    check_versions(hello(f"{compat.minor(compat.vllm_version())}.99", wire_digest()), STAGE)


def test_the_same_release_is_not_looked_at() -> None:
    check_versions(hello(compat.vllm_version(), "built otherwise"), STAGE)


@pytest.mark.parametrize("objects", ["", "others"])
def test_another_patch_release_with_other_objects_is_refused(objects: str) -> None:
    other = f"{compat.minor(compat.vllm_version())}.99"
    wanted = f"stage 1 runs vLLM {compat.vllm_version()}, stage 0 runs {other}, .* install the same on both"
    with pytest.raises(UnsupportedError, match=wanted):
        check_versions(hello(other, objects), STAGE)


def test_another_minor_version_is_refused_whatever_its_objects() -> None:
    with pytest.raises(UnsupportedError, match=r"stage 0 runs 0\.12\.0: install the same on both"):
        check_versions(hello("0.12.0", wire_digest()), STAGE)


def test_every_process_finds_the_same_digest() -> None:
    found = [subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True) for _ in range(2)]
    assert {run.stdout.split()[-1] for run in found} == {wire_digest()}


def test_fields_their_defaults_and_the_order_of_a_tuple_count() -> None:
    def made(*fields: Any) -> str:
        return described(dataclasses.make_dataclass("Step", fields))

    plain = made(("a", int), ("b", int, 1))
    assert plain == made(("a", str), ("b", int, 1))  # types are not written
    assert plain != made(("a", int), ("b", int, 2))
    assert plain != made(("a", int), ("b", int, 1), ("c", int, 1))
    assert plain != made(("b", int), ("a", int, 1))
    assert made(("a", list, dataclasses.field(default_factory=list))) != made(("a", list))
    assert described(NamedTuple("T", [("a", int), ("b", int)])) != described(
        NamedTuple("T", [("b", int), ("a", int)])
    )
    assert described(enum.Enum("E", {"A": 1})) != described(enum.Enum("E", {"A": 2}))
