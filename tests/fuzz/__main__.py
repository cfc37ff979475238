"""Gives each fuzz target changed inputs for a while; ends with 1 when one of them fails.

    python -m tests.fuzz [SECONDS] [cpp|python|stage ...]         seconds for all of them together; default 60

cpp: the C++ decoders, with libFuzzer where a clang++ has it, which finds its way by the branches that are taken;
otherwise with driver.cc, which changes the corpus at random. python: the Python decoders (decoders.py), with atheris
where it is installed. What these two found interesting is kept in build/fuzz/found for the next time. stage: a whole
stage process through its ports (stage.py), where vLLM is installed; its start comes on top of the seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.cpp.build import CTEST, ROOT, BuildError, Kind, build
from tests.fuzz.make_corpus import CORPUS

FOUND = ROOT / "build" / "fuzz" / "found"
_CLANG = ["clang++", *(f"clang++-{version}" for version in range(30, 10, -1))]
_LIBZMQ = [sys.executable, str(ROOT / "tests" / "cpp" / "libzmq_path.py")]


def main(seconds: float, parts: list[str]) -> int:
    parts = parts or list(PARTS)
    went_well = [PARTS[part](seconds / len(parts)) for part in parts]
    return 0 if all(went_well) else 1


def run_cpp(seconds: float) -> bool:
    clang = find_clang()
    what = f"libFuzzer of {clang}" if clang else "random changes of the corpus (no clang++ with libFuzzer)"
    print(f"fuzz: C++ decoders: {what}, {seconds:g} s in all", flush=True)
    targets = sorted(path.name for path in CORPUS.iterdir())
    try:
        folder = build(kind_for(clang), *(f"fuzz_{name}" for name in targets))
    except BuildError as error:
        print(error, file=sys.stderr)
        return False
    went_well = [run(folder, name, seconds / len(targets)) for name in targets]
    return all(went_well)


def run_python(seconds: float) -> bool:
    """Each target in a process of its own: atheris ends it, and one that grows is seen."""
    from tests.fuzz.decoders import TARGETS, is_guided

    print(f"fuzz: Python decoders, {seconds:g} s in all", flush=True)
    good = True
    for name in TARGETS:
        found = FOUND / f"python-{name}"
        command = [sys.executable, "-m", "tests.fuzz.decoders", name, str(seconds / len(TARGETS)), str(found)]
        before = len(list(found.glob("*")))
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        if done.returncode != 0:
            print(f"{done.stdout}\nfuzz: {name} (Python) failed", file=sys.stderr)
            good = False
            continue
        runs, kept = re.findall(r"Done (\d+) runs", done.stdout)[-1], len(list(found.glob("*"))) - before
        how = f"{kept} kept" if is_guided(name) else "at random"
        print(f"fuzz: {name} (Python): {runs} inputs, {how}", flush=True)
    return good


def run_stage(seconds: float) -> bool:
    if find_spec("vllm") is None:
        print("fuzz: no stage: vLLM is not installed", flush=True)
        return True
    print(f"fuzz: a whole stage, {seconds:g} s once it is up", flush=True)
    return subprocess.run([sys.executable, "-m", "tests.fuzz.stage", str(seconds)], cwd=ROOT).returncode == 0


PARTS = {"cpp": run_cpp, "python": run_python, "stage": run_stage}


def kind_for(clang: str | None) -> Kind:
    if clang is None:
        return CTEST
    return Kind("fuzz", CTEST.sanitize, definitions={"CMAKE_CXX_COMPILER": clang, "ZMQPP_LIBFUZZER": "ON"})


def find_clang() -> str | None:
    """The first clang++ that links a program with libFuzzer."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cc")
        source.write_text('extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }')
        for name in filter(shutil.which, _CLANG):
            command = [name, "-fsanitize=fuzzer,address,undefined", str(source), "-o", f"{folder}/empty"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return name
    return None


def run(folder: Path, name: str, seconds: float) -> bool:
    """One target, with one line about it; everything it printed when it failed."""
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    program = folder / "tests" / "fuzz" / f"fuzz_{name}"
    options = [f"-max_total_time={max(1, round(seconds))}", "-seed=0", "-max_len=8192", "-timeout=20"]
    options.append(f"-artifact_prefix={FOUND}/{name}-")
    before = len(list(found.iterdir()))
    done = subprocess.run(
        [program, *options, found, CORPUS / name],
        env={**os.environ, "ZMQPP_ZMQ_LIBRARY": libzmq()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        print(
            f"{done.stdout}\nfuzz: {name} failed; keep its input in tests/fuzz/corpus/{name}", file=sys.stderr
        )
        return False
    runs = re.findall(r"Done (\d+) runs|(\d+) changed ones", done.stdout)[-1]
    print(f"fuzz: {name}: {max(runs)} inputs, {len(list(found.iterdir())) - before} kept", flush=True)
    return True


def libzmq() -> str:
    return subprocess.run(_LIBZMQ, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0, sys.argv[2:]))
