"""What tests/gpu makes its judgements with notices what it must; over CPU tensors, so that it is tried everywhere."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import device
from tests.gpu.device import brought, memory_comes_back, moved
from tests.gpu.numbered import Checking, size_of
from tests.links import assert_same
from zmqpp.bench.device import CPU
from zmqpp.bench.payload import Payload
from zmqpp.bench.targets import LARGE, MEDIUM, SMALL


def dict_number(number: int) -> dict:
    return {"number": number, **Payload(SMALL).fill(number)}


def test_numbered_dicts_are_compared_byte_for_byte() -> None:
    checking = Checking(CPU)
    for number in range(3):
        checking.check(dict_number(number), number)
    checking.read()
    wrong = dict_number(7)
    wrong["residual"].view(torch.uint8).view(-1)[-1] ^= 1
    checking.check(wrong, 7)
    with pytest.raises(AssertionError, match=r"other bytes in dicts \[7\], 1 in all"):
        checking.read()
    with pytest.raises(AssertionError, match="dict 8 is missing"):
        checking.check(dict_number(9), 8)


def test_bytes_of_another_number_are_not_taken_for_it() -> None:
    checking = Checking(CPU)
    checking.check({**dict_number(1), "number": 2}, 2)
    with pytest.raises(AssertionError, match=r"other bytes in dicts \[2\]"):
        checking.read()


def test_numbers_have_all_sizes() -> None:
    assert {size_of(number) for number in range(50)} == {SMALL, MEDIUM, LARGE}


def test_moved_tensors_keep_strides_offsets_and_bits() -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    sent = {
        "views": [base.permute(2, 0, 1), base[:, ::2, 1:], base[1, 2, 3], base[:0]],
        "expanded": torch.tensor([1.0]).expand(4, 5),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": [1, "x", None],
    }
    there = moved(sent, CPU)
    assert_same(brought(there, wherever=True)["plain"], sent["plain"])
    for one, other in zip(
        [*there["views"], there["expanded"], there["conjugate"], there["negative"]],
        [*sent["views"], sent["expanded"], sent["conjugate"], sent["negative"]],
        strict=True,
    ):
        assert one.stride() == other.stride() and one.storage_offset() == other.storage_offset()
        assert (one.is_conj(), one.is_neg()) == (other.is_conj(), other.is_neg())
        assert torch.equal(one, other) and (one.untyped_storage()._cdata != other.untyped_storage()._cdata)
    assert isinstance(there["parameter"], torch.nn.Parameter)


def test_tensor_that_came_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICE", torch.device("cuda:0"))
    with pytest.raises(AssertionError, match="a tensor came to cpu"):
        brought({"x": [torch.ones(1)]})


def test_memory_that_stays_taken_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICE", CPU)
    sizes = iter([0, 1])
    monkeypatch.setattr(device, "_allocated", lambda: next(sizes))
    with pytest.raises(AssertionError), memory_comes_back():
        pass
    monkeypatch.setattr(device, "_allocated", lambda: 0)
    monkeypatch.setattr(device, "GIVEN_BACK_S", 0.05)
    used = iter([0, *[device.SLACK_BYTES + 1] * 1000])
    monkeypatch.setattr(device, "_in_use", lambda: next(used))
    with pytest.raises(TimeoutError), memory_comes_back():
        pass
