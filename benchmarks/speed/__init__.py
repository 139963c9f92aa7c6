"""How fast exact ablation is, beside other ways to get the same numbers: ``python -m benchmarks.speed``."""
