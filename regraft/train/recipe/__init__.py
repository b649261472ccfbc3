"""A training recipe: its YAML, and a schema with a file for each group of blocks."""
