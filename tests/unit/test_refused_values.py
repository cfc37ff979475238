"""What cannot be sent is refused by the name of its key, before anything is sent."""

from __future__ import annotations

import enum
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from zmqpp._tensors import encode
from zmqpp.errors import ConfigError, UnsupportedError


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    pass


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still there
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


REFUSED = {
    "tuple": (1,),
    "set": {1},
    "object": object(),
    "enum": Color.RED,
    "str subclass": Text("x"),
    "numpy scalar": np.float32(1),
    "complex": 1j,
    "range": range(3),
    "dtype": torch.float32,
    "masked array": np.ma.masked_array([1]),
    "object array": np.array([object()]),
    "structured objects": np.zeros(1, [("a", "O")]),
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.empty(2, device="meta"),
    "quantised": quantised(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, {"inner": v}]], ids=["plain", "nested"])
def test_value_is_refused_naming_its_key(name: str, wrap: Any) -> None:
    with pytest.raises(UnsupportedError, match="the_key") as caught:
        encode({"fine": 1, "the_key": wrap(REFUSED[name])})
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("key", [1, None, b"x", ("a",)])
def test_top_level_keys_must_be_strings(key: Any) -> None:
    with pytest.raises(TypeError, match="keys of a tensor dict must be str"):
        encode({key: 1})


def test_nested_keys_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="the_key.*tuple"):
        encode({"the_key": {(1, 2): 3}})


def test_values_within_themselves_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="nested deeper than 64"):
        encode({"x": loop})


def test_depth_of_64_is_accepted_and_65_is_not() -> None:
    def nested(levels: int) -> Any:
        return [nested(levels - 1)] if levels else 1

    encode({"x": nested(63)})
    with pytest.raises(ValueError, match="nested deeper"):
        encode({"x": nested(64)})


def test_only_a_dict_can_be_sent() -> None:
    with pytest.raises(TypeError, match="must be a dict, not list"):
        encode([])  # type: ignore[arg-type]
