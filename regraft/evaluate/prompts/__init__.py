"""Text for prompts, and prompts of a given length."""
