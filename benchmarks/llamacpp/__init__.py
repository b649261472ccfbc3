"""The parts of `benchmarks/llama_cpp.py`."""
