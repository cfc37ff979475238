"""Whatever stream a tensor comes from or goes to, and however soon its memory is used again, its bytes are right."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tests.conformance.echo import ring_of_two
from tests.fault.peer import until
from tests.gpu.device import DEVICE, LANES, brought, require
from tests.lanes import Lane
from tests.links import assert_same
from zmqpp.transport import Link

require(cpu_will_do=False)
pytestmark = pytest.mark.gpu

MIB = 1 << 20
_LATE_CYCLES, _VERY_LATE_CYCLES = 40_000_000, 6_000_000_000
"""Of the device's clock, about 2 GHz: some 20 ms, some 3 s."""


@pytest.fixture(scope="module", params=LANES)
def link(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A ring of two; the other process echoes from the device."""
    lane = Lane(request.param, tmp_path_factory.mktemp("s"))
    with ring_of_two(lane, "processes", lane.config(), (DEVICE, DEVICE)) as here:
        yield here


def late() -> None:
    """What the current stream does next, it does late."""
    torch.cuda._sleep(_LATE_CYCLES)


def filled(value: int, size: int = 4 * MIB) -> torch.Tensor:
    return torch.full((size,), value, dtype=torch.int32, device=DEVICE)


def is_all(tensor: torch.Tensor, value: int) -> bool:
    return bool((tensor == value).all())


# ---- order -----------------------------------------------------------------------------------------------


def test_tensor_is_sent_as_its_stream_will_have_made_it(link: Link) -> None:
    for number in range(10):
        with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
            values = filled(-1)
            late()
            values.fill_(number)
            link.isend_dict({"x": values})
        assert is_all(link.recv_dict()["x"], number)


def test_source_may_be_overwritten_by_what_its_stream_does_after_wait(link: Link) -> None:
    values = filled(0)
    for number in range(1, 11):
        values.fill_(number)
        late()
        link.isend_dict({"x": values}).wait()
        values.fill_(-1)
        assert is_all(link.recv_dict()["x"], number)


def test_wait_orders_the_stream_that_is_current_then(link: Link) -> None:
    values, other = filled(0), torch.cuda.Stream(DEVICE)
    for number in range(1, 11):
        other.synchronize()
        values.fill_(number)
        late()
        ticket = link.isend_dict({"x": values})
        with torch.cuda.stream(other):
            ticket.wait()
            values.fill_(-1)
        assert is_all(link.recv_dict()["x"], number)


def test_received_tensor_is_there_for_the_stream_that_received_it(link: Link) -> None:
    """It is read late, and dropped before that: its place must not be written again meanwhile."""
    flags, side = [], torch.cuda.Stream(DEVICE)
    for number in range(60):
        link.isend_dict({"x": filled(number)})
        with torch.cuda.stream(side):
            got = link.recv_dict()["x"]
            late()
            flags.append((got == number).all())
        del got
    side.synchronize()
    assert bool(torch.stack(flags).all())


def test_ticket_is_completed_when_the_device_has_copied(link: Link) -> None:
    ticket = link.isend_dict({"x": filled(5)})
    assert is_all(link.recv_dict()["x"], 5)
    until(ticket.is_completed, within_s=20)


def test_sending_waits_for_nothing_that_the_stream_still_has_to_do(link: Link) -> None:
    """Not a matter of speed: a call that waited for the device would find it idle."""
    values, done = filled(3, MIB // 8), torch.cuda.Event()  # there is room for all of it
    torch.cuda.synchronize()
    torch.cuda._sleep(_VERY_LATE_CYCLES)
    done.record()
    ticket = link.isend_dict({"x": values})
    sent_early = not done.query()
    ticket.wait()
    waited_early = not done.query()
    assert is_all(link.recv_dict(timeout_s=60)["x"], 3)
    assert (sent_early, waited_early) == (True, True)


# ---- memory ----------------------------------------------------------------------------------------------


def test_source_is_dropped_at_once_while_its_memory_is_wanted(link: Link) -> None:
    """The caching allocator gives memory of the same size to whoever asks next, unless someone holds it."""
    for number in range(40):
        values = filled(number)
        late()
        link.isend_dict({"x": values})
        del values
        scribbled = [filled(-number) for _ in range(3)]
        assert is_all(link.recv_dict()["x"], number)
        del scribbled


def test_source_of_a_side_stream_is_dropped_at_once(link: Link) -> None:
    side = torch.cuda.Stream(DEVICE)
    for number in range(40):
        with torch.cuda.stream(side):
            values = filled(number)
            late()
            link.isend_dict({"x": values})
            del values
            scribbled = filled(-number)
        assert is_all(link.recv_dict()["x"], number)
        del scribbled


def test_received_tensors_are_writable_and_apart_on_the_device(link: Link) -> None:
    for _ in range(2):
        link.isend_dict({"x": filled(0)})
    first, second = (link.recv_dict()["x"] for _ in range(2))
    first.fill_(7)
    assert is_all(second, 0) and is_all(first, 7)


def test_views_of_device_memory_arrive_dense(link: Link) -> None:
    base = torch.arange(64 * 128 * 32, dtype=torch.float32, device=DEVICE).view(64, 128, 32)
    sent = {
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1:],
        "offset": base.view(-1)[3:],
        "expanded": base[0, 0].expand(500, 32),
        "empty": base[:0],
        "scalar": base[1, 2, 3],
        "row": base[5],
    }
    for _ in range(3):
        late()
        link.isend_dict(sent)
        assert_same(brought(link.recv_dict()), {name: tensor.cpu() for name, tensor in sent.items()})


# ---- CUDA graphs -----------------------------------------------------------------------------------------


class Captured:
    """A graph of some products, and what they must come to."""

    def __init__(self) -> None:
        self.input = torch.randn(512, 512, device=DEVICE) * _SMALL
        self._stream = torch.cuda.Stream(DEVICE)
        self._stream.wait_stream(torch.cuda.current_stream(DEVICE))
        with torch.cuda.stream(self._stream):  # libraries make what they need before
            self._chain()
        torch.cuda.synchronize()

    def capture_and_replay(self, mode: str) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(
            self._stream
        ):  # torch.cuda.graph() would first wait for all that the device does
            graph.capture_begin(capture_error_mode=mode)
            output = self._chain()
            graph.capture_end()
        torch.cuda.current_stream(DEVICE).wait_stream(self._stream)
        self.input.normal_(std=_SMALL)
        graph.replay()
        assert torch.allclose(output, self._chain(), atol=1e-4)

    def _chain(self) -> torch.Tensor:
        values = self.input
        for _ in range(20):
            values = torch.tanh(values @ self.input) + self.input
        return values


_SMALL = 0.02
"""So that rounding does not grow from product to product."""


def test_capture_stays_valid_while_dicts_are_on_their_way(link: Link) -> None:
    """Capture in its strictest mode fails for what any thread of the process does; ours are copying meanwhile."""
    captured, values = Captured(), [filled(number) for number in range(4)]
    for _ in range(10):
        receives = [link.irecv_dict() for _ in values]
        late()  # so that they are copied while a graph is captured
        for tensor in values:
            link.isend_dict({"x": tensor})
        captured.capture_and_replay("global")
        for number, receive in enumerate(receives):
            assert is_all(receive.wait()["x"], number)


def test_capture_stays_valid_while_another_thread_sends_and_receives(link: Link) -> None:
    captured, failed, over = Captured(), [], threading.Event()

    def transfer() -> None:
        torch.cuda.set_device(DEVICE)
        values, number = filled(0), 0
        try:
            with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
                while not over.is_set():
                    number += 1
                    values.fill_(number)
                    link.isend_dict({"x": values}).wait()
                    assert is_all(link.recv_dict()["x"], number)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=transfer)
    thread.start()
    try:
        for _ in range(30):
            captured.capture_and_replay("thread_local")
    finally:
        over.set()
        thread.join()
    assert failed == []
