"""Builds C++ code for tests: each kind of build in a folder of its own under build/, which the next one continues."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FLAGS = "-Og -g1"
"""With two sanitizers at once twice as fast to compile as -O1; reports name lines."""


class BuildError(Exception):
    """What was run, and everything it printed."""


@dataclass(frozen=True)
class Kind:
    """One way to build everything."""

    name: str
    sanitize: str = ""
    """For gcc's -fsanitize."""
    module: bool = False
    """With the extension, in a package that stands in for zmqpp: see `package`."""
    definitions: dict[str, str] = field(default_factory=dict)
    """More of CMake's -D."""

    @property
    def folder(self) -> Path:
        return ROOT / "build" / self.name

    @property
    def package(self) -> Path:
        """Where a `zmqpp` with this build's extension can be imported from."""
        return self.folder / "package"


CTEST = Kind("ctest", "address,undefined")
"""What `make test` runs: both at once, because one build is quicker than two."""


def build(kind: Kind, *targets: str) -> Path:
    """Configure and build; returns the folder.

    Args:
        targets: of CMake; none = all.
    Raises:
        BuildError: with the compiler's output.
    """
    if kind.module:
        _link_package(kind.package / "zmqpp")
    cmake = _program("cmake")
    configure = [cmake, "-S", str(ROOT), "-B", str(kind.folder), *_settings(kind)]
    try:
        _run(configure)
    except BuildError:
        # Its cache may name tools that are gone, such as those of another environment.
        shutil.rmtree(kind.folder / "CMakeFiles", ignore_errors=True)
        (kind.folder / "CMakeCache.txt").unlink(missing_ok=True)
        _run(configure)
    chosen = [word for target in targets for word in ("--target", target)]
    _run([cmake, "--build", str(kind.folder), "--parallel", str(os.cpu_count() or 1), *chosen])
    return kind.folder


def run_ctest(kind: Kind, *arguments: str, capture: bool) -> str:
    """Run the tests of a finished build; returns what was printed, if it was captured.

    Raises:
        BuildError: a test failed.
    """
    command = [
        *fixed_addresses(kind),
        _program("ctest"),
        "--test-dir",
        str(kind.folder),
        "--output-on-failure",
        *arguments,
    ]
    return _run(command, capture=capture)


def fixed_addresses(kind: Kind) -> list[str]:
    """A prefix for commands: ThreadSanitizer of gcc 12 dies where the kernel scatters memory too widely."""
    command = ["setarch", platform.machine(), "-R"]
    if kind.sanitize != "thread" or shutil.which("setarch") is None:
        return []
    allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    return command if allowed else []


def _settings(kind: Kind) -> list[str]:
    settings = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_FLAGS": _FLAGS,
        "ZMQPP_TESTS": "ON",
        "ZMQPP_MODULE": "ON" if kind.module else "OFF",
        "ZMQPP_SANITIZE": kind.sanitize,
        "Python_EXECUTABLE": sys.executable,
        **kind.definitions,
    }
    if kind.module:
        import pybind11

        settings["CMAKE_LIBRARY_OUTPUT_DIRECTORY"] = str(kind.package / "zmqpp")
        settings["pybind11_DIR"] = pybind11.get_cmake_dir()
    ninja = shutil.which("ninja", path=_path())
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    return [*generator, *(f"-D{name}={value}" for name, value in settings.items())]


def _link_package(folder: Path) -> None:
    """Everything of zmqpp but its extension, which this build puts there."""
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():
        if link.is_symlink():
            link.unlink()
    for source in (ROOT / "zmqpp").iterdir():
        if source.suffix != ".so" and source.name != "__pycache__":
            (folder / source.name).symlink_to(source)


def _path() -> str:
    """The environment's own tools first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _program(name: str) -> str:
    found = shutil.which(name, path=_path())
    if found is None:
        raise BuildError(f"{name} is needed to build the C++ tests: pip install cmake")
    return found


def _run(command: list[str], *, capture: bool = True) -> str:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"exit code {done.returncode}: {' '.join(command)}\n{done.stdout or ''}")
    return done.stdout or ""
