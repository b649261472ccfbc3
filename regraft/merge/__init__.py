"""Merging models: recipes, the maths of the methods, and their streamed execution."""
