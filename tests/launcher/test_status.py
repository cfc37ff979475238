"""`zmqpp status` as a user runs it, against a server that says what the test wants."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.browser.scripted import Scripted, pipeline, serving
from zmqpp.errors import ConfigError
from zmqpp.watch.remote import base_url

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "zmqpp", "status"]


@pytest.fixture
def script() -> Scripted:
    return Scripted(pipeline(3))


@pytest.fixture
def url(script: Scripted) -> Iterator[str]:
    with serving(script) as url:
        yield url


def status(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_one_look_shows_every_stage_and_the_events(url: str) -> None:
    done = status(url)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("meta-llama/Llama-3-8B  ready for 12 min  412.6 tokens/s  bubble 8.3%")
    # A hop has no time on stage 0.
    assert " ".join(lines[3].split()) == "0 10.0.0.1 0-8 shm 418.2 34.6 MB/s 0 13.10 ms - ready"
    assert " ".join(lines[4].split()) == "1 10.0.0.1 8-16 tcp 418.2 35.6 MB/s 1 13.10 ms 0.34 ms ready"
    assert "recovered   16 requests go on, none lost; 9.1 s" in done.stdout
    assert "\x1b" not in done.stdout


def test_stage_that_is_not_ready_is_exit_code_1_and_its_reason(url: str, script: Scripted) -> None:
    script.status.stages[1].state, script.status.stages[1].reason = "lost", "no sign of life for 5 s"
    done = status(url, "--once")
    assert done.returncode == 1
    assert "lost for 12 min: no sign of life for 5 s" in done.stdout


def test_names_from_the_network_cannot_steer_the_terminal(url: str, script: Scripted) -> None:
    script.status.model = "m\x1b]0;title\x07\x9b2J"
    script.status.stages[1].state, script.status.stages[1].reason = "lost", "r\x1b[2J\r\n"
    script.status.events[-1].text = "e\x1b[1A"
    done = status(url, "--once")
    assert not set("\x1b\x07\x9b\r") & set(done.stdout)
    assert "m\ufffd]0;title" in done.stdout and "e\ufffd[1A" in done.stdout


def test_pipeline_without_all_its_stages_is_exit_code_1(url: str, script: Scripted) -> None:
    script.status.total_stages = 4
    assert status(url, "--json").returncode == 1


def test_json_is_what_the_server_said(url: str) -> None:
    done = status(url.removeprefix("http://"), "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["state"], len(said["stages"]), said["version"]) == (0, "ready", 3, 1)


def test_nobody_there_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = status(f"127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"zmqpp: nobody listens on http://127.0.0.1:{port}")
    assert done.stderr.count("\n") == 1


def test_server_that_knows_no_status_is_named_as_what_it_may_be(url: str) -> None:
    done = status(url + "/elsewhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "knows no /pipeline/status: a plain vLLM" in done.stderr and done.stderr.count("\n") == 1


def test_live_table_goes_on_until_ctrl_c_and_ends_quietly(url: str, script: Scripted) -> None:
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, url, "--interval", "0.1"],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "140"},
    )
    os.close(theirs)
    try:
        assert "412.6 tokens/s" in _until(terminal, "412.6 tokens/s")
        script.status.tokens_per_s = 7.7
        assert "7.7 tokens/s" in _until(terminal, " 7.7 tokens/s")
        process.send_signal(signal.SIGINT)
        rest = _until(terminal, None)
        assert process.wait(20) == 0
        assert "Traceback" not in rest and "Error" not in rest
    finally:
        process.kill()
        process.wait(20)
        os.close(terminal)


def _until(terminal: int, wanted: str | None) -> str:
    """What is shown until `wanted` is among it; to the end when it is None."""
    seen = ""
    with suppress(OSError):  # the other side of the terminal was closed
        while wanted is None or wanted not in seen:
            piece = os.read(terminal, 65536)
            if not piece:
                break
            seen += piece.decode(errors="replace")
    return seen


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10.0.0.1:8080", "http://10.0.0.1:8080"),
        ("http://a/", "http://a"),
        ("http://a:1/pipeline", "http://a:1"),
        ("https://a/team/pipeline/status", "https://a/team"),
        ("[::1]:80", "http://[::1]:80"),
        ("localhost", "http://localhost"),
        ("8080", "http://127.0.0.1:8080"),
    ],
)
def test_address_may_be_written_in_many_ways(written: str, meant: str) -> None:
    assert base_url(written) == meant


@pytest.mark.parametrize("written", ["", "ftp://a", "a:port", "http://", "a:99999"])
def test_what_is_no_address_is_refused_in_one_line(written: str) -> None:
    with pytest.raises(ConfigError) as caught:
        base_url(written)
    assert "give HOST:PORT" in str(caught.value) and "\n" not in str(caught.value)
