"""Text for training: sources, rows and packing, and the small world of the demo."""
