"""What vLLM's travelling objects are declared to hold travels too, whichever models and devices fill those fields."""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from collections.abc import Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

from zmqpp.errors import MalformedError
from zmqpp.vllm import codec, compat

pytestmark = pytest.mark.vllm

MODULES = ("vllm.v1.kv_cache_interface", "vllm.v1.core.sched.output", "vllm.v1.outputs")
BY_THEMSELVES = {torch.Tensor, torch.dtype, np.ndarray, Fraction}
NOT_HERE = {
    "EncoderCacheManagerMetadata",  # of an encoder cache of the user's own, and those of KV and encoder transfer,
    "KVConnectorMetadata",  # which external stages refuse
    "ECConnectorMetadata",
    "ECConnectorStats",
    "KVConnectorStats",
    "KVConnectorWorkerMetadata",
    "KVConnectorKVEvents",
}


def _for_type_checkers(module: ModuleType) -> dict[str, Any]:
    """What the module imports under `if TYPE_CHECKING`."""
    found: dict[str, Any] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            continue
        for line in node.body:
            if isinstance(line, ast.ImportFrom):
                of = importlib.import_module(line.module or "")
                found.update({name.asname or name.name: getattr(of, name.name) for name in line.names})
            elif isinstance(line, ast.Import):
                found.update({n.asname or n.name: importlib.import_module(n.name) for n in line.names})
    return found


def _classes(hint: Any) -> Iterator[type]:
    if typing.get_origin(hint) is typing.Literal:
        return
    if inner := typing.get_args(hint):
        for each in inner:
            yield from _classes(each)
    elif isinstance(hint, type) and not issubclass(hint, np.generic) and hint is not Any:
        yield hint


@pytest.mark.parametrize("name", MODULES)
def test_every_declared_field_can_travel(name: str) -> None:
    module = importlib.import_module(name)
    names = {**vars(module), **_for_type_checkers(module)}
    travelling = [kind for kind in vars(module).values() if isinstance(kind, type) and compat.wire_name(kind)]
    assert len(travelling) > 3
    stuck = {
        f"{kind.__name__}.{field}: {inner.__module__}.{inner.__qualname__}"
        for kind in travelling
        if kind.__module__ == name
        for field, hint in typing.get_type_hints(kind, globalns=names).items()
        for inner in _classes(hint)
        if inner not in BY_THEMSELVES and inner.__name__ not in NOT_HERE and inner.__module__ != "builtins"
        if compat.wire_name(inner) is None
    }
    assert not stuck


def test_the_cache_of_a_mamba_layer_travels() -> None:
    spec = MambaSpec(
        block_size=16,
        shapes=((4, 8), (2, 8, 8)),
        dtypes=(torch.bfloat16, torch.float32),
        mamba_type=MambaAttentionBackendEnum.GDN_ATTN,
    )
    assert codec.decode(codec.encode({"layer": spec})) == {"layer": spec}


def test_a_cache_with_an_alignment_of_its_own_travels() -> None:
    """As DeepSeek's has it."""
    given: dict[str, Any] = {"block_size": 16, "num_kv_heads": 1, "head_size": 576, "dtype": torch.bfloat16}
    fields = FullAttentionSpec.__dataclass_fields__
    if "tokens_per_state" in fields:
        given["tokens_per_state"] = Fraction(1, 4)
    if "MultipleOf" in str(getattr(fields.get("block_stride_alignment"), "type", "")):
        backend = importlib.import_module("vllm.v1.attention.backend")
        given["block_stride_alignment"] = backend.MultipleOf(64)
    spec = FullAttentionSpec(**given)
    assert codec.decode(codec.encode(spec)) == spec


@pytest.mark.parametrize("content", [[1], [1, 0], [1, -2], ["1", 2], [1.5, 2], [True, 2]])
def test_a_fraction_that_is_none_is_refused(content: list[Any]) -> None:
    inner = msgspec.msgpack.encode(["fraction", *content])
    with pytest.raises(MalformedError, match="a fraction of"):
        codec.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inner)))
