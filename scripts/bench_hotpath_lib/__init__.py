"""The parts of scripts/bench_hotpath."""
