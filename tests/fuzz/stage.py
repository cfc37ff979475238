"""A whole stage process through its ports: changed copies of real traffic, and whatever else may come.

    python -m tests.fuzz.stage [SECONDS] [--inputs N] [--seed N]

A real `vllm serve ... --external-pp-worker` is brought up as stage 1 of 2 by what a real stage 0 said (recording.py,
taken once). Then we are the stage before it (neighbour.py, inputs.py), the one after it, and strangers at its port
(strangers.py). One input is one message, or one connection of a stranger. An input counts when the stage has shown that
it read it: by an answer to what came behind it, by hanging up, or by ending.

After each round the process must live, or have ended in order, with one line that says why; memory, descriptors and
threads must stay bounded; at the end a valid conversation must still work.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import ExitStack

from tests.fuzz.inputs import Heard, Inputs
from tests.fuzz.neighbour import Broken, Next, Previous
from tests.fuzz.recording import FOLDER, recorded
from tests.fuzz.strangers import Strangers
from tests.fuzz.victim import Victim
from zmqpp import control
from zmqpp.pipeline.ports import free_base_port
from zmqpp.transport import Route

READY_S = 240.0
ANSWER_S = 60.0
_SWALLOWED_S = 1.5
"""A frame that announces more than it brings swallows the greeting behind it; then we hang up, as a dead stage does."""
EASY_A_ROUND = 120
MOST_GROWTH_BYTES = 256 << 20
MOST_DESCRIPTORS = 64
"""Beyond those that it had when it was ready."""
MOST_RESTARTS = 200
_WARM_ROUNDS = 30
"""Until then caches fill: memory is compared with what it was then."""


class Campaign:
    """One stage process after another, usually the same one all the time, and what was said to it."""

    def __init__(self, seed: int) -> None:
        self.seed, self.session = seed, "the first"
        self.heard = Heard(recorded())
        self.said: Counter[str] = Counter()
        self.rounds = 0
        self.losses: Counter[str] = Counter()
        self.hung_up = 0
        self.growth_bytes = self.most_descriptors = self.most_threads = 0
        self._base_bytes = self._base_descriptors = 0

    def __enter__(self) -> Campaign:
        self._stack = ExitStack()
        base = free_base_port(4)
        self.victim = Victim(base)
        self._stack.callback(self.victim.kill)
        self.previous = Previous(base)
        self._stack.callback(self.previous.close)
        self.next = Next(self.victim.address)
        self._stack.callback(self.next.close)
        self.inputs = Inputs(self.heard, self.previous, self.seed)
        self.strangers = Strangers(int(self.victim.address.rpartition(":")[2]), self.seed)
        self._hello = control.decode(self.heard.hello)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- coming up -----------------------------------------------------------------------------------------

    def bring_up(self) -> None:
        """A fresh process, made ready by what a real stage 0 said."""
        self.next.greeted = None
        self.victim.start()
        self.rounds = 0
        self._greet_again(READY_S)

    def _load(self) -> None:
        """What made it ready, said again: to one that has just started, or was greeted by another session."""
        for body in self.heard.bring_up:
            message = control.decode(body)
            self.previous.say(body)
            self.previous.flush()
            call = message.call
            self._await_or_fail(lambda call=call: call in self.next.answered, f"answer {message.method}")
        self.next.answered.clear()

    def _await_or_fail(self, there: object, what: str) -> None:
        deadline = time.monotonic() + READY_S
        while not self.next.wait(there, 0.5):  # type: ignore[arg-type]
            if self.victim.exit_code() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the stage did not {what}:\n{self.victim.log[-4000:]}")

    def _greet_again(self, timeout_s: float = ANSWER_S) -> None:
        """The next epoch, as the engine begins it after a loss; a new connection, if the stage gave this one up."""
        epoch = self.previous.epoch + 1
        hello = control.Hello(**{**_fields(self._hello), "epoch": epoch, "session": self.session})
        deadline, asked = time.monotonic() + timeout_s, 0.0
        hang_up_at = time.monotonic() + _SWALLOWED_S
        while not self._is_greeted(epoch):
            if self.victim.exit_code() is not None:
                raise Ended
            if time.monotonic() > deadline:
                raise AssertionError(f"the stage did not go on:\n{self.victim.log[-4000:]}")
            if time.monotonic() > hang_up_at and not self.previous.is_broken():
                self.hung_up += 1
                self.previous.hang_up()
                hang_up_at += READY_S
            try:
                if self.previous.is_broken():
                    self.previous.greet(0.5)
                    asked = 0.0
                if time.monotonic() - asked > 2.0:  # it may be reading what came before still
                    asked = time.monotonic()
                    self.previous.epoch = epoch
                    self.previous.say(hello, route=Route.NOTICE)
                    self.previous.flush()
            except (Broken, TimeoutError):
                continue
            self.next.wait(lambda: self._is_greeted(epoch), 0.02)
        if self.next.greeted is not None and not self.next.greeted.ready:
            self._load()
            self._greet_again()

    def _is_greeted(self, epoch: int) -> bool:
        return self.next.greeted is not None and self.next.greeted.epoch == epoch

    # ---- rounds --------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Easy inputs, then a hard one or a crowd of strangers; then the stage must go on."""
        self.rounds += 1
        try:
            self._easy()
            if self.rounds % 1000 == 500:
                self._another_hello()
            elif self.rounds % 8 == 0:
                self._strangers(as_next=self.rounds % 64 == 0)
            else:
                self._hard()
        except Ended:
            self.victim.await_end(10)
            self.victim.judge_end()
            if self.victim.restarts >= MOST_RESTARTS:
                raise AssertionError(
                    f"the stage ended {MOST_RESTARTS} times: {self.victim.ends[-3:]}"
                ) from None
            self._note_losses()
            self.bring_up()
        self._measure()

    def _easy(self) -> None:
        """All in one go; a call behind them, which must be answered, tells that they were read."""
        names = self.inputs.random.choices(
            list(self.inputs.easy), [share for _, share in self.inputs.easy.values()], k=EASY_A_ROUND
        )
        first = self.inputs.calls
        try:
            for name in names:
                self.inputs.easy[name][0]()
            self.inputs.calls += 1
            last = self.inputs.calls
            self.previous.say(control.Rpc(last, "check_health", self._no_arguments))
            self.previous.flush()
            deadline = time.monotonic() + ANSWER_S
            while not self.next.wait(lambda: last in self.next.answered, 0.1):
                if self.previous.is_broken():
                    raise Broken
                if time.monotonic() > deadline:
                    raise AssertionError(f"no answer behind easy inputs:\n{self.victim.log[-4000:]}")
            self.said.update(names)
        except Broken:
            # One of them ended the connection: the calls that were answered count, and this one.
            self.said["call"] += sum(call > first for call in self.next.answered)
            self.said["easy, but ended the connection"] += 1
            self._greet_again()
        self.next.answered.clear()

    def _hard(self) -> None:
        kinds = self.inputs.hard
        (name,) = self.inputs.random.choices(list(kinds), [share for _, share in kinds.values()])
        try:
            kinds[name][0]()
            self.previous.flush()
        except Broken:
            self._greet_again()
            return
        self.said[name] += 1
        self._greet_again()

    def _another_hello(self) -> None:
        """The stage may take it for another stage 0's, and even start over; then the right one comes again."""
        try:
            self.inputs.hello()
            self.previous.flush()
            self.said["hello"] += 1
        except Broken:
            pass
        self.victim.await_end(1.0)
        self.session, self.next.greeted = f"session {self.rounds}", None
        self._greet_again(READY_S)

    def _strangers(self, as_next: bool) -> None:
        """While the next stage is there; or in its place, so that some get in."""
        if as_next:
            self.next.pause()
        self.said["stranger as the next stage" if as_next else "stranger"] += self.strangers.crowd()
        if as_next:
            self.next.open()
        self._greet_again()

    @property
    def _no_arguments(self) -> bytes:
        from zmqpp.vllm import codec

        return codec.encode(((), {}))

    # ---- verdict -------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        if self.rounds == _WARM_ROUNDS:
            self._base_bytes = self.victim.resident_bytes()
            self._base_descriptors = self.victim.descriptors()
        if self.rounds <= _WARM_ROUNDS or self.rounds % 10:
            return
        self._note_losses()
        self.growth_bytes = max(self.growth_bytes, self.victim.resident_bytes() - self._base_bytes)
        more = self.victim.descriptors() - self._base_descriptors
        if more >= MOST_DESCRIPTORS:  # a crowd's half-open connections are dropped after ZMQPP_HANDSHAKE_S
            time.sleep(3.0)
            more = self.victim.descriptors() - self._base_descriptors
        self.most_descriptors = max(self.most_descriptors, more)
        self.most_threads = max(self.most_threads, self.victim.threads())
        assert self.growth_bytes < MOST_GROWTH_BYTES, f"the stage grew by {self.growth_bytes >> 20} MiB"
        assert self.most_descriptors < MOST_DESCRIPTORS, f"{self.most_descriptors} more descriptors"

    def _note_losses(self) -> None:
        for reason in self.victim.reasons():
            self.losses[_class_of(reason)] += 1

    def converse(self) -> None:
        """A valid conversation: the first step of a request, with its activations, is run and answered."""
        self._greet_again()
        before = self.next.counted["steps run"]
        body, activations = self.heard.steps[0]
        self.previous.say(body)
        for message in activations:
            self.previous.again(message)
        self.previous.flush()
        self._await_or_fail(lambda: self.next.counted["steps run"] > before, "run a valid step")

    def summary(self, seconds: float) -> str:
        counted = self.next.counted
        lines = [
            f"{sum(self.said.values())} inputs in {seconds:.0f} s, {self.rounds} rounds since the last start",
            *(f"  {count:>9}  {name}" for name, count in self.said.most_common()),
            "what came of them:",
            *(f"  {count:>9}  {name}" for name, count in counted.most_common()),
            *(f"  {count:>9}  connection given up: {name}" for name, count in self.losses.most_common()),
            f"  {self.hung_up:>9}  connections that we ended, because a frame was not complete",
            f"  {self.strangers.outcomes['kept waiting']:>9}  strangers kept waiting",
            f"ended in order and started again: {self.victim.restarts}",
            *(f"  {line}" for line in sorted({_class_of(end) for end in self.victim.ends})),
            f"resident memory grew by {self.growth_bytes / (1 << 20):.1f} MiB at most, descriptors by "
            f"{self.most_descriptors}; {self.most_threads} threads at most",
        ]
        return "\n".join(lines)


class Ended(Exception):
    """The process is gone."""


def _fields(message: object) -> dict[str, object]:
    return {name: getattr(message, name) for name in message.__struct_fields__}  # type: ignore[attr-defined]


_CLASSES = (
    ("the head announces a body of", "a head with another size than its message"),
    ("its head alone has", "a message shorter than a head"),
    ("came where", "a gap or a repeat in the sequence"),
    ("another session", "a message of another session"),
    ("offset and total", "an offset where there is none"),
    ("must start at offset", "an offset where there is none"),
    ("unknown", "unknown flags, kind or route"),
    ("a checksum without", "a checksum that was not announced, or a wrong one"),
    ("wire version", "another wire version"),
    ("the limit is", "a size beyond its limit"),
    ("does not start with", "no head at all"),
    ("control message of", "control message cannot be read"),
    ("a step from stage 0 cannot run", "a step that cannot run"),
    ("payload", "payload that the codec refuses"),
    ("manifest:", "manifest that cannot be read"),
    ("not an activation", "activations of another shape"),
    ("without a goodbye", "the connection broke"),
)


def _class_of(reason: str) -> str:
    for words, name in _CLASSES:
        if words in reason:
            return name
    # Numbers and names differ from time to time.
    text = reason.rpartition("): ")[2] if "(sender at" in reason else reason
    return "".join("#" if letter.isdigit() else letter for letter in text)[:90]


def main(seconds: float, inputs: int, seed: int) -> int:
    with Campaign(seed) as campaign:
        campaign.bring_up()
        started = time.monotonic()
        said = 0.0
        try:
            while time.monotonic() - started < seconds or sum(campaign.said.values()) < inputs:
                campaign.round()
                if time.monotonic() - said > 30:
                    said = time.monotonic()
                    print(f"stage: {sum(campaign.said.values())} inputs", flush=True)
            campaign.converse()
        except BaseException:
            print(campaign.summary(time.monotonic() - started), file=sys.stderr)
            print(f"stage: seed {seed}; its log is {FOLDER / 'fuzzed.log'}", file=sys.stderr)
            raise
        print(campaign.summary(time.monotonic() - started), flush=True)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seconds", nargs="?", type=float, default=20.0)
    parser.add_argument("--inputs", type=int, default=0, help="go on until there were as many, too")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    sys.exit(main(given.seconds, given.inputs, given.seed))
