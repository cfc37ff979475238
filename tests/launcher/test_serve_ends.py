"""How `zmqpp serve` ends, over fake stages: its exit code, and the one line."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zmqpp.cli import main, serve_plan
from zmqpp.pipeline.order_server import SOCKET_NAME
from zmqpp.pipeline.plan import PipelinePlan
from zmqpp.pipeline.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))
from fake_pipeline import fake_pipeline


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Makes `zmqpp serve` start fakes with the given behaviours; returns the arguments to run it with."""

    def arrange(*behaviours: str) -> list[str]:
        def plans(*_: object) -> list[PipelinePlan]:
            return [fake_pipeline(*behaviours)]

        monkeypatch.setattr(serve_plan, "serve_plans", plans)
        return ["serve", "m", "--port", str(free_port()), "--log-dir", str(tmp_path / "logs")]

    return arrange


def test_drained_and_stopped_it_ends_with_0(
    served: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, codes = served("ok", "ok"), list[int]()

    def stop() -> None:
        while not (tmp_path / "logs" / SOCKET_NAME).exists():
            time.sleep(0.01)
        codes.append(main(["drain", "--stop", "--log-dir", str(tmp_path / "logs")]))

    thread = threading.Thread(target=stop)
    thread.start()
    assert main(words) == 0
    thread.join()
    out, err = capsys.readouterr()
    assert codes == [0] and "no request is left; the pipeline ends" in out
    assert "draining: new requests are refused" in out and err == ""


def test_a_stage_that_cannot_be_replaced_is_the_last_line_and_exit_code_1(
    served: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*served("ok", "worse"), "--max-restarts", "1"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(
        "zmqpp: stage 1 ended (exit code 1): LayerRangeError: gap: layers 3-4 belong to no stage"
    )
    assert err.endswith("given up after 1 restarts in a row\n") and err.count("\n") == 1
    assert [word in out for word in ("ready:", "lost:", "restarting:")] == [True] * 3


def test_a_negative_drain_is_a_mistake(
    served: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*served("ok", "ok"), "--drain-timeout", "-1"]) == 2
    assert "--drain-timeout at least 0" in capsys.readouterr().err
