"""The process of a stage's tensor-parallel rank 1, 2, …: builds vLLM's worker, and does what rank 0 says.

Thread: everything here runs on the process's main thread.
"""

from __future__ import annotations

import os
import signal
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn

from zmqpp import control
from zmqpp.errors import ConfigError, MalformedError
from zmqpp.pipeline.events import EVENTS_VARIABLE
from zmqpp.vllm import codec, plain_step, rank_words
from zmqpp.vllm.calls import FORGET, RESTORE
from zmqpp.vllm.parent_death import die_with_parent
from zmqpp.vllm.rank_words import AnyWord, Assignment
from zmqpp.vllm.wording import PLAIN_ERRORS, describe

if TYPE_CHECKING:
    from zmqpp.vllm.worker import StageWorker

__all__ = ["run_rank"]


def run_rank(stage: int, rank: int, model: str, words: Connection, reason: Connection) -> None:
    """Main function of the process.

    Args:
        words: rank 0's end speaks; answers go back through it.
        reason: takes the last word of a process that fails.
    """
    from vllm.utils.system_utils import decorate_logs, set_process_title

    from zmqpp.vllm.warm import warm_up

    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            number, signal.SIG_IGN
        )  # Both may reach the whole group; rank 0 decides when the others end.
    set_process_title(f"zmqpp_stage_{stage}_rank_{rank}")
    decorate_logs(f"stage {stage} rank {rank}")
    try:
        warm_up(model)
        _Rank(stage, words).run()
    except EOFError:
        os._exit(1)  # Rank 0 is gone. What is left of vLLM's groups may wait for it in vain.
    except Exception as error:
        _fail(reason, error)


def _fail(reason: Connection, error: Exception) -> NoReturn:
    if not isinstance(error, PLAIN_ERRORS):
        traceback.print_exception(error)
    try:
        reason.send(describe(error))
    except OSError:
        pass  # Rank 0 is gone.
    os._exit(1)


class _Rank:
    def __init__(self, stage: int, words: Connection) -> None:
        self._stage, self._words = stage, words

    def run(self) -> None:
        """Returns when the stage ends in good order."""
        from zmqpp.vllm.worker import leave_group

        self._worker = self._load(self._words.recv())
        while not isinstance(word := self._listen(), control.Stop):
            self._act(word)
        leave_group()

    def _listen(self) -> AnyWord:
        return rank_words.decode(self._words.recv_bytes())

    def _load(self, given: Assignment) -> StageWorker:
        os.environ.update(given.environment)
        os.environ.pop(EVENTS_VARIABLE, None)  # Rank 0 tells the launcher how far the stage is.
        from zmqpp.vllm import compat
        from zmqpp.vllm.rank_group import FollowingGroup
        from zmqpp.vllm.worker import StageWorker, first_device

        compat.configure_logging(given.config)
        total = given.config.parallel_config.pipeline_parallel_size
        group = FollowingGroup(self._stage, total, first_device(), self._listen)
        worker = StageWorker(given.config, group, given.layers, given.place)
        report = worker.load()
        self._reply(control.RpcReply(0, given.place.rank, payload=codec.encode(report.counts())))
        return worker

    def _reply(self, reply: control.RpcReply) -> None:
        self._words.send_bytes(control.encode(reply))

    def _act(self, word: AnyWord) -> None:
        if isinstance(word, control.Exec):
            self._run_step(word)
        elif isinstance(word, control.Sample):
            self._worker.sample(codec.decode(word.payload))
        elif isinstance(word, control.Rpc):
            self._run_rpc(word)
        # Else a step was given up after this rank had done its part.

    def _run_step(self, step: control.Exec) -> None:
        from zmqpp.vllm.rank_group import StepAbandonedError

        try:
            output = self._worker.execute(step, plain_step.scheduled(step.payload))
        except (StepAbandonedError, MalformedError):
            return  # Rank 0 gives the step up, or finds the same wrong with it, and has every request forgotten next.
        if step.tokens and step.sample and self._worker.group.is_last_rank and output is None:
            self._worker.sample(None)

    def _run_rpc(self, rpc: control.Rpc) -> None:
        """A call that fails is the caller's error, as on rank 0."""
        rank = self._worker.place.rank
        try:
            payload = codec.encode(self._call(rpc.method, *codec.decode_arguments(rpc.payload)))
        except Exception as error:
            if not isinstance(error, PLAIN_ERRORS):
                traceback.print_exc()
            self._reply(control.RpcReply(rpc.call, rank, error=describe(error)))
        else:
            self._reply(control.RpcReply(rpc.call, rank, payload=payload))

    def _call(self, method: str, args: Any, kwargs: Any) -> Any:
        if method == FORGET:
            return self._worker.forget_requests()
        if method == RESTORE:
            return self._worker.restore(*args)
        if method.startswith("zmqpp."):
            raise ConfigError(f"{method} is not for rank {self._worker.place.rank}")
        return self._worker.own_call(method, args, kwargs)
