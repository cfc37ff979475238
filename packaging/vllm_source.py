"""Fetch the Python sources of a vLLM release, without installing it: for tests/contract/test_next_vllm.py.

    python3 packaging/vllm_source.py 0.33.0        into build/vllm-0.33.0-source

They come out of its wheel, which pip downloads (some hundred megabytes) and which is not kept.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+\.\d+\.\d+\w*", sys.argv[1]):
        print("give a release: vllm_source.py 0.33.0", file=sys.stderr)
        return 2
    target = ROOT / "build" / f"vllm-{sys.argv[1]}-source"
    if target.exists():
        print(f"{target} is there already")
        return 0
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            folder,
        ]
        if code := subprocess.run([*command, f"vllm=={sys.argv[1]}"], check=False).returncode:
            return code
        [wheel] = Path(folder).glob("*.whl")
        fresh = Path(folder) / "sources"
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("vllm/") and name.endswith(".py"):
                    archive.extract(name, fresh)
        fresh.rename(target)
    print(f"{target}: {sum(1 for _ in target.rglob('*.py'))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
