"""Batched evaluation of masked heads on a GPU, random weights: ``scripts/gpu-check``, or ``python -m benchmarks.gpu`` alone."""
