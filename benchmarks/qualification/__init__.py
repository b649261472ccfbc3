"""The parts of `benchmarks/gpu.py`, what they report to, and the processes they run in."""
