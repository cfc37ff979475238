"""A /dev/shm of 1 MB, as some containers have it: the pipeline answers as ever, and says which way its tensors go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.machine import check_possible, one_machine
from tests.integration.serving import ENVIRONMENT, long_only
from zmqpp.models import docs_llama


@long_only
def test_a_pipeline_with_1_mb_of_shared_memory_computes_the_tokens_of_one_process(tmp_path: Path) -> None:
    check_possible()
    check = [sys.executable, "-m", "zmqpp", "check", "--num-stages", "2", "--log-dir", str(tmp_path / "logs")]
    check += ["--against", str(docs_llama()), str(docs_llama())]
    command = "mount -o remount,size=1m /dev/shm && df /dev/shm && exec " + " ".join(check)
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    output = tmp_path / "output"
    with one_machine("zmqpp-small", "") as machine, output.open("wb") as log:
        try:
            code = machine.start(command, log, environment).wait(500)
        except subprocess.TimeoutExpired:
            code = None
    logs = "".join(path.read_text()[-3000:] for path in sorted((tmp_path / "logs").glob("*.log")))
    assert code == 0, output.read_text()[-3000:] + logs
    assert "1024" in output.read_text()
    print(output.read_text()[-1500:])
