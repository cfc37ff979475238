"""`zmqpp keygen`: the key pair that keeps strangers out of a pipeline."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from zmqpp.keys import FILE_NAME, make_keys

__all__ = ["add_to", "run"]

_EXAMPLE = """\
example:
  zmqpp keygen pipeline-keys
      then copy the folder to every machine of the pipeline, readable by its user alone:
  rsync -a pipeline-keys/ 10.0.0.2:pipeline-keys/
      and start every stage with it:
  zmqpp stage 1 --model MODEL --hosts 10.0.0.1,10.0.0.2 --pipeline-curve-dir pipeline-keys

Who has the folder is part of the pipeline: one pair for each pipeline, and no copy in an image or a repository.
To change the keys, make new ones in another folder, copy it, and start all stages anew with it.
"""


def add_to(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "keygen",
        help="make the keys that keep strangers out of a pipeline",
        description=f"Make a pipeline's key pair, DIR/{FILE_NAME}, for encrypted links that let nobody else in.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="is made, for this user alone; a key that is there stays")
    add("--json", action="store_true", help="print what was made as JSON: file, public key")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the pair, and say what to do with it."""
    path, pair = make_keys(arguments.folder)
    if arguments.json:
        print(json.dumps({"file": str(path), "public": pair.public}))
        return 0
    print(
        f"made {path} (public key {pair.public})\n"
        f"next: copy {path.parent} to every machine of the pipeline, and start every stage with\n"
        f"  --pipeline-curve-dir {path.parent}      or ZMQPP_CURVE_DIR={path.parent} in its environment"
    )
    return 0
