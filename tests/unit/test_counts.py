"""What a dict may cost in steady state, as counts: copies, messages, memory from the system, wake-ups."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.links import ANY_PORT, FAST
from zmqpp import _engine
from zmqpp.transport import Link

KIB, MIB = 1 << 10, 1 << 20
CHUNK = FAST.chunk_bytes
STEPS = 50
SHAPES = {
    "a decode step": [(1, 4096), (1, 4096)],
    "a batch": [(64, 4096), (64, 4096)],
    "a prefill": [(2048, 1024)],
}
LANES = ["tcp", "ipc", "shm"]


@pytest.fixture(params=LANES)
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Link, Link]]:
    """Without signs of life between the dicts: (lane, sender, receiver)."""
    lane = request.param
    quiet = replace(FAST, heartbeat_s=0, peer_timeout_s=0, lane="shm" if lane == "shm" else "tcp")
    bind = f"ipc://{tmp_path}/s" if lane == "ipc" else ANY_PORT
    with (
        Link(bind=bind, connect=None, config=quiet) as sender,
        Link(bind=None, connect=sender.bound, config=quiet) as receiver,
    ):
        sender.wait_peers(5)
        receiver.wait_peers(5)
        yield lane, sender, receiver


def counts(sender: Link, receiver: Link) -> dict[str, int]:
    out, into = sender.stats(), receiver.stats()
    return {
        "messages": out["messages_sent"],
        "chunks": out["chunks_sent"],
        "dicts": out["dicts_sent"],
        "copies_out": out["copies_out"],
        "copies_in": into["copies_in"],
        "sender's memory": out["allocations"],
        "receiver's memory": _engine.receive_allocations(),
        "received": into["dicts_received"],
    }


@pytest.mark.parametrize("name", SHAPES)
def test_step_costs_one_copy_a_side_on_the_socket_and_one_in_all_through_shared_memory(
    ends: tuple[str, Link, Link], name: str
) -> None:
    lane, sender, receiver = ends
    sent = {f"t{i}": torch.randn(shape).bfloat16() for i, shape in enumerate(SHAPES[name])}
    for _ in range(8):  # memory is taken, and looks are remembered
        move(sender, receiver, sent)
    gc.collect()
    before = counts(sender, receiver)
    for _ in range(STEPS):
        move(sender, receiver, sent)
    after = counts(sender, receiver)
    cost = {key: (after[key] - before[key]) / STEPS for key in before}
    assert cost == expected(lane, [tensor.nbytes for tensor in sent.values()])


def test_memory_kept_for_sizes_that_come_no_more_gives_way(ends: tuple[str, Link, Link]) -> None:
    _, sender, receiver = ends
    kept = [_engine.make_block(32 * MIB) for _ in range(16)]  # all that is kept, and never touched
    kept.clear()
    sent = {"t": torch.randn(200, 1024)}
    for _ in range(8):
        move(sender, receiver, sent)
    before = _engine.receive_allocations()
    for _ in range(STEPS):
        move(sender, receiver, sent)
    assert _engine.receive_allocations() == before
    _engine.drop_cached_receive_blocks()


def move(sender: Link, receiver: Link, sent: dict[str, torch.Tensor]) -> None:
    ticket = sender.isend_dict(sent)
    got = receiver.recv_dict()
    ticket.wait_sent()
    assert all(torch.equal(got[key], value) for key, value in sent.items())


def expected(lane: str, sizes: list[int]) -> dict[str, float]:
    """For each dict. A tensor that spans several chunks is copied once, in as many parts."""
    total = sum(sizes)
    whole = lane == "shm" or total <= FAST.inline_bytes
    chunks = 0 if whole else -(-total // CHUNK)
    # Tensors of equal size that divide into chunks: none shares one with the next.
    parts = len(sizes) if whole else sum(-(-size // CHUNK) for size in sizes)
    return {
        "messages": 0 if lane == "shm" else 1 + chunks,
        "chunks": chunks,
        "dicts": 1,
        "copies_out": parts,
        "copies_in": 0 if lane == "shm" else max(1, chunks),
        "sender's memory": 0,
        "receiver's memory": 0,
        "received": 1,
    }
