"""`zmqpp doctor`, as a user runs it: on this machine, and where hardly anything is installed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ROOT, assert_mistake, zmqpp
from zmqpp.doctor import Finding, examine
from zmqpp.pipeline.ports import free_base_port, free_port

pytest.importorskip("vllm", reason="the doctor calls a machine without vLLM ill")


def by_subject(findings: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {finding["subject"]: finding for finding in findings}


def test_busy_port_is_a_problem_that_names_the_process_and_the_option() -> None:
    base = free_base_port(3)
    port, ring = base + 3, ("--base-port", str(base), "--num-stages", "3")
    with socket.create_server(("127.0.0.1", port)):
        done = zmqpp("doctor", "--json", *ring, "--api-port", str(free_port()))
    assert done.returncode == 1, done
    told = json.loads(done.stdout)
    assert told["ok"] is False
    found = by_subject(told["findings"])
    finding = found[f"port {port}"]
    assert finding["level"] == "problem"
    assert f"in use by pid {os.getpid()} (" in finding["text"] and "--base-port" in finding["remedy"]
    others = {subject: finding["level"] for subject, finding in found.items() if subject != f"port {port}"}
    assert "problem" not in others.values(), others
    assert {"python", "vllm", "plugin", "extension", "libzmq", "torch", "transformers"} <= others.keys()


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return str(folder / "bin" / "python")


def test_without_vllm_and_torch_it_says_what_is_missing_and_what_to_do(bare_python: str) -> None:
    done = subprocess.run(
        [bare_python, "-m", "zmqpp", "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert any(line.startswith("✗ torch: not installed") and "pip install" in line for line in lines), lines
    assert any(line.startswith("✗ libzmq: pyzmq does not load") for line in lines), lines
    assert any(line.startswith("✓ memory: ") for line in lines), lines
    assert any(line.startswith("✗ vllm: not installed") for line in lines), lines
    assert any(
        line.startswith("✗ requirements: msgspec, numpy, rich, httpx not installed") for line in lines
    ), lines
    assert "could not be looked at" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--num-stages 1", "at least 2 stages"),
        ("--num-stages 3 --hosts a,b", "--num-stages 3 but --hosts names 2"),
        ("--hosts a", "--hosts names 1 host"),
        ("--base-port 65535", "1..65535"),
        ("--api-port 0", "API port 0"),
        ("--dtype half", "unrecognized arguments: --dtype half"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(words: str, said: str) -> None:
    assert_mistake(zmqpp("doctor", *words.split()), said)


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on() -> None:
    def odd() -> Iterator[Finding]:
        yield Finding("odd", "ok", "so far")
        raise OSError("the machine\nis odd")

    findings = list(examine([("odd", odd), ("even", lambda: [Finding("even", "ok", "fine")])]))
    assert [str(finding) for finding in findings] == [
        "✓ odd: so far",
        "! odd: could not be looked at (OSError: the machine is odd); please report this",
        "✓ even: fine",
    ]


def test_help_shows_an_example(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zmqpp", "doctor", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "zmqpp doctor --hosts 10.0.0.1,10.0.0.2" in done.stdout
