"""The install step: what is done is not done again, what was interrupted goes on, nothing outlives it."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging" / "install.py"


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"zmqpp_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up.
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def install() -> ModuleType:
    return loaded(SCRIPT)


class Steps:
    """Three steps that note their own running; `broken` fails."""

    def __init__(self, install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.keys = {"venv": "1", "vllm": "1", "zmqpp": "1"}
        self.broken = ""
        self._install = install
        monkeypatch.setattr(install, "venv_step", lambda *_, **__: self.step("venv"))
        monkeypatch.setattr(install, "vllm_step", lambda *_: self.step("vllm"))
        monkeypatch.setattr(install, "zmqpp_step", lambda *_: self.step("zmqpp"))

    def step(self, name: str) -> object:
        def act() -> None:
            if name == self.broken:
                raise self._install.InstallError(name)
            self.ran.append(name)

        return self._install.Step(name, name, self.keys[name], act)

    def run(self, venv: Path) -> list[str]:
        self.ran = []
        self._install.install(venv)
        return self.ran


def test_second_install_does_nothing(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = Steps(install, monkeypatch)
    assert steps.run(tmp_path) == ["venv", "vllm", "zmqpp"]
    assert steps.run(tmp_path) == []


def test_failed_install_goes_on_at_the_failed_step(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = Steps(install, monkeypatch)
    steps.broken = "vllm"
    with pytest.raises(install.InstallError):
        steps.run(tmp_path)
    steps.broken = ""
    assert steps.run(tmp_path) == ["vllm", "zmqpp"]


def test_changed_sources_rebuild_zmqpp_only_and_a_changed_environment_everything(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = Steps(install, monkeypatch)
    steps.run(tmp_path)
    steps.keys["zmqpp"] = "2"
    assert steps.run(tmp_path) == ["zmqpp"]
    steps.keys["venv"] = "2"
    assert steps.run(tmp_path) == ["venv", "vllm", "zmqpp"]


def test_failing_command_shows_its_output(install: ModuleType) -> None:
    with pytest.raises(install.InstallError, match=r"(?s)exit code 3.*what went wrong"):
        install.run([sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"])


class Commands:
    """In place of processes: what was started, awaited and ended, in order."""

    def __init__(self, install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self.broken = ""
        commands = self

        class Command:
            def __init__(self, command: list[str], *_: object) -> None:
                last = command[-1]
                self.name = {"--editable": "build"}.get(command[-2], "vllm" if "vllm==" in last else "other")
                commands.seen.append(f"start {self.name}")

            def wait(self) -> None:
                commands.seen.append(f"wait {self.name}")
                if self.name == commands.broken:
                    raise install.InstallError(self.name)

            def end(self) -> None:
                commands.seen.append(f"end {self.name}")

        monkeypatch.setattr(install, "Command", Command)
        monkeypatch.setattr(install, "has_gpu", lambda: True)  # Then vLLM is one command.
        monkeypatch.setattr(install, "make_venv", lambda *_: None)


def test_zmqpp_is_built_once_and_beside_vllms_installation(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = Commands(install, monkeypatch)
    install.install(tmp_path)
    assert commands.seen[:4] == ["start build", "start vllm", "wait vllm", "end vllm"]
    assert commands.seen.count("start build") == commands.seen.count("wait build") == 1
    assert commands.seen[-1] == "end build"


def test_without_vllm_the_build_ends_too_and_nothing_counts_as_done(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = Commands(install, monkeypatch)
    commands.broken = "vllm"
    with pytest.raises(install.InstallError, match="vllm"):
        install.install(tmp_path)
    assert commands.seen == ["start build", "start vllm", "wait vllm", "end vllm", "end build"]
    commands.broken, commands.seen = "build", []
    with pytest.raises(install.InstallError, match="build"):
        install.install(tmp_path)
    commands.broken, commands.seen = "", []
    install.install(tmp_path)
    assert "start build" in commands.seen and "start vllm" not in commands.seen


def test_interrupted_command_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # A child with a grandchild that ignores SIGTERM, as a build with its compilers may.
    deaf = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN);"
        f"open({str(pids)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    child = f"import subprocess,sys; subprocess.run([sys.executable, '-c', {deaf!r}])"
    outer = (
        f"import sys, signal; sys.path.insert(0, {str(SCRIPT.parent)!r}); import install\n"
        "signal.signal(signal.SIGINT, install._on_signal)\n"
        f"install.run([sys.executable, '-c', {child!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", outer], stderr=subprocess.DEVNULL) as process:
        while not (pids.exists() and pids.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.wait(10)
    deadline = time.monotonic() + 5
    while Path("/proc", pids.read_text()).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path("/proc", pids.read_text()).exists()


def test_compiler_is_asked_for_by_the_package_that_brings_it(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        install.InstallError, match=r"(?s)apt install g\+\+.*dnf install gcc-c\+\+.*xcode-select"
    ):
        install.check_compiler()


def test_the_matrix_reads_which_versions_there_are_and_counts_what_happened(tmp_path: Path) -> None:
    from zmqpp.vllm.compat import SUPPORTED_VLLM

    matrix = loaded(SCRIPT.with_name("vllm_matrix.py"))
    assert matrix.supported() == list(SUPPORTED_VLLM)
    test = tmp_path / "test_some.py"
    test.write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): pass\n"
        "def test_c(): assert False\n"
        "def test_d(): pytest.skip('no')\n"
        "@pytest.fixture\n"
        "def broken(): raise RuntimeError\n"
        "def test_e(broken): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junit-xml={report}",
        str(test),
    ]
    code = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode
    row = matrix.read("0.30", report, code, 1.0)
    assert (row.passed, row.failed, row.skipped, row.is_good) == (2, 2, 1, False)
    lost = matrix.read("0.31", tmp_path / "none.xml", 139, 2.0)
    assert not lost.is_good and matrix.table([row, lost]).splitlines() == [
        "vLLM      passed  failed  skipped  seconds",
        "0.30           2       2        1        1",
        "0.31           0       0        0        2  pytest ended with 139",
    ]


def test_another_vllm_is_a_release(install: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert install.parse(["--vllm", "0.30", "there"]).vllm == "0.30"
    assert (install.wanted("0.30"), install.wanted("0.31.2")) == ("==0.30.*", "==0.31.2")
    given = install.parse([])
    assert given.vllm == install.VLLM_VERSION and not given.bench
    with pytest.raises(SystemExit):
        install.parse(["--vllm", "0.30; rm"])
    assert "give a release" in capsys.readouterr().err


def test_what_is_said_of_versions_is_what_the_code_supports(install: ModuleType) -> None:
    from zmqpp.vllm.compat import SUPPORTED_VLLM, minor

    assert minor(install.VLLM_VERSION) in SUPPORTED_VLLM
    root = SCRIPT.parents[1]
    assert f'version = "{install.VLLM_VERSION}+cpu"' in install.METADATA.read_text()
    said = f"{SUPPORTED_VLLM[0]} to {SUPPORTED_VLLM[-1]}"
    for name in ("README.md", "CHANGELOG.md"):
        assert f"vLLM {said}" in (root / name).read_text(), name
