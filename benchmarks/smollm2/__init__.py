"""The parts of `benchmarks/smollm2_transfer.py`."""
