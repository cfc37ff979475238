"""vLLM's executor over external stages: every stage, 0 included, is a process on the ring.

Runs in vLLM's EngineCore beside the scheduler, which so schedules the next batch while stage 0 computes.
Source: contract of vllm/v1/executor/abstract.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NoReturn

from vllm.logger import init_logger
from vllm.v1.executor.abstract import Executor
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

from zmqpp import control
from zmqpp.errors import DeadlineError, StageError, UnsupportedError, ZmqppError
from zmqpp.version import __version__
from zmqpp.vllm import compat, failure
from zmqpp.vllm.admission import Admission
from zmqpp.vllm.batches import wants_balance
from zmqpp.vllm.bereft import Bereft
from zmqpp.vllm.calls import END_TRACE, LOAD, START_TRACE, STATS, WARM_UP
from zmqpp.vllm.engine_core import announce_engine
from zmqpp.vllm.feedback import feedback_for
from zmqpp.vllm.first_stage import FirstStage
from zmqpp.vllm.fit import check_fit, check_ranks, first_workers, introduce
from zmqpp.vllm.identity import model_identity, sample_weights
from zmqpp.vllm.init_log import Call
from zmqpp.vllm.options import CONFIG_KEY, StageOptions
from zmqpp.vllm.patience import say_waiting
from zmqpp.vllm.recovery import Recovery
from zmqpp.vllm.ring import EngineRing
from zmqpp.vllm.ring_future import RingFuture, StageLost
from zmqpp.vllm.runner_choice import runner_of
from zmqpp.vllm.scheduling import adapt_scheduler
from zmqpp.vllm.serving_calls import ServingCalls
from zmqpp.vllm.settings import shared_settings
from zmqpp.vllm.timeouts import startup_s
from zmqpp.vllm.tracing import Tracing
from zmqpp.vllm.wire_digest import wire_digest
from zmqpp.watch.board import Board
from zmqpp.watch.snapshot import Publisher

logger = init_logger("vllm.zmqpp.executor")


class ExternalStageExecutor(Executor):
    """Drives N external stages; chosen by `--pipeline-stage-mode external` on stage 0."""

    supports_pp = True

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """With Model Runner V2: `runner_choice.py`."""
        return True

    def _init_executor(self) -> None:
        self.options = StageOptions.from_config(self.vllm_config.additional_config[CONFIG_KEY])
        self._serving = False
        self._calls: ServingCalls | None = None  # once the stages are up
        self._step = 0
        self._current: RingFuture | None = None
        self._masked: set[str] = set()
        """Running requests with structured output: their steps wait for a grammar mask."""
        self.init_log: list[Call] = []
        """Calls that brought the stages to readiness, in order; a stage that comes back is brought up by them."""
        self._ranks: list[int] = []
        """Workers of each stage, once they are known."""
        self._settings = shared_settings(self.vllm_config)
        """As stage 0 resolved them: vLLM's engine goes through its configuration again when it is up."""
        self.session, self.epoch = uuid.uuid4().hex, 0
        self.first: Any = None  # FirstStage, until the shutdown
        self.engine: Any = None
        self.bereft = Bereft()
        self.admit = Admission(self.vllm_config, self.bereft, self.options.transport_config()).check
        announce_engine(self)  # sets `engine`, vLLM's EngineCore, whose scheduler resumes after a loss
        try:
            self._balances = wants_balance()
            self.first = FirstStage(self.vllm_config, self.options)
            self.board = Board(self.options.total_stages, _served_name(self.model_config), self.session)
            self.publisher = Publisher(self.board)
            self.ring = EngineRing(self.first.link, self.board, self.first.check)
            self.ring.flights.draft_limits = self._draft_limits()
            self.ring.flights.feedback = feedback_for(self.vllm_config)
            self.tracing = Tracing(self.ring, self.board)
            self.ring.on_tick = self.publisher.publish_if_due
            failure.watch_parent(self._abandon)
            self.first.link.set_epoch(self.epoch)
            self._greet()
            self._load()
            self.ring.start_watching()
        except ZmqppError as error:
            self.stop_starting(error)

    # ---- bringing the stages up --------------------------------------------------------------------------

    def _greet(self) -> None:
        self.fit(self.greet(startup_s(), say_waiting(self.options)))

    def greet(self, timeout_s: float, waiting: Callable[[float], None]) -> list[control.HelloReply]:
        """Every stage's place, once the ring is closed.

        Raises:
            ZmqppError: it was not, in time.
        """
        hello = control.Hello(
            session=self.session,
            epoch=self.epoch,
            protocol=control.PROTOCOL_VERSION,
            zmqpp_version=__version__,
            vllm_version=compat.vllm_version(),
            total_stages=self.options.total_stages,
            model=model_identity(self.model_config),
            weights=sample_weights(self.model_config.model),
            settings=self._settings,
            runner=runner_of(self.vllm_config),
            objects=wire_digest(),
        )
        return self.ring.hello(hello, timeout_s, waiting)

    def fit(self, replies: list[control.HelloReply]) -> None:
        """Raises ConfigError where the stages do not make up the model, or one came back with other workers."""
        check_fit(replies)
        self._ranks = check_ranks(self._ranks, replies)
        for reply in replies:
            introduce(self.board, reply)

    def _load(self) -> None:
        self.board.set_states("loading")
        self.publisher.publish()
        self.load_reports: list[dict[str, Any]] = self._logged_call(LOAD, (first_workers(self._ranks),))
        for index, loaded in enumerate(self.load_reports):
            stage = self.board.stage(index)
            stage.parameters, stage.weight_bytes = loaded["parameters"], loaded["bytes"]
        self.board.set_states("loaded")
        self.publisher.publish()

    def _logged_call(
        self, method: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> list[Any]:
        self.init_log.append((method, args, kwargs or {}))
        result: list[Any] = self.ring.call(method, args, kwargs).result()
        return result

    def stop_starting(self, error: ZmqppError) -> NoReturn:
        """The stages hear why, and end."""
        if (ring := getattr(self, "ring", None)) is not None:
            ring.refuse(str(error))  # Says nothing when a stage was first.
        self.shutdown()
        failure.stop_starting(error)

    # ---- vLLM's calls ------------------------------------------------------------------------------------

    def collective_rpc(  # type: ignore[override]
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
        **unknown: Any,
    ) -> Any:
        """Run a worker method, named by a string, on every worker; results in the order of their ranks.

        Raises:
            UnsupportedError: a callable (code does not travel), or an argument of a type that does not.
            RemoteError: the method raised on a stage. StageError: a stage is lost. DeadlineError: `timeout`.
        """
        if not isinstance(method, str):
            raise UnsupportedError(
                f"collective_rpc of a callable ({getattr(method, '__qualname__', method)}) is not possible with "
                f"external stages: no code travels between them; name a worker method instead"
            )
        if method in (START_TRACE, END_TRACE):
            return self.tracing.run(method)
        if self._calls is not None:
            call = (method, args, kwargs or {})
            return self._calls.start(*call) if non_block else self._calls.run(*call, timeout)
        try:
            results = self._logged_call(method, args, kwargs)
        except ZmqppError as error:
            self.stop_starting(error)
        if method == WARM_UP:
            self.board.set_states("ready", pipeline="ready")
            self.publisher.publish()
            if self.engine is not None:
                self._recovery = Recovery(self, lambda: say_waiting(self.options))
            self._calls = ServingCalls(self)
        return _answer(results, non_block)

    def recover_if_lost(self) -> None:
        """A stage was lost in an idle moment. Thread: the engine's."""
        if self.ring.lost is not None and self.ring.recover is not None:
            self._keep_async()
            self.ring.recover()

    def _keep_async(self) -> None:
        """vLLM's CPU platform clears it again; see `_settings`."""
        self.vllm_config.scheduler_config.async_scheduling = self._settings.get("async_scheduling", False)

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:  # type: ignore[override]
        """Start a step on every stage; its tokens come with `sample_tokens`."""
        if not self._serving:
            self._begin_serving()
        self._track_masks(scheduler_output)
        if _is_empty(scheduler_output):
            return _answer(EMPTY_MODEL_RUNNER_OUTPUT, non_block)
        self._step += 1
        sample = not any(req_id in self._masked for req_id in scheduler_output.num_scheduled_tokens)
        try:
            future = self.ring.execute(self._step, scheduler_output, sample)
        except StageLost:
            self._recovery.run()  # This step is among those given up.
            return _answer(EMPTY_MODEL_RUNNER_OUTPUT, non_block)
        except DeadlineError as error:
            self.ring.refuse(f"step {self._step} waits for tokens of an earlier one: {error}")
            raise self.ring.failure or error from None
        if not scheduler_output.total_num_scheduled_tokens:
            return _answer(EMPTY_MODEL_RUNNER_OUTPUT, non_block)
        if self.model_config.runner_type == "pooling":
            return future if non_block else future.result()
        self._current, self._waits_for_mask = future, not sample
        return _answer(None, non_block)

    def _begin_serving(self) -> None:
        self._serving = True
        self._keep_async()
        scheduler = getattr(self.engine, "scheduler", None)
        if scheduler is not None:
            # A decode leaves when its token is back: one batch a stage, even where one more may be in flight.
            batches = self.options.total_stages if self._balances else 1
            self.ring.check_size = adapt_scheduler(scheduler, self.vllm_config, batches)

    def _draft_limits(self) -> tuple[int, int]:
        config = self.vllm_config.speculative_config
        return self.model_config.get_vocab_size(), config.num_speculative_tokens if config is not None else 0

    def take_draft_token_ids(self) -> Any:
        """Of the step that waits for its mask, with async scheduling; else they come with the output they follow."""
        return self.ring.flights.drafts_of(self._step) if self._settings.get("async_scheduling") else None

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:  # type: ignore[override]
        """The output of the step that `execute_model` started last."""
        future, self._current = self._current, None
        if future is None:
            return _answer(EMPTY_MODEL_RUNNER_OUTPUT, non_block)
        if self._waits_for_mask and not future.done():
            try:
                self.ring.sample(self._step, grammar_output)
            except StageLost:
                self._recovery.run()
        return future if non_block else future.result()

    def _track_masks(self, scheduler_output: Any) -> None:
        for request in scheduler_output.scheduled_new_reqs:
            params = request.sampling_params
            if params is not None and params.structured_outputs is not None:
                self._masked.add(request.req_id)
        self._masked -= scheduler_output.finished_req_ids

    def check_health(self) -> None:
        """Raises StageError once a stage is lost."""
        if self.ring.failure is not None:
            raise self.ring.failure

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        """`callback()` is called once, from whichever thread notices that a stage is lost."""

        def failed(error: StageError) -> None:
            failure.record(str(error))
            logger.error("%s", error)
            callback()

        self.ring.on_failure = failed

    def link_stats(self) -> list[dict[str, Any]]:
        """Counters of each stage's link, in stage order."""
        stats: list[dict[str, Any]] = self.ring.call(STATS).result()
        return stats

    def _abandon(self) -> None:
        """The API server died: stage 0 ends, and the others wait for the next one. Thread: the parent watch."""
        first, self.first = self.first, None
        if first is not None:
            self.ring.close()
            first.close()

    def shutdown(self) -> None:
        """Stop every stage; safe to call twice and at any time."""
        first, self.first = self.first, None
        if first is None:
            return
        ring = getattr(self, "ring", None)
        if ring is not None:
            if ring.failure is None:
                ring.stop()
            ring.close()
        first.close()


def _served_name(model_config: Any) -> str:
    name = model_config.served_model_name or model_config.model
    return str(name[0] if isinstance(name, list) else name)


def _is_empty(step: Any) -> bool:
    """Nothing that a stage has to know; of preempted requests it gives the rows away (Model Runner V2)."""
    told = ("total_num_scheduled_tokens", "finished_req_ids", "preempted_req_ids", "free_encoder_mm_hashes")
    return not any(getattr(step, name, None) for name in (*told, "kv_connector_metadata"))


def _answer(value: Any, non_block: bool) -> Any:
    if not non_block:
        return value
    future: Future[Any] = Future()
    future.set_result(value)
    return future
