"""Servers as forks of the zygote: vLLM is imported once a run, not once a process.

What `vllm serve` starts by itself, such as its engine, imports it anew all the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import pytest

from tests.integration.zygote import Zygote
from zmqpp.pipeline import process

_MODULE = "vllm.entrypoints.cli.main"


@contextmanager
def forked_stages(zygote: Zygote | None) -> Iterator[None]:
    """Meanwhile launchers of this process fork their stages from `zygote`, if there is one."""
    with pytest.MonkeyPatch.context() as patch:
        if zygote is not None:
            patch.setattr(process, "spawn", partial(fork, zygote))
        yield


def fork(zygote: Zygote, command: list[str], log: int, environment: Mapping[str, str]) -> Forked:
    """As `process.spawn`."""
    assert command[:3] == [sys.executable, "-m", _MODULE]
    return Forked(zygote.adopt(command, log, environment))


class Forked:
    """What `subprocess.Popen` is to who has started a process, of a fork."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._collect(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _collect(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode
