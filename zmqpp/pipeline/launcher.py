"""Starts a pipeline's stages on this host, watches them, and leaves none behind.

with Launcher(plan, log_dir) as launcher:
    launcher.start()
    launcher.wait_ready(timeout_s=300)
    ...                                  # call launcher.check() now and then
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from zmqpp.errors import LaunchError
from zmqpp.pipeline.client import is_healthy
from zmqpp.pipeline.events import EVENTS_VARIABLE, NEWS, TRIAL_VARIABLE, read_events
from zmqpp.pipeline.guard import Guard
from zmqpp.pipeline.log_folder import own_log_dir
from zmqpp.pipeline.plan import PipelinePlan, StagePlan
from zmqpp.pipeline.process import StageProcess, ended_by_signal, killed_by, told_as_launch_error
from zmqpp.pipeline.session import signal_process
from zmqpp.pipeline.signals import StopSignals
from zmqpp.pipeline.stage_log import clear_line
from zmqpp.pipeline.state import StageState

__all__ = ["Launcher"]

_POLL_S = 0.1
_LOADING_GRACE_S = 3.0
_FOLLOW_S = 2.0
"""For the other stages to follow when stage 0 has stopped."""
_EXIT_S = 1.0
_NEWS = 1000
_KILLS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


class Launcher:
    """Owns: all processes of the pipeline while entered. Thread: the main thread; with `signals` of another, that one.

    While entered, SIGINT, SIGTERM and SIGHUP raise StopRequested once; leaving stops every stage, and a
    signal during that stop cuts the grace short. If this process is killed outright, its guard ends them.
    """

    def __init__(
        self,
        plan: PipelinePlan,
        log_dir: Path,
        *,
        grace_s: float = 10.0,
        on_interrupt: Callable[[], None] | None = None,
        signals: StopSignals | None = None,
    ) -> None:
        self.plan = plan
        self.states = [StageState(stage.index) for stage in plan.stages]
        self.culprit: StageState | None = None
        """Of the last LaunchError: the stage that failed first, if one did."""
        self.stage_plans = list(plan.stages)
        """What each stage runs with now, and is started with the next time."""
        self.news: deque[dict[str, Any]] = deque(maxlen=_NEWS)  # events of NEWS, until someone takes them out
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._on_interrupt = on_interrupt
        self._processes = [StageProcess(log_dir / f"stage_{stage.index}.log") for stage in plan.stages]
        self.events_path = log_dir / "events.jsonl"
        self._events_offset = 0
        self._signals = signals or StopSignals()
        self.pause = self._signals.pause
        self._guard = Guard(grace_s)
        self._stops = 0
        self._resources = ExitStack()

    def __enter__(self) -> Launcher:
        with ExitStack() as entering:
            entering.enter_context(own_log_dir(self._log_dir))
            entering.enter_context(self._signals)
            with self._signals.held():
                entering.enter_context(self._guard)
            self._resources = entering.pop_all()
        return self

    def start(self) -> None:
        """Start every stage at once: they find one another in any order.

        Raises:
            LaunchError: this machine does not allow it: no room for logs, too many processes.
        """
        self.culprit = None
        with told_as_launch_error():
            self._log_dir.mkdir(parents=True, exist_ok=True)  # Someone may have cleaned up since.
            self.events_path.write_bytes(b"")
            self._events_offset = 0
            for stage in self.stage_plans:
                with self._signals.held():
                    self._start_stage(stage)

    def _start_stage(self, stage: StagePlan, **more: str) -> None:
        self.states[stage.index].started_s = time.time()
        environment = {**stage.environment, EVENTS_VARIABLE: str(self.events_path.absolute()), **more}
        self._guard.watch(self._processes[stage.index].start(stage.command(), environment))

    def restart(self) -> None:
        """End what is left of every stage, and start all of them anew; their last logs become `stage_I.log.1`.

        Raises:
            LaunchError: as `start`.
        """
        self._await_end(self._processes, time.monotonic() + _FOLLOW_S)  # They leave by themselves.
        self._end(time.monotonic() + self._grace_s)
        with told_as_launch_error():
            for process in self._processes:
                process.keep_log()
        self.states[:] = [StageState(stage.index) for stage in self.stage_plans]
        self.start()

    def stop_stage(self, index: int) -> bool:
        """End one stage's process in good order, while the others wait for the next; False where it had to be killed.

        Stage 0 is killed outright: in good order it would end the whole pipeline. What it has started leaves by itself.
        """
        process = self._processes[index]
        if index == 0 and process.exit_code() is None:
            signal_process(process.pid, signal.SIGKILL)
        process.terminate()
        self._await_end([process], time.monotonic() + self._grace_s)
        left = process.is_gone()
        self._reap(process)
        return left

    def restart_stage(self, index: int) -> None:
        """Start one stage anew while the others wait for it; its last log becomes `stage_I.log.1`.

        It is on trial until it is ready: should it fail before, another one may take its place.

        Raises:
            LaunchError: as `start`.
        """
        process = self._processes[index]
        self._reap(process)
        with told_as_launch_error(), self._signals.held():
            process.keep_log()
            self._read_events()  # The last words of the one before are not of this one.
            self.states[index] = StageState(index, on_trial=True)
            self._start_stage(self.stage_plans[index], **{TRIAL_VARIABLE: "1"})

    def _reap(self, process: StageProcess) -> None:
        pid = process.pid
        process.reap()
        self._guard.forget(pid)

    def runs(self, index: int) -> bool:
        """Whether a process of this stage does. Never blocks."""
        return self._processes[index].pid > 0 and self._processes[index].exit_code() is None

    def pids(self) -> list[int]:
        """Of the stages' processes, in stage order; 0 where none runs. Thread: any."""
        return [process.pid for process in self._processes]

    def log_paths(self) -> list[Path]:
        """In stage order."""
        return [process.log_path for process in self._processes]

    def lost_stages(self) -> list[int]:
        """Stages whose process ended and whose place another one may take. Never blocks."""
        ended = [process.exit_code() is not None for process in self._processes]
        self._read_events()
        if self.has_failed:
            return []  # `check` says why.
        return [index for index, over in enumerate(ended) if over]

    @property
    def has_failed(self) -> bool:
        """Whether the pipeline itself has: a stage gave a reason of its own, and was not on trial."""
        return any(state.phase == "failed" and not state.on_trial for state in self.states)

    @property
    def is_hurried(self) -> bool:
        """Whether a further signal came after the one that asked to stop."""
        return self._signals.count > 1

    def how_it_ended(self, index: int) -> str:
        """`stage 1 was killed by SIGKILL; its log is ...`, of a process that has ended and is to be replaced."""
        code, path = self._processes[index].exit_code() or 0, self._processes[index].log_path
        if how := ended_by_signal(code):
            return f"stage {index} {how}; its log is {path}.1"
        reason = self.states[index].reason or (clear_line(path) if code else "")
        told = f": {reason.removeprefix(f'stage {index}: ')}" if reason else ""
        return f"stage {index} ended (exit code {code}){told}; its log is {path}.1"

    def was_killed(self, index: int) -> bool:
        """Whether its process ended by a signal from outside, and not for a reason of its own."""
        code = self._processes[index].exit_code() or 0
        return code == -signal.SIGKILL or bool(ended_by_signal(code) and -code not in _KILLS)

    def all_ready(self) -> bool:
        """Whether every stage has said so, and stage 0 answers."""
        return all(state.phase == "ready" for state in self.states) and is_healthy(self.plan.api.url)

    def check(self) -> bool:
        """Take in what the stages told since the last call; True when something did. Blocks where one has failed.

        Raises:
            LaunchError: a stage failed or ended: which, its exit code, its reason, its log.
        """
        codes = [process.exit_code() for process in self._processes]
        changed = self._read_events()  # After the exit codes: a stage says why just before it ends.
        # One failure takes the neighbours down. Who was killed has no last word, and nobody is killed as a consequence;
        # else the first that gave a reason of its own is the cause.
        killed = [state for state in self.states if -(codes[state.index] or 0) in _KILLS]
        failed = sorted(
            (state for state in self.states if state.phase == "failed"),
            key=lambda state: state.settled_s or 0,
        )
        ended = [state for state in self.states if codes[state.index] is not None]
        culprits = killed or failed or ended
        if culprits:
            self.culprit = culprits[0]
            raise self._failure(culprits[0], self._processes[culprits[0].index])
        return changed

    def watch(self, timeout_s: float) -> Iterator[Sequence[StageState]]:
        """Yield the states about ten times a second until all are ready and stage 0 answers on /health.

        Raises:
            LaunchError: see `check`; also when `timeout_s` passed first.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.check()
            yield self.states
            if self.all_ready():
                return
            if time.monotonic() > deadline:
                raise LaunchError(self._too_slow(timeout_s))
            self.pause(_POLL_S)

    def wait_ready(
        self, timeout_s: float, on_poll: Callable[[Sequence[StageState]], None] | None = None
    ) -> None:
        """Block until the pipeline serves requests; raises as `watch` does."""
        for states in self.watch(timeout_s):
            if on_poll is not None:
                on_poll(states)

    def stop(self) -> None:
        """Stop every stage: in good order through stage 0, else by SIGTERM, else by SIGKILL. Idempotent."""
        first = self._stops == 0
        if first and self._signals.count and self._on_interrupt is not None:
            self._on_interrupt()
        self._signals.mute()
        self._stops = self._signals.count
        serving = all(state.phase == "ready" for state in self.states)
        # Stages that still load have nothing to finish, and vLLM hears signals late while it starts.
        deadline = time.monotonic() + (self._grace_s if serving else min(self._grace_s, _LOADING_GRACE_S))
        if serving:
            # A running stage 0 tells the others that the pipeline ends, and they leave by themselves.
            self._processes[0].terminate()
            self._await_end(self._processes[:1], deadline)
            self._await_end(self._processes, min(deadline, time.monotonic() + _FOLLOW_S))
        self._end(deadline)

    def _end(self, deadline: float) -> None:
        for process in self._processes:
            process.terminate()
        self._await_end(self._processes, deadline)
        for process in self._processes:
            self._reap(process)
        self._read_events()

    def _await_end(self, processes: Sequence[StageProcess], deadline: float) -> None:
        """Until they are gone, the deadline, or the user's next signal."""
        while not all(process.is_gone() for process in processes):
            if time.monotonic() > deadline or self._signals.count > self._stops:
                return
            self.pause(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._resources:
            self.stop()

    def _read_events(self) -> bool:
        with self._signals.held():  # Else the file might stay open, or its lines be lost.
            events, self._events_offset = read_events(str(self.events_path), self._events_offset)
            for event in events:
                if not 0 <= event.get("stage", -1) < len(self.states):
                    continue
                if event.get("event") in NEWS:
                    self.news.append(event)
                else:
                    self.states[event["stage"]].apply(event)
        return bool(events)

    def _failure(self, state: StageState, process: StageProcess) -> LaunchError:
        code = self._await_exit(process)
        killed = code is not None and code < 0
        # Who is killed has no last word; its log ends with what it did before.
        state.fail("" if killed else clear_line(process.log_path))
        reason = state.reason.removeprefix(f"stage {state.index}: ")
        how = "failed" if code is None else f"ended (exit code {code})" if code >= 0 else killed_by(-code)
        told = f": {reason}" if reason else ""
        return LaunchError(f"stage {state.index} {how}{told}; its log is {process.log_path}")

    def _await_exit(self, process: StageProcess) -> int | None:
        """A killed process lets go of its connections a moment before its end can be seen: others may miss it first."""
        deadline = time.monotonic() + _EXIT_S
        while (code := process.exit_code()) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return code

    def _too_slow(self, timeout_s: float) -> str:
        late = [f"stage {state.index} is {state.phase}" for state in self.states if state.phase != "ready"]
        what = ", ".join(late) or f"stage 0 does not answer on {self.plan.api.url}/health"
        return f"not ready after {timeout_s:g} s: {what}; the logs are in {self._log_dir}"
