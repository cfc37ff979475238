"""What cannot be sent is refused by the name of its key, before anything is sent."""

from __future__ import annotations

import enum
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zmqpp._tensors import WIRE_DTYPES, encode
from zmqpp.errors import ConfigError, UnsupportedError


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    pass


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still there
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, it says
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


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
    "nested": nested(),
    "packed": torch.zeros(2, dtype=torch.uint8).view(torch.bits4x2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, {"inner": v}]], ids=["plain", "nested"])
def test_value_is_refused_naming_its_key(name: str, wrap: Any) -> None:
    with pytest.raises(UnsupportedError, match="the_key") as caught:
        encode({"fine": 1, "the_key": wrap(REFUSED[name])})
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("transform", [torch.vmap, lambda f: torch.func.grad(lambda x: f(x).sum())])
def test_tensors_inside_a_transform_are_refused_naming_their_key(transform: Any) -> None:
    def send(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(UnsupportedError, match="the_key.*torch.Tensor"):
            encode({"the_key": x})
        return x

    transform(send)(torch.ones(3))


def test_tensors_whose_layout_cannot_be_read_are_refused_naming_their_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(torch.Tensor):
        @property
        def layout(self) -> Any:
            raise RuntimeError("no layout today\nand a trace")

    monkeypatch.setattr("zmqpp._tensors.torch.Tensor", Broken)
    with pytest.raises(UnsupportedError, match=r"'the_key': this .*Broken cannot be sent: no layout today$"):
        encode({"the_key": torch.ones(2).as_subclass(Broken)})


def test_manifest_beyond_its_limit_names_the_largest_key_and_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"'long': 18000\d\d\d bytes .* limit .* 16777216; .*tensor"):
        encode({"short": [1] * 1000, "long": [1.5] * 2_000_000, "tensor": torch.ones(9)})


@pytest.mark.parametrize("key", [1, None, b"x", ("a",), 10**5000], ids=lambda key: type(key).__name__)
def test_top_level_keys_must_be_strings(key: Any) -> None:
    with pytest.raises(TypeError, match="keys of a tensor dict must be str"):
        encode({key: 1})


def test_nested_keys_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="the_key.*tuple"):
        encode({"the_key": {(1, 2): 3}})


def test_wire_dtypes_are_all_of_torch_but_those_its_text_excepts() -> None:
    text = (Path(__file__).parents[2] / "zmqpp/_manifest.py").read_text()
    text = text.partition('"""Every torch dtype but these')[2].partition('"""')[0]
    for kind in ("int", "uint"):
        text = text.replace(f"{kind}1 to {kind}7", ", ".join(f"{kind}{bits}" for bits in range(1, 8)))
    excepted = set(re.findall(r"[a-z0-9_]+", text))
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        name = str(dtype).removeprefix("torch.")
        assert (name in WIRE_DTYPES) is not (name in excepted), name


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
