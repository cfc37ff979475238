"""Stand-ins for CUDA tensors through a link, every byte checked: `LANE [ADDRESS]`; with an address: receive there."""

from __future__ import annotations

import subprocess
import sys

import torch

from tests.cuda.stand_in import Stream, install, is_on_device, on_device
from zmqpp.config import TransportConfig
from zmqpp.transport import Link

DICTS = 30
_JUNK = torch.full((1 << 20,), 0xEE, dtype=torch.uint8)


def sizes(tag: int) -> list[int]:
    generator = torch.Generator().manual_seed(tag)
    return [int(size) for size in torch.randint(1, 400_000, (3,), generator=generator)]


def values(tag: int, index: int, size: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(tag * 7 + index)
    )


def send(link: Link, current: Stream) -> None:
    """Written late, sent, written over right after `wait`: only the order on the current stream protects the bytes."""
    kept = []
    for tag in range(DICTS):
        wanted = [values(tag, index, size) for index, size in enumerate(sizes(tag))]
        tensors = [on_device(torch.zeros(size, dtype=torch.uint8)) for size in sizes(tag)]
        for tensor, source in zip(tensors, wanted, strict=True):
            current.copy(tensor, source)
        ticket = link.isend_dict({"a": tensors[0], "b": tensors[1], "host": wanted[2], "n": tag}, tag=tag)
        ticket.wait()
        for tensor in tensors[:2]:
            current.copy(tensor, _JUNK[: len(tensor)])
        kept.append((wanted, tensors))
    current.finish()


def receive(link: Link, current: Stream) -> None:
    """Read on the current stream at once."""
    for tag in range(DICTS):
        got = link.recv_dict(tag=tag)
        assert got["n"] == tag and is_on_device(got["a"]) and is_on_device(got["b"]), got
        assert not is_on_device(got["host"])
        for index, key in enumerate(("a", "b", "host")):
            seen = torch.zeros_like(got[key])
            current.copy(seen, got[key])
            current.finish()
            assert torch.equal(seen, values(tag, index, sizes(tag)[index])), (tag, key)


def main(lane: str, address: str = "") -> None:
    current = install()
    config = TransportConfig(lane=lane, shm_bytes=8 << 20, pinned_bytes=4 << 20, chunk_bytes=64 << 10)
    if address:
        with Link(bind=None, connect=address, device="cuda:0", config=config) as link:
            receive(link, current)
            return print(f"received by {link.stats()['lane']}", flush=True)
    with Link(bind="127.0.0.1:0", connect=None, device="cuda:0", config=config) as link:
        words = [sys.executable, "-m", "tests.cuda.exchange", lane, str(link.bound)]
        with subprocess.Popen(words) as receiving:
            send(link, current)
            assert receiving.wait(60) == 0
        print(f"sent by {link.stats()['lane']}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
