"""Measured figures: `python -m benchmarks.NAME [--quick]` prints one line of JSON, last."""
