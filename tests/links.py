"""Links for tests: pairs and rings on free ports, and what must be equal about received values."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zmqpp.config import TransportConfig
from zmqpp.transport import Link

ANY_PORT = "127.0.0.1:0"
FAST = TransportConfig(timeout_s=10.0, linger_s=2.0, heartbeat_s=0.2, peer_timeout_s=3.0)


@contextmanager
def pair(
    bind: str = ANY_PORT, sender: TransportConfig = FAST, receiver: TransportConfig = FAST
) -> Iterator[tuple[Link, Link]]:
    """(sender, receiver), connected."""
    with (
        Link(bind=bind, connect=None, config=sender, name="a", next="b") as first,
        Link(bind=None, connect=first.bound, config=receiver, name="b", previous="a") as second,
    ):
        first.wait_peers(5)
        second.wait_peers(5)
        yield first, second


def address(lane: str, folder: Path, name: str) -> str:
    """Where to bind on this lane."""
    return ANY_PORT if lane == "tcp" else f"ipc://{folder}/{name}"


@contextmanager
def opened(*links: Link) -> Iterator[tuple[Link, ...]]:
    with ExitStack() as stack:
        for link in links:
            stack.enter_context(link)
        yield links


def assert_same(got: Any, sent: Any) -> None:
    """Same types, shapes, order of keys, and the same bits."""
    wanted = torch.Tensor if isinstance(sent, torch.Tensor) else type(sent)
    assert type(got) is wanted, f"{type(got)} where {wanted} was sent"
    if isinstance(sent, torch.Tensor):
        plain = sent.detach().resolve_conj().resolve_neg().cpu().contiguous()
        assert (got.dtype, got.shape) == (plain.dtype, plain.shape)
        assert got.is_contiguous() and not got.requires_grad
        assert _bytes_of(got) == _bytes_of(plain)
    elif isinstance(sent, np.ndarray):
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert got.tobytes() == sent.tobytes() and got.flags.writeable
    elif isinstance(sent, float):
        assert struct.pack("<d", got) == struct.pack("<d", sent)
    elif isinstance(sent, list):
        assert len(got) == len(sent)
        for one, other in zip(got, sent, strict=True):
            assert_same(one, other)
    elif isinstance(sent, dict):
        assert [repr(key) for key in got] == [repr(key) for key in sent]
        for one, other in zip(got.values(), sent.values(), strict=True):
            assert_same(one, other)
    else:
        assert got == sent


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return (
        ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""
    )
