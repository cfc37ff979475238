"""`make test` brings Chromium where it can, says one line where it cannot, and never fails for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """install.py on a machine of which only PATH and user are known."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "page_browser", raising=False)
    spec = importlib.util.spec_from_file_location("zmqpp_browser_install", PACKAGING / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH, empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return tmp_path


def add(programs: Path, *names: str) -> None:
    for name in names:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)


class Commands:
    """What would be run as root; the first `failing` of them fail."""

    def __init__(self, install: ModuleType, failing: int) -> None:
        self.run: list[str] = []
        self._failing = failing
        self._error = install.InstallError

    def __call__(self, command: list[str], **_: object) -> None:
        self.run.append("update" if "update" in command else "install")
        if len(self.run) <= self._failing:
            raise self._error("this failed with exit code 100: apt-get\nE: Unable to locate package chromium")


def test_browser_that_is_there_costs_nothing(
    install: ModuleType, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(programs, "chromium", "chromedriver", "apt-get")
    install.run = commands = Commands(install, 0)
    install.bring_browser()
    assert (commands.run, capsys.readouterr().out) == ([], "")


@pytest.mark.parametrize(("failing", "expected"), [(0, ["install"]), (1, ["install", "update", "install"])])
def test_root_on_debian_gets_it(
    install: ModuleType, programs: Path, failing: int, expected: list[str]
) -> None:
    add(programs, "apt-get")
    install.run = commands = Commands(install, failing)
    install.bring_browser()
    assert commands.run == expected


def test_machine_without_network_gets_one_line_and_goes_on(
    install: ModuleType, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(programs, "apt-get")
    install.run = Commands(install, 9)
    install.bring_browser()
    said = capsys.readouterr().out.splitlines()[-1]
    assert "they will be skipped: E: Unable to locate package chromium" in said


@pytest.mark.parametrize(("apt", "user", "why"), [(False, 0, "no apt-get"), (True, 1000, "only root")])
def test_whoever_cannot_install_it_is_told_what_to_install(
    install: ModuleType,
    programs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    apt: bool,
    user: int,
    why: str,
) -> None:
    add(programs, *(["apt-get"] if apt else []))
    monkeypatch.setattr("os.geteuid", lambda: user)
    install.run = commands = Commands(install, 0)
    install.bring_browser()
    out = capsys.readouterr().out
    assert why in out and "apt-get install chromium chromium-driver" in out and out.count("\n") == 1
    assert commands.run == []
