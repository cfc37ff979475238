"""What handles of stand-ins for CUDA tensors promise, one function a promise: [NAME of one]

FAKE_CUDA_PINNABLE_MIB=96
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.cuda.stand_in import Stream, install, is_on_device, on, zeros
from zmqpp import _arrival, _engine, _packing
from zmqpp.config import TransportConfig
from zmqpp.errors import (
    ConfigError,
    DeviceError,
    MalformedError,
    PinnedMemoryError,
    ResourceError,
    UnsupportedError,
)
from zmqpp.transport import Link, RecvTicket, SendTicket

LONG_S = 30.0
SOON_S = 0.05
CONFIG = TransportConfig(
    lane="tcp", shm_bytes=8 << 20, pinned_bytes=4 << 20, pinned_pool_bytes=4 << 20, timeout_s=LONG_S
)
DEVICE = "cuda:0"
SIZE = 300_000


@contextmanager
def pair(config: TransportConfig = CONFIG) -> Iterator[tuple[Link, Link]]:
    with (
        Link(bind="127.0.0.1:0", connect=None, device=DEVICE, config=config) as sender,
        Link(bind=None, connect=sender.bound, device=DEVICE, config=config) as receiver,
    ):
        sender.wait_peers()
        yield sender, receiver


def values(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (SIZE,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def there(source: torch.Tensor, stream: Stream) -> torch.Tensor:
    """A tensor on the device that `stream` gives these values."""
    tensor = zeros(*source.shape, dtype=source.dtype)
    stream.copy(tensor, source)
    return tensor


def seen(tensor: torch.Tensor, stream: Stream) -> torch.Tensor:
    """What `stream` finds in it, once it is finished."""
    out = torch.zeros_like(tensor)
    stream.copy(out, tensor)
    return out


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def arrivals() -> Stream:
    stream = _arrival._arrivals(torch.device(DEVICE))
    assert isinstance(stream, Stream)
    return stream


# ---- receives --------------------------------------------------------------------------------------------


def every_wait_holds_back_the_stream_of_its_time(current: Stream) -> None:
    others = [Stream(), Stream()]
    for config in (CONFIG, replace(CONFIG, lane="shm")):
        source = values(1)
        with pair(config) as (sender, receiver):
            sender.isend_dict({"x": there(source, current)}).wait()
            ticket = receiver.irecv_dict()
            gate = arrivals().block()
            found = [seen(ticket.wait()["x"], current)]
            with on(others[0]):
                found.append(seen(ticket.wait()["x"], others[0]))

            async def read(ticket: RecvTicket = ticket) -> torch.Tensor:
                return seen((await ticket)["x"], others[1])

            with on(others[1]):
                found.append(asyncio.run(read()))
            time.sleep(SOON_S)
            assert not any(stream.is_idle() for stream in (current, *others))
            gate.set()
            for stream, tensor in zip((current, *others), found, strict=True):
                stream.finish()
                assert torch.equal(tensor, source)


def a_receive_is_completed_when_its_copies_in_are_over(current: Stream) -> None:
    for config in (CONFIG, replace(CONFIG, lane="shm")):
        source = values(2)
        with pair(config) as (sender, receiver):
            ticket = receiver.irecv_dict()
            assert not ticket.is_completed()
            gate = arrivals().block()
            sender.isend_dict({"x": there(source, current)}).wait()
            deadline = time.monotonic() + LONG_S
            while not ticket.is_completed() and not receiver.stats()["dicts_received"]:
                assert time.monotonic() < deadline
            time.sleep(SOON_S)
            assert not ticket.is_completed() and not ticket.cancel()
            assert current.is_idle(), "to ask makes no stream wait"
            gate.set()
            until(ticket.is_completed)
            got = ticket.wait()["x"]
            assert is_on_device(got) and torch.equal(got, source), "without any stream"


def nothing_is_asked_of_a_captured_stream(current: Stream) -> None:
    source = values(3)
    with pair() as (sender, receiver):
        sender.isend_dict({"x": there(source, current)}).wait()
        ticket = receiver.irecv_dict()
        until(lambda: receiver.stats()["dicts_received"] == 1)
        captured = Stream()
        with on(captured):
            captured.capture(True)
            assert not ticket.is_completed()
            with pytest.raises(UnsupportedError):
                ticket.wait()
            captured.capture(False)
            gate = arrivals().block()
            assert not ticket.is_completed()
            captured.capture(True)
            with pytest.raises(UnsupportedError):
                ticket.wait()
            gate.set()
            until(ticket.is_completed)
            assert torch.equal(ticket.wait()["x"], source), "there is nothing to wait for"
            captured.capture(False)


def a_receive_that_failed_is_completed(current: Stream) -> None:
    with pair() as (sender, receiver):
        source = values(4)
        sender.isend_dict({"x": there(source, current)}, tag=1).wait()
        ticket = receiver.irecv_dict(tag=2)
        until(ticket.is_completed)
        with pytest.raises(Exception, match="tag 1"):
            ticket.wait()
        late = receiver.irecv_dict()
        sender.close()
        until(late.is_completed)
        with pytest.raises(Exception, match="closed"):
            late.wait()


# ---- sends -----------------------------------------------------------------------------------------------


def a_send_is_completed_when_its_copies_out_are_over(current: Stream) -> None:
    for config in (CONFIG, replace(CONFIG, lane="shm")):
        with pair(config) as (sender, receiver):
            gate, source = current.block(), values(5)
            ticket = sender.isend_dict({"x": there(source, current)})
            ticket.wait()
            time.sleep(SOON_S)
            assert not ticket.is_completed()
            gate.set()
            until(ticket.is_completed)
            got = seen(receiver.recv_dict()["x"], current)
            current.finish()
            assert torch.equal(got, source)


def a_send_that_a_device_failed_is_completed(current: Stream) -> None:
    class Broken:
        def is_over(self) -> bool:
            raise DeviceError("as CUDA says")

    with pair() as (sender, _):
        assert SendTicket(Broken(), 1, sender._wakeups, sender._sources.let_go).is_completed()  # type: ignore[arg-type]


def a_dict_larger_than_the_old_pool_blocks_nobody(current: Stream) -> None:
    config = replace(CONFIG, pinned_pool_bytes=TransportConfig().pinned_pool_bytes, receive_limit_bytes=1)
    with pair(config) as (sender, receiver):
        sender.send_dict({"fills": torch.zeros(100_000)})  # what the receiver takes by itself
        until(lambda: receiver.stats()["dicts_received"] == 1)
        source = torch.arange(34 << 18, dtype=torch.int32)
        ticket = sender.isend_dict({"x": there(source, current)})
        ticket.wait(LONG_S)
        until(ticket.is_completed)
        receiver.recv_dict()
        got = seen(receiver.recv_dict()["x"], current)
        current.finish()
        assert torch.equal(got, source)


def a_pool_that_cannot_be_pinned_is_said_when_the_link_opens(current: Stream) -> None:
    large = replace(CONFIG, pinned_pool_bytes=128 << 20)
    with pytest.raises(PinnedMemoryError, match="ZMQPP_PINNED_POOL_BYTES"):
        Link(bind="127.0.0.1:0", connect=None, device=DEVICE, config=large)
    for config in (CONFIG, replace(large, lane="shm")):  # nothing goes through a pool there
        Link(bind="127.0.0.1:0", connect=None, device=DEVICE, config=config).close()


# ---- memory ----------------------------------------------------------------------------------------------


@contextmanager
def without_memory() -> Iterator[None]:
    def refuse(*dims: object, **options: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    empty, torch.empty = torch.empty, refuse
    try:
        yield
    finally:
        torch.empty = empty


def a_device_without_memory_is_no_malformed_dict(current: Stream) -> None:
    packed = replace(CONFIG, compression="fp8")
    source = torch.ones(64, 512)
    for config in (CONFIG, packed):
        with pair(config) as (sender, receiver):
            for count in range(3):  # the third takes the short cut
                hidden = there(source, current)
                sender.isend_dict({"hidden": hidden}).wait()
                with (
                    without_memory(),
                    pytest.raises(ResourceError, match=r"no memory for a tensor .* on cuda:0"),
                ):
                    receiver.recv_dict()
                sender.isend_dict({"hidden": hidden}).wait()
                assert receiver.recv_dict()["hidden"].shape == (64, 512), count


def unpacked_tensors_are_limited_before_they_are_allocated(current: Stream) -> None:
    hidden = torch.ones(1024, 1024)
    small = replace(CONFIG, compression="fp8", max_dict_bytes=hidden.nbytes - 1)
    with (
        Link(bind="127.0.0.1:0", connect=None, device=DEVICE, config=small) as sender,
        pytest.raises(ConfigError, match="packed tensors of 4194304 bytes"),
    ):
        sender.isend_dict({"hidden": there(hidden, current)})
    with (
        Link(bind="127.0.0.1:0", connect=None, config=replace(CONFIG, compression="fp8")) as sender,
        Link(bind=None, connect=sender.bound, device=DEVICE, config=small) as receiver,
    ):
        sender.isend_dict({"hidden": there(hidden, current)}).wait()
        with pytest.raises(MalformedError, match=r"make 4194304 bytes, the limit is 4194303 .max_dict_bytes"):
            receiver.recv_dict()


def unpacking_belongs_to_the_arrival(current: Stream) -> None:
    source = torch.randn(64, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = _packing.unpack(*_packing.pack(source, "fp8"), "bfloat16", "fp8", list(source.shape), None)
    with pair(replace(CONFIG, compression="fp8")) as (sender, receiver):
        sender.isend_dict({"x": there(source, current)}).wait()
        ticket = receiver.irecv_dict()
        gate, other = arrivals().block(), Stream()
        ticket.wait()
        with on(other):
            found = seen(ticket.wait()["x"], other)
        assert not ticket.is_completed()
        gate.set()
        other.finish()
        assert torch.equal(found, wanted) and ticket.is_completed()


PROMISES: list[Callable[[Stream], None]] = [
    every_wait_holds_back_the_stream_of_its_time,
    a_receive_is_completed_when_its_copies_in_are_over,
    nothing_is_asked_of_a_captured_stream,
    a_receive_that_failed_is_completed,
    a_send_is_completed_when_its_copies_out_are_over,
    a_send_that_a_device_failed_is_completed,
    a_dict_larger_than_the_old_pool_blocks_nobody,
    a_pool_that_cannot_be_pinned_is_said_when_the_link_opens,
]
WITH_KERNELS: list[Callable[[Stream], None]] = [
    a_device_without_memory_is_no_malformed_dict,
    unpacked_tensors_are_limited_before_they_are_allocated,
    unpacking_belongs_to_the_arrival,
]


def main(name: str = "") -> None:
    current = install()
    for promise in PROMISES + ([] if _engine.why_no_kernels() else WITH_KERNELS):
        if name in promise.__name__:
            start = time.monotonic()
            promise(current)
            current.finish()
            print(f"{promise.__name__} {time.monotonic() - start:.1f} s", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
