"""Two processes send each other random dicts at once, for a long time; every byte is checked, and memory is watched.

    python -m tests.soak [--seconds 600] [--seed N] [--lane NAME ...]

The link is opened anew every few seconds: each lane in turn, over TCP and Unix sockets, with the default and with
other settings. The last line is "soak: N dicts, X GB, 0 wrong"; the exit code is 1 when anything was wrong: another
byte, an error, a process that grew, something left behind.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.soak.content import MIB
from tests.soak.place import PATIENCE_S, Progress, Session, serve
from zmqpp.communicator import LANES
from zmqpp.config import TransportConfig

_SESSION_S = 10.0
_PROGRESS_EVERY_S = 60.0
_GROWTH_LIMIT_BYTES = 64 * MIB
"""A process between two sessions, against the largest after the first sessions, one of each sort."""
_PEAK_LIMIT_BYTES = 3 << 30
"""A process at any moment: two dicts of the largest size, the queue, what waits to be taken, what is kept for reuse."""
_DEFAULT = TransportConfig(peer_timeout_s=60.0)


class Wrong(Exception):
    """Whatever must not happen."""


class Soak:
    """The two processes, and what they have done so far."""

    def __init__(self, seed: int, lanes: list[str], seconds: float) -> None:
        self._random = random.Random(seed)
        self._lanes = lanes
        self._started = time.monotonic()
        self._end = self._started + seconds
        self._next_line = self._started + _PROGRESS_EVERY_S
        self._done = Progress()
        self._now = [Progress(), Progress()]
        self._resting: list[list[int]] = []
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in (0, 1):
            ours, theirs = context.Pipe()
            self._processes.append(context.Process(target=serve, args=(rank, theirs), daemon=True))
            self._processes[-1].start()
            theirs.close()
            self._pipes.append(ours)

    def run(self) -> None:
        """All sessions. Raises Wrong."""
        sorts = list(itertools.product(self._lanes, ("tcp", "ipc")))
        with tempfile.TemporaryDirectory(prefix="zmqpp-soak-") as folder:
            for index, (lane, scheme) in enumerate(itertools.cycle(sorts)):
                left = self._end - time.monotonic()
                if left < 1:
                    return
                seconds = min(_SESSION_S, left, (self._end - self._started) / len(sorts) / 2)
                config = _DEFAULT if index % 2 else self._any_config()
                addresses = tuple(_addresses(scheme, Path(folder), index))
                seed = self._random.getrandbits(40)
                self._session(Session(seed, lane, addresses, seconds, config))
                self._check_growth(index, len(sorts))

    def close(self) -> None:
        """Both processes end when their pipe does."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()
            process.join()

    def summary(self, wrong: int) -> str:
        """The closing line."""
        total = self._total()
        return f"soak: {total.dicts} dicts, {total.bytes / 1e9:.1f} GB, {wrong} wrong"

    def _session(self, session: Session) -> None:
        self._now = [Progress(), Progress()]
        for pipe in self._pipes:
            pipe.send(session)
        deadline = time.monotonic() + session.seconds + 2 * PATIENCE_S
        while not all(progress.finished for progress in self._now):
            for pipe in wait(self._pipes, timeout=1.0):
                rank = self._pipes.index(pipe)
                try:
                    self._now[rank] = self._pipes[rank].recv()
                except EOFError:
                    raise Wrong(f"{session}: process {rank} died") from None
                self._check(rank, session)
            if time.monotonic() > deadline:
                raise Wrong(f"{session}: no end, {self._now}")
            if time.monotonic() > self._next_line:
                self._next_line += _PROGRESS_EVERY_S
                print(self._line(session), flush=True)
        self._check_lane(session)
        self._done, self._now = self._total(), [replace(p, dicts=0, bytes=0) for p in self._now]

    def _check(self, rank: int, session: Session) -> None:
        progress = self._now[rank]
        if progress.error:
            raise Wrong(f"{session}, rank {rank}:\n{progress.error}")
        if progress.rss_bytes > _PEAK_LIMIT_BYTES:
            raise Wrong(f"{session}: process {rank} takes {progress.rss_bytes >> 20} MiB")

    def _check_lane(self, session: Session) -> None:
        socket = session.addresses[0].partition("://")[0] if "://" in session.addresses[0] else "tcp"
        taken = {progress.lane for progress in self._now}
        if taken != {socket if session.lane == "tcp" else "shm"}:
            raise Wrong(f"{session}: the lanes were {taken}")

    def _check_growth(self, index: int, warm_up: int) -> None:
        resting = [progress.rss_bytes for progress in self._now]
        self._resting.append(resting)
        if index < 2 * warm_up:
            return
        for rank in (0, 1):
            usual = max(sizes[rank] for sizes in self._resting[: 2 * warm_up])
            if resting[rank] > usual + _GROWTH_LIMIT_BYTES:
                raise Wrong(
                    f"process {rank} grew from {usual >> 20} to {resting[rank] >> 20} MiB between sessions"
                )

    def _total(self) -> Progress:
        parts = [self._done, *self._now]
        return Progress(sum(part.dicts for part in parts), sum(part.bytes for part in parts))

    def _line(self, session: Session) -> str:
        memory = " and ".join(f"{progress.rss_bytes >> 20} MiB" for progress in self._now)
        elapsed = time.monotonic() - self._started
        return f"{self.summary(0)} after {elapsed:.0f} s; lane {session.lane} ({self._now[0].lane}), {memory}"

    def _any_config(self) -> TransportConfig:
        choose = self._random.choice
        return replace(
            _DEFAULT,
            chunk_bytes=choose((4096, 64 << 10, 1 * MIB, 4 * MIB)),
            inline_bytes=choose((0, 4096, 64 << 10, 1 * MIB)),
            pool_chunks=choose((2, 4, 16)),
            queue_bytes=choose((1, 16, 256)) * MIB,
            receive_limit_bytes=choose((1, 16, 256)) * MIB,
            shm_bytes=choose((1, 16, 256)) * MIB,
            shm_hold_bytes=choose((0, 64 << 10, 512 << 10)),
            spin_us=choose((0, 250)),
            checksum=choose((False, True)),
        )


def _addresses(scheme: str, folder: Path, index: int) -> Iterator[str]:
    """Where rank 0 and rank 1 bind."""
    if scheme == "ipc":
        yield from (f"ipc://{folder}/{index}-{rank}" for rank in (0, 1))
        return
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [server.getsockname()[1] for server in (one, other)]
    yield from (f"127.0.0.1:{port}" for port in ports)


def _shared_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("zmqpp*")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--lane", action="append", choices=LANES, help="may be repeated; default: all")
    arguments: Any = parser.parse_args()
    lanes = arguments.lane or list(LANES)
    print(f"soak: {arguments.seconds:g} s, lanes {', '.join(lanes)}, --seed {arguments.seed}", flush=True)
    before, wrong = _shared_files(), 0
    soak = Soak(arguments.seed, lanes, arguments.seconds)
    try:
        soak.run()
    except Wrong as error:
        print(f"soak: {error}", file=sys.stderr)
        wrong = 1
    finally:
        soak.close()
    if left := _shared_files() - before:
        print(f"soak: left in /dev/shm: {', '.join(sorted(left))}", file=sys.stderr)
        wrong += 1
    print(soak.summary(wrong), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
