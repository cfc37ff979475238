"""What the stage under test is told: changed copies of what it heard in a real pipeline, at every level.

An *easy* input leaves the connection as it is, so that many fit into one: calls, what is forwarded unread, what is of
an older epoch. A *hard* one is expected to end it, or to have the stage wait for the next epoch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fault.raw import CHUNK, CONTROL, DICT
from tests.fuzz.mutation import Mutator, change_tree
from tests.fuzz.neighbour import Previous
from zmqpp import _engine, control
from zmqpp.transport import Route
from zmqpp.vllm import codec, plain_step

_HEAD = _engine.HEAD_SIZE
_SAFE_CALLS = (
    "check_health",
    "get_supported_tasks",
    "get_kv_cache_spec",
    "reset_mm_cache",
    "zmqpp.stats",
    "zmqpp.restore",
)
"""They change nothing that lasts."""
_VALUES_BYTES = 128
_GARBAGE = (
    *(
        b"\x00\x05hello",
        b"\x01\x00\x00",
        b"\x07" + bytes(9),
        b"\xff" * 64,
        b"\x08\x01a",
        b"\x02" + b"\xff" * 8,
    ),
    *(b"\x02" + bytes(7) + b"\x01a", b"\x04\x05\x04PING", b"\x04\x07\x04PING\x00\x01", b"\x04\x06\x05READY"),
    *(b"\x04\x1a\x05ERROR\x13" + b"no reason but to be so", b"\x06" + bytes(6) + b"\xff\xff", b"\x04\x00"),
    *(
        b"\x04\x09\x09SUBSCRIBE",
        b"\x00\x00" * 300,
        b"\x04\x07\x04PING\x00\x01" * 300,
        b"GET / HTTP/1.1\r\n\r\n",
    ),
)
"""Of the connection: flags, sizes and commands that there are not, or are not for a PULL."""


@dataclass
class Heard:
    """Messages of a real stage 0, by what they are."""

    messages: list[bytes]
    hello: bytes = b""
    bring_up: list[bytes] = field(default_factory=list)
    """Bodies of the calls that made it ready."""
    steps: list[tuple[bytes, list[bytes]]] = field(default_factory=list)
    """The body of an exec, and the messages that brought its activations."""
    first_steps: list[tuple[bytes, list[bytes]]] = field(default_factory=list)
    """Those that need no step before them."""
    others: list[bytes] = field(default_factory=list)
    """Bodies of all other control messages: replies, grammar masks, reports."""
    payloads: list[bytes] = field(default_factory=list)
    """What the codec wrote."""

    def __post_init__(self) -> None:
        for message in self.messages:
            head = _engine.read_head(message)
            if head["kind"] == CONTROL:
                self._sort(message[_HEAD:])
            elif head["kind"] in (DICT, CHUNK) and self.steps:
                step = next(step for step in self.steps if control.decode(step[0]).step == head["tag"])
                step[1].append(message)

        self.first_steps = [step for step in self.steps if step[1] and _is_first(step[0])]
        # The hello has a kind of its own: one that is still right but for its epoch or model changes what counts later.
        self.short = [m for m in self.messages if len(m) < 20_000 and m[_HEAD:] != self.hello]

    def _sort(self, body: bytes) -> None:
        message = control.decode(body)
        if isinstance(message, control.Hello):
            self.hello = body
        elif isinstance(message, control.Rpc):
            self.bring_up.append(body)
        elif isinstance(message, control.Exec):
            self.steps.append((body, []))
        else:
            self.others.append(body)
        payload = getattr(message, "payload", None)
        if isinstance(payload, bytes) and not isinstance(message, control.Report):
            self.payloads.append(payload)


class Inputs:
    """Says them to the stage through `previous`. Each method queues one."""

    def __init__(self, heard: Heard, previous: Previous, seed: int) -> None:
        self._heard, self._previous = heard, previous
        self.random = random.Random(seed)
        arguments = [codec.encode(((plain_step.scheduled(payload),), {})) for payload in heard.payloads]
        restored = [codec.encode((_restorable(payload), {})) for payload in heard.payloads]
        self._payloads = Mutator([*heard.payloads, *arguments, *filter(None, restored)], seed)
        bodies = [*heard.others, *heard.bring_up, *(body for body, _ in heard.steps)]
        self._bodies = Mutator(bodies, seed + 1)
        self._messages = Mutator(heard.short, seed + 2)
        self._whole_dicts = [m for _, sent in heard.steps for m in sent if len(sent) == 1 and len(m) > 1024]
        self.calls = 1_000_000
        self.easy: dict[str, tuple[Callable[[], None], int]] = {
            "call": (self.call, 70),
            "forwarded": (self.forwarded, 12),
            "older epoch": (self.older, 18),
        }
        """Name -> (what says one, its share in 100)."""
        self.hard: dict[str, tuple[Callable[[], None], int]] = {
            "head": (self.head, 16),
            "message": (self.message, 12),
            "control": (self.control, 22),
            "step": (self.step, 26),
            "activations": (self.activations, 12),
            "order": (self.order, 6),
            "connection": (self.connection, 6),
        }

    # ---- easy ----------------------------------------------------------------------------------------------

    def call(self) -> None:
        """A method that there is, with a changed payload: vLLM's objects, nested as steps and replies have them."""
        self.calls += 1
        name = self.random.choice(_SAFE_CALLS)
        if self.random.random() < 0.3:
            payload = change_tree(self.random.choice(self._payloads.corpus), self.random)
        else:
            payload = self._payloads.next()
        self._previous.say(control.Rpc(self.calls, name, payload))

    def forwarded(self) -> None:
        """A reply for the engine with any body; this stage does not open it."""
        self._previous.say(self._bodies.next(), route=Route.REPLY)

    def older(self) -> None:
        """A message of an epoch that has ended, with any body; or activations with any values."""
        message = self._messages.next()
        if self.random.random() < 0.5:
            return self._previous.say(message[_HEAD:], route=Route.REQUEST, epoch=0)
        whole = self.random.choice(self._whole_dicts)
        values = self.random.randbytes(_VALUES_BYTES)
        self._previous.again(whole[:-_VALUES_BYTES] + values, epoch=0)

    # ---- hard ----------------------------------------------------------------------------------------------

    def head(self) -> None:
        """A message with a changed head."""
        message = self.random.choice(self._heard.short)
        mended = self._previous.mended(message)
        self._previous.frame(self._messages.change(mended[:_HEAD])[:_HEAD] + mended[_HEAD:])

    def message(self) -> None:
        """A message changed anywhere, in its place and size right or not."""
        changed = self._messages.next()
        if self.random.random() < 0.7:
            return self._previous.again(changed)
        self._previous.frame(changed)

    def hello(self) -> None:
        """A changed hello: of another session, epoch, model or version, with other settings, or none."""
        self._previous.say(self._messages.change(self._heard.hello, most=2), route=Route.NOTICE)

    def control(self) -> None:
        """A changed control message."""
        right = self.random.choice(self._bodies.corpus)
        body = change_tree(right, self.random) if self.random.random() < 0.4 else self._bodies.change(right)
        self._previous.say(body, route=self.random.choice((Route.REQUEST, Route.NOTICE)))

    def step(self) -> None:
        """A step with a changed SchedulerOutput, and its activations."""
        steps = self._heard.first_steps if self.random.random() < 0.8 else self._heard.steps
        body, activations = self.random.choice(steps)
        step = control.decode(body)
        assert isinstance(step, control.Exec)
        if self.random.random() < 0.7:
            step.payload = change_tree(step.payload, self.random)
        else:
            step.payload = self._payloads.change(step.payload, most=2)
        if self.random.random() < 0.1:
            step.tokens = self.random.choice((0, 1, -1, step.tokens + 1, 1 << 40))
        self._previous.say(step)
        for message in activations:
            self._previous.again(message)

    def activations(self) -> None:
        """A step as it was, with changed activations."""
        body, activations = self.random.choice(self._heard.first_steps)
        self._previous.say(body)
        for message in activations:
            changed = self._messages.change(message[:512]) + message[512:]
            self._previous.again(message[:_HEAD] + changed[_HEAD:] if self.random.random() < 0.8 else changed)

    def order(self) -> None:
        """A message twice, one left out, one of another session, or two in the wrong order."""
        way, previous = self.random.randrange(4), self._previous
        message = self.random.choice(self._heard.short)
        if way == 0:
            previous.again(message)
            previous.sequence -= 1
            previous.again(message)
        elif way == 1:
            previous.sequence += self.random.choice((1, 2, 1 << 32))
            previous.beat()
        elif way == 2:
            previous.frame(message)  # as it was captured
        else:
            previous.sequence += 1
            previous.beat()
            previous.sequence -= 2
            previous.beat()

    def connection(self) -> None:
        """Bytes between messages that are no message."""
        self._previous.raw(self._messages.change(self.random.choice(_GARBAGE)))


def _is_first(body: bytes) -> bool:
    step = control.decode(body)
    return (
        isinstance(step, control.Exec)
        and not plain_step.scheduled(step.payload).scheduled_cached_reqs.req_ids
    )


def _restorable(payload: bytes) -> tuple[object, object] | None:
    """The arguments of `zmqpp.restore` for the new requests of a step."""
    new = getattr(plain_step.scheduled(payload), "scheduled_new_reqs", None)
    return (new, [[1, 2, 3] for _ in new]) if new else None
