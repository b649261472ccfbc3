"""Applying an adapter to a checkpoint: check, match to tensors, merge, card."""
