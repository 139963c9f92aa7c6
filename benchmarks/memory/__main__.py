"""See :mod:`benchmarks.memory.measure`, whose processes are started from there."""

import sys

from benchmarks.memory.measure import main

if __name__ == "__main__":
    sys.exit(main())
