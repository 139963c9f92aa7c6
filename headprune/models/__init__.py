"""The only place that finds, reads and writes models."""
