"""Handles in asyncio: awaited without a thread, cancelled, timed out, and left alone."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import links
from tests.links import ANY_PORT, assert_same
from tests.unit.test_communicator import Group, two
from zmqpp.config import TransportConfig
from zmqpp.errors import ClosedError, ConfigError, PeerLostError, RecvTimeout, SendTimeout, SequenceError
from zmqpp.tickets import Done, RecvTicket
from zmqpp.transport import Link

MIB = 1 << 20
COUNT = 1000
FAST = links.FAST
# Too large for one message, and never taken without a receiver.
LARGE = {"x": torch.ones(MIB)}


@pytest.fixture(autouse=True, params=["tcp", "shm"])
def _lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on both lanes."""
    monkeypatch.setenv("ZMQPP_LANE", request.param)
    monkeypatch.setitem(globals(), "FAST", replace(links.FAST, lane=request.param))


def pair(sender: TransportConfig | None = None, receiver: TransportConfig | None = None) -> Any:
    return links.pair(sender=sender or FAST, receiver=receiver or FAST)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def ticking(longest_s: float) -> AsyncIterator[None]:
    """The loop never stands still for longer than this."""
    gaps = [0.0]

    async def tick() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    yield
    ticker.cancel()
    assert len(gaps) > 1 and max(gaps) < longest_s


async def result_of(handle: Awaitable[Any]) -> Any:
    return await handle


def test_thousand_dicts_both_ways_in_one_loop_without_a_thread() -> None:
    async def main() -> None:
        receives = {
            side: [side.irecv_tensor_dict() for _ in range(COUNT)] for side in (zero, one)
        }  # all of them posted before anything is sent
        waits = [
            asyncio.create_task(result_of(handle))
            for posted in receives.values()
            for _, handles, _ in posted
            for handle in handles
        ]
        await asyncio.sleep(0)
        threads = threading.active_count(), len(os.listdir("/proc/self/task"))
        async with ticking(2.0):
            for i in range(COUNT):
                for handle in zero.isend_tensor_dict({"x": torch.full((4,), i)}):
                    await handle
                for handle in one.isend_tensor_dict({"x": torch.full((4,), -i)}):
                    await handle
            await asyncio.gather(*waits)
        assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == threads
        for sign, side in ((1, one), (-1, zero)):
            for i, (values, _, postprocess) in enumerate(receives[side]):
                postprocess[0]()
                assert_same(values, {"x": torch.full((4,), sign * i)})

    with two() as (zero, one):
        asyncio.run(main())


def test_await_gives_what_wait_gives_however_often() -> None:
    async def main() -> None:
        ticket = receiver.irecv_dict()
        send = sender.isend_dict({"x": torch.ones(MIB)})
        got = await ticket
        assert await ticket is got and ticket.wait() is got
        assert await send is None and await send is None and send.is_completed()
        assert await Done() is None
        both = receiver.irecv_dict()
        waits = asyncio.gather(both, both)
        sender.send_dict({"n": 1})
        assert await waits == [{"n": 1}, {"n": 1}]

    with pair() as (sender, receiver):
        asyncio.run(main())


def test_task_is_woken_by_its_dict_not_by_its_deadline() -> None:
    async def main() -> None:
        for i in range(20):
            wait = asyncio.create_task(result_of(receiver.irecv_dict()))
            await asyncio.sleep(0.005)
            sender.send_dict({"i": i})
            assert await asyncio.wait_for(wait, 1) == {"i": i}

    with pair() as (sender, receiver):
        asyncio.run(main())


def test_completed_handles_do_not_let_go_of_the_loop() -> None:
    async def main() -> None:
        ticket = receiver.irecv_dict()
        ticket.wait()
        asyncio.get_running_loop().call_soon(turns.append, 1)
        for handle in (ticket, sender.isend_dict({}), Done()):
            await handle
        assert not turns

    turns: list[int] = []
    with pair() as (sender, receiver):
        sender.send_dict({})
        asyncio.run(main())


def test_nothing_is_watched_once_nobody_waits() -> None:
    async def main() -> None:
        before = descriptors()
        for i in range(3):
            ticket = receiver.irecv_dict()
            wait = asyncio.create_task(result_of(ticket))
            await asyncio.sleep(0.01)
            assert receiver._wakeups._loops and not wait.done()
            sender.send_dict({"i": i})
            assert await wait == {"i": i}
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not receiver._wakeups._loops
        assert descriptors() <= before + 1  # the link's own eventfd may have come
        with suppress(RecvTimeout):
            await receiver.irecv_dict(timeout_s=0.01)

    with pair() as (sender, receiver):
        asyncio.run(main())
        assert not receiver._wakeups._loops


def test_deadline_of_the_ticket_holds_and_keeps_its_place() -> None:
    async def main() -> None:
        first, second = receiver.irecv_dict(timeout_s=0.05), receiver.irecv_dict()
        with pytest.raises(RecvTimeout, match=r"no dict from a within 0\.05 s"):
            await first
        sender.send_dict({"i": 1})
        sender.send_dict({"i": 2})
        assert [await first, await second] == [{"i": 1}, {"i": 2}]

    with pair() as (sender, receiver):
        asyncio.run(main())


@pytest.mark.parametrize("give_up", ["timeout", "cancel", "wait_for"])
def test_cancelled_await_of_a_receive_leaves_its_dict_to_the_next(give_up: str) -> None:
    async def main() -> None:
        ticket, later = receiver.irecv_dict(), receiver.irecv_dict()
        if give_up == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await ticket
        elif give_up == "wait_for":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ticket, 0.02)
        else:
            task = asyncio.create_task(result_of(ticket))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        sender.send_dict({"i": 0})
        assert await later == {"i": 0}
        with pytest.raises(RecvTimeout, match="cancelled"):
            await ticket

    with pair() as (sender, receiver):
        asyncio.run(main())


def test_cancelling_when_the_dict_has_just_come_loses_nothing() -> None:
    async def main() -> None:
        for i in range(50):
            ticket = receiver.irecv_dict()
            task = asyncio.create_task(result_of(ticket))
            await asyncio.sleep(0)
            sender.send_dict({"i": i})
            while not ticket.is_completed():
                time.sleep(0.001)  # the loop must not see it yet
            if i % 2:
                await asyncio.sleep(0)  # or has seen it, but the task has not
            task.cancel()
            with suppress(asyncio.CancelledError):
                assert await task == {"i": i}
                continue
            assert await receiver.irecv_dict() == {"i": i}

    with pair() as (sender, receiver):
        asyncio.run(main())


def test_cancelled_await_of_a_send_does_not_stop_it() -> None:
    async def main() -> None:
        ticket = sender.isend_dict(LARGE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await ticket
        with Link(bind=None, connect=sender.bound, config=FAST) as receiver:
            assert_same(await receiver.irecv_dict(), LARGE)
            await ticket

    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        asyncio.run(main())


def test_send_that_nobody_takes_raises_at_its_deadline() -> None:
    async def main() -> None:
        async with ticking(0.5):
            with pytest.raises((SendTimeout, TimeoutError)):
                await sender.isend_dict(LARGE, timeout_s=0.1)

    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        asyncio.run(main())


def test_cancel_is_never_blocked_by_a_thread_that_waits() -> None:
    with pair() as (sender, receiver):
        ticket = receiver.irecv_dict()
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(ticket.wait()))
        thread.start()
        time.sleep(0.05)

        async def main() -> None:
            async with ticking(0.5):
                assert ticket.cancel() is False
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(ticket, 0.05)  # does not take the place from the thread
                wait = asyncio.create_task(result_of(ticket))
                await asyncio.sleep(0.02)
                sender.send_dict({"x": 1})
                assert await wait == {"x": 1}

        asyncio.run(main())
        thread.join()
        assert got == [{"x": 1}] and ticket.cancel() is False


def test_thread_that_gives_up_waiting_leaves_the_ticket_to_the_loop() -> None:
    with pair() as (sender, receiver):
        ticket = receiver.irecv_dict()
        thread = threading.Thread(target=lambda: pytest.raises(RecvTimeout, ticket.wait, 0.2))
        thread.start()
        time.sleep(0.02)

        async def main() -> None:
            wait = asyncio.create_task(result_of(ticket))
            await asyncio.to_thread(thread.join)
            sender.send_dict({"x": 1})
            assert await wait == {"x": 1}

        asyncio.run(main())


def test_second_thread_that_waits_for_a_ticket_has_a_deadline_of_its_own() -> None:
    with pair() as (sender, receiver):
        ticket = receiver.irecv_dict()
        thread = threading.Thread(target=ticket.wait)
        thread.start()
        time.sleep(0.02)
        started = time.monotonic()
        with pytest.raises(RecvTimeout):
            ticket.wait(0.05)
        assert time.monotonic() - started < 2
        sender.send_dict({})
        thread.join()
        assert ticket.wait(-1) == {}


def test_cancelled_handle_of_a_communicator_leaves_its_dict_to_the_next() -> None:
    async def main() -> None:
        _, (first,), _ = one.irecv_tensor_dict()
        values, (second,), _ = one.irecv_tensor_dict()
        assert first.cancel() is True and first.cancel() is False
        for handle in zero.isend_tensor_dict({"x": torch.ones(2)}):
            await handle
        await second
        assert_same(values, {"x": torch.ones(2)})
        assert second.cancel() is False and second.is_completed()
        await second
        second.wait()
        with pytest.raises(RecvTimeout, match="cancelled"):
            await first

    with two() as (zero, one):
        asyncio.run(main())


def test_gathering_happens_in_postprocess_after_the_await() -> None:
    async def main() -> None:
        zero.isend_tensor_dict({"x": torch.arange(4)}, all_gather_group=Group(4))
        values, handles, postprocess = one.irecv_tensor_dict(all_gather_group=Group(4))
        await asyncio.gather(*handles, *handles)
        assert values is not None and list(values) == ["x"]
        postprocess[0]()
        assert values["x"].tolist() == [0, 100, 200, 300]
        await handles[0]
        assert values["x"].tolist() == [0, 100, 200, 300]

    with two() as (zero, one):
        asyncio.run(main())


@pytest.mark.parametrize("count", [1, 20])
def test_lost_peer_raises_in_all_that_await(count: int) -> None:
    async def main() -> None:
        tickets = [receiver.irecv_dict() for _ in range(count)]
        waits = asyncio.gather(*tickets, return_exceptions=True)
        await asyncio.sleep(0.05)
        sender.close(0)
        async with ticking(1.0):
            errors = await waits
        assert [type(error) for error in errors] == [PeerLostError] * count
        with pytest.raises(PeerLostError):
            await receiver.irecv_dict()

    with pair() as (sender, receiver):
        asyncio.run(main())


def test_closed_link_raises_in_all_that_await() -> None:
    async def main() -> None:
        receive, send = receiver.irecv_dict(), sender.isend_dict(LARGE)
        waits = asyncio.gather(receive, send, return_exceptions=True)
        await asyncio.sleep(0.05)
        for link in (receiver, sender):
            await asyncio.to_thread(link.close, 0)
        assert [type(error) for error in await waits] == [ClosedError, ClosedError]
        with pytest.raises(ClosedError):
            await receiver.irecv_dict()

    receiver = Link(bind=None, connect="127.0.0.1:1", config=FAST)
    sender = Link(bind=ANY_PORT, connect=None, config=FAST)
    asyncio.run(main())


def test_two_loops_in_two_threads_await_one_link() -> None:
    received: list[list[int]] = [[], []]
    failures: list[BaseException] = []

    async def receive(mine: list[int]) -> None:
        async with ticking(2.0):
            while True:
                got = await receiver.irecv_dict()
                if got["i"] < 0:
                    return
                mine.append(got["i"])

    def run(main: Callable[[], Any]) -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    with pair() as (sender, receiver):
        threads = [threading.Thread(target=run, args=(lambda mine=mine: receive(mine),)) for mine in received]
        for thread in threads:
            thread.start()

        async def send() -> None:
            for i in [*range(COUNT), -1, -1]:
                await sender.isend_dict({"i": i})
                if i % 100 == 0:
                    await asyncio.sleep(0.01)  # both have to wait at times

        asyncio.run(send())
        for thread in threads:
            thread.join(20)
        assert not failures
        assert sorted(received[0] + received[1]) == list(range(COUNT))
        assert all(mine == sorted(mine) for mine in received)
        assert not receiver._wakeups._loops


def test_one_ticket_is_awaited_in_two_loops() -> None:
    got: list[Any] = []
    with pair() as (sender, receiver):
        for i in range(20):
            ticket = receiver.irecv_dict()
            threads = [
                threading.Thread(target=lambda ticket=ticket: got.append(asyncio.run(result_of(ticket))))
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.002 * (i % 3))
            sender.send_dict({"i": i})
            for thread in threads:
                thread.join(10)
        assert got == [{"i": i} for i in range(20) for _ in range(2)]


def test_dicts_come_one_after_another_until_the_peer_closes() -> None:
    async def main() -> list[int]:
        return [values["i"] async for values in receiver.dicts()]

    with pair() as (sender, receiver):
        for i in range(100):
            sender.send_dict({"i": i})
        closing = threading.Timer(0.1, sender.close)
        closing.start()
        assert asyncio.run(main()) == list(range(100))
        closing.join()


def test_iteration_over_a_communicator_gathers_and_ends_with_the_peer() -> None:
    async def main() -> list[list[int]]:
        dicts = one.recv_tensor_dicts(all_gather_group=Group(2))
        return [values["x"].tolist() async for values in dicts]

    with two() as (zero, one):
        for i in range(3):
            zero.send_tensor_dict({"x": torch.tensor([i, i])}, all_gather_group=Group(2))
        zero.close()
        assert asyncio.run(main()) == [[i, i + 100] for i in range(3)]


def test_iteration_raises_when_the_peer_dies() -> None:
    async def main() -> None:
        async for values in receiver.dicts():
            assert values == {"i": 0}

    silent = replace(FAST, heartbeat_s=0.0)
    with pair(sender=silent, receiver=replace(FAST, peer_timeout_s=0.3)) as (sender, receiver):
        sender.send_dict({"i": 0})
        with pytest.raises(PeerLostError):  # nothing is heard of it any more
            asyncio.run(main())


def test_iteration_that_stops_loses_no_dict() -> None:
    async def main() -> None:
        async for values in receiver.dicts():
            assert values == {"i": 0}
            break
        waiting = receiver.dicts()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                while True:
                    assert await anext(waiting) == {"i": 1}
        sender.send_dict({"i": 2})
        sender.send_dict({"i": 3})
        assert await receiver.irecv_dict() == {"i": 2}
        with pytest.raises(RecvTimeout):
            async for values in receiver.dicts(timeout_s=0.05):
                assert values == {"i": 3}
        sender.send_dict({"i": 4})
        assert receiver.recv_dict() == {"i": 4}

    with pair() as (sender, receiver):
        for i in range(2):
            sender.send_dict({"i": i})
        asyncio.run(main())


def test_iteration_checks_tags() -> None:
    async def main() -> None:
        with pytest.raises(SequenceError, match="tag 8 came from a, expected 7"):
            async for values in receiver.dicts(tag=7):
                assert values == {}

    with pair() as (sender, receiver):
        sender.send_dict({}, tag=7)
        sender.send_dict({}, tag=8)
        asyncio.run(main())


def test_iteration_over_dicts_that_are_there_lets_others_run() -> None:
    async def main() -> None:
        async with ticking(0.25):
            async with asyncio.timeout(10):
                taken = 0
                async for _ in receiver.dicts():
                    time.sleep(0.001)
                    taken += 1
                    if taken == 500:
                        return

    with pair() as (sender, receiver):
        for i in range(500):
            sender.send_dict({"i": i})
        asyncio.run(main())


def test_loop_runs_on_while_handles_are_awaited() -> None:
    async def main() -> None:
        async with ticking(0.25):
            with pytest.raises(RecvTimeout):
                await receiver.irecv_dict(timeout_s=0.5)

    with pair() as (_, receiver):
        asyncio.run(main())


def test_half_that_was_not_opened_says_so() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="without `connect`"):
            async for _ in sender.dicts():
                pass

    with Link(bind=ANY_PORT, connect=None, config=FAST) as sender:
        asyncio.run(main())


def test_ring_of_one_has_no_dicts() -> None:
    from zmqpp import ZeroMQCommunicator

    async def main() -> list[Any]:
        with ZeroMQCommunicator(0, 1) as alone:
            return [values async for values in alone.recv_tensor_dicts()]

    assert asyncio.run(main()) == []


@pytest.mark.parametrize("another", [True, False])
def test_loop_that_is_closed_with_tasks_in_it_leaves_nothing(another: bool) -> None:
    with pair() as (sender, receiver):
        loop = asyncio.new_event_loop()
        task = loop.create_task(result_of(receiver.irecv_dict()))
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task
        if another:
            with suppress(RecvTimeout):
                asyncio.run(result_of(receiver.irecv_dict(timeout_s=0.01)))
        else:
            receiver._wakeups.poke()
        gc.collect()
        assert not receiver._wakeups._loops
        sender.send_dict({"x": 1})
        assert receiver.recv_dict() == {"x": 1}  # the place was given up


def test_link_that_is_closed_leaves_nothing_in_a_loop_that_stands_still() -> None:
    with pair() as (_, receiver):
        loop = asyncio.new_event_loop()
        task = loop.create_task(result_of(receiver.irecv_dict()))
        loop.run_until_complete(asyncio.sleep(0.01))
        receiver.close()
        with pytest.raises(ClosedError):
            loop.run_until_complete(task)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_forgotten_ticket_wakes_who_gets_its_dict() -> None:
    async def main() -> None:
        first, second = receiver.irecv_dict(), receiver.irecv_dict()
        wait = asyncio.create_task(result_of(second))
        await asyncio.sleep(0.01)
        sender.send_dict({"i": 0})
        while not first.is_completed():
            await asyncio.sleep(0.001)
        assert not wait.done()
        del first
        assert await asyncio.wait_for(wait, 5) == {"i": 0}

    with pair() as (sender, receiver):
        asyncio.run(main())


def test_interrupt_while_a_dict_is_taken_does_not_make_others_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pair() as (sender, receiver):
        ticket: RecvTicket = receiver.irecv_dict()
        sender.send_dict({})
        with monkeypatch.context() as patch:
            patch.setattr(receiver, "_open", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ticket.wait()
        with pytest.raises(RecvTimeout, match="interrupt"):
            ticket.wait()
