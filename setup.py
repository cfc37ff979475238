"""Builds the extension `zmqpp._engine` with CMake; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Runs CMake where setuptools would call the compiler."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build into where setuptools expects the module (the package itself if editable)."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Anew each time: CMake's cache would go on naming the tools of a build environment that is gone.
        build_dir = (Path(self.build_temp) / "cmake").resolve()
        shutil.rmtree(build_dir, ignore_errors=True)
        build_dir.mkdir(parents=True)
        subprocess.run(
            [
                *("cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            ],
            check=True,
        )
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build_dir), "--parallel", jobs], check=True)


setup(ext_modules=[Extension("zmqpp._engine", sources=[])], cmdclass={"build_ext": CMakeBuild})
