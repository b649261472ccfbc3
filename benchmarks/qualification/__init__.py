"""The parts of `benchmarks/gpu.py`, their reports and tables, and their processes."""
