"""See :mod:`benchmarks.memory.measure`: processes that are started afresh find functions there, and not in a ``__main__``."""

from benchmarks.memory.measure import main

if __name__ == "__main__":
    main()
