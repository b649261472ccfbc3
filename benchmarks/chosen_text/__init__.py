"""Parts of benchmarks/data_training.py."""
