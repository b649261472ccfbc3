"""Text for training: sources, tokens, rows, positions and batches, and the toys' language."""
