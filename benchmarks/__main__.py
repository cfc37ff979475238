"""Which benchmark shall run?

python -m benchmarks link        zmqpp's lanes beside everything else that moves tensors between processes
python -m benchmarks checksum    what checksums cost
"""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks import checksum, link, plot
from benchmarks.channel import PeerFailed
from benchmarks.payload import Mismatch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure zmqpp.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (link, checksum, plot):
        one = commands.add_parser(module.NAME, help=module.__doc__, description=module.__doc__)
        module.add_arguments(one)
        one.set_defaults(run=module.run)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        return int(arguments.run(arguments))
    except (Mismatch, PeerFailed) as error:
        print(f"benchmarks: {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
