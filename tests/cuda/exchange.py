"""Stand-ins for CUDA tensors through a link, every byte checked: LANE COMPRESSION [ADDRESS of the sender]."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import torch

from tests.cuda.stand_in import Stream, install, is_on_device, zeros
from zmqpp import _packing
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


def floats(tag: int) -> torch.Tensor:
    return torch.randn(32, 300, generator=torch.Generator().manual_seed(tag)).bfloat16()


def send(link: Link, current: Stream) -> None:
    """Written late, sent, written over right after `wait`: only the order on the current stream protects the bytes."""
    kept: list[object] = []
    for tag in range(DICTS):
        wanted = [values(tag, index, size) for index, size in enumerate(sizes(tag))]
        tensors = [zeros(size) for size in sizes(tag)]
        for tensor, source in zip(tensors, wanted, strict=True):
            current.copy(tensor, source)
        hidden, source = zeros(32, 300, dtype=torch.bfloat16), floats(tag)
        current.copy(hidden, source)
        values_of = {"a": tensors[0], "b": tensors[1], "host": wanted[2], "hidden": hidden, "n": tag}
        link.isend_dict(values_of, tag=tag).wait()
        for tensor in (*tensors[:2], hidden):
            current.copy(tensor, _JUNK[: tensor.nbytes])
        kept += [wanted, tensors, hidden, source]
    current.finish()


def receive(link: Link, current: Stream, compression: str) -> None:
    """Read on the current stream at once."""
    for tag in range(DICTS):
        got = link.recv_dict(tag=tag)
        assert got["n"] == tag and is_on_device(got["a"]) and is_on_device(got["b"]), got
        assert is_on_device(got["hidden"])
        assert not is_on_device(got["host"])
        for index, key in enumerate(("a", "b", "host")):
            seen = torch.zeros_like(got[key])
            current.copy(seen, got[key])
            current.finish()
            assert torch.equal(seen, values(tag, index, sizes(tag)[index])), (tag, key)
        seen = torch.zeros_like(floats(tag))
        current.copy(seen, got["hidden"])
        current.finish()
        assert torch.equal(seen, as_packed(floats(tag), compression)), tag


def as_packed(tensor: torch.Tensor, form: str) -> torch.Tensor:
    """What arrives of it, as the CPU makes it."""
    if form == "none":
        return tensor
    return _packing.unpack(*_packing.pack(tensor, form), "bfloat16", form, list(tensor.shape), None)


def main(lane: str, compression: str, address: str = "") -> None:
    current = install()
    config = TransportConfig(lane=lane, shm_bytes=8 << 20, pinned_bytes=4 << 20, chunk_bytes=64 << 10)
    config = replace(config, compression=compression)
    if address:
        with Link(bind=None, connect=address, device="cuda:0", config=config) as link:
            receive(link, current, compression)
            return print(f"received by {link.stats()['lane']}", flush=True)
    with Link(bind="127.0.0.1:0", connect=None, device="cuda:0", config=config) as link:
        words = [sys.executable, "-m", "tests.cuda.exchange", lane, compression, str(link.bound)]
        with subprocess.Popen(words) as receiving:
            send(link, current)
            assert receiving.wait(60) == 0
        print(f"sent by {link.stats()['lane']}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
