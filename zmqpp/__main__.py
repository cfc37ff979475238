"""`python -m zmqpp` is the `zmqpp` command."""

import sys

from zmqpp.cli import main

if __name__ == "__main__":
    sys.exit(main())
