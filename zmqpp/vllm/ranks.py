"""The tensor-parallel ranks of a stage: its own process is rank 0 and holds the sockets, the others are its children.

They start with the stage, so that all import vLLM at once. One that ends takes the stage with it, and they go when the
stage's process goes, however that ends. Of a stage with one rank there are none, and nothing here does anything.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zmqpp import control
from zmqpp.errors import StageError
from zmqpp.layers import LayerRange
from zmqpp.transport import Link
from zmqpp.vllm import codec, failure, rank_words
from zmqpp.vllm.rank_process import run_rank
from zmqpp.vllm.rank_words import AnyWord, Assignment, RankPlace
from zmqpp.vllm.timeouts import step_s

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from zmqpp.vllm.worker import StageWorker

__all__ = ["RankKilled", "Ranks", "end_with_rank"]

_LEAVE_S = 5.0
_GRACE_S = 1.5
"""For the main thread to notice by itself that a rank ended, and to say so in good order."""


class RankKilled(StageError):
    """Somebody has killed a rank's process: for the others the stage itself was killed, it did not fail."""


def end_with_rank(error: StageError, in_use: bool) -> NoReturn:
    """End this process after `error`: as its rank did where that was killed, so that no failure is seen in it.

    Args:
        in_use: the pipeline has served; before, only who ends by itself has a reason.
    """
    failure.say(error)
    sys.stdout.flush()
    if in_use and isinstance(error, RankKilled):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)


@dataclass(frozen=True)
class _Child:
    rank: int
    process: Any
    words: Connection
    """What it is told, and what it answers."""
    reason: Connection
    """Its last word, where it ends by itself."""


class Ranks:
    """Ranks 1 .. size-1 of a stage, told what to do by rank 0.

    Owns their processes. Thread: the stage's main thread, which must live as long as they shall; a thread of its own
    watches them.

    Args:
        stage: whose.
        size: of the tensor-parallel group, this process included.
        model: what they will load, for what can be imported before it is known in full.
    """

    def __init__(self, stage: int, size: int, model: str) -> None:
        self.stage, self.size = stage, size
        self.on_loss: Callable[[StageError], None] = lambda error: None
        """Called by the watch when a rank is gone and the main thread has not taken notice."""
        self._children: list[_Child] = []
        self._closing = threading.Event()
        if size > 1:
            # All are on this host, and torch's sockets ask nobody who he is.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        try:
            for rank in range(1, size):
                self._children.append(self._start(rank, model))
        except BaseException:
            self._kill()
            raise
        if self._children:
            threading.Thread(target=self._watch, name="zmqpp-rank-watch", daemon=True).start()

    def _start(self, rank: int, model: str) -> _Child:
        context = get_context("spawn")
        words, their_words = context.Pipe()
        reason, their_reason = context.Pipe(duplex=False)
        process = context.Process(
            target=run_rank,
            args=(self.stage, rank, model, their_words, their_reason),
            name=f"zmqpp-stage-{self.stage}-rank-{rank}",
            daemon=True,  # as vLLM's own workers
        )
        process.start()
        their_words.close()
        their_reason.close()
        return _Child(rank, process, words, reason)

    def worker(self, config: VllmConfig, link: Link, layers: LayerRange, first: int) -> StageWorker:
        """The stage's worker, rank 0; with others it leads them.

        Args:
            first: workers of the stages before this one.
        """
        from zmqpp.vllm.leading_worker import LeadingWorker
        from zmqpp.vllm.rank_group import LeadingGroup
        from zmqpp.vllm.worker import PipelineGroup, StageWorker, first_device, meeting_point

        place = RankPlace(0, self.size, first, meeting_point())
        total = config.parallel_config.pipeline_parallel_size
        if self.size == 1:
            return StageWorker(
                config, PipelineGroup(link, self.stage, total, first_device(), step_s()), layers, place
            )
        group = LeadingGroup(link, self.stage, total, first_device(), step_s(), self.tell)
        return LeadingWorker(config, group, layers, place, self)

    # ---- telling -----------------------------------------------------------------------------------------

    def assign(self, config: VllmConfig, layers: LayerRange, place: RankPlace) -> None:
        """Let each load its share; `answers` has then what each says of that."""
        environment = dict(os.environ)
        for child in self._children:
            theirs = replace(place, rank=child.rank)
            try:
                child.words.send(Assignment(config, layers, theirs, environment))
            except OSError:
                raise self._gone(child) from None

    def tell(self, word: AnyWord) -> None:
        """Raises StageError: one of them is gone."""
        body = rank_words.encode(word)
        for child in self._children:
            try:
                child.words.send_bytes(body)
            except OSError:
                raise self._gone(child) from None

    def ask(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of each; `answers` has then what each gives."""
        self.tell(control.Rpc(0, method, codec.encode((args, kwargs))))

    def answers(self) -> list[Any]:
        """What each answered to the last question, in the order of ranks.

        Raises:
            StageError: one of them is gone, or says what went wrong there.
        """
        replies = []
        for child in self._children:
            try:
                replies.append(control.decode(child.words.recv_bytes()))
            except (EOFError, OSError):
                raise self._gone(child) from None
        for child, reply in zip(self._children, replies, strict=True):
            if not isinstance(reply, control.RpcReply) or reply.error is not None:
                said = reply.error if isinstance(reply, control.RpcReply) else "no answer"
                raise StageError(f"stage {self.stage}: tensor-parallel rank {child.rank}: {said}")
        return [
            codec.decode(reply.payload or b"") for reply in replies if isinstance(reply, control.RpcReply)
        ]

    def resident_bytes(self) -> int:
        """What they hold in memory together."""
        pages = 0
        for child in self._children:
            try:
                pages += int(Path(f"/proc/{child.process.pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                pass  # It has just ended, and the watch knows.
        return pages * os.sysconf("SC_PAGE_SIZE")

    # ---- ends --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises StageError: one of them is gone."""
        for child in self._children:
            if not child.process.is_alive():
                raise self._gone(child)

    def check_after_error(self) -> None:
        """As `check`, for who met an error that a rank's end may be behind: waits a little for that."""
        wait([child.process.sentinel for child in self._children], _GRACE_S)
        self.check()

    def _gone(self, child: _Child) -> StageError:
        """To be raised on the main thread, which so takes it into its own hands."""
        child.process.join(_GRACE_S)
        self._closing.set()
        return self._loss(child)

    def _loss(self, child: _Child) -> StageError:
        why = self._why(child)
        return (RankKilled if child.process.exitcode == -signal.SIGKILL else StageError)(why)

    def _why(self, child: _Child) -> str:
        named = f"stage {self.stage}: its tensor-parallel rank {child.rank}"
        try:
            if child.reason.poll(0):
                return f"{named} failed: {child.reason.recv()}"
        except (EOFError, OSError):
            pass
        code = child.process.exitcode
        if code is None:
            return f"{named} does not answer"
        return (
            f"{named} was killed by {signal.Signals(-code).name}" if code < 0 else f"{named} ended ({code})"
        )

    def _watch(self) -> None:
        """A collective with a rank that is gone never ends: the main thread may be in one."""
        ended = wait([child.process.sentinel for child in self._children])
        if self._closing.wait(_GRACE_S):
            return
        child = next(child for child in self._children if child.process.sentinel in ended)
        self.on_loss(self._loss(child))

    def close(self, in_order: bool = True) -> None:
        """End them: in good order all together, which waits a little, else at once."""
        self._closing.set()
        if in_order and self._children:
            self._leave_together()
        self._kill()

    def _leave_together(self) -> None:
        from zmqpp.vllm.worker import leave_group

        try:
            self.tell(control.Stop())
        except StageError:
            return
        leave_group()
        for child in self._children:
            child.process.join(_LEAVE_S)

    def _kill(self) -> None:
        for child in self._children:
            child.process.kill()
            child.process.join()
            child.words.close()
            child.reason.close()
        self._children = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close(in_order=kind is None)
