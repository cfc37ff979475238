"""CUDA and the processes that play the peer are there before the first test looks around."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.fault import peer
from tests.gpu.device import DEVICE, LANES, assert_works, memory_comes_back, warm_up
from tests.lanes import Lane


@pytest.fixture(scope="session", autouse=True)
def _device_and_peers() -> None:
    peer.start_fork_server()
    warm_up()


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    """Each lane for tensors of the device."""
    yield Lane(request.param, tmp_path_factory.mktemp("g"))


@pytest.fixture
def memory_and_context_survive() -> Iterator[None]:
    """Looked at when the test's own tensors are gone."""
    with memory_comes_back():
        yield
    assert_works()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """`make test-gpu` without a GPU: every module was skipped, which is no failure; the summary says why."""
    none_here = DEVICE.type == "cuda" and not torch.cuda.is_available()
    if none_here and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
