"""`python -m benchmarks`: in a checkout, the same as `python -m zmqpp.bench`."""

import sys

from zmqpp.bench.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
