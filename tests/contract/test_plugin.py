"""vLLM with the plugin beside it: what it does to its own command goes through it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test` installs it", allow_module_level=True)

pytestmark = pytest.mark.vllm
PARSED = """
import pickle
import vllm.entrypoints.cli.serve as serve
from zmqpp.vllm import plugin

plain = serve.ServeSubcommand.cmd
plugin.register()
plugin.register()
assert serve.ServeSubcommand.cmd is plugin.serve and plugin._plain_serve is plain
assert pickle.loads(pickle.dumps(serve.ServeSubcommand.cmd)) is plugin.serve
print("done")
"""


def test_the_command_can_be_sent_to_another_process() -> None:
    """vLLM has it among the arguments that it gives to each API server of several, with our flags or without."""
    ended = subprocess.run([sys.executable, "-c", PARSED], capture_output=True, text=True, timeout=120)
    assert ended.stdout.split()[-1:] == ["done"], ended.stderr[-2000:]
