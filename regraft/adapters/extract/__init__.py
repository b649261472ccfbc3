"""Extracting the change between two checkpoints as an adapter: select, decompose, choose ranks."""
